"""The user's own code and image folders in an experiment: where it is named, and its content.

An experiment names rules, learners, nets, optimizers and data sets. A name of one of the library's
tables stands for code of this library, whose versions are part of every key. A path, as
``my_rules:Mine``, stands for code that its author edits, so a digest of the source is part of the
key; likewise a digest of the listing of an image folder. Code of installed packages counts as that
of torch does: by its name, with its version in environment.json.

Importing what a path names runs that code. Settings that were read from a file may therefore name
such paths only where the caller says that the file is trusted.
"""

import ast
import dis
import functools
import hashlib
import importlib.util
import itertools
import os
import re
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Mapping
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch

from apical.bench.experiment.optimizers import OPTIMIZERS
from apical.names import from_path
from apical.nets import pretrained

FOLDER = "folder:"
LIBRARIES = ("timm", "torchvision")
"""Sources of nets by name, which import no other module."""

GIVEN = "given:"
"""Beginning of the names of data and nets that were given as objects: digests, no code."""

FILES_OF_TIMM = (
    *("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir"),
    "features_cls",
)
"""Options by which timm unpickles files or downloads them from anywhere."""

DIGITS = 16

LOOKUPS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
"""Instructions of Python that read a variable of a module."""

NO_CODE = (
    *("__dict__", "__weakref__", "__module__", "__doc__", "__firstlineno__"),
    *("__annotations__", "__annotations_cache__", "__annotate__", "__annotate_func__"),
    "__slotnames__",
)
"""Attributes of classes that do nothing; some appear once something reads them."""


def paths(experiment: Mapping[str, Any]) -> dict[str, str]:
    """The paths to code that the fields of an experiment name, and what each stands for.

    Args: experiment: in its JSON form, valid or not. That of a start is searched too.

    >>> paths({"rule": {"conv*": "fa", "*": "sparse(my_rules:Mine)"}, "net": "timm:resnet18"})
    {'my_rules:Mine': 'rule'}
    """
    found: dict[str, str] = {}
    for level in _levels(experiment):
        switch = level.get("switch")
        rules = [level.get("rule"), *(switch.values() if isinstance(switch, Mapping) else ())]
        for name in (name for rule in rules for name in _names(rule, "rule")):
            if ":" in name:
                found[name.rpartition("(")[2].rstrip(")")] = "rule"
        for name in _names(level.get("learner"), "learner"):
            if ":" in name:
                found[name] = "learner"
        name = level.get("optimizer", "sgd")
        if isinstance(name, str) and name not in OPTIMIZERS and {":", "."} & set(name):
            found[name] = "optimizer"
        net = level.get("net")
        sources = (*LIBRARIES, GIVEN.rstrip(":"))
        if isinstance(net, str) and ":" in net and net.partition(":")[0] not in sources:
            found[net] = "net"
        data = level.get("data")
        if isinstance(data, str) and ":" in data and not data.startswith((FOLDER, GIVEN)):
            found[data] = "data set"
    return found


def refuse(experiment: Any, where: str, *, but: Mapping[str, Any] | None = None) -> None:
    """Refuse settings read from a file that would run code which this library does not contain.

    Args: where: the file, for the error. but: settings that the user gave in another way: what
        they name is allowed.
    Raises: ValueError naming what it would import, and how to allow it.
    """
    allowed = _runs(but or {})
    if wanted := [each for each in _runs(experiment) if each not in allowed]:
        raise ValueError(
            f"{where} names code to run: {', '.join(wanted)}. Nothing was imported. If you wrote "
            "that code or have read it, allow it with --trust (in Python: trust=True)"
        )


def _runs(experiment: Any) -> list[str]:
    """What settings would import or unpickle, in words."""
    if not isinstance(experiment, Mapping):
        return []
    found = [f"{what} {path!r}" for path, what in paths(experiment).items()]
    for level in _levels(experiment):
        options = level.get("net_options")
        if str(level.get("net")).startswith("timm:") and isinstance(options, Mapping):
            found += [f"timm's option {n!r}" for n in options if n in FILES_OF_TIMM]
    return found


def digests(experiment: Mapping[str, Any]) -> dict[str, str]:
    """A digest of the source of each path that the fields name, and of the listing of an image
    folder; nothing for code of installed packages. Imports nothing."""
    found = {path: _source_digest(path, what) for path, what in paths(experiment).items()}
    for level in _levels(experiment):
        data = level.get("data")
        if isinstance(data, str) and data.startswith(FOLDER):
            path = data.removeprefix(FOLDER).partition("?")[0]
            found[data] = _listing_digest(Path(path).expanduser())
    return {name: digest for name, digest in sorted(found.items()) if digest}


def changes(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What changed between two results of `digests`, a few words each."""
    return [
        f"{'the files of' if name.startswith(FOLDER) else 'the source of'} {name} "
        f"(digest {then.get(name, 'none')}, now {now.get(name, 'none')})"
        for name in sorted(then.keys() | now.keys())
        if then.get(name) != now.get(name)
    ]


def _names(value: Any, key: str) -> Iterator[str]:
    """All names in a rule or learner, however it is written."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        parts = [value[key], value.get("inner")] if key in value else list(value.values())
        for part in parts:
            yield from _names(part, key)


def _levels(experiment: Any) -> Iterator[Mapping[str, Any]]:
    """The settings, then those of the experiment whose trained net it starts from, and so on."""
    while experiment and isinstance(experiment, Mapping):
        yield experiment
        start = experiment.get("start")
        experiment = start.get("source") if isinstance(start, Mapping) else None


_known: dict[str, tuple[ModuleSpec | None, str]] = {}
"""By path: the import that its digest belongs to. An edit counts once the module is loaded again:
until then, the code in memory is the old one."""


def _source_digest(path: str, what: str) -> str:
    name = path.partition(":")[0] if ":" in path else path.rpartition(".")[0]
    module = sys.modules.get(name)
    spec = module.__spec__ if module is not None else None
    known = _known.get(path)
    if known is None or module is None or (known[0] is not None and known[0] is not spec):
        known = None, _digest_of_files(name, module, path, what)
    _known[path] = spec, known[1]
    return known[1]


def _file_of(name: str) -> str | None:
    """The file of a module that is not imported yet, found without importing it."""
    top, *rest = name.split(".")
    spec = PathFinder.find_spec(top, [os.getcwd(), *sys.path])
    if spec is None and top not in sys.modules:
        spec = importlib.util.find_spec(top)  # by finders of other kinds, as editable installs have
    if spec is None or not rest:
        return spec.origin if spec is not None else None
    for folder in spec.submodule_search_locations or ():
        place = Path(folder, *rest)
        for each in (place.with_suffix(".py"), place / "__init__.py"):
            if each.is_file():
                return str(each)
    return spec.origin


def _digest_of_files(name: str, module: ModuleType | None, named: str, what: str) -> str:
    """Of the module's file and the files that it imports, installed packages excepted. "" for
    installed packages, and for a module that is nowhere, which is an error when it is used."""
    file = _file_of(name) if module is None else getattr(module, "__file__", None)
    if file is None and module is not None and name == "__main__":  # a notebook, an interpreter
        return digest_of(from_path(named, what))
    if file is None or not Path(file).is_file():
        return ""
    path = Path(file).absolute()  # not resolved: a linked module imports from beside the link
    if _installed(path):
        return ""
    name = "" if name == "__main__" else name
    levels = len(name.split(".")) - (path.name != "__init__.py")
    root = path.parent if not name else path.parents[levels]
    total = hashlib.sha256()
    files = [
        (place.relative_to(top), hashlib.sha256(place.read_bytes()).digest())
        for place, top in _closure(path, root).items()
    ]
    for relative, digest in sorted(files):
        total.update(f"{relative.as_posix()}\0".encode() + digest)
    return total.hexdigest()[:DIGITS]


def _installed(path: Path) -> bool:
    """Whether a file belongs to Python, an installed package or this library."""
    path = path.resolve()
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    places = (Path(sysconfig.get_path("stdlib")).resolve(), Path(__file__).resolve().parents[2])
    return any(path.is_relative_to(place) for place in places)


def _closure(path: Path, root: Path) -> dict[Path, Path]:
    """A file and the files that it imports, directly or through others, installed packages
    excepted; each with the folder that its module's name starts from."""
    found: dict[Path, Path] = {}
    waiting = [(path, root)]
    while waiting:
        file, top = waiting.pop()
        if file in found:
            continue
        found[file] = top
        if file.suffix == ".py":
            waiting += _imported(file, top)
    return found


def _imported(file: Path, root: Path) -> Iterator[tuple[Path, Path]]:
    """Files that the statements of a file may import, each with its root."""
    package = file.relative_to(root).parent.parts
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):  # importing it raises the error that names the place
        return
    for node in ast.walk(tree):
        names: list[tuple[str, ...]] = []
        if isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            base = (*above, *(node.module.split(".") if node.module else ()))
            names = [base, *((*base, alias.name) for alias in node.names)]
        for parts in filter(None, names):
            top = _root_of(parts[0], root)
            if top is None:
                continue
            for length in range(1, len(parts) + 1):
                place = top.joinpath(*parts[:length])
                for each in (place.with_suffix(".py"), place / "__init__.py"):
                    if each.is_file():
                        yield each, top


def _root_of(name: str, root: Path) -> Path | None:
    """The folder that holds a module: `root` or a folder of sys.path; None for installed ones."""
    if (root / f"{name}.py").is_file() or (root / name).is_dir():
        return root
    file = _file_of(name)
    if file is None or not Path(file).is_file() or _installed(Path(file)):
        return None
    path = Path(file).absolute()
    return path.parents[path.name == "__init__.py"]


def _listing_digest(folder: Path) -> str:
    """Of the names and sizes of all images in a folder, in order; "" where there is none."""
    from apical.data.folder import SUFFIXES

    total = hashlib.sha256()
    count = 0
    seen: set[tuple[int, int]] = set()
    for place, folders, files in os.walk(folder, followlinks=True):  # as images are read
        status = os.stat(place)
        if (identity := (status.st_dev, status.st_ino)) in seen:  # a link to a folder above it
            folders.clear()
        seen.add(identity)
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(SUFFIXES):
                path = Path(place, name)
                size = path.stat().st_size if path.exists() else 0
                total.update(f"{path.relative_to(folder).as_posix()}\0{size}\0".encode())
                count += 1
    return total.hexdigest()[:DIGITS] if count else ""


def digest_of(value: Any) -> str:
    """Digest of an object of the user, such as a net: of its tensors and other attributes, and the
    code of its functions and classes with all that these use; of installed code, only its name."""
    total = hashlib.sha256()
    for text in _described(value, {}):
        total.update(text.encode() + b"\0")
    return total.hexdigest()[:DIGITS]


def _described(value: Any, seen: dict[int, tuple[int, Any]]) -> Iterator[str]:
    """Args: seen: by id, the number of each object so far, and the object, so that its id stays."""
    if value is None or isinstance(value, bool | int | float | complex | str | bytes):
        yield repr(value)
        return
    if id(value) in seen:
        yield f"the same as {seen[id(value)][0]}"
        return
    kind = type(value)
    if kind is not tuple:  # equal ones may be one object or two
        seen[id(value)] = len(seen), value
    yield f"{kind.__module__}.{kind.__qualname__}"
    for part in _parts(value, kind):
        yield from _described(part, seen)


def _parts(value: Any, kind: type) -> Iterable[Any]:
    """What an object consists of."""
    if isinstance(value, torch.Tensor):
        return pretrained.digest({"": value}), value.requires_grad
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, hashlib.sha256(value.tobytes()).hexdigest()
    if isinstance(value, Mapping):
        return itertools.chain.from_iterable(value.items())
    if isinstance(value, list | tuple):
        return value
    if isinstance(value, set | frozenset):
        return sorted(map(repr, value))
    if isinstance(value, torch.nn.Module) and "_orig_mod" in value._modules:
        return "compiled", value._orig_mod  # without the state of torch's compiler
    if isinstance(value, torch.nn.Module):  # the keys of hooks are numbers of the session
        given = {name: each for name, each in vars(value).items() if name != "training"}
        hooks = {name: [*given.pop(name).values()] for name in [*given] if name.endswith("_hooks")}
        return kind, given, hooks
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, MethodType):
        return value.__func__, value.__self__
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    if isinstance(value, property):
        return value.fget, value.fset
    if isinstance(value, CodeType):
        return value.co_code, value.co_names, value.co_consts
    if isinstance(value, type | FunctionType | ModuleType):
        return _parts_of_code(value)
    if hasattr(value, "__wrapped__"):
        return (value.__wrapped__,)
    if hasattr(value, "__dict__") and not _is_installed(kind):
        return kind, vars(value)
    try:  # pickle's description: the state of a generator of random numbers, an enum's value
        reduced = value.__reduce_ex__(2)
    except Exception:
        return (re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value)),)
    if isinstance(reduced, str):
        return (reduced,)
    return *reduced[:3], *(list(items) for items in reduced[3:5] if items is not None)


def _parts_of_code(value: Any) -> Iterable[Any]:
    if isinstance(value, ModuleType) or _is_installed(value):
        name = value.__name__ if isinstance(value, ModuleType) else value.__qualname__
        digest = "" if _is_installed(value) else _digest_of_files(name, value, name, "module")
        return getattr(value, "__module__", None), name, digest
    if isinstance(value, type):
        kept = {n: v for n, v in vars(value).items() if n not in NO_CODE}
        return value.__bases__, kept
    used = {name: value.__globals__[name] for name in _globals_of(value.__code__)
            if name in value.__globals__}  # fmt: skip
    cells = [cell.cell_contents for cell in value.__closure__ or () if cell != CellType()]
    return value.__code__, value.__defaults__, value.__kwdefaults__, cells, used


def _globals_of(code: CodeType) -> list[str]:
    """Names that code looks up in its module, sorted; those of functions inside it too."""
    found = {i.argval for i in dis.get_instructions(code) if i.opname in LOOKUPS}
    for each in code.co_consts:
        found |= {*_globals_of(each)} if isinstance(each, CodeType) else set()
    return sorted(found)


def _is_installed(value: Any) -> bool:
    """Whether a class, function or module belongs to Python, an installed package or Apical."""
    name = value.__name__ if isinstance(value, ModuleType) else value.__module__
    module = sys.modules.get(name)
    if module is None or name == "__main__":
        return False
    file = getattr(module, "__file__", None)
    return file is None or _installed(Path(file))
