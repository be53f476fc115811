"""When a weight was updated, its rule may act: redraw magnitudes, restore a norm, learn.

Torch optimizers tell of their steps by a hook that is registered with the first layer that
wants to know; it also hears fused optimizers, which leave a tensor's version counter untouched.
Whoever updates weights by hand calls `apical.learn(model)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakSet

from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from apical import advice
from apical.feedback import Feedback
from apical.functional import Op

_WATCHED: WeakSet[nn.Module] = WeakSet()
_HOOKS: list[Any] = []


class Slot(NamedTuple):
    """One weight of a converted layer, its feedback, and the parameters it is made of."""

    name: str
    feedback: Feedback
    op: Op
    weight: Tensor
    bias: Tensor | None
    parameters: tuple[Tensor | None, ...]


def slots(layer: Any) -> Iterator[Slot]:
    """The weights of a converted layer that have feedback; attention has four, others one."""
    if isinstance(layer.feedback, Feedback):
        own = _own_parameters(layer)
        yield Slot("", layer.feedback, layer.operation(), layer.weight, layer.bias, own)
    else:
        yield from (Slot(*parts) for parts in layer.slots())


def watch(layer: nn.Module) -> None:
    """Let the layer's rule act after every update, if it has something to do."""
    if not any(wants_updates(slot.feedback) for slot in slots(layer)):
        return
    _WATCHED.add(layer)
    if not _HOOKS:
        _HOOKS.append(register_optimizer_step_post_hook(_after_step))


def unwatch(layer: nn.Module) -> None:
    """The layer is plain again."""
    _WATCHED.discard(layer)


def wants_updates(feedback: Feedback) -> bool:
    """Whether an update of the weight means anything to this rule."""
    rule = feedback.rule
    return rule.acts_after_update or rule.constrain_weights or feedback.trained or feedback.pending


def updated_by_hand(layers: Iterable[nn.Module]) -> None:
    """Act on an update that no torch optimizer announced; after one that did, do nothing."""
    for slot in _distinct(layers, None):
        if slot.feedback.up_to_date:
            slot.feedback.up_to_date = False
        else:
            slot.feedback.after_update(slot.weight, slot.bias, slot.op)


def _after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not _WATCHED:
        return
    stepped = {
        id(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    }
    slots_stepped = list(_distinct(_WATCHED, stepped))
    advice.give(slots_stepped, optimizer)
    for slot in slots_stepped:
        slot.feedback.after_update(slot.weight, slot.bias, slot.op)
        slot.feedback.up_to_date = True


def _distinct(layers: Iterable[nn.Module], stepped: set[int] | None) -> Iterator[Slot]:
    """One slot for each feedback, also where tied layers share it; only those that were stepped."""
    done = set()
    for layer in list(layers):
        if stepped is not None and stepped.isdisjoint(map(id, _all_parameters(layer))):
            continue  # most layers, where a process holds several models
        for slot in slots(layer):
            if id(slot.feedback) in done or not wants_updates(slot.feedback):
                continue
            if stepped is None or any(id(parameter) in stepped for parameter in slot.parameters):
                done.add(id(slot.feedback))
                yield slot


def _all_parameters(layer: nn.Module) -> Iterator[Tensor | None]:
    """The parameters of a layer and of what it contains; ten times as fast as `parameters()`."""
    yield from layer._parameters.values()
    for child in layer._modules.values():
        if child is not None:
            yield from _all_parameters(child)


def _own_parameters(layer: nn.Module) -> tuple[Tensor | None, ...]:
    """What the layer's weight is made of: itself, or what its hooks or parametrization use."""
    return tuple(
        parameter
        for name, parameter in layer.named_parameters()
        if not name.startswith("feedback.") and not name.endswith("bias")
    )
