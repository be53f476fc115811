"""Warnings about optimizers under which learning feedback does not learn as its rule says."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Set
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from apical.core.updates import Slot

PATIENCE = 3
"""Steps after which feedback that no optimizer trains is worth a warning."""


def give(slots: Iterable[Slot], optimizer: Optimizer, stepped: Set[int]) -> None:
    """Warn, once for each layer, of feedback that is not trained or not trained as it must be.

    Weight and feedback may have an optimizer each.

    Args: stepped: the `id` of every parameter that the optimizer has just stepped.
    """
    untrained: list[str] = []
    objections: dict[str, list[str]] = {}
    for slot in slots:
        feedback, history = slot.feedback, slot.feedback.history
        if history.advised:
            continue
        parameters = feedback.named_parameters(recurse=False)
        memory = {name: p for name, p in parameters if p.grad is not None}
        if not memory:  # nothing to train, where nobody listens to a broadcast
            continue
        steps_weight = not stepped.isdisjoint(map(id, slot.parameters))
        steps_memory = not stepped.isdisjoint(map(id, memory.values()))
        if steps_weight:
            history.optimizer = optimizer
        if steps_memory and history.optimizer is not None:
            history.advised = True
            for text in _objections(slot, memory.values(), optimizer, history.optimizer):
                objections.setdefault(text, []).append(feedback.layer)
        elif steps_weight:
            history.missed += 1
            if history.missed == PATIENCE:
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


def _objections(
    slot: Slot, memory: Iterable[Tensor], optimizer: Optimizer, of_weight: Optimizer
) -> set[str]:
    """What the rule has against the way its memory is trained."""
    own = next((g for g in (_group_of(p, of_weight) for p in slot.parameters) if g), {})
    groups = [group for p in memory if (group := _group_of(p, optimizer))]
    texts = (slot.feedback.rule.objection(optimizer, own, group) for group in groups)
    return {text for text in texts if text}


def _group_of(parameter: Tensor | None, optimizer: Optimizer) -> Mapping[str, Any] | None:
    for group in optimizer.param_groups:
        if any(member is parameter for member in group["params"]):
            return group
    return None
