"""The learning rules, and the table of their names."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from apical.names import from_path, unknown
from apical.rules.alignment_losses import AlignmentLoss
from apical.rules.base import BroadcastRule, Needs, Rule, TransportRule
from apical.rules.bp import BP
from apical.rules.dfa import DFA
from apical.rules.direct import DRTP, DirectKolenPollack, DirectLowDimensional, SignDFA
from apical.rules.fa import FA
from apical.rules.frozen import Frozen
from apical.rules.kolen_pollack import KolenPollack
from apical.rules.local import LocalError
from apical.rules.low_dimensional import LowDimensional
from apical.rules.mirror import WeightMirror
from apical.rules.product import ProductFeedback
from apical.rules.redrawn import Redrawn
from apical.rules.sign import SignSymmetric
from apical.rules.wrappers import Quantised, Sparse

__all__ = [
    "BP",
    "DFA",
    "DRTP",
    "FA",
    "RULES",
    "AlignmentLoss",
    "BroadcastRule",
    "DirectKolenPollack",
    "DirectLowDimensional",
    "Frozen",
    "KolenPollack",
    "LocalError",
    "LowDimensional",
    "Needs",
    "ProductFeedback",
    "Quantised",
    "Redrawn",
    "Rule",
    "SignDFA",
    "SignSymmetric",
    "Sparse",
    "TransportRule",
    "WeightMirror",
    "build",
    "from_dict",
    "spell",
    "to_dict",
]

RULES: dict[str, Rule] = {
    "aa": AlignmentLoss("activation"),
    "bp": BP(),
    "brsf": SignSymmetric("fresh"),
    "dfa": DFA(),
    "dkp": DirectKolenPollack(),
    "dldfa": DirectLowDimensional(),
    "drtp": DRTP(),
    "fa": FA(),
    "frozen": Frozen(),
    "frsf": SignSymmetric("fixed"),
    "ia": AlignmentLoss("information", null=1e-3),
    "kp": KolenPollack(),
    "ldfa": LowDimensional(),
    "le": LocalError(),
    "pfa": ProductFeedback(),
    "quantised(fa)": Quantised(FA()),
    "redrawn": Redrawn(),
    "sa": AlignmentLoss("symmetric"),
    "sdfa": SignDFA(),
    "sparse(fa)": Sparse(FA()),
    "usf": SignSymmetric("uniform"),
    "wm": WeightMirror(),
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
    if isinstance(rule, type) and issubclass(rule, Rule):
        raise ValueError(f"{rule.__name__} is a class; a rule is an instance: {rule.__name__}()")
    if not isinstance(rule, Rule):
        raise ValueError(f"a rule is a name or a Rule object, not {rule!r}")
    kind = type(rule)
    if "__init__" in vars(kind) and "__dataclass_params__" not in vars(kind):
        raise ValueError(
            f"{kind.__name__} has an __init__ of its own; a rule is a frozen dataclass: write its"
            " options as fields, `noise: float = 1.0`, under @dataclass(frozen=True)"
        )
    known = [field.name for field in fields(rule)]
    for option in options:
        if option not in known:
            raise unknown(f"option of {type(rule).__name__}", option, known)
    if "inner" in options:
        options["inner"] = build(options["inner"])
    return replace(rule, **options)


def to_dict(rule: Rule) -> dict[str, Any]:
    """A JSON-ready form: its name, and the fields that differ from the named rule's.

    >>> to_dict(FA(init="kaiming"))
    {'rule': 'fa', 'init': 'kaiming'}
    """
    name = _name_of(rule)
    base = _named(name)
    values = {field.name: getattr(rule, field.name) for field in fields(rule)}
    changed = {key: value for key, value in values.items() if value != getattr(base, key)}
    plain = {k: to_dict(v) if isinstance(v, Rule) else v for k, v in changed.items()}
    return {"rule": name, **plain}


def spell(rule: Rule) -> str:
    """A rule in short: its name and the options that differ from the named rule's.

    >>> spell(SignSymmetric("fixed", scale="norm"))
    "frsf(scale='norm')"
    >>> spell(Sparse(FA(init="kaiming"), density=0.25))
    "sparse(fa(init='kaiming'), density=0.25)"
    """
    form = to_dict(rule)
    name, inner = form.pop("rule"), getattr(rule, "inner", None)
    options = [f"{key}={value!r}" for key, value in form.items() if key != "inner"]
    if isinstance(inner, Rule):
        name, options = name.partition("(")[0], [spell(inner), *options]
    return f"{name}({', '.join(options)})" if options else name


def from_dict(form: Mapping[str, Any]) -> Rule:
    """The rule of `to_dict`. Raises: ValueError if the key "rule" is missing, or as `build`."""
    options = dict(form)
    if "rule" not in options:
        raise ValueError(f"a rule in dictionary form needs the key 'rule'; got {dict(form)!r}")
    name = options.pop("rule")
    if isinstance(name, Mapping):
        raise ValueError(f"rule: the key 'rule' holds a mapping, {dict(name)!r}; give a name")
    return build(name, **options)


def _name_of(rule: Rule) -> str:
    """What `_named` finds a rule of this class by, with the class of a rule within."""
    inner = getattr(rule, "inner", None)
    if isinstance(inner, Rule) and type(rule) in {type(known) for known in RULES.values()}:
        return f"{rule.name.partition('(')[0]}({_name_of(inner)})"
    if type(RULES.get(rule.name)) is type(rule):
        return rule.name
    return f"{type(rule).__module__}:{type(rule).__qualname__}"


def _named(name: str) -> Rule:
    if name.endswith(")"):
        outer, _, inner = name[:-1].partition("(")
        if outer in RULES:
            kind = type(RULES[outer]).__name__
            raise ValueError(
                f"rule {name!r}: a name takes no options; give the rule itself, rules.{kind}(...),"
                f" or a mapping, {{'rule': {outer!r}, ...}}"
            )
        wrappers = {key.partition("(")[0]: rule for key, rule in RULES.items() if "(" in key}
        if outer not in wrappers:
            raise unknown("rule around another", outer, wrappers)
        return replace(wrappers[outer], inner=_named(inner))  # type: ignore[call-arg]
    if name.startswith("{"):
        raise ValueError(f"rule {name!r} looks like a dictionary, but is not whole JSON or YAML")
    if ":" not in name:
        if name not in RULES:
            raise unknown("rule", name, [*RULES, "package.module:Class"])
        return RULES[name]
    found = from_path(name, "rule")
    if isinstance(found, type) and issubclass(found, Rule):
        try:
            found = found()
        except TypeError as error:
            raise ValueError(
                f"rule {name!r} cannot be made without arguments ({error}): give its fields "
                "defaults, or name an object"
            ) from error
    if not isinstance(found, Rule):
        kind = found.__name__ if isinstance(found, type) else type(found).__name__
        raise ValueError(f"rule {name!r} is {kind}, neither a Rule nor a class of rules")
    return found
