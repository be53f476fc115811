"""Rules as experiments write them: by name, with options, or by patterns of layers."""

from collections.abc import Mapping
from typing import Any

from apical import rules


def rule_assignment(rule: str | dict[str, Any], *, norm: bool = False) -> Any:
    """What ``apical.convert`` takes: a rule, or a mapping from patterns to rules.

    Args: norm: rules that do not name their scale get the scale ``norm``.
    """
    if isinstance(rule, str) or "rule" in rule:
        return _normed(rules.build(rule), rule) if norm else rules.build(rule)
    return {pattern: rule_assignment(value, norm=norm) for pattern, value in rule.items()}


def _normed(rule: rules.Rule, said: Any) -> rules.Rule:
    """The rule, and any within, at the scale ``norm`` where none was said."""
    known = said if isinstance(said, Mapping) else {}
    if isinstance(inner := getattr(rule, "inner", None), rules.Rule):
        return rules.build(rule, inner=_normed(inner, known.get("inner")))
    if "scale" in known or getattr(rule, "scale", None) != "init":
        return rule
    return rules.build(rule, scale="norm")


def rule_values(rule: str | dict[str, Any], *, norm: bool = False) -> dict[str, Any]:
    """The rule in one form, however it was given, for the key. Args: norm: as above."""
    assignment = rule_assignment(rule, norm=norm)
    if not isinstance(assignment, dict):
        return rules.to_dict(assignment)
    # an object in JSON has no order once sorted, but here the first match wins
    return {"patterns": [[p, rules.to_dict(r)] for p, r in assignment.items()]}


def rule_label(rule: str | dict[str, Any]) -> str:
    """One word for a table or a folder name."""
    if isinstance(rule, str):
        return rule
    return str(rule["rule"]) if "rule" in rule else "mixed"
