"""One voice for misspelt names: what was given, what is near, what is allowed."""

import difflib
from collections.abc import Iterable


def unknown(kind: str, given: object, allowed: Iterable[str]) -> ValueError:
    """The error for a name nobody knows; the caller raises it.

    Args: kind: what was looked up, singular ("rule", "net", "data set").
        given: what the user wrote.     allowed: every name that would have worked.
    Returns: a ValueError naming the given word, up to three near names, and all allowed ones.
    >>> str(unknown("rule", "bpp", ["fa", "bp"]))
    "unknown rule 'bpp'; did you mean 'bp'? Allowed: bp, fa"
    """
    names = sorted(allowed)
    lower = {name.lower(): name for name in names}
    close = difflib.get_close_matches(str(given).lower(), lower, n=3, cutoff=0.5)
    near = " or ".join(repr(lower[name]) for name in close)
    hint = f"; did you mean {near}?" if near else "."
    listed = ", ".join(names) if names else "nothing (no name is known)"
    return ValueError(f"unknown {kind} {given!r}{hint} Allowed: {listed}")
