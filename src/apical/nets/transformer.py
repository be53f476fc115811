"""Transformers whose projections are all `nn.Linear`, so that rules reach them: a small vision
transformer, and a causal one on sequences of vectors."""

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.names import unknown


class Attention(nn.Module):
    """Multi-head self-attention: one linear for q, k, v, one for the output.

    Args: causal: whether a token attends to itself and earlier ones alone.
    """

    def __init__(self, dim: int, heads: int, *, causal: bool = False) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BTD: Tensor) -> Tensor:
        batch, tokens, dim = x_BTD.shape
        qkv = self.qkv(x_BTD).reshape(batch, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, dim))


class Block(nn.Module):
    """Pre-norm transformer block: attention, then two linear layers with GELU between."""

    def __init__(self, dim: int, heads: int, mlp_dim: int, *, causal: bool = False) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, causal=causal)
        self.norm2 = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, mlp_dim)
        self.gelu = nn.GELU()
        self.fc2 = nn.Linear(mlp_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.fc2(self.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    """Patches, class token and learned position embedding, blocks, norm, linear head."""

    def __init__(
        self,
        in_shape: tuple[int, int, int],
        num_classes: int,
        dim: int,
        depth: int,
        heads: int,
        patch: int,
        mlp_dim: int,
    ) -> None:
        super().__init__()
        channels, height, width = in_shape
        self.patches = nn.Conv2d(channels, dim, patch, stride=patch)
        self.class_token = nn.Parameter(torch.zeros(1, 1, dim))
        tokens = (height // patch) * (width // patch) + 1
        self.position = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, tokens, dim), std=0.02))
        self.blocks = nn.Sequential(*(Block(dim, heads, mlp_dim) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.class_token.expand(len(x), -1, -1), x], dim=1) + self.position
        return self.head(self.norm(self.blocks(x))[:, 0])


def vit(
    *,
    in_shape: tuple[int, int, int],
    num_classes: int,
    dim: int = 128,
    depth: int = 4,
    heads: int = 4,
    patch: int = 4,
    mlp_ratio: int = 4,
) -> ViT:
    """Small vision transformer.

    Args: in_shape: (channels, height, width); both sides multiples of `patch`.
        num_classes: number of outputs.     dim: features of a token, a multiple of `heads`.
        depth: number of blocks.     heads: attention heads.     patch: pixels a side of a patch.
        mlp_ratio: hidden units of a block's two linear layers, in units of `dim`.
    Raises: ValueError for a shape or width that does not divide, or an option below 1.
    Source: Dosovitskiy et al. 2021 (arXiv 2010.11929), in its pre-norm form, without dropout.
    """
    options = {"dim": dim, "depth": depth, "heads": heads, "patch": patch, "mlp_ratio": mlp_ratio}
    below = {name: value for name, value in options.items() if value < 1}
    if below:
        raise ValueError(f"vit: {below} must be at least 1")
    if dim % heads:
        raise ValueError(f"vit: dim={dim} is not a multiple of heads={heads}")
    if in_shape[1] % patch or in_shape[2] % patch:
        raise ValueError(
            f"vit: in_shape {tuple(in_shape)} is not a whole number of {patch}x{patch} patches; "
            "change patch=, or load the data with a fitting size="
        )
    return ViT(in_shape, num_classes, dim, depth, heads, patch, mlp_ratio * dim)


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
