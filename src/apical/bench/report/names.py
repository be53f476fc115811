"""Names of rules as their papers write them."""

from collections.abc import Sequence

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
