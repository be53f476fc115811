"""What stands for the derivative of a spike, which is a step: zero or infinite everywhere.

v is the membrane less the threshold. Each function gives gradient * phi(v), in the order of
operations that snnTorch uses where it has the same surrogate, so that gradients agree to the bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """A surrogate: `product(v, gradient, slope)`, and the slope it comes with."""

    product: Callable[[Tensor, Tensor, float], Tensor]
    slope: float


def arctan(v: Tensor, gradient: Tensor, slope: float) -> Tensor:
    """phi = (k / 2) / (1 + (pi k v / 2)^2).     Source: Fang et al. 2021."""
    return slope / 2 / (1 + (math.pi / 2 * slope * v).pow_(2)) * gradient


def exponential(v: Tensor, gradient: Tensor, slope: float) -> Tensor:
    """phi = exp(-k |v|).     Source: Shrestha and Orchard 2018; ELL, FELL and BELL with k = 1."""
    return gradient * torch.exp(-slope * v.abs())


def fast_sigmoid(v: Tensor, gradient: Tensor, slope: float) -> Tensor:
    """phi = 1 / (1 + k |v|)^2.     Source: Zenke and Ganguli 2018; DECOLLE has k = 10."""
    return gradient / (slope * torch.abs(v) + 1.0) ** 2


def triangular(v: Tensor, gradient: Tensor, slope: float) -> Tensor:
    """phi = max(0, 1 - k |v|).     Source: Bellec et al. 2018, without their damping of 0.3."""
    return gradient * (1 - slope * v.abs()).clamp_(min=0)


SURROGATES: dict[str, Surrogate] = {
    "arctan": Surrogate(arctan, 2.0),
    "exponential": Surrogate(exponential, 1.0),
    "fast_sigmoid": Surrogate(fast_sigmoid, 10.0),
    "triangular": Surrogate(triangular, 1.0),
}


def fired(above: Tensor, surrogate: str, slope: float) -> Tensor:
    """1[v > 0], which autograd follows by the surrogate; v is the membrane less the threshold.

    Args: surrogate: a name of `SURROGATES`.
    """
    v = above.detach()
    spikes = (v > 0).to(v.dtype)
    phi = SURROGATES[surrogate].product(v, torch.ones_like(v), slope)
    return spikes + phi * (above - v)
