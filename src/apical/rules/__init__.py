"""The learning rules, and the table of their names."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from apical.naming import unknown
from apical.rules.base import BroadcastRule, Rule, TransportRule
from apical.rules.bp import BP
from apical.rules.dfa import DFA
from apical.rules.fa import FA
from apical.rules.kolen_pollack import KolenPollack
from apical.rules.sign import SignSymmetric

__all__ = [
    "BP",
    "DFA",
    "FA",
    "RULES",
    "BroadcastRule",
    "KolenPollack",
    "Rule",
    "SignSymmetric",
    "TransportRule",
    "build",
    "from_dict",
    "spell",
    "to_dict",
]

RULES: dict[str, Rule] = {
    "bp": BP(),
    "brsf": SignSymmetric("fresh"),
    "dfa": DFA(),
    "fa": FA(),
    "frsf": SignSymmetric("fixed"),
    "kp": KolenPollack(),
    "usf": SignSymmetric("uniform"),
}


def build(rule: str | Rule | Mapping[str, Any], **options: Any) -> Rule:
    """The rule that a name, a rule or a dictionary stands for.

    Args:
        rule: a name of `RULES`; `package.module:Name` of a rule class or object; a rule; or
            what `to_dict` gives.
        options: fields to replace.

    Raises: ValueError for an unknown name or field, naming the nearest and the allowed ones.

    >>> build("fa", init="kaiming")
    FA(constrain_weights=False, init='kaiming', scale='init')
    """
    if isinstance(rule, Mapping):
        return from_dict({**rule, **options})
    if isinstance(rule, str):
        rule = _named(rule)
    if not isinstance(rule, Rule):
        raise ValueError(f"a rule is a name or a Rule object, not {rule!r}")
    known = [field.name for field in fields(rule)]
    for option in options:
        if option not in known:
            raise unknown(f"option of {type(rule).__name__}", option, known)
    return replace(rule, **options)


def to_dict(rule: Rule) -> dict[str, Any]:
    """A JSON-ready form: its name, and the fields that differ from the named rule's.

    >>> to_dict(FA(init="kaiming"))
    {'rule': 'fa', 'init': 'kaiming'}
    """
    name = rule.name
    if type(RULES.get(name)) is not type(rule):
        name = f"{type(rule).__module__}:{type(rule).__qualname__}"
    base = _named(name)
    changed = {
        field.name: getattr(rule, field.name)
        for field in fields(rule)
        if getattr(rule, field.name) != getattr(base, field.name)
    }
    return {"rule": name, **changed}


def spell(rule: Rule) -> str:
    """A rule in short: its name and the options that differ from the named rule's.

    >>> spell(SignSymmetric("fixed", scale="norm"))
    "frsf(scale='norm')"
    """
    form = to_dict(rule)
    name = form.pop("rule")
    options = ", ".join(f"{key}={value!r}" for key, value in form.items())
    return f"{name}({options})" if options else name


def from_dict(form: Mapping[str, Any]) -> Rule:
    """The rule of `to_dict`. Raises: ValueError if the key "rule" is missing, or as `build`."""
    options = dict(form)
    if "rule" not in options:
        raise ValueError(f"a rule in dictionary form needs the key 'rule'; got {dict(form)!r}")
    return build(options.pop("rule"), **options)


def _named(name: str) -> Rule:
    if ":" not in name:
        if name not in RULES:
            raise unknown("rule", name, RULES)
        return RULES[name]
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"rule {name!r}: {error}") from None
    return found() if isinstance(found, type) else found
