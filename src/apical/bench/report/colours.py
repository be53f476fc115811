"""Colour, dash and marker of every rule, the same in all figures of a study.

The colours follow Okabe and Ito (distinct under every common colour blindness), darkened where
white paper needs it; dash and marker carry the same information without colour.
"""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

INK, SOFT, LINE = "#1c2128", "#5d6672", "#e2e5e9"


@dataclass(frozen=True)
class Look:
    """How one rule is drawn: light and dark colour, dash pattern (points), marker."""

    light: str
    dark: str
    dash: tuple[float, ...]
    marker: str


LOOKS = {
    "bp": Look("#1c2129", "#e8eaed", (), "o"),
    "fa": Look("#d55e00", "#ff8a3d", (5, 1.5), "s"),
    "dfa": Look("#b5508c", "#e28fc0", (1.5, 1.5), "D"),
    "usf": Look("#0072b2", "#4aa8e0", (), "^"),
    "brsf": Look("#2f9fd0", "#8fd3f4", (4, 1.2, 1, 1.2), "v"),
    "frsf": Look("#00805d", "#3fc79a", (7, 2), "P"),
    "kp": Look("#a86f00", "#f0b840", (3, 1), "X"),
    "wm": Look("#6f4fb0", "#b39ae6", (6, 1, 1, 1), "h"),
}
SPARE = (
    Look("#7a6a58", "#c9b8a4", (2, 2), "*"),
    Look("#8a8f00", "#d5da4a", (8, 1.5, 2, 1.5), "<"),
    Look("#a8324a", "#f08a9c", (4, 1, 1, 1, 1, 1), ">"),
    Look("#3b6e73", "#86c3c9", (1, 1), "d"),
    Look("#8a3ffc", "#be95ff", (10, 2), "p"),
)


def colours(rules: Iterable[str]) -> dict[str, Look]:
    """One look per rule, all different.

    Rules without their own take the spare ones in order, then those of rules that are not here,
    then the same colours again with the dash and marker of another.
    """
    rules = list(rules)
    own = {rule: LOOKS[rule.lower()] for rule in rules if rule.lower() in LOOKS}
    free = [*SPARE, *(look for look in LOOKS.values() if look not in own.values())]
    others = (
        replace(look, dash=lines.dash, marker=lines.marker)
        for turn in itertools.count()
        for place, look in enumerate(free)
        for lines in [free[(place + turn) % len(free)]]
    )
    return {rule: own[rule] if rule in own else next(others) for rule in rules}


def css_variables(dark: bool) -> str:
    """The colours of all looks as CSS custom properties."""
    names = variables()
    return " ".join(
        f"{names[look.light]}: {look.dark if dark else look.light};"
        for look in [*LOOKS.values(), *SPARE]
    )


def line_style(look: Look) -> dict[str, Any]:
    return {"color": look.light, "linestyle": (0, look.dash) if look.dash else "solid"}


def variables() -> dict[str, str]:
    """Colour of a figure -> CSS custom property that holds it on the page."""
    names = {look.light: f"--rule-{look.light[1:]}" for look in [*LOOKS.values(), *SPARE]}
    return names | {INK: "--ink", SOFT: "--soft", LINE: "--line"}
