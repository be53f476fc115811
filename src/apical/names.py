"""Names and values that users write: errors that say what is allowed; look-up by path, on use."""

import dataclasses
import difflib
import functools
import importlib
import importlib.util
import inspect
import itertools
import math
import os
import sys
import traceback
import types
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

__version__ = "0.3.7"

LISTED = 60  # names up to which all are listed
NEAR = 0.5  # likeness (difflib ratio) from which a name is suggested

SYNONYMS = {
    "algorithm": "rule rules", "attack": "robustness", "backprop": "bp", "backpropagation": "bp",
    "bench": "study", "benchmark": "study", "bs": "batch_size", "compare": "sweep report",
    "continue": "resume", "cuda": "device", "dataset": "data", "datasets": "data",
    "direct_feedback_alignment": "dfa", "eval": "robustness report",
    "evaluate": "robustness report", "feedback_alignment": "fa", "fit": "train", "gpu": "device",
    "kolen_pollack": "kp", "learning_rate": "lr rates", "learning_rates": "lr rates",
    "logdir": "runs folder", "lr": "rates", "ls": "list", "model": "net nets",
    "models": "nets", "momentum": "optimizer_options.momentum optimizer_options",
    "network": "net nets", "networks": "nets", "output": "out folder",
    "output_dir": "out folder", "plot": "report", "reproduce": "verify", "run": "train study",
    "save": "export", "search": "tune sweep", "show": "list report",
    "sign_symmetry": "usf brsf frsf", "test": "robustness check",
    "weight_decay": "optimizer_options.weight_decay optimizer_options",
    "weight_mirror": "wm", "workers": "jobs",
}  # fmt: skip
"""Words of papers and other libraries, and the names here that they may mean."""


def unknown(
    kind: str, given: object, allowed: Iterable[str], *, first: Iterable[str] = ()
) -> ValueError:
    """The error for a name that is not allowed; the caller raises it.

    Args: kind: what was looked up, singular ("rule", "net", "data set").
        given: what the user wrote.     allowed: every valid name.
        first: names that are suggested before the near ones.
    Returns: a ValueError naming the given word, up to three near names, or those that `SYNONYMS`
        has for it, or the form of an object in a module of that name in the current folder; and
        all allowed ones (their number, where there are more than 60).
    >>> str(unknown("rule", "bpp", ["fa", "bp"]))
    "unknown rule 'bpp'; did you mean 'bp'? Allowed: bp, fa"
    """
    names = sorted(allowed)
    meant = SYNONYMS.get(str(given).lower().replace("-", "_").replace(" ", "_"), "").split()
    close = [name for name in meant if name in names] or _near(str(given), names)
    if Path(f"{str(given).replace('.', '/')}.py").is_file():  # "package.module:make" is allowed
        forms = [name for name in names if name.startswith("package.module:")]
        close = [name.replace("package.module", str(given)) for name in forms] or close
    near = " or ".join(repr(name) for name in [*first, *close][:3])
    hint = f"; did you mean {near}?" if near else "."
    listed = ", ".join(names) if names else "nothing (there are no names)"
    if len(names) > LISTED:
        listed = f"{len(names)} names, from {names[0]} to {names[-1]}"
    return ValueError(f"unknown {kind} {given!r}{hint} Allowed: {listed}")


def from_path(path: str, what: str) -> Any:
    """Import what a path names; the current folder is searched too, as with ``python -m``.

    It runs the code of that module. Only names that the user typed or trusts may come here: see
    ``apical.bench.experiment.own_code``.

    Args: path: ``package.module:Name`` (dots within Name allowed) or ``package.module.Name``.
        what: the kind of object, for the error.
    Raises: ValueError saying which part does not exist, or why the module cannot be imported.
    """
    module_name, _, name = path.partition(":") if ":" in path else path.rpartition(".")
    if not module_name or not name or module_name.startswith("."):
        raise ValueError(f"{what} {path!r}: write it as package.module:Name")
    if module_name.endswith(".py"):
        module = module_name.removesuffix(".py").replace("/", ".").strip(".")
        raise ValueError(f"{what} {path!r}: name the module, not its file: {module}:{name}")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{what} {path!r}: no module {error.name!r} to import; is its package installed, or "
            "is it in the current folder?"
        ) from error
    except Exception as error:  # whatever the module's own code raises
        place = _raised_at(error, module_name)
        raise ValueError(
            f"{what} {path!r}: importing it failed{place}: {type(error).__name__}: {error}"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            known = [each for each in dir(found) if not each.startswith("_")]
            missing = unknown(f"name in {getattr(found, '__name__', found)!r}", part, known)
            raise ValueError(f"{what} {path!r}: {missing}")
        found = getattr(found, part)
    return found


def _raised_at(error: Exception, module: str) -> str:
    """The file and line where importing a module failed, as " (FILE, line N)"; "" if unclear."""
    if isinstance(error, SyntaxError):
        return ""  # its message names them
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "importlib" not in f.filename]
    own = [f for f in frames if module.rpartition(".")[2] in f.filename] or frames[1:]
    return f" ({own[-1].filename}, line {own[-1].lineno})" if own else ""


def takes(function: Any, *values: Any) -> bool:
    """Whether a function can be called with these values; of one without a signature: True."""
    try:
        inspect.signature(function).bind(*values)
    except (TypeError, ValueError) as error:
        return isinstance(error, ValueError)
    return True


def check_literals(value: Any, owner: str) -> None:
    """Check the fields of a dataclass instance that are annotated as numbers, texts, booleans,
    `Literal[...]`, or tuples and unions of these.

    Args: owner: how the error calls the instance.
    Raises: ValueError naming every field that holds another value, and the allowed ones.
    """
    if problems := literal_problems(value):
        raise ValueError(f"{owner}: " + "; ".join(problems))


def is_whole(value: object) -> TypeGuard[int]:
    """Whether it is a whole number, NumPy's too; True is none."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def checked_count(owner: str, least: int = 1, **given: object) -> int:
    """The argument given by name, as an int. Raises: ValueError unless it is a whole number of at
    least `least`. Fields of a dataclass have `check_literals` and `check_at_least`."""
    ((name, count),) = given.items()
    if not is_whole(count) or count < least:
        raise ValueError(f"{owner}: {name}={count!r} must be a whole number of at least {least}")
    return int(count)


def check_at_least(owner: str, least: float, **values: float) -> None:
    """Raises: ValueError naming the first of these values that is below `least`."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{owner}: {name}={value} must be at least {least}")


def literal_problems(value: Any, *, but: Iterable[str] = ()) -> list[str]:
    """What `check_literals` raises, one sentence for each field.

    Numbers must be finite unless the default is not, and True is no number.
    Args: but: names of fields that are checked elsewhere.

    >>> @dataclasses.dataclass
    ... class Pooling:
    ...     kind: Literal["max", "mean"] = "max"
    ...     side: int = 2
    >>> literal_problems(Pooling("sum", True))
    ["kind='sum' is not one of 'max', 'mean'", 'side=True is not a whole number']
    """
    found = []
    for name, (hint, default) in _checked(type(value)).items():  # type: ignore[arg-type]
        given = getattr(value, name)
        same = type(given) is type(default) and given == default
        if name not in but and not same and not _fits(given, hint):
            text = repr(given) if len(repr(given)) <= LONGEST else repr(given)[:LONGEST] + " ..."
            found.append(f"{name}={text} is not {_allowed(hint)}")
    return found


LONGEST = 80
"""Characters up to which an error repeats a value."""

PLAIN = {
    bool: "true or false",
    float: "a finite number",
    int: "a whole number",
    str: "a text",
    types.NoneType: "None",
}


@functools.cache
def _checked(kind: type) -> dict[str, tuple[Any, Any]]:
    """Annotation and default of each field whose annotation consists of what `_fits` checks."""
    hints = type_hints(kind)
    return {
        option.name: (hints[option.name], option.default)
        for option in dataclasses.fields(kind)
        if option.name in hints and _is_plain(hints[option.name])
    }


def _members(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else (hint,)


def _is_plain(hint: Any) -> bool:
    if get_origin(hint) is tuple:
        return len(get_args(hint)) == 2 and get_args(hint)[1] is ... and _is_plain(hint.__args__[0])
    if get_origin(hint) in (Union, types.UnionType):
        return all(map(_is_plain, get_args(hint)))
    return hint in PLAIN or get_origin(hint) is Literal


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is what a plain annotation says; a list stands for a tuple."""
    for member in _members(hint):
        if get_origin(member) is Literal:
            allowed = get_args(member)
            if any(type(value) is type(each) and value == each for each in allowed):
                return True
        elif get_origin(member) is tuple:
            inner = get_args(member)[0]
            if isinstance(value, tuple | list) and all(_fits(each, inner) for each in value):
                return True
        elif member is float:
            if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
                return True
        elif member is int:
            if is_whole(value):
                return True
        elif isinstance(value, member):
            return True
    return False


def _allowed(hint: Any) -> str:
    """What a plain annotation allows, in words."""
    literals = [v for m in _members(hint) if get_origin(m) is Literal for v in get_args(m)]
    listed = [repr(value) for value in literals]
    if literals and types.NoneType in _members(hint):
        listed.append("None")
    words = [f"one of {', '.join(listed)}"] if listed else []
    for member in _members(hint):
        if get_origin(member) is tuple:
            words.append(f"a list, each {_allowed(get_args(member)[0])}")
        elif member is int and float in _members(hint):
            continue
        elif member in PLAIN and not (listed and member is types.NoneType):
            words.append(PLAIN[member])
    return " or ".join(words)


def type_hints(kind: type) -> Mapping[str, Any]:
    """The annotations of a class and its bases as objects. A class is left out where one of its
    annotations names something that is imported for type checking only."""
    return _type_hints(kind)


@functools.cache  # behind a function, as the type checker takes no class for hashable
def _type_hints(kind: type) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        try:
            found |= get_type_hints(base)
        except NameError:
            continue
    return found


def import_on_use(package: str, homes: Mapping[str, str]) -> None:
    """Let a package import its public names, and its own modules, when they are first used:
    importing it stays cheap, and what is not used is not loaded.

    Args:
        package: its ``__name__``.
        homes: for each public name the object that it stands for, as ``module:object``, or a whole
            module as ``module``.
    """

    class Package(types.ModuleType):
        def __getattr__(self, name: str) -> Any:
            if name not in homes:
                if not name.startswith("_") and importlib.util.find_spec(f"{package}.{name}"):
                    return importlib.import_module(f"{package}.{name}")
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
