"""The differentiable relaxation of codes: from a net's outputs to numbers in (-1, 1)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor


def relax(outputs: Tensor, sharpness: float = 1.0) -> Tensor:
    """u = tanh(alpha h): a differentiable form of the code sign h, its limit for large alpha.

    The tanh is not part of the net: training and attacks each choose their own alpha, and for a
    large alpha h has information that u has lost by rounding.

    Args: sharpness: alpha, above 0.
    >>> relax(torch.tensor([-0.5, 2.0]), 3.0)
    tensor([-0.9051,  1.0000])
    """
    if not sharpness > 0:
        raise ValueError(f"relax: sharpness={sharpness} must be above 0")
    return torch.tanh(sharpness * outputs)


@dataclass(frozen=True)
class Continuation:
    """A tanh that becomes steeper while a net is trained: alpha = sqrt(1 + rate t).

    Args:
        rate: of the growth, at least 0; 0 keeps alpha at 1.
        every: t is the last multiple of this many steps, at least 1.
    The defaults are for t in batches; rate=1 / 20, every=20 for t in epochs is that of
    DeepHash-pytorch.
    Source: Cao, Long, Wang, Yu 2017 (HashNet).

    >>> [round(Continuation().sharpness(step), 3) for step in (0, 199, 200, 600)]
    [1.0, 1.0, 1.414, 2.0]
    """

    rate: float = 0.005
    every: int = 200

    def __post_init__(self) -> None:
        if not self.rate >= 0 or self.every < 1:
            raise ValueError(
                f"Continuation: rate={self.rate} must be at least 0, every={self.every} at least 1"
            )

    def sharpness(self, step: int) -> float:
        """alpha at this step, counted from 0."""
        return math.sqrt(1 + self.rate * (step - step % self.every))
