"""The memory: a feed-forward net whose weights are state, another set for every sample.

Shapes: N samples, H heads, D width. Weights are (N, D, D) for each layer, keys (N, H, D).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Activation(NamedTuple):
    """A nonlinearity, and its slope as a function of what it returned."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation(torch.sigmoid, lambda z: z * (1 - z)),
    "tanh": Activation(torch.tanh, lambda z: 1 - z.square()),
}
"""Of the hidden layers. The two implementations known differ: tanh and sigmoid."""

Memory = tuple[Tensor, ...]
"""The weights of each layer, from keys to values."""


def begin(start: Sequence[Tensor], samples: int) -> Memory:
    """The memory before a sequence: the same weights, (D, D) for each layer, for all samples."""
    return tuple(weight.expand(samples, -1, -1) for weight in start)


def activations(memory: Memory, keys: Tensor, activation: str) -> list[Tensor]:
    """What every layer makes of the keys: z_0 = keys, z_l = act(W_l z_(l-1)), the last one linear.

    Returns: one tensor (N, H, D) more than there are layers.
    """
    value = ACTIVATIONS[activation].value
    found = [keys]
    for place, weight in enumerate(memory, 1):
        drive = found[-1] @ weight.mT
        found.append(drive if place == len(memory) else value(drive))
    return found


def recall(memory: Memory, keys: Tensor, activation: str) -> Tensor:
    """What the memory answers to keys, (N, H, D)."""
    return activations(memory, keys, activation)[-1]


def moved(memory: Memory, signals: Sequence[Tensor], inputs: Sequence[Tensor]) -> Memory:
    """New weights W_l - sum over heads of signal_l input_l^T; the memory given stays as it is.

    Shapes: signals and inputs (N, H, D), one for each layer.
    """
    return tuple(
        torch.baddbmm(weight, signal.mT, z, alpha=-1)
        for weight, signal, z in zip(memory, signals, inputs, strict=True)
    )


def norm(memory: Memory) -> Tensor:
    """Norm of all weights together, for each sample, (N,)."""
    return torch.stack([weight.square().sum((1, 2)) for weight in memory]).sum(0).sqrt()
