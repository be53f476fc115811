"""Normalisation as part of the model, so that budgets are measured on pixels."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Normalised(nn.Module):
    """`model((x - mean) / std)`: takes inputs in [0, 1] where the model was trained on normalised.

    Args: mean, std: one number per channel, any number of channels; std above 0.
    Shapes: inputs (N, channels, ...).
    Raises: ValueError for numbers that do not fit together, or to the input.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        if len(mean) != len(std) or not mean:
            raise ValueError(
                f"Normalised: {len(mean)} means and {len(std)} standard deviations; give one of"
                " each per channel"
            )
        if min(std) <= 0:
            raise ValueError(f"Normalised: std={tuple(std)} must be above 0")
        self.model = model
        like = next((p for p in model.parameters() if p.is_floating_point()), torch.empty(0))
        self.register_buffer("mean", torch.tensor(mean, dtype=like.dtype, device=like.device))
        self.register_buffer("std", torch.tensor(std, dtype=like.dtype, device=like.device))
        self.train(model.training)

    def forward(self, x: Tensor) -> Tensor:
        channels = len(self.mean)
        if x.dim() < 2 or x.shape[1] != channels:
            raise ValueError(
                f"Normalised: an input of shape {tuple(x.shape)}; expected (N, {channels}, ...)"
            )
        shape = (channels, *[1] * (x.dim() - 2))
        return self.model((x - self.mean.view(shape)) / self.std.view(shape))
