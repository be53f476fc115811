"""What rules share whose feedback gets the updates of its weight: bounds, and what breaks them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def check_decay(rule: str, decay: float) -> None:
    """Raises: ValueError unless the decay per update lies in [0, 1)."""
    if not 0 <= decay < 1:
        raise ValueError(
            f"{rule}: decay={decay} is outside [0, 1); from 1 on, weight and feedback would"
            " vanish or diverge. It is a share per update, for example 1e-4"
        )


def frozen(weight: Tensor) -> str:
    """Why feedback cannot follow this weight; empty if it can."""
    if weight.requires_grad:
        return ""
    return "its weight is frozen, so its feedback would never learn; use FA or BP for it"


def trained_apart(weight_group: Mapping[str, Any], memory_group: Mapping[str, Any]) -> str:
    """The objection to options in which the groups of weight and feedback differ, or empty."""
    differing = [
        option
        for option in weight_group
        if option != "params" and weight_group[option] != memory_group.get(option)
    ]
    if not differing:
        return ""
    return (
        f"W and its feedback are trained with different options ({', '.join(differing)}), so the"
        " feedback does not follow W; put both into one group"
    )


def not_linear(optimizer: torch.optim.Optimizer, remedy: str) -> str:
    """The objection to optimizers whose step is no linear function of the gradients, or empty.

    A factor of the feedback gets a linear image of W's gradient. Under SGD, with momentum and
    weight decay too, its update is then the same image of W's update; where each entry is divided
    by a size of its own, it is not.
    """
    if isinstance(optimizer, torch.optim.SGD):
        return ""
    return (
        f"the step of {type(optimizer).__name__} is not linear in the gradient, so the update of"
        f" this feedback is only roughly the image of the update of W; {remedy}"
    )
