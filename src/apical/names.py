"""Names that users write: errors that suggest near ones, and look-up of package.module:Name."""

import difflib
import importlib
import itertools
import os
import sys
from collections.abc import Iterable
from typing import Any

LISTED = 60  # names up to which all are listed
NEAR = 0.5  # likeness (difflib ratio) from which a name is suggested


def unknown(kind: str, given: object, allowed: Iterable[str]) -> ValueError:
    """The error for a name that is not allowed; the caller raises it.

    Args: kind: what was looked up, singular ("rule", "net", "data set").
        given: what the user wrote.     allowed: every valid name.
    Returns: a ValueError naming the given word, up to three near names, and all allowed ones
        (their number, where there are more than 60).
    >>> str(unknown("rule", "bpp", ["fa", "bp"]))
    "unknown rule 'bpp'; did you mean 'bp'? Allowed: bp, fa"
    """
    names = sorted(allowed)
    near = " or ".join(repr(name) for name in _near(str(given), names))
    hint = f"; did you mean {near}?" if near else "."
    listed = ", ".join(names) if names else "nothing (there are no names)"
    if len(names) > LISTED:
        listed = f"{len(names)} names, from {names[0]} to {names[-1]}"
    return ValueError(f"unknown {kind} {given!r}{hint} Allowed: {listed}")


def from_path(path: str, what: str) -> Any:
    """Import what a path names; the current folder is searched too, as with ``python -m``.

    Args: path: ``package.module:Name`` (dots within Name allowed) or ``package.module.Name``.
        what: the kind of object, for the error.
    Raises: ValueError saying which part does not exist.
    """
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_name or not name:
        raise ValueError(f"{what} {path!r}: write it as package.module:Name")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{what} {path!r}: no module {error.name!r} to import; is its package installed, or "
            "does it lie in the current folder?"
        ) from error
    except ImportError as error:
        raise ValueError(f"{what} {path!r}: {error}") from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise ValueError(f"{what} {path!r}: {found.__name__!r} has no {part!r}")
        found = getattr(found, part)
    return found


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
