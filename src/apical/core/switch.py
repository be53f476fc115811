"""Switching the rule of a model that is being trained: weights and optimizer state stay."""

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import LBFGS, SGD, Optimizer

from apical.core import updates
from apical.core.convert import convert, revert
from apical.core.converted import feedback_parameters
from apical.core.feedback import Feedback
from apical.core.layers import converted_layers, feedback_modules
from apical.core.outputs import OutputKey
from apical.core.plan import Assignment
from apical.core.taps import BroadcastFeedback
from apical.core.updates import Slot


def switch(
    model: nn.Module,
    rule: Assignment,
    *,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    example: Any = None,
    seed: int = 0,
    output: OutputKey = None,
    output_axis: int | None = None,
    max_feedback_bytes: int | None = None,
    on_unsupported: Literal["error", "keep"] = "error",
) -> nn.Module:
    """Let a model continue learning by another rule, with its optimizer as it is. In place.

    Weights stay, and so does all that the optimizer stores for them (momentum). A layer whose
    rule does not change keeps its feedback, with what that has learned and what the optimizer
    stores of it; every other layer gets fresh feedback. Of feedback that is removed, the optimizer
    forgets the parameters and their state; fresh feedback that is trained joins the group in which
    its weight stands. No group comes or goes, so schedules of the learning rate stay valid.

    Args:
        rule: the rule from now on, as for `convert`; a plain model may be switched as well, and
            "bp" makes one plain.
        optimizer: the optimizer, or several, that train the model. Without it none is changed.
        example, output, output_axis, max_feedback_bytes, on_unsupported: as for `convert`.
        seed: of fresh feedback. It is drawn by seed and layer alone, so that a rule that returns
            with the same seed starts from the feedback it started from before.

    Raises: ValueError with the problems, before anything is changed: those of `convert`, and
        models or optimizers that cannot change under way.

    >>> import torch
    >>> model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    >>> model = switch(model, "kp", optimizer=optimizer)
    >>> len(optimizer.param_groups[0]["params"])  # two weights, two biases, two matrices
    6
    """
    options: dict[str, Any] = {
        "example": example,
        "seed": seed,
        "output": output,
        "output_axis": output_axis,
        "max_feedback_bytes": max_feedback_bytes,
        "on_unsupported": on_unsupported,
    }
    optimizers = _listed(optimizer)
    check(model, rule, optimizer=optimizers, **options)
    before = list(feedback_parameters(model))
    _change(model, rule, options)
    _regroup(model, before, optimizers)
    return model


def check(
    model: nn.Module,
    rule: Assignment,
    *,
    optimizer: Optimizer | Iterable[Optimizer] | None = None,
    **options: Any,
) -> None:
    """Try a switch on a copy that shares the model's tensors; the model is not changed.

    Raises: ValueError as `switch`.
    """
    optimizers = _listed(optimizer)
    _refuse_wrapped(model)
    if any(feedback.exact for feedback in feedback_modules(model)):
        raise ValueError("inside exact_gradients no rule can be switched; leave the block first")
    twin = copy.deepcopy(model, {id(tensor): tensor for tensor in _tensors(model)})
    before = list(feedback_parameters(twin))
    try:
        _change(twin, rule, options)
        problems = list(_problems(twin, before, optimizers))
    finally:
        for _, layer in converted_layers(twin):
            updates.unwatch(layer)  # or it would act on updates of the weights it shares
    if problems:
        raise ValueError("nothing was switched: " + "; ".join(problems))


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """All tensors of a model, those it keeps as plain attributes too."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        yield from (value for value in vars(module).values() if isinstance(value, Tensor))


def _change(model: nn.Module, rule: Assignment, options: Mapping[str, Any]) -> None:
    """Revert and convert; feedback whose rule stays is put back."""
    before = {place: slot.feedback for place, slot in _places(model)}
    revert(model)
    convert(model, rule, **options)
    stays: dict[int, Feedback] = {}
    for place, slot in _places(model):
        old, new = before.get(place), slot.feedback
        if old is not None and not old.pending and old.rule == new.rule:
            if isinstance(old, BroadcastFeedback) and isinstance(new, BroadcastFeedback):
                if id(new) not in stays:
                    new.broadcast.error_shape = old.broadcast.error_shape
                    old.broadcast = new.broadcast
            stays.setdefault(id(new), old)
    for _, layer in converted_layers(model):
        for slot in updates.slots(layer):
            if old := stays.get(id(slot.feedback)):
                owner, name = (layer.feedback, slot.name) if slot.name else (layer, "feedback")
                owner.add_module(name, old)  # type: ignore[union-attr]


def _places(model: nn.Module) -> Iterator[tuple[tuple[str, str], Slot]]:
    """Every weight that has feedback, by the name of its layer and its own in it."""
    for name, layer in converted_layers(model):
        for slot in updates.slots(layer):
            yield (name, slot.name), slot


def _regroup(model: nn.Module, before: list[Parameter], optimizers: list[Optimizer]) -> None:
    """Remove from the optimizers the feedback that is gone, and add what is new."""
    if not optimizers:
        return
    removed = _removed(model, before)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            kept = [n for n, member in enumerate(group["params"]) if id(member) not in removed]
            for key in ("params", "param_names"):
                if key in group:  # in place: wrappers of an optimizer may share the list
                    group[key][:] = [group[key][n] for n in kept]
        for parameter in removed.values():
            optimizer.state.pop(parameter, None)
    for name, parameter, slot in _untrained(model, optimizers):
        trained = _group_of_weight(slot, optimizers)
        assert trained is not None
        _add(*trained, name, parameter)


def _add(optimizer: Optimizer, group: dict[str, Any], name: str, parameter: Parameter) -> None:
    started = any("momentum_buffer" in optimizer.state.get(p, {}) for p in group["params"])
    if isinstance(optimizer, SGD) and group["fused"] and started:
        # the fused step takes momentum of all parameters or of none
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    group["params"].append(parameter)
    if "param_names" in group:
        group["param_names"].append(name)


def _problems(
    model: nn.Module, before: list[Parameter], optimizers: list[Optimizer]
) -> Iterator[str]:
    """Why `_regroup` would fail."""
    if not optimizers:
        return
    fresh = list(_untrained(model, optimizers))
    for name, _, slot in fresh:
        if _group_of_weight(slot, optimizers) is None:
            yield (
                f"{name} would be trained with its weight, but that is in no group of the"
                " optimizer; add it there, or give the layer a rule without trained feedback (fa)"
            )
    removed = _removed(model, before)
    for optimizer in optimizers:
        kind = type(optimizer)
        if not (fresh or any(_trains(optimizer, parameter) for parameter in removed.values())):
            continue
        if isinstance(optimizer, LBFGS):
            yield (
                "LBFGS keeps one memory of all parameters together, and trained feedback is added"
                " or removed; switch without it and build a new one"
            )
        if any(parent.__name__ == "ZeroRedundancyOptimizer" for parent in kind.__mro__):
            yield (
                f"{kind.__name__} has distributed its parameters over processes, and trained"
                " feedback is added or removed; switch without it and build a new one"
            )


def _untrained(
    model: nn.Module, optimizers: list[Optimizer]
) -> Iterator[tuple[str, Parameter, Slot]]:
    """Name, parameter and slot of trained feedback that no optimizer trains, each once."""
    seen: set[int] = set()
    for (layer, part), slot in _places(model):
        path = [layer, "feedback", part]
        for name, parameter in slot.feedback.named_parameters(recurse=False):
            known = any(_trains(optimizer, parameter) for optimizer in optimizers)
            if parameter.requires_grad and not known and id(parameter) not in seen:
                seen.add(id(parameter))
                yield ".".join(word for word in (*path, name) if word), parameter, slot


def _removed(model: nn.Module, before: list[Parameter]) -> dict[int, Parameter]:
    still = set(map(id, feedback_parameters(model)))
    return {id(parameter): parameter for parameter in before if id(parameter) not in still}


def _group_of_weight(
    slot: Slot, optimizers: list[Optimizer]
) -> tuple[Optimizer, dict[str, Any]] | None:
    """The optimizer, and the group of it, that trains the slot's weight."""
    wanted = {id(parameter) for parameter in slot.parameters}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(id(member) in wanted for member in group["params"]):
                return optimizer, group
    return None


def _trains(optimizer: Optimizer, parameter: Parameter) -> bool:
    groups = optimizer.param_groups
    return any(member is parameter for group in groups for member in group["params"])


def _listed(optimizer: Optimizer | Iterable[Optimizer] | None) -> list[Optimizer]:
    if optimizer is None:
        return []
    found = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    for one in found:
        if not isinstance(one, Optimizer):
            raise ValueError(f"optimizer: {type(one).__name__} is not a torch.optim.Optimizer")
    return found


def _refuse_wrapped(model: nn.Module) -> None:
    """A wrapper keeps what it found in the model: it must be made again around the switched one."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "a model in DistributedDataParallel cannot be switched: its processes would not"
            " agree on the feedback. Switch model.module on every process, then wrap it again"
        )
    if type(model).__name__ == "OptimizedModule":
        raise ValueError(
            "a compiled model cannot be switched: switch the model you compiled"
            " (compiled._orig_mod), then compile it again"
        )
