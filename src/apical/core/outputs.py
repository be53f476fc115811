"""Which tensor of a model's output carries the error."""

import copy
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

Name = str | int
OutputKey = Name | Sequence[Name] | None
"""Key, place or attribute of an output, or of several; None where there is only one candidate."""


def names(key: OutputKey) -> list[Name | None]:
    """The single names in an `OutputKey`. Raises: ValueError for a list that names none, or one
    output twice."""
    if key is None or isinstance(key, str | int):
        return [key]
    listed: list[Name | None] = list(key)
    if not listed:
        raise ValueError(f"output={key!r} is an empty list; name at least one output, or give None")
    if len(set(listed)) < len(listed):
        raise ValueError(f"output={key!r} names an output twice")
    return listed


def find(output: Any, key: Name | None) -> Tensor:
    """The tensor whose gradient is the error.

    Args:
        output: what the model returned: a tensor, or a mapping, tuple, list or object of them.
        key: its key, place or attribute; None where there is only one candidate.

    Raises: ValueError if there is no such tensor, if several could be meant, or if the output
        also holds a loss: the error of a loss computed inside the model passes no output.
    """
    if isinstance(output, Tensor):
        if key is not None:
            raise ValueError(f"the model returns one tensor; output={key!r} names nothing in it")
        return output
    parts = {name: part for name, part in _items(output) if isinstance(part, Tensor)}
    if not parts:
        raise ValueError(
            f"the model returns {type(output).__name__}, in which no tensor can be found; a rule"
            " that broadcasts the error needs a tensor, or a mapping, tuple or dataclass of tensors"
        )
    scalars = [name for name, part in parts.items() if part.dim() == 0 and part.requires_grad]
    # next to a named output another scalar may be a temperature; a gradient to it is warned of
    losses = [name for name in scalars if key is None or name == 0 or "loss" in str(name).lower()]
    if losses:
        raise ValueError(
            f"the model computes a loss inside its forward (output {losses[0]!r}); its gradient"
            " would bypass the output. Call the model without targets and compute the loss"
            " outside: outputs = model(**inputs); loss = F.cross_entropy(outputs.logits, labels)."
            " The Trainer of transformers takes such a loss as Trainer(compute_loss_func=...)"
        )
    if key is None:
        named = [name for name, part in parts.items() if part.is_floating_point()]
        if len(named) != 1:
            raise ValueError(
                f"the model returns several tensors; say which one carries the error:"
                f" convert(..., output=...) with one of {_listed(output, parts)}, or a list of"
                " several"
            )
        key = named[0]
    fields = getattr(output, "_fields", ()) if isinstance(output, tuple) else ()
    key = fields.index(key) if key in fields else key  # a field of a namedtuple, by its place
    if key not in parts:
        raise ValueError(f"output={key!r} is not in the model's output: {_listed(output, parts)}")
    return parts[key]


def error(parts: Sequence[Tensor], axis: int, key: OutputKey) -> Tensor:
    """The outputs that carry the error, with samples first; several as one vector a sample.

    Args: axis: of the outputs, that counts samples.     key: what they were chosen by.
    Raises: ValueError if they have no such axis, or count different numbers of samples.
    """
    for part in parts:
        if part.dim() <= axis:
            raise ValueError(
                f"the model's output {tuple(part.shape)} has no axis {axis} that counts samples"
                " (output_axis); it must be (samples, ...), not a single number"
            )
        if 0 in (*part.shape[:axis], *part.shape[axis + 1 :]):
            raise ValueError(
                f"the model's output {tuple(part.shape)} has no entries for a sample, and so no"
                " error that a rule could broadcast"
            )
        if part.is_complex():
            raise ValueError(
                f"the model's output {tuple(part.shape)} is complex, and a rule that broadcasts"
                " sends real errors: return torch.view_as_real(output), or its magnitude"
            )
    moved = [part.movedim(axis, 0) for part in parts]
    if len(moved) == 1:
        return moved[0]
    if len({len(part) for part in moved}) > 1:
        raise ValueError(
            f"the outputs {key!r} count different numbers of samples along axis {axis}:"
            f" {', '.join(str(tuple(part.shape)) for part in parts)}"
        )
    return torch.cat([part.reshape(len(part), -1) for part in moved], 1)


def mapped(
    output: Any, change: Callable[[tuple[Name, ...], Tensor], Tensor], path: tuple[Name, ...] = ()
) -> Any:
    """The output with `change(path, tensor)` in place of each of its tensors, those in nested
    containers included: a shallow copy of each container that changes, else the container itself.

    Args: path: the names that lead from the model's output to this one.
    """
    if isinstance(output, Tensor):
        return change(path, output)
    replacements = {}
    for name, part in _items(output):
        new = mapped(part, change, (*path, _shown(output, name)))
        if new is not part:
            replacements[name] = new
    if not replacements:
        return output
    if isinstance(output, tuple):
        items = [replacements.get(place, item) for place, item in enumerate(output)]
        return type(output)(*items) if hasattr(output, "_fields") else type(output)(items)
    if isinstance(output, Mapping | list):
        changed = copy.copy(output)
        for name, new in replacements.items():
            changed[name] = new  # type: ignore[index]
        return changed
    return dataclasses.replace(output, **{str(name): new for name, new in replacements.items()})


def tensors(output: Any) -> list[Tensor]:
    """All tensors of an output, those in nested containers included."""
    if isinstance(output, Tensor):
        return [output]
    return [tensor for _, part in _items(output) for tensor in tensors(part)]


def targets(labels: Tensor, samples: int, error_shape: tuple[int, ...]) -> Tensor:
    """Labels in the shape of the error, flat for each sample: classes become one-hot.

    Shapes: labels (N,) of class numbers, (N, *positions) of class numbers for an output
        (N, classes, *positions), or numbers shaped as the output -> (N, error size).
    Raises: ValueError for another shape, another number of samples or a class out of range.
    """
    expected = (samples, *error_shape)
    if tuple(labels.shape) == expected and labels.is_floating_point():
        return labels.reshape(samples, math.prod(error_shape))
    positions = error_shape[1:]
    if tuple(labels.shape) != (samples, *positions) or labels.is_floating_point():
        raise ValueError(
            f"labels are {tuple(labels.shape)} of {labels.dtype}; for an output {expected} they"
            f" are class numbers {(samples, *positions)}, or numbers of the output's own shape"
        )
    classes = error_shape[0]
    # values are not available in a graph, nor in a transform
    known = labels.numel() > 0 and not torch.compiler.is_compiling()
    known = known and not torch._C._are_functorch_transforms_active()
    if known and not 0 <= int(labels.min()) <= int(labels.max()) < classes:
        raise ValueError(
            f"labels run from {int(labels.min())} to {int(labels.max())}; the output"
            f" has classes 0 to {classes - 1}"
        )
    # as one_hot, which reads values
    one_hot = labels.unsqueeze(-1) == torch.arange(classes, device=labels.device)
    return one_hot.long().movedim(-1, 1).flatten(1)


def targets_by_position(labels: Tensor, axis: int, expected: tuple[int, ...], layer: str) -> Tensor:
    """Labels of every position, flat: (samples * positions, classes).

    Args:
        axis: of samples, in the model's output and in the labels alike.
        expected: shape of the output with samples first, (samples, *positions, classes).
    Shapes: labels as the output without its classes, of class numbers, of which a negative one
        marks a position that is ignored and becomes zeros; or numbers in the shape of the output.
    Raises: ValueError for another shape or a class out of range.
    """
    *positions, classes = expected
    shape = tuple(labels.shape)
    moved = labels.movedim(axis, 0) if labels.dim() > axis else labels
    if labels.is_floating_point() and tuple(moved.shape) == expected:
        return moved.reshape(-1, classes)
    if labels.is_floating_point() or list(moved.shape) != positions:
        raise ValueError(
            f"{layer}: labels are {shape} of {labels.dtype}; with positions='samples' they are"
            f" class numbers, one for each position of the output {tuple(positions)}, negative"
            " where it is ignored, or numbers in the shape of the output"
        )
    flat = moved.reshape(-1)
    return targets(flat.clamp_min(0), flat.numel(), (classes,)) * (flat >= 0).unsqueeze(1)


def _shown(output: Any, key: Name) -> Name:
    """The field of a namedtuple at this place; other keys as they are."""
    return output._fields[key] if isinstance(output, tuple) and hasattr(output, "_fields") else key


def _items(output: Any) -> list[tuple[Name, Any]]:
    if isinstance(output, Mapping):
        return list(output.items())
    if isinstance(output, tuple | list):
        return list(enumerate(output))
    if dataclasses.is_dataclass(output) and not isinstance(output, type):
        return [(field.name, getattr(output, field.name)) for field in dataclasses.fields(output)]
    return []


def _listed(output: Any, parts: Mapping[Name, Tensor]) -> str:
    return ", ".join(f"{_shown(output, n)!r} {tuple(part.shape)}" for n, part in parts.items())
