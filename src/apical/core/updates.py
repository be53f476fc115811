"""When a weight was updated, its rule may act: redraw magnitudes, restore a norm, learn.

Torch optimizers tell of their steps by a hook that is registered with the first layer that
wants to know; it also hears fused optimizers, which leave a tensor's version counter untouched.
Whoever updates weights by hand calls `apical.learn(model)`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from apical.core import advice
from apical.core.feedback import Feedback
from apical.rules.ops import Op

_WATCHED: WeakKeyDictionary[nn.Module, None] = WeakKeyDictionary()  # in order of conversion
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
    _WATCHED[layer] = None
    if not _HOOKS:
        _HOOKS.append(register_optimizer_step_post_hook(_after_step))


def unwatch(layer: nn.Module) -> None:
    """The layer is plain again."""
    _WATCHED.pop(layer, None)


def wants_updates(feedback: Feedback) -> bool:
    """Whether an update of the weight means anything to this rule."""
    rule = feedback.rule
    return rule.acts_after_update or rule.constrain_weights or feedback.trained or feedback.pending


def updated_by_hand(layers: Iterable[nn.Module]) -> None:
    """Act on updates that no torch optimizer announced; after one that did, do nothing."""
    _act([slot for slot in _distinct(layers) if not _rests(slot)], told=True)


def _after_step(optimizer: Any, args: Any, kwargs: Any) -> None:
    if not _WATCHED:
        return
    stepped = {
        id(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    }
    near = [layer for layer in _WATCHED if not stepped.isdisjoint(map(id, _all_parameters(layer)))]
    found = list(_distinct(near))
    advice.give(found, optimizer, stepped)
    _act([slot for slot in found if not stepped.isdisjoint(map(id, slot.parameters))], told=False)


def _act(found: list[Slot], *, told: bool) -> None:
    """Let the rules act on an update of these weights."""
    counted = [slot.feedback.history.counts(slot.parameters, told=told) for slot in found]
    for slot, counts in zip(found, counted, strict=True):
        slot.feedback.after_update(slot.weight, slot.bias, slot.op, counts=counts, told=told)
    for slot in found:  # when all are done: weights may be parts of one parameter
        slot.feedback.history.close(slot.parameters)


def _rests(slot: Slot) -> bool:
    """Whether the weight is frozen, and with it the feedback that follows it."""
    trained = any(p is not None and p.requires_grad for p in slot.parameters)
    return slot.feedback.rule.follows_weight and not trained


def _distinct(layers: Iterable[nn.Module]) -> Iterator[Slot]:
    """One slot for each feedback that an update means something to; tied layers share theirs."""
    done = set()
    for layer in layers:
        for slot in slots(layer):
            if id(slot.feedback) not in done and wants_updates(slot.feedback):
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
