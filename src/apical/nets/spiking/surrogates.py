"""Surrogates of the derivative of a spike, which is that of a step: zero or infinite.

v is the membrane potential minus the threshold. Each function returns gradient * phi(v), in the
order of operations of snnTorch where it has the same surrogate: gradients are bitwise equal.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Surrogate(NamedTuple):
    """A surrogate: `product(v, gradient, slope)`, and its default slope."""

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
    """1[v > 0] with the surrogate as its derivative; v: membrane potential minus threshold.

    Args: surrogate: a name of `SURROGATES`.
    """
    v = above.detach()
    spikes = (v > 0).to(v.dtype)
    phi = SURROGATES[surrogate].product(v, torch.ones_like(v), slope)
    return spikes + phi * (above - v)
