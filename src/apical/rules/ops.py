"""Operations of layers as values, and what a rule is given of a layer."""

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

    def unprepare(self, grad: Tensor) -> Tensor:
        """The transpose of `prepare`."""
        return grad

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def backward(
        self, grad: Tensor, x: Tensor, matrix: Tensor | None, needs: Sequence[bool]
    ) -> Gradients:
        flat = grad.dim() == 2
        rows = grad if flat else as_rows(grad)
        grad_x = rows.mm(matrix) if needs[0] and matrix is not None else None
        if not flat and grad_x is not None:
            grad_x = grad_x.view(x.shape)
        inputs = x if flat else as_rows(x)
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

    def unprepare(self, grad: Tensor) -> Tensor:
        """The transpose of `prepare`: from a gradient of what it returns to one of the layer's
        input."""
        for place in range(0, len(self.pad), 2):
            axis = grad.dim() - 1 - place // 2
            left, right = self.pad[place : place + 2]
            length = grad.shape[axis] - left - right
            origins = [
                padded_from(position - left, length, self.pad_mode)
                for position in range(grad.shape[axis])
            ]
            kept = [position for position, origin in enumerate(origins) if origin is not None]
            into = [origin for origin in origins if origin is not None]
            part = grad.index_select(axis, torch.tensor(kept, device=grad.device))
            shape = (*grad.shape[:axis], length, *grad.shape[axis + 1 :])
            index = torch.tensor(into, device=grad.device)
            grad = grad.new_zeros(shape).index_add(axis, index, part)
        return grad

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


def mean_product(op: Op, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """The weight's gradient for the signal y and the input x, as a mean over samples and positions.

    Shapes: y as the output of `op`, x as its input, result as `weight`.
    """
    total = op.backward(y, x, weight, (False, True, False))[1]
    assert total is not None
    if isinstance(op, ConvOp):
        # a convolution reads one window per output position, its transpose writes one per input's
        images = x if op.transposed else y
        return total / max(images.numel() // images.shape[1], 1)
    return total / max(x.numel() // x.shape[-1], 1)  # an expert may get no token


def as_rows(tensor: Tensor) -> Tensor:
    """All positions as rows, (positions, features), also of no features."""
    return tensor.reshape(tensor.shape[:-1].numel(), tensor.shape[-1])


def padded_from(position: int, length: int, mode: str) -> int | None:
    """The position of an axis of this length that padding copies to `position`, which counts from
    the first entry and may lie outside; None for a padded zero."""
    if 0 <= position < length:
        return position
    if mode == "constant":
        return None
    if mode == "circular":
        return position % length
    if mode == "replicate":
        return min(max(position, 0), length - 1)
    return -position if position < 0 else 2 * (length - 1) - position  # reflect


class Local(NamedTuple):
    """What a transport rule is given of a layer during the backward pass.

    x is always what the operation reads, `op.prepare` of the layer's input: padded, where the layer
    pads otherwise than by zeros or unevenly. Autograd sends a signal in the shape of x through
    `op.unprepare` to the layer's input; a rule that needs it there does the same.

    Shapes: x as the operand of `op`; grad as the layer's output, what the layer above sent; weight
        and grad_weight alike. `grad_weight` is None where it is not formed yet, or not at all
        because the weight is frozen. In `scratch`, if there is one, a rule may store what it needs
        again in the same backward pass.
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
