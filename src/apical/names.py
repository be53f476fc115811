"""Names and values that users write: errors that say what is allowed; look-up by path, on use."""

import dataclasses
import difflib
import functools
import importlib
import itertools
import os
import sys
import types
from collections.abc import Iterable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

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
            near = _near(part, [n for n in dir(found) if not n.startswith("_")])
            hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(f"{what} {path!r}: {found.__name__!r} has no {part!r}{hint}")
        found = getattr(found, part)
    return found


def check_literals(value: Any, owner: str) -> None:
    """Check the fields of a dataclass instance that are annotated as `Literal[...]` or
    `Literal[...] | None`.

    Args: owner: how the error calls the instance.
    Raises: ValueError naming every field that holds another value, and the allowed ones.
    """
    if problems := literal_problems(value):
        raise ValueError(f"{owner}: " + "; ".join(problems))


def literal_problems(value: Any) -> list[str]:
    """What `check_literals` raises, one sentence for each field.

    >>> @dataclasses.dataclass
    ... class Pooling:
    ...     kind: Literal["max", "mean"] = "max"
    >>> literal_problems(Pooling("sum"))
    ["kind='sum' is not one of 'max', 'mean'"]
    """
    return [
        f"{name}={getattr(value, name)!r} is not one of {', '.join(map(repr, allowed))}"
        for name, allowed in _literals(type(value)).items()  # type: ignore[arg-type]
        if getattr(value, name) not in allowed
    ]


@functools.cache
def _literals(kind: type) -> dict[str, tuple[Any, ...]]:
    """The allowed values of each field of a dataclass whose annotation lists them."""
    found = {}
    hints = type_hints(kind)
    for option in dataclasses.fields(kind):
        hint = hints.get(option.name)
        members = get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)
        if any(get_origin(member) is Literal for member in members):
            if all(get_origin(m) is Literal or m is types.NoneType for m in members):
                values = [get_args(m) if get_origin(m) is Literal else (None,) for m in members]
                found[option.name] = tuple(itertools.chain(*values))
    return found


def type_hints(kind: type) -> Mapping[str, Any]:
    """The annotations of a class and its bases as objects. A class is left out where one of its
    annotations names something that is imported for type checking only."""
    return _type_hints(kind)


@functools.cache
def _type_hints(kind: type) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        try:
            found |= get_type_hints(base)
        except NameError:
            continue
    return found


def import_on_use(package: str, homes: Mapping[str, str]) -> None:
    """Let a package import its public names when they are first used: importing it stays cheap,
    and what is not used is not loaded.

    Args:
        package: its ``__name__``.
        homes: for each public name the object that it stands for, as ``module:object``, or a whole
            module as ``module``.
    """

    class Package(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in homes:
                raise AttributeError(f"module {package!r} has no attribute {name!r}")
            module, _, attribute = homes[name].partition(":")
            value: Any = importlib.import_module(module)
            if attribute:
                value = getattr(value, attribute)
            setattr(self, name, value)
            return value

        def __setattr__(self, name: str, value: Any) -> None:
            # Importing a file of a package binds it to its name. Where a public function has the
            # same name, as apical.convert in convert.py, that name means the function.
            if ":" in homes.get(name, "") and isinstance(value, types.ModuleType):
                return
            super().__setattr__(name, value)

        def __dir__(self) -> list[str]:
            return sorted({*super().__dir__(), *homes})

    sys.modules[package].__class__ = Package


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
