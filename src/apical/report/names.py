"""Names of rules as their papers write them."""

NAMES = {
    "bp": "BP",
    "brsf": "brSF",
    "dfa": "DFA",
    "fa": "FA",
    "frsf": "frSF",
    "kp": "KP",
    "usf": "uSF",
    "wm": "WM",
}


def display_name(rule: str) -> str:
    """The rule as its paper writes it; labels that are no rule's name stay as they are."""
    return NAMES.get(rule.lower(), rule)


def is_baseline(rule: str) -> bool:
    return rule.lower() == "bp"
