"""What follows an update of a weight: its rule may resample magnitudes, restore a norm, learn.

Torch optimizers announce their steps by a hook, which is registered with the first layer whose
rule acts after updates; fused optimizers, which leave a tensor's version counter alone, call it
too. Code that updates weights without an optimizer calls `apical.learn(model)`. An optimizer under
which feedback does not learn as its rule says is warned of once.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Set
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook

from apical.core.feedback import Feedback, TransportFeedback, computed_weight
from apical.rules.base import Update
from apical.rules.ops import Op
from apical.rules.tracking import Follower

PATIENCE = 3
"""Steps after which feedback that no optimizer trains is worth a warning."""

_TOLERANCE = 0.1
"""Between gradients of weight and feedback, of their norm: rounding to bfloat16 changes an entry by
1/256 of it at most, and where something else changes one of them by less, it does little harm."""

_ROUNDING = 0.01
"""Of the norm of a gradient that was only scaled: that to bfloat16 is 1/256 of an entry."""

_WATCHED: WeakKeyDictionary[nn.Module, None] = WeakKeyDictionary()  # in order of conversion
_UNCALLED: WeakKeyDictionary[nn.Module, Any] = WeakKeyDictionary()  # so far; gradients at first
_STEPS: WeakKeyDictionary[Optimizer, tuple[int, int]] = WeakKeyDictionary()  # since; the next due
_HOOKS: list[Any] = []


class Part(NamedTuple):
    """One weight of a layer, plain or converted, and what the layer computes with it.

    Attributes:
        op: what the layer computes; weight: in the layout of `op`, a view of a parameter or
            computed from some; bias: added by the same operation;
        parameters: those that the weight is made of;
        tapped: whether a broadcast rule gives its input a signal.
    """

    op: Op
    weight: Tensor
    bias: Tensor | None
    parameters: tuple[Tensor | None, ...]
    tapped: bool = True


class Slot(NamedTuple):
    """One weight of a converted layer with its feedback; see `Part`."""

    name: str
    feedback: Feedback
    op: Op
    weight: Tensor
    bias: Tensor | None
    parameters: tuple[Tensor | None, ...]


def only_part(layer: Any, op: Op) -> dict[str, Part]:
    """The part of a layer that has one `weight` and a `bias`."""
    parameters = tuple(  # the weight itself, or what its hooks or parametrization compute it from
        parameter
        for name, parameter in layer.named_parameters()
        if not name.startswith("feedback.") and not name.endswith("bias")
    )
    return {"": Part(op, layer.weight, layer.bias, parameters)}


def slots(layer: Any) -> Iterator[Slot]:
    """The weights of a converted layer that have feedback, by the names of their parts; a layer
    with one weight gives it no name."""
    own = layer.feedback
    for name, part in layer._apical_parts().items():
        if not name:
            yield Slot(name, own, *part[:4])
        elif name in own:
            yield Slot(name, own[name], *part[:4])


def feedback_of(layer: Any) -> list[Feedback]:
    """The feedback of all weights of a converted layer; unlike `slots`, it reads no weight, which a
    parametrization may compute with effects of its own."""
    own = layer.feedback
    return [own] if isinstance(own, Feedback) else list(own.values())


def parameters_of(layer: nn.Module) -> list[Tensor]:
    """The parameters that the weights with feedback are made of, each once."""
    found = (p for slot in slots(layer) for p in slot.parameters if p is not None)
    return list({id(parameter): parameter for parameter in found}.values())


def watch(layer: nn.Module) -> None:
    """Let the layer's rule act after every update, if it does anything then; and warn if the layer
    is updated without ever being called."""
    parts = feedback_of(layer)
    if not any(feedback.history.called for feedback in parts):  # as that of a copy may be
        _UNCALLED[layer] = _gradients(layer)
        _STEPS.clear()
    if any(map(_acts, parts)):
        _WATCHED[layer] = None
    if not _HOOKS:
        _HOOKS.append(register_optimizer_step_post_hook(_after_step))


def unwatch(layer: nn.Module) -> None:
    """The layer is plain again."""
    _WATCHED.pop(layer, None)
    _UNCALLED.pop(layer, None)


def reported(layer: nn.Module) -> None:
    """The user was warned of uses of the layer's weight outside it."""
    _UNCALLED.pop(layer, None)


def updated_by_hand(layers: Iterable[nn.Module]) -> None:
    """Act on updates that no torch optimizer announced; after one that did, do nothing."""
    updated = []
    for slot in _distinct(layers):
        trained = any(p is not None and p.requires_grad for p in slot.parameters)
        if trained or not slot.feedback.rule.follows_weight:
            updated.append(slot)
    _act(updated, by_hand=True)


def _after_step(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
    if _UNCALLED and _is_due(optimizer):
        _warn_of_uncalled(optimizer)
    if not _WATCHED:
        return
    stepped = {
        id(parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    }
    layers = [layer for layer in _WATCHED if not stepped.isdisjoint(map(id, _parameters(layer)))]
    candidates = list(_distinct(layers))
    _warn_of_optimizer(candidates, optimizer, stepped)
    _warn_of_gradients(candidates, stepped)
    _act([slot for slot in candidates if _completes(slot, stepped)], by_hand=False)


def _completes(slot: Slot, stepped: Set[int]) -> bool:
    """Whether a step completes an update: of the weight, and of its feedback where that is trained.
    Each may have an optimizer of its own, in either order.

    Args: stepped: the `id` of every parameter that an optimizer has just stepped.
    """
    history = slot.feedback.history
    # The gradient of a transport follows, where an optimizer steps within the backward pass.
    follows = history.took_part and isinstance(slot.feedback, TransportFeedback)
    trained = (p for p in slot.feedback.parameters(recurse=False) if p.requires_grad)
    memory = [id(p) for p in trained if follows or p.grad is not None]
    steps = {"weight"} if not stepped.isdisjoint(map(id, slot.parameters)) else set()
    if not stepped.isdisjoint(memory):
        steps.add("memory")
    again = steps <= history.stepped  # then nothing trains the feedback
    history.stepped |= steps
    both = not memory or len(history.stepped) == 2
    complete = bool(steps) and "weight" in history.stepped and (both or again)
    if both:
        history.stepped = set()
    return complete


def _act(updated: list[Slot], *, by_hand: bool) -> None:
    """Let the rules act on an update of these weights."""
    counted = [s.feedback.history.counts(s.parameters, by_hand=by_hand) for s in updated]
    for slot, counts in zip(updated, counted, strict=True):
        _after_update(slot, counts=counts, by_hand=by_hand)
    for slot in updated:  # when all are done: weights may be parts of one parameter
        slot.feedback.history.close(slot.parameters)


@torch.no_grad()
def _after_update(slot: Slot, *, counts: bool, by_hand: bool) -> None:
    """Restore the weight's norm after an update; if it `counts`, let the rule act on it."""
    _, feedback, op, weight, bias, _ = slot
    rule = feedback.rule
    if feedback.history.weight_replaced:
        feedback.adopt(weight)
    # A weight that a parametrization or a hook computes loses what is changed about it.
    owner = weight._base if weight._is_view() else weight  # attention packs three weights
    before = None if isinstance(owner, nn.Parameter) else weight.clone()
    if rule.constrain_weights:
        _restore_norm(feedback, weight, again=by_hand)
    version = weight._version
    if counts and rule.acts_after_update and not feedback.pending:
        feedback.count_updates(feedback.history.count + 1)
        generator = partial(feedback.generator, device=weight.device)
        update = Update(weight.detach(), bias, op, feedback.history.count, generator)
        rule.after_update(update, *feedback.memory(), *feedback.notes)
        if rule.constrain_weights and weight._version != version:  # the rule's own decay
            _restore_norm(feedback, weight, again=by_hand)
    if before is not None and not torch.equal(before, weight):
        raise RuntimeError(f"{feedback.layer}: {computed_weight(rule)}")


def _restore_norm(feedback: Feedback, weight: Tensor, *, again: bool) -> None:
    """Rescale a weight to its norm at conversion; `again`: perhaps a second time, when not a bit
    may change."""
    norm = torch.linalg.vector_norm(weight)  # of a weight that may have been zero at first
    limits = torch.finfo(norm.dtype)
    factor = feedback.get_buffer("weight_norm") / norm.clamp_min(limits.tiny)
    if again:
        factor = torch.where((factor - 1).abs() > 16 * limits.eps, factor, 1)
    weight.mul_(factor)


def _acts(feedback: Feedback) -> bool:
    """Whether the rule does anything after an update of the weight."""
    rule = feedback.rule
    return rule.acts_after_update or rule.constrain_weights or feedback.trained or feedback.pending


def _distinct(layers: Iterable[nn.Module]) -> Iterator[Slot]:
    """One slot for each feedback whose rule acts after updates; tied layers share theirs."""
    done = set()
    for layer in layers:
        for slot in slots(layer):
            if id(slot.feedback) not in done and _acts(slot.feedback):
                done.add(id(slot.feedback))
                yield slot


def _parameters(layer: nn.Module) -> Iterator[Tensor | None]:
    """The parameters of a layer and of what it contains; ten times as fast as `parameters()`."""
    yield from layer._parameters.values()
    for child in layer._modules.values():
        if child is not None:
            yield from _parameters(child)


def _warn_of_optimizer(slots: Iterable[Slot], optimizer: Optimizer, stepped: Set[int]) -> None:
    """Warn, once for each layer, of feedback that is not trained or not trained as it must be.

    Weight and feedback may have an optimizer each.

    Args: stepped: the `id` of every parameter that the optimizer has just stepped.
    """
    untrained: list[str] = []
    objections: dict[str, list[str]] = {}
    for slot in slots:
        feedback = slot.feedback
        history = feedback.history
        if history.optimizers_checked:
            continue
        parameters = feedback.named_parameters(recurse=False)
        memory = {name: p for name, p in parameters if p.grad is not None}
        if not memory:  # nothing to train, or no layer below that receives the signal
            continue
        steps_weight = not stepped.isdisjoint(map(id, slot.parameters))
        steps_memory = not stepped.isdisjoint(map(id, memory.values()))
        if steps_weight:
            history.optimizer = optimizer
        of_weight = history.optimizer
        if steps_memory and of_weight is not None:
            history.optimizers_checked = True
            own = next(filter(None, (_group_of(p, of_weight) for p in slot.parameters)), {})
            groups = [group for p in memory.values() if (group := _group_of(p, optimizer))]
            texts = {feedback.rule.objection(optimizer, own, group) for group in groups}
            for text in texts - {""}:
                objections.setdefault(text, []).append(feedback.layer)
        elif steps_weight:
            history.missed_steps += 1
            if history.missed_steps == PATIENCE:
                untrained += [f"{feedback.layer}.feedback.{name}" for name in memory]
    if untrained:
        warnings.warn(
            f"the optimizer trains the weights but not their feedback: {', '.join(untrained)}."
            " Build the optimizer after convert(..., example=x), by when all of it exists, or add"
            " apical.feedback_parameters(model)",
            stacklevel=4,
        )
    for text, layers in objections.items():
        warnings.warn(f"{', '.join(dict.fromkeys(layers))}: {text}", stacklevel=4)


@torch.no_grad()
def _warn_of_gradients(slots: Iterable[Slot], stepped: Set[int]) -> None:
    """Warn, once for each layer, where the weight's gradient was scaled (clipped), or changed by a
    hook, but not that of the feedback that is to follow it: compared at the steps 1, 2, 4, 8 and so
    on. What adds to the gradient, a penalty or a pass inside `exact_gradients`, is meant to.
    """
    differing = []
    for _, feedback, _, weight, *_ in slots:
        rule, history = feedback.rule, feedback.history
        if history.compared < 0 or not isinstance(rule, Follower):
            continue
        exact = history.exact_blocks != feedback.exact_blocks
        history.exact_blocks = feedback.exact_blocks
        history.compared += 1
        if exact or history.compared & (history.compared - 1):
            continue
        memory = feedback.memory()
        following = rule.following(*memory)
        if not (feedback.trained and {id(weight), id(following)} <= stepped):
            continue
        of_weight, given = weight.grad, following.grad
        if not type(of_weight) is type(given) is Tensor:  # sharded
            continue
        expected = rule.image(of_weight, *memory)
        hooked = weight._backward_hooks and not following._backward_hooks
        factor = 1.0 if hooked else (expected * given).sum() / given.square().sum()
        apart, unlike = (torch.linalg.vector_norm(expected - f * given) for f in (1.0, factor))
        limit = _TOLERANCE * torch.maximum(*map(torch.linalg.vector_norm, (of_weight, given)))
        # A penalty balances the gradient in the end: what is left of both is compared.
        scaled = given.numel() > 1 and unlike < _ROUNDING * torch.linalg.vector_norm(expected)
        if apart > limit and (hooked or scaled):
            history.compared = -1
            differing.append(feedback.layer)
    if differing:
        warnings.warn(
            f"{', '.join(differing)}: what the optimizer was given as the gradient of the weight is"
            " not that of its feedback, which so does not follow it. What scales or changes"
            " gradients (clip_grad_norm_, a hook of the weight) must do so for both:"
            " model.parameters() has the feedback too",
            stacklevel=4,
        )


def _is_due(optimizer: Optimizer) -> bool:
    """Whether uncalled layers are examined after this step: after each of the first steps since a
    layer was added, then ever more rarely, so that a layer that is never called costs nothing in
    the long run. The gaps take all lengths: gradients of every third step, say, are met too."""
    count, due = _STEPS.get(optimizer, (0, 1))
    count += 1
    is_due = count >= due
    _STEPS[optimizer] = count, count + 1 + count // 16 if is_due else due
    return is_due


def _warn_of_uncalled(optimizer: Optimizer) -> None:
    """Warn, once, of layers whose weights have new gradients although they were never called."""
    unreached = []
    trained: set[int] = set()
    for layer, before in list(_UNCALLED.items()):
        parts = feedback_of(layer)
        if any(feedback.history.called for feedback in parts):
            del _UNCALLED[layer]
            continue
        gradients = _gradients(layer)
        if not gradients or gradients == before:
            continue
        trained = trained or {id(p) for group in optimizer.param_groups for p in group["params"]}
        own = (p for p in _weights(layer) if p is not None and id(p) in trained)
        if any(_is_nonzero(p.grad) for p in own):
            del _UNCALLED[layer]
            unreached.append(parts[0].layer)
    if unreached:
        warnings.warn(
            f"{', '.join(unreached)}: the weight has a gradient, but the layer was never called"
            " while gradients were recorded, so that its rule could not act. Something else uses"
            " the weight, as F.linear(x, layer.weight) does, and passes the exact gradient on to"
            " what is below: call the layer instead, layer(x), or give it rule BP by name",
            stacklevel=4,
        )


def _weights(layer: nn.Module) -> Iterator[Tensor | None]:
    """The parameters of a converted layer but for those of its feedback."""
    yield from layer._parameters.values()
    for name, child in layer._modules.items():
        if child is not None and name != "feedback":
            yield from _parameters(child)


def _gradients(layer: nn.Module) -> list[tuple[int, int]]:
    """Which gradients the parameters of a layer have, without their values."""
    present = (p.grad for p in _weights(layer) if p is not None)
    return [(id(grad), grad._version) for grad in present if grad is not None]


def _is_nonzero(grad: Tensor | None) -> bool:
    if grad is None:
        return False
    local = grad.to_local() if hasattr(grad, "to_local") else grad  # a part of it, if sharded
    return bool(local.any())


def _group_of(parameter: Tensor | None, optimizer: Optimizer) -> Mapping[str, Any] | None:
    for group in optimizer.param_groups:
        if any(member is parameter for member in group["params"]):
            return group
    return None
