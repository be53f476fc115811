"""What reaches the layers of a model from one batch: by their rules, and by backpropagation.

The same batch goes through the model twice, once as the rules teach it and once inside
`exact_gradients`. Weight gradients, the teaching signal at the output of every converted layer
and the error at the model's output all come from these two passes. Parameters' `.grad`, buffers
and global random numbers are left as they were.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from apical.core import outputs, updates
from apical.core.converted import broadcasts, exact_gradients, labels
from apical.core.example import call_with
from apical.core.feedback import Feedback
from apical.core.layers import converted_layers, feedback_modules
from apical.rules.ops import ConvOp

Pair = tuple[Tensor, Tensor]
"""The same quantity by the rule and by backprop."""


class Signals(NamedTuple):
    """What one batch sends backwards.

    Attributes:
        gradients: layer -> gradients of its weights, flat; frozen layers have none.
        deltas: weight of a layer (attention has four) -> for each call of it, the gradient of the
            loss at the output of the linear operation, before the activation.
        heard: the weights whose feedback a layer below receives, so not the first layer's.
        error: the gradient of the loss at the model's output; None where that is not one tensor.
        loss: the loss of the batch.
        growth: module that is converted, or contains such a layer -> root mean square of its
            output over that of its input; the largest of several calls. The model itself, and
            what takes or gives no tensor, is left out.
    """

    gradients: dict[str, Pair]
    deltas: dict[str, list[Pair]]
    heard: set[str]
    error: Tensor | None
    loss: Tensor
    growth: dict[str, Tensor]


class _Pass(NamedTuple):
    gradients: Sequence[Tensor | None]
    deltas: dict[str, list[Tensor | None]]
    heard: set[str]
    error: Tensor | None
    loss: Tensor


class _Call(NamedTuple):
    """One call of an operation with feedback."""

    place: GradientEdge | None  # of its output; None where that takes no part in the backward pass
    heard: bool


def send(model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any) -> Signals:
    """Send a batch forwards and backwards through the model, by its rules and exactly.

    Both passes draw the same dropout masks and see the same statistics.

    Args:
        loss_fn: `loss_fn(model(x), y)` is a number.
        x: one batch of inputs, at most as large as memory allows: a tensor, a tuple of arguments,
            or a dictionary of keyword arguments; y: its targets, of any kind that `loss_fn` takes.
    """
    groups = {
        name: [p for p in updates.parameters_of(layer) if p.requires_grad]
        for name, layer in converted_layers(model)
    }
    groups = {name: parameters for name, parameters in groups.items() if parameters}
    flat = [parameter for parameters in groups.values() for parameter in parameters]
    with unchanged(model) as again:
        labelled = labels(model, y) if isinstance(y, Tensor) else nullcontext()
        with labelled, _growing(model) as growth:
            by_rule = _send(model, loss_fn, x, y, flat)
        if not any(by_rule.deltas.values()):
            return Signals({}, {}, set(), by_rule.error, by_rule.loss, growth)
        again()
        with exact_gradients(model):
            exact = _send(model, loss_fn, x, y, flat)
    gradients, start = {}, 0
    for name, parameters in groups.items():
        here = slice(start, start + len(parameters))
        start = here.stop
        ours, theirs = by_rule.gradients[here], exact.gradients[here]
        if not any(gradient is None for gradient in (*ours, *theirs)):
            gradients[name] = (_joined(ours), _joined(theirs))
    deltas = {
        name: [
            (a, b)
            for a, b in zip(calls, exact.deltas[name], strict=True)
            if a is not None and b is not None
        ]
        for name, calls in by_rule.deltas.items()
    }
    deltas = {name: pairs for name, pairs in deltas.items() if pairs}
    return Signals(gradients, deltas, by_rule.heard, by_rule.error, by_rule.loss, growth)


def slots(model: nn.Module) -> Iterator[tuple[str, updates.Slot]]:
    """Full name of every weight that has feedback: its layer's, and the part's in attention."""
    for name, layer in converted_layers(model):
        for slot in updates.slots(layer):
            yield full_name(name, slot), slot


def full_name(layer: str, slot: updates.Slot) -> str:
    return ".".join(part for part in (layer, slot.name) if part)


def units_last(delta: Tensor, slot: updates.Slot) -> Tensor:
    """A delta as rows of one entry per output unit: a channel of a convolution is a unit.

    Shapes: (N, units, *positions) or (N, *positions, units) -> (N * positions, units).
    """
    units = delta.movedim(1, -1) if isinstance(slot.op, ConvOp) else delta
    return units.reshape(-1, units.shape[-1])


@contextmanager
def unchanged(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore buffers and global random numbers at the end, and whenever the result is called.

    What the rules noted of passes, for the next update to count, is restored at the end.
    """
    own = {
        name: (buffer, buffer.clone())
        for name, buffer in model.named_buffers()
        if "feedback" not in name.split(".") or name.split(".")[-1].startswith("note_")
    }
    histories = [feedback.history for feedback in feedback_modules(model)]
    heard = [history.took_part for history in histories]
    cuda = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=list(cuda)):
        states = torch.get_rng_state(), [(d, torch.cuda.get_rng_state(d)) for d in cuda]

        def again() -> None:
            torch.set_rng_state(states[0])
            for device, state in states[1]:
                torch.cuda.set_rng_state(state, device)
            for buffer, value in own.values():
                with torch.no_grad():
                    buffer.copy_(value)

        try:
            yield again
        finally:
            again()
            for history, before in zip(histories, heard, strict=True):
                history.took_part = before  # these passes are not the ones an update belongs to


def _send(
    model: nn.Module,
    loss_fn: Callable[[Any, Any], Tensor],
    x: Any,
    y: Any,
    weights: Sequence[Tensor],
) -> _Pass:
    with _listening(model) as calls:
        output = call_with(model, x)
    error = _error_edge(model, output)
    loss = loss_fn(output, y)
    places = [call.place for made in calls.values() for call in made if call.place is not None]
    wanted: list[Any] = [*weights, *places, *([] if error is None else [error])]
    if not wanted:
        return _Pass((), {name: [] for name in calls}, set(), None, loss.detach())
    found = list(torch.autograd.grad(loss, wanted, allow_unused=True))
    at_output = None if error is None else found.pop()
    gradients, rest = found[: len(weights)], iter(found[len(weights) :])
    deltas = {
        name: [None if call.place is None else next(rest) for call in made]
        for name, made in calls.items()
    }
    heard = {name for name, made in calls.items() if any(call.heard for call in made)}
    return _Pass(gradients, deltas, heard, at_output, loss.detach())


@contextmanager
def _listening(model: nn.Module) -> Iterator[dict[str, list[_Call]]]:
    """Note, at every operation that has feedback, where its output stands in the graph.

    A place in the graph, not a tensor: an in-place activation behind the layer may change that.
    """
    calls: dict[str, list[_Call]] = {}
    running: dict[Feedback, str] = {}  # by feedback, which tied layers share
    with ExitStack() as stack:
        for layer_name, layer in converted_layers(model):
            for slot in updates.slots(layer):
                feedback, name = slot.feedback, full_name(layer_name, slot)
                calls[name] = []
                if feedback not in running:
                    running[feedback] = name
                    feedback.listeners.append(partial(_note, calls, running, feedback))
                    stack.callback(feedback.listeners.pop)
                enter = partial(_enter, running, feedback, name)
                stack.enter_context(layer.register_forward_pre_hook(enter))
        yield calls


def _enter(running: dict[Feedback, str], feedback: Feedback, name: str, *call: Any) -> None:
    running[feedback] = name


def _note(
    calls: dict[str, list[_Call]],
    running: dict[Feedback, str],
    feedback: Feedback,
    x: Tensor,
    output: Tensor,
) -> None:
    place = get_gradient_edge(output) if output.requires_grad else None
    calls[running[feedback]].append(_Call(place, x.requires_grad))


@contextmanager
def _growing(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """`Signals.growth` of the passes within the block."""
    found: dict[str, Tensor] = {}
    names = [name.split(".") for name, _ in converted_layers(model)]
    watched = {".".join(parts[:depth]) for parts in names for depth in range(1, len(parts) + 1)}
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name and name in watched:
                note = partial(_note_growth, found, name)
                hooks.enter_context(module.register_forward_hook(note, with_kwargs=True))
        yield found


@torch.no_grad()
def _note_growth(
    found: dict[str, Tensor], name: str, module: nn.Module, inputs: Any, named: Any, output: Any
) -> None:
    first = output[0] if isinstance(output, tuple) and output else output  # of attention
    given = next(iter((*inputs, *named.values())), None)
    if not (isinstance(given, Tensor) and isinstance(first, Tensor)):
        return
    if not (given.is_floating_point() and first.is_floating_point()):
        return
    before, after = _mean_square(given), _mean_square(first)
    growth = torch.where(before > 0, after / before, 0).sqrt()
    found[name] = torch.maximum(found[name], growth) if name in found else growth


def _mean_square(tensor: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)
    return norm.square() / max(tensor.numel(), 1)


def _error_edge(model: nn.Module, output: Any) -> GradientEdge | None:
    """Where the error enters: at the output, or at the one named to `convert`; None for several."""
    sources = broadcasts(model)
    names = outputs.names(sources[0].output) if sources else [None]
    if len(names) > 1:
        return None
    try:
        output = outputs.find(output, names[0])
    except ValueError:  # several could be meant
        if sources:
            raise
        return None
    if not isinstance(output, Tensor) or not output.requires_grad:
        return None
    return get_gradient_edge(output)


def _joined(tensors: Sequence[Tensor | None]) -> Tensor:
    flat = [tensor.flatten() for tensor in tensors if tensor is not None]
    return flat[0] if len(flat) == 1 else torch.cat(flat)
