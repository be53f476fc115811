"""Names of rules as their papers write them."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from apical.bench.experiment.rule_settings import rule_label
from apical.bench.storage.records import Record
from apical.rules import RULES

CAPITALS = "aa bp dfa dkp dldfa drtp fa ia kp ldfa le pfa sa wm"
NAMES = {name: name.upper() for name in CAPITALS.split()} | {
    "brsf": "brSF",
    "frsf": "frSF",
    "quantised(fa)": "quantised FA",
    "sdfa": "sDFA",
    "sparse(fa)": "sparse FA",
    "usf": "uSF",
}


def display_name(rule: str) -> str:
    """The rule as its paper writes it, before a comma too; other labels stay as they are.

    >>> display_name("dfa"), display_name("dfa, published rate"), display_name("LRA sum, no clip")
    ('DFA', 'DFA, published rate', 'LRA sum, no clip')
    """
    name, comma, rest = rule.partition(", ")
    return NAMES.get(name.lower(), name) + comma + rest


def joined(names: Sequence[str]) -> str:
    """Names in a row, set off by semicolons where one of them has a comma.

    >>> joined(["FA", "DFA"]), joined(["FA", "DFA, published rate"])
    ('FA, DFA', 'FA; DFA, published rate')
    """
    return ("; " if any("," in name for name in names) else ", ").join(names)


def counts(numbers: Iterable[int]) -> str:
    """One number for all, or the least and the most.

    >>> counts([5, 5]), counts([5, 4])
    ('5', '4 to 5')
    """
    least, most = min(numbers := [*numbers]), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


def is_baseline(rule: str) -> bool:
    return rule.lower() == "bp"


FROZEN = ("frozen", "head only", "readout only")
"""Labels of the control; the last two are those of earlier studies of trained nets and of recurrent
ones, in which all but the output layer keeps the weights that it begins with."""


def is_frozen(rule: str) -> bool:
    """Whether it is the control whose hidden layers keep their initial weights."""
    return rule.lower() in FROZEN


def is_control(rule: str) -> bool:
    """Whether it is that control, or feedback alignment whose feedback changes at every update."""
    return is_frozen(rule) or rule.lower() == "redrawn"


def learner_of(experiment: Record) -> dict[str, Any]:
    """The learner of an experiment as a mapping, its name under "learner"."""
    learner = experiment.get("learner") or "backprop"
    named = learner if isinstance(learner, Mapping) else {"learner": str(learner)}
    return {"learner": "backprop", **named}


def rule_name(experiment: Record) -> str:
    """The name of the rule, "mixed" for rules by pattern of layers; of the learner, where that is
    another than backprop."""
    learner, rule = learner_of(experiment)["learner"], experiment.get("rule") or "net"
    if learner != "backprop":
        return str(learner)
    return rule_label(rule) if isinstance(rule, dict) else str(rule)


def mislabelled(label: str, experiment: Record) -> bool:
    """Whether a label names a rule, or the control, and the run was trained by another."""
    name = label.partition(", ")[0].lower()
    name = FROZEN[0] if is_frozen(name) else name
    if name not in RULES or not experiment.get("rule"):
        return False
    only = (experiment.get("start") or {}).get("train_only")
    return not (name == FROZEN[0] and only) and name not in trained_by(experiment)


def trained_by(experiment: Record) -> set[str]:
    """The rules that train the layers, leaving out bp beside others; or the learner, where that is
    another than backprop. A readout that learns alone is the control, "frozen"."""
    rule, learner = experiment.get("rule") or "net", learner_of(experiment)["learner"]
    if learner != "backprop":
        return {FROZEN[0] if learner == "readout" else str(learner)}
    rules: list[Any] = [rule]
    if isinstance(rule, Mapping) and "rule" not in rule:
        rules = [*rule.values()]
    names = set(map(rule_label, rules))
    return {name.rpartition(":")[2].lower() for name in names - {"bp"} or names}
