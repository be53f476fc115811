"""Which axis counts samples: verified once, on the first forward pass that can show it.

A broadcast rule sends the error of a sample to the rows of the same sample in every layer's input.
Equal sizes do not prove that two axes count the same thing: in (time, samples, features) with as
many steps as samples, and wherever only the sizes within a sample differ, a wrong axis would mix
samples silently. What proves it is the network: an output depends on the inputs of its own
sample, and on no others.
"""

from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from apical.rules.ops import ConvOp, Op

Axis = int | Literal["folded", "steps"]
Dependence = Literal["own", "other", "spread", "none"]


class Probe:
    """Whether gradients pass the bridges of a forward pass: only while dependences are measured."""

    passes = False


class Reading(NamedTuple):
    """A layer's input, and the axis of it that its rule takes for the samples (as `DFA` names
    them); None where no layer below receives its signal. `by_position`: every position counts as
    a sample, so that other axes of the output count as well, if their order is the input's."""

    layer: str
    rule: str
    op: Op
    input: Tensor
    axis: Axis | None
    by_position: bool = False

    def allows(self, view: Axis | Literal["none"], output_axis: int, other: int) -> bool:
        """Whether an axis of the input may count the entries of another axis of the output than
        the samples': where every position is a sample, and the other axes keep their order."""
        if not self.by_position:
            return False
        if view == "none" or not isinstance(self.axis, int):
            return True
        place = other + (other < output_axis)  # with samples in front
        return view == (place if place > self.axis else place - 1)


def verify(
    output: Tensor, axis: int, readings: Sequence[Reading], *, stated: bool, mixes: bool
) -> bool:
    """Refuse an axis of samples that the network contradicts.

    The gradient of one entry of an output axis is taken at the input of every layer (exact
    gradients, the graph of the forward pass that is under way, no random numbers). An input axis of
    the same size depends on its *own* entry if the gradient is exactly zero everywhere else. The
    samples' axis has this property, unless samples are mixed on purpose (batch norm in training).
    The axis is refused

    * where it does not have the property and another axis of the output has it for all layers, or,
      with the same output axis, another axis of a layer's input has it;
    * where it was not stated and another axis has it as well: in a network that treats positions
      alike, (samples, positions, features) and (positions, samples, features) look the same;
    * where the samples of a layer's input are in another order than those of the output.

    Where every position is a sample (`DFA(positions="samples")`), other axes of the output count
    samples too; only that they come in another order in a layer's input is refused.

    Never refused otherwise: an axis that has the property and was stated, one that no other axis
    rivals, and one that was stated for a model that mixes samples.

    Args:
        axis: of the output, taken for the samples.
        readings: the inputs of all layers in the graph of `output`.
        stated: whether the user gave the axis.
        mixes: whether a layer mixes samples on purpose.

    Returns: whether the network showed it. A batch of one or a vanishing gradient shows nothing.
    Raises: ValueError naming the axis that the network's dependences support.
    """
    size = output.shape[axis]
    if size < 2:
        return False
    gradients = _gradients(output, axis, [reading.input for reading in readings])
    reached = [at for at, found in enumerate(gradients[0]) if found is not None]
    states: dict[int, Dependence] = {}
    for at in reached:
        taken = readings[at].axis
        if taken is not None:
            states[at] = _dependence(gradients, at, taken, size)
    if not states or set(states.values()) == {"none"}:
        return False
    own = all(state == "own" for state in states.values())
    if stated and not mixes:  # then the layers' axes are wrong, if one of them can be right
        _check_inputs(gradients, readings, states, size, mixes=False)
    if not (stated and (own or mixes)):
        for other in range(output.dim()):
            found = other != axis and _supported(output, other, readings, reached)
            if found and all(readings[at].allows(v, axis, other) for at, v in found.items()):
                continue
            if found and not (own and "none" in found.values()):
                raise _contradiction(output, axis, other, readings, found, own or mixes)
    if not (stated and mixes):
        _check_inputs(gradients, readings, states, size, mixes=mixes)
    return "none" not in states.values()


def _check_inputs(
    gradients: list[tuple[Tensor | None, ...]],
    readings: Sequence[Reading],
    states: dict[int, Dependence],
    size: int,
    *,
    mixes: bool,
) -> None:
    """Refuse an axis of a layer's input where another one depends on its own samples alone, and one
    whose samples are in another order; where a layer mixes samples, those whose own units are
    silent look like that."""
    for at, state in states.items():
        if state not in ("spread", "other"):
            continue
        for view in _views(readings[at], size):
            if _dependence(gradients, at, view, size) == "own":
                reading = readings[at]
                raise ValueError(
                    f"{reading.layer}: an error of one sample would reach other samples: its rule"
                    f" takes axis {reading.axis!r} of its input {tuple(reading.input.shape)} for"
                    f" the samples, but the output's samples depend on {_named(view)}. Give it"
                    f" {reading.rule}(sample_axis={view!r})"
                )
        if state == "other" and not mixes:
            reading = readings[at]
            raise ValueError(
                f"{reading.layer}: an error of one sample would reach another sample: the samples"
                f" in its input {tuple(reading.input.shape)} (axis {reading.axis!r}) are in another"
                " order than in the model's output. Put them into one order outside of the model,"
                f" or give the layer a rule that transports: {{{reading.layer!r}: 'fa', '*': ...}}"
            )


def _gradients(
    output: Tensor, axis: int, inputs: Sequence[Tensor]
) -> list[tuple[Tensor | None, ...]]:
    """The gradients at all inputs of the first and of the last entry of an output axis: of two,
    since what only looks back in time depends on its own step alone at the first."""
    found: list[tuple[Tensor | None, ...]] = []
    for place in (0, -1):
        entry = output.select(axis, place)
        weights = torch.linspace(1, 2, entry.numel(), dtype=entry.dtype, device=entry.device)
        found.append(
            torch.autograd.grad(
                entry, inputs, weights.view(entry.shape), retain_graph=True, allow_unused=True
            )
        )
    return found


def _dependence(
    gradients: list[tuple[Tensor | None, ...]], at: int, view: Axis, size: int
) -> Dependence:
    """How an input depends on the entries of an axis: each on its "own" alone, one on rows of
    "other" samples in the place of its own, or not at all."""
    states = set()
    for place, of_entry in zip((0, size - 1), gradients, strict=True):
        gradient = of_entry[at]
        if gradient is None:
            states.add("none")
            continue
        along = _along(gradient, view, size).ne(0)
        rows = along.reshape(size, -1).any(1)
        elsewhere = rows.clone()
        elsewhere[place] = False
        if elsewhere.any():
            parts = along.flatten(0, 0 if isinstance(view, int) else 1).flatten(1).any(1)
            moved = parts.sum() <= len(parts) // size  # no more rows than a sample has
            states.add("other" if moved else "spread")
        else:
            states.add("own" if rows[place] else "none")
    found: tuple[Dependence, ...] = ("spread", "other", "none", "own")
    return next(state for state in found if state in states)


def _along(tensor: Tensor, view: Axis, size: int) -> Tensor:
    """The tensor with the axis of samples in front."""
    if view == "folded":
        return tensor.unflatten(0, (size, -1))
    if view == "steps":
        return tensor.unflatten(0, (-1, size)).movedim(1, 0)
    return tensor.movedim(view, 0)


def _views(reading: Reading, size: int) -> Iterator[Axis]:
    """The axes of an input that could count `size` samples; features and pixels never do."""
    shape = reading.input.shape
    axes = 1 if isinstance(reading.op, ConvOp) else len(shape) - 1
    for axis in range(axes):
        if shape[axis] == size:
            yield axis
    if shape[0] > size and shape[0] % size == 0:
        yield "folded"
        yield "steps"


def _supported(
    output: Tensor, axis: int, readings: Sequence[Reading], reached: Sequence[int]
) -> dict[int, Axis | Literal["none"]]:
    """For each input the axis that depends on its own entries of this output axis, "none" where the
    gradient vanishes; empty if one input has no such axis."""
    size = output.shape[axis]
    views = {at: list(_views(readings[at], size)) for at in reached}
    if size < 2 or not all(views.values()):
        return {}
    gradients = _gradients(output, axis, [reading.input for reading in readings])
    found: dict[int, Axis | Literal["none"]] = {}
    for at in reached:
        states = {view: _dependence(gradients, at, view, size) for view in views[at]}
        own = [view for view, state in states.items() if state == "own"]
        if not own and "none" not in states.values():
            return {}
        found[at] = own[0] if own else "none"
    return {} if set(found.values()) == {"none"} else found


def _contradiction(
    output: Tensor,
    axis: int,
    other: int,
    readings: Sequence[Reading],
    found: dict[int, Axis | Literal["none"]],
    undecided: bool,
) -> ValueError:
    rules: dict[str, list[str]] = {}
    for at, view in found.items():
        reading = readings[at]
        if reading.axis is not None and view not in (reading.axis, "none"):
            rules.setdefault(f"{reading.rule}(sample_axis={view!r})", []).append(reading.layer)
    to_rules = "".join(
        f" and {rule} for {', '.join(dict.fromkeys(layers))}" for rule, layers in rules.items()
    )
    first = readings[next(iter(found))]
    otherwise = f"; if axis {axis} does: output_axis={axis}" if undecided else ""
    return ValueError(
        f"{first.layer}: which axis of the model's output {tuple(output.shape)} counts samples?"
        f" Axis {axis} is assumed, but entries of axis {other} too depend each on its own entry of"
        f" every layer's input alone (here {tuple(first.input.shape)}), and a wrong axis sends the"
        f" error of one sample to others. If axis {other} counts samples: convert(...,"
        f" output_axis={other}){to_rules}{otherwise}"
    )


def _named(view: Axis) -> str:
    return f"axis {view} of it alone" if isinstance(view, int) else f"its rows as {view!r} alone"
