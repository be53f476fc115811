"""The names of gradient sources."""

from __future__ import annotations

from apical.attacks.sources import (
    Exact,
    FiniteDifference,
    From,
    NoGradient,
    Own,
    OwnAveraged,
    RuleGradient,
    Source,
)
from apical.names import unknown

SOURCES: dict[str, type[Source]] = {
    "exact": Exact,
    "finite-difference": FiniteDifference,
    "none": NoGradient,
    "own": Own,
    "own-averaged": OwnAveraged,
    "rule": RuleGradient,
    "transfer": From,
}
_COUNTED = {"finite-difference": "directions", "own-averaged": "redraws"}


def source(name: str | Source) -> Source:
    """The source that a name stands for; a source stands for itself.

    "own-averaged:20" gives the number of draws, "finite-difference:64" that of random directions,
    "rule:usf" the rule.

    Raises: ValueError for an unknown name, naming the nearest.
    >>> source("rule:fa")
    RuleGradient(rule='fa', seed=0)
    """
    if isinstance(name, Source):
        return name
    kind, _, detail = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in SOURCES:
        raise unknown("gradient source", str(name), SOURCES)
    if kind == "transfer":
        raise ValueError("gradient 'transfer' needs its model: give attacks.From(other_model)")
    if kind == "rule":
        if not detail:
            raise ValueError("gradient 'rule' needs the rule's name, for example 'rule:fa'")
        str(RuleGradient(detail))  # an unknown rule raises now, not when the source opens
        return RuleGradient(detail)
    if not detail:
        return SOURCES[kind]()
    if kind not in _COUNTED or not detail.isdigit():
        raise ValueError(
            f"gradient source {name!r}: a number after the colon is for"
            f" {', '.join(sorted(_COUNTED))} only, for example 'own-averaged:20'"
        )
    return SOURCES[kind](**{_COUNTED[kind]: int(detail)})
