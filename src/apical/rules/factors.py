"""Feedback matrices of two factors, B = L F, and when it is cheaper not to form B.

L (outputs, r) mixes the outputs of a layer, F has the shape of a weight with r outputs. What L
makes of the signal, L^T delta, serves the message F^T (L^T delta) and the gradient of F,
(L^T delta) x^T, so it is computed once in a backward pass.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from apical.rules.ops import ConvOp, Local

FEW_CHANNELS = 32
"""Below so many output channels a convolution with the whole of B costs less than two thin ones."""
CONVOLUTION_COSTS = 2
"""How much longer a multiplication takes in a thin convolution than in a wide one."""


class Sizes(NamedTuple):
    """What decides which way is cheaper in a layer: samples times positions, outputs, and what
    each output reads."""

    samples: int
    outputs: int
    inputs: int
    convolution: bool

    @classmethod
    def of(cls, local: Local) -> "Sizes":
        outputs = len(local.weight)
        samples = local.grad.numel() // outputs
        return cls(samples, outputs, local.weight[0].numel(), isinstance(local.op, ConvOp))

    def thin_message(self, rank: int) -> bool:
        """Whether two products with factors cost less than forming B and one product with it."""
        thin = self.samples * rank * (self.outputs + self.inputs)
        return self._cost * thin <= (self.samples + rank) * self.outputs * self.inputs

    def thin_gradient(self) -> bool:
        """Whether L^T dW costs less from the signal and the input than from dW, at any rank."""
        thin = self.samples * (self.outputs + self.inputs)
        return self._cost * thin <= self.outputs * self.inputs

    @property
    def _cost(self) -> int:
        return CONVOLUTION_COSTS if self.convolution else 1


def through(matrix: Tensor, tensor: Tensor) -> Tensor:
    """The matrix times a tensor's first axis: (r, n) and (n, ...) -> (r, ...)."""
    return matrix.mm(tensor.reshape(len(tensor), -1)).view(-1, *tensor.shape[1:])


def product(left: Tensor, factor: Tensor, weight: Tensor) -> Tensor:
    """L F in the memory layout of the weight."""
    matrix = through(left, factor)
    if weight.dim() == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        return matrix.contiguous(memory_format=torch.channels_last)
    return matrix


def send(local: Local, left: Tensor, factor: Tensor) -> Tensor | None:
    """The message through both factors in turn; None where it is cheaper to form B."""
    if not _separable(local) or not Sizes.of(local).thin_message(left.shape[1]):
        return None
    low = lowered(local, left)
    return local.op.backward(low, local.x, factor.to(low.dtype), (True, False, False))[0]


def gradient(local: Local, left: Tensor, factor: Tensor) -> Tensor:
    """L^T dW, the gradient of F under which B follows W; for few samples without use of dW."""
    assert local.grad_weight is not None
    same = local.grad.dtype == left.dtype  # else rounding would part F from L^T W
    if same and _separable(local) and Sizes.of(local).thin_gradient():
        low = local.op.backward(lowered(local, left), local.x, factor, (False, True, False))[1]
        assert low is not None
        return low
    return through(left.t(), local.grad_weight.to(left.dtype))


def lowered(local: Local, left: Tensor) -> Tensor:
    """L^T delta: the signal at r outputs in the place of all, in the signal's dtype."""
    known = local.scratch
    if known is not None and "lowered" in known:
        return known["lowered"]
    grad, left = local.grad, left.to(local.grad.dtype)
    if isinstance(local.op, ConvOp):
        ones, zeros = (1,) * (grad.dim() - 2), (0,) * (grad.dim() - 2)
        kernel = left.t().view(*left.t().shape, *ones)
        low = torch.convolution(grad, kernel, None, ones, zeros, ones, False, zeros, 1)
    else:
        low = grad.matmul(left)
    if known is not None:
        known["lowered"] = low
    return low


def _separable(local: Local) -> bool:
    """Whether the factors can be applied one after the other, and whether that could be faster."""
    op = local.op
    if not isinstance(op, ConvOp):
        return True
    # L mixes all outputs, which are the weight's first axis; groups and the transpose differ.
    return not op.transposed and op.groups == 1 and len(local.weight) >= FEW_CHANNELS
