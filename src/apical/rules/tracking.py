"""What rules share whose feedback gets the updates of its weight: the decay, its bounds, and what
breaks them."""

import abc
import sys
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from apical.rules.base import Group, Needs, TransportRule, Update
from apical.rules.ops import Op


class Follower(TransportRule, abc.ABC):
    """A rule whose memory gets the updates of the weight, and decays with it by its field `decay`:
    a share of both that every update takes away, in [0, 1)."""

    decay: float

    needs: ClassVar[Needs] = Needs("nothing", "layers above")
    follows_weight: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.decay < 1:
            raise ValueError(
                f"{type(self).__name__}: decay={self.decay} is outside [0, 1); from 1 on, weight"
                " and feedback would vanish or diverge. It is a share per update, for example 1e-4"
            )

    @property
    def acts_after_update(self) -> bool:
        return self.decay > 0

    @property
    def changes_weight(self) -> bool:
        return self.decay > 0 or self.constrain_weights

    def obstacle(self, op: Op, weight: Tensor) -> str:
        if weight.requires_grad:
            return ""
        return "its weight is frozen, so its feedback would never learn; use FA or BP for it"

    def after_update(self, update: Update, *memory: Tensor) -> None:
        update.weight.mul_(1 - self.decay)
        self.following(*memory).mul_(1 - self.decay)

    @abc.abstractmethod
    def following(self, *memory: Tensor) -> Tensor:
        """The tensor of the memory that gets the updates, or their image."""

    @abc.abstractmethod
    def image(self, gradient: Tensor, *memory: Tensor) -> Tensor:
        """The gradient of `following` that goes with a gradient of the weight."""


def trained_apart(weight_group: Group, memory_group: Group) -> str:
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


def not_linear(optimizer: Optimizer, remedy: str) -> str:
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


def loss_scale() -> float:
    """The scale of the gradient scaler that makes the optimizer step under way; 1 without one.

    The scaler divides gradients before the step without a trace, so it is looked for among the
    callers: to be asked once, not in every step.
    """
    frame = sys._getframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, torch.amp.GradScaler):
            return float(caller.get_scale())
        frame = frame.f_back  # type: ignore[assignment]
    return 1.0
