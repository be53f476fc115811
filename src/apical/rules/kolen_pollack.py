"""Kolen-Pollack: feedback that receives the weight's own updates, and forgets where it began."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.rules.base import Group, Law, drawn
from apical.rules.mirror import WeightMirror
from apical.rules.ops import Local
from apical.rules.tracking import Follower, trained_apart

NORMALISING = (
    torch.optim.Adam,
    torch.optim.Adagrad,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)


@dataclass(frozen=True)
class KolenPollack(Follower):
    """Kolen-Pollack: B is a parameter with the gradient of W, trained by the same optimizer.

    Convert first, then build the optimizer, so that it trains B too.
    Both receive the same updates, of size eta g under plain SGD, and both decay after them:

        W <- (1 - decay) (W - eta g)        B <- (1 - decay) (B - eta g)

    so that what they differ by decays alone:
    B - W = (1 - decay)^t (B_0 - W_0) after t updates, whatever the data. The weight decay of the
    optimizer adds to it where it acts on W and B alike: SGD, also with momentum (a heavy-ball
    law), and AdamW. Adam with coupled L2 breaks the law, and a warning says so.

    Args:
        decay: share of W and of B that every update takes away, in [0, 1), added to the weight
            decay of the optimizer. 0 with no weight decay leaves B - W as it is for ever; the
            angle then shrinks only while W grows (the authors' released runs). Alignment takes
            some 5 / decay updates.
        init: the law of B_0, as in `FA`.

    Raises: ValueError for a decay outside [0, 1).
    Source: Kolen, Pollack 1994; Akrout, Wilson, Humphreys, Lillicrap, Tweed 2019, equations 16-17,
        where the decay is of the weight before the update, W - eta g - decay W: the same law for
        B - W, other weights.
    """

    decay: float = 1e-4
    init: Law = "xavier"

    name: ClassVar[str] = "kp"
    reference: ClassVar[str] = WeightMirror.reference

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"matrix": nn.Parameter(drawn(self.init, weight.shape, generator))}

    def matrix(self, weight: Tensor, *memory: Tensor) -> Tensor:
        return memory[0]

    def memory_gradients(self, local: Local, *memory: Tensor) -> Sequence[Tensor | None]:
        assert local.grad_weight is not None
        # A tensor of its own: gradient clipping over W and B would scale a shared one twice.
        return (local.grad_weight.clone(),)

    def following(self, *memory: Tensor) -> Tensor:
        return memory[0]

    def image(self, gradient: Tensor, *memory: Tensor) -> Tensor:
        return gradient

    def objection(self, optimizer: Optimizer, weight_group: Group, memory_group: Group) -> str:
        apart = trained_apart(weight_group, memory_group)
        if apart:
            return apart
        decoupled = weight_group.get("decoupled_weight_decay", False)
        if (
            isinstance(optimizer, NORMALISING)
            and not isinstance(optimizer, torch.optim.AdamW)
            and not decoupled
            and weight_group.get("weight_decay", 0)
        ):
            return (
                f"{type(optimizer).__name__} divides the L2 terms of W and B by different numbers,"
                " so B does not converge to W; use AdamW, or weight_decay=0 and"
                " KolenPollack(decay=...)"
            )
        return ""
