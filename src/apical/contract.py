"""The contract of every rule, as tests that its author can run."""

from __future__ import annotations

from apical.rules import Rule


def check_rule(rule: Rule | str) -> None:
    raise NotImplementedError
