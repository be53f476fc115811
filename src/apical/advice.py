"""Warnings about optimizers under which learning feedback does not learn as its rule says."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

if TYPE_CHECKING:
    from apical.updates import Slot

PATIENCE = 3
"""Steps after which feedback that no optimizer trains is worth a warning."""


def give(slots: Iterable[Slot], optimizer: Optimizer) -> None:
    """Warn, once for a model, of feedback that is not trained or not trained as it must be."""
    untrained: list[str] = []
    objections: dict[str, list[str]] = {}
    for slot in slots:
        feedback = slot.feedback
        if not feedback.trained or feedback.missed_steps > PATIENCE:
            continue
        names = [name for name, p in feedback.named_parameters(recurse=False) if p.requires_grad]
        groups = [_group_of(getattr(feedback, name), optimizer) for name in names]
        if None in groups:
            feedback.missed_steps += 1
            if feedback.missed_steps == PATIENCE:
                untrained += [f"{feedback.layer}.feedback.{name}" for name in names]
            continue
        feedback.missed_steps = PATIENCE + 1  # seen: nothing more to say
        own = next(g for g in (_group_of(p, optimizer) for p in slot.parameters) if g is not None)
        for group in groups:
            assert group is not None
            text = feedback.rule.objection(optimizer, own, group)
            if text:
                objections.setdefault(text, []).append(feedback.layer)
    if untrained:
        warnings.warn(
            f"the optimizer trains the weights but not their feedback: {', '.join(untrained)}."
            " Build the optimizer after the conversion, or add apical.feedback_parameters(model)",
            stacklevel=4,
        )
    for text, layers in objections.items():
        warnings.warn(f"{', '.join(dict.fromkeys(layers))}: {text}", stacklevel=4)


def _group_of(parameter: Tensor | None, optimizer: Optimizer) -> Mapping[str, Any] | None:
    for group in optimizer.param_groups:
        if any(member is parameter for member in group["params"]):
            return group
    return None
