"""The regulariser that keeps the norm of a signal on its way through a weight, written out.

Omega = (|v| / |delta| - 1)^2 with v = (delta W) * phi': the signal delta, a constant, carried one
layer or step back. Pascanu et al. 2013 regularise in the direction of the update in this way.
Shapes: ... any leading axes, such as steps; N samples, O and I sizes above and below; weight
(O, I) as in `nn.Linear`.
"""

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Per = Literal["batch", "sample"]


class Omega(NamedTuple):
    """Value and gradients.

    Attributes: value: (...,) for "batch", (..., N) for "sample".
        to_weight: what multiplies delta to give the gradient of the weight, (..., N, I): it is
            delta^T to_weight, summed over samples.
        to_below: gradient at the input sums below, (..., N, I).

    For "sample" both are those of the sum over samples of the values.
    """

    value: Tensor
    to_weight: Tensor
    to_below: Tensor


def vanished(delta: Tensor, terms: Tensor, axes: tuple[int, ...]) -> Tensor:
    """Where a difference is too small to have a direction: its norm is at most sqrt(eps) times
    that of its terms.

    Subtraction leaves a rounding error of up to eps * |terms| in delta, so that a direction above
    this floor is accurate to sqrt(eps), and one far below it is rounding noise alone.

    Args: delta: the difference.     terms: one of the two numbers subtracted, times what
            multiplies the difference; shaped like delta.     axes: of the norms.
    Shapes: the result has the axes of delta, with size 1 where a norm was taken.
    """
    floor = math.sqrt(torch.finfo(delta.dtype).eps)
    size, scale = (torch.linalg.vector_norm(t, dim=axes, keepdim=True) for t in (delta, terms))
    return size <= floor * scale


def omega(
    delta: Tensor, weight: Tensor, slope: Tensor, bend: Tensor, per: Per, terms: Tensor
) -> Omega:
    """The regulariser of one weight.

    The value and the gradients do not depend on the size of delta. Where delta has vanished (see
    `vanished`), or the weight cancels it down to rounding, they are zero: there is no direction
    to keep, and the gradients would be amplified rounding noise.

    Args: delta: signal above, (..., N, O).     slope, bend: first and second derivative of the
            activation below, (..., N, I).
        per: norms over the whole "batch" at a step, or of each "sample".
        terms: what delta is a difference of, as in `vanished`, (..., N, O).
    Source: lra2_reg.py of the LRA-RNN paper's authors says which norms; the gradients follow.
    """
    axes = (-2, -1) if per == "batch" else (-1,)
    arriving = delta @ weight
    back = arriving * slope
    above = torch.linalg.vector_norm(delta, dim=axes, keepdim=True)
    below = torch.linalg.vector_norm(back, dim=axes, keepdim=True)
    cancelled = vanished(arriving, above * torch.linalg.vector_norm(weight), axes)
    there = (below > 0) & ~(vanished(delta, terms, axes) | cancelled)
    above, below = torch.where(there, above, 1.0), torch.where(there, below, 1.0)
    excess = below / above - 1  # zero where one of them is
    pull = 2 * excess / (above * below) * back
    value = excess.square().squeeze(axes)
    return Omega(value, pull * slope, pull * arriving * bend)
