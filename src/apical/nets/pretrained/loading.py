"""Loading trained weights into a net: all of them, or an error."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from apical.names import unknown
from apical.nets.pretrained.weights import State, read

_LISTED = 8


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
    more = f", and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    return ", ".join(names[:_LISTED]) + more
