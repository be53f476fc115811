"""A small causal transformer on sequences of vectors, of any length."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from apical.names import unknown
from apical.nets.vit import Block


class CausalTransformer(nn.Module):
    """Linear embedding, fixed sinusoids of the position, blocks, norm, linear head.

    Shapes: (N, T, inputs) -> (N, T, outputs), or (N, outputs) of the last step.
    """

    def __init__(
        self, inputs: int, outputs: int, *, width: int, depth: int, heads: int, every: bool
    ) -> None:
        super().__init__()
        self.every = every
        self.embedding = nn.Linear(inputs, width)
        blocks = (Block(width, heads, 4 * width, causal=True) for _ in range(depth))
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, outputs)

    def forward(self, x_NTF: Tensor) -> Tensor:
        embedded = self.embedding(x_NTF)
        hidden = self.norm(self.blocks(embedded + _sinusoids(*embedded.shape[1:]).to(embedded)))
        return self.head(hidden if self.every else hidden[:, -1])


def _sinusoids(length: int, width: int) -> Tensor:
    """Sinusoids of the position, (length, width), in [-1, 1].

    Source: Vaswani et al. 2017, section 3.5; sines first, then cosines.
    """
    steps = torch.arange(length).unsqueeze(1)
    rates = torch.exp(-math.log(10_000) * torch.arange(0, width, 2) / width)
    return torch.cat([(steps * rates).sin(), (steps * rates).cos()], 1)[:, :width]


def causal_transformer(
    *,
    inputs: int,
    outputs: int,
    output: Literal["last", "every"] = "every",
    width: int = 64,
    depth: int = 2,
    heads: int = 4,
) -> CausalTransformer:
    """Small causal transformer for sequences, pre-norm.

    Args: inputs: numbers at each step.     outputs: number of outputs.
        output: outputs of the "last" step only or of "every" one.
        width: features of a position, a multiple of `heads`.     depth: number of blocks.
        heads: attention heads.
    Raises: ValueError for another output, a width that does not divide, or an option below 1.
    Source: Vaswani et al. 2017, its decoder without cross-attention, in the pre-norm form.
    """
    if output not in ("last", "every"):
        raise unknown("output of causal_transformer", output, ("last", "every"))
    if min(width, depth, heads) < 1 or width % heads:
        raise ValueError(
            f"causal_transformer: width={width}, depth={depth}, heads={heads} must be at least 1,"
            " and width a multiple of heads"
        )
    return CausalTransformer(
        inputs, outputs, width=width, depth=depth, heads=heads, every=output == "every"
    )
