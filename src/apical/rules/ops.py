"""Operations of layers as values, and what a rule is given of a layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


class LinearOp(NamedTuple):
    """`y = x W^T + b` on inputs of any number of dimensions."""

    def prepare(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def backward(
        self, grad: Tensor, x: Tensor, matrix: Tensor | None, needs: Sequence[bool]
    ) -> Gradients:
        flat = grad.dim() == 2
        rows = grad if flat else grad.reshape(-1, grad.shape[-1])
        grad_x = rows.mm(matrix) if needs[0] and matrix is not None else None
        if not flat and grad_x is not None:
            grad_x = grad_x.view(x.shape)
        inputs = x if flat else x.reshape(-1, x.shape[-1])
        grad_weight = rows.t().mm(inputs) if needs[1] else None
        return grad_x, grad_weight, rows.sum(0) if needs[2] else None


class ConvOp(NamedTuple):
    """A convolution (or its transpose) in any number of dimensions.

    `pad` is applied by `prepare` before the operation, in the order of `F.pad`; it carries the
    padding modes other than zeros and the uneven part of `padding="same"`.
    """

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    transposed: bool
    output_padding: tuple[int, ...]
    groups: int
    pad: tuple[int, ...] = ()
    pad_mode: str = "constant"

    def prepare(self, x: Tensor) -> Tensor:
        return F.pad(x, self.pad, self.pad_mode) if self.pad else x

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.convolution(x, weight, bias, *self[:6])

    def backward(
        self, grad: Tensor, x: Tensor, matrix: Tensor | None, needs: Sequence[bool]
    ) -> Gradients:
        # The weight's gradient does not depend on the weight: one call gives all three.
        outputs = grad.shape[1]
        return torch.ops.aten.convolution_backward(
            grad, x, matrix, [outputs] if needs[2] else None, *self[:6], list(needs)
        )


Op = LinearOp | ConvOp


class Local(NamedTuple):
    """What a transport rule is given of a layer during the backward pass.

    Shapes: x the layer's input; grad as the layer's output, what the layer above sent; weight and
        grad_weight alike. `grad_weight` is None where it is not formed yet, or not at all because
        the weight is frozen. In `scratch`, if there is one, a rule may store what it needs again
        in the same backward pass.
    """

    op: Op
    x: Tensor
    grad: Tensor
    weight: Tensor
    grad_weight: Tensor | None = None
    scratch: dict[str, Tensor] | None = None


class Geometry(NamedTuple):
    """What a broadcast rule is given of the layer whose input receives its signal."""

    input_shape: torch.Size
    samples: int
    weight_shape: torch.Size
    op: Op
    channels_last: bool = False
