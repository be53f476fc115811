"""One voice for misspelt names: what was given, what is near, what is allowed."""

import difflib
import itertools
from collections.abc import Iterable

LISTED = 60  # names up to which all are listed
NEAR = 0.5  # likeness (difflib ratio) from which a name is suggested


def unknown(kind: str, given: object, allowed: Iterable[str]) -> ValueError:
    """The error for a name nobody knows; the caller raises it.

    Args: kind: what was looked up, singular ("rule", "net", "data set").
        given: what the user wrote.     allowed: every name that would have worked.
    Returns: a ValueError naming the given word, up to three near names, and all allowed ones
        (their number, where there are more than 60).
    >>> str(unknown("rule", "bpp", ["fa", "bp"]))
    "unknown rule 'bpp'; did you mean 'bp'? Allowed: bp, fa"
    """
    names = sorted(allowed)
    near = " or ".join(repr(name) for name in _near(str(given), names))
    hint = f"; did you mean {near}?" if near else "."
    listed = ", ".join(names) if names else "nothing (no name is known)"
    if len(names) > LISTED:
        listed = f"{len(names)} names, from {names[0]} to {names[-1]}"
    return ValueError(f"unknown {kind} {given!r}{hint} Allowed: {listed}")


def _near(given: str, names: list[str]) -> list[str]:
    given = given.lower()
    scores = {}
    for name in names:
        likeness = difflib.SequenceMatcher(None, given, name.lower()).ratio()
        if likeness >= NEAR:
            # people get the beginning right: of names equally alike, the same beginning wins
            pairs = zip(given, name.lower(), strict=False)
            start = len(list(itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)))
            scores[name] = likeness + start / max(len(given), len(name))
    return sorted(scores, key=lambda name: -scores[name])[:3]
