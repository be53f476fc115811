"""The perceptibility of an attack."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from apical.attacks.ball import lengths


@dataclass(frozen=True)
class Perceptibility:
    """Means over examples of the change, in units of the inputs.

    linf: the largest change of one value. l2: the Euclidean norm. mse: the mean square.
    """

    linf: float
    l2: float
    mse: float


def perceptibility(x: Tensor, x_adv: Tensor) -> Perceptibility:
    """The size of a change, by the three measures used for attacks on retrieval.

    Shapes: both (N, ...).     Raises: ValueError for other or no examples.

    >>> import torch
    >>> perceptibility(torch.zeros(1, 2, 2), torch.tensor([[[0.0, 0.75], [1.0, 0.0]]]))
    Perceptibility(linf=1.0, l2=1.25, mse=0.390625)
    """
    if x.shape != x_adv.shape or not len(x):
        raise ValueError(
            f"inputs of shapes {tuple(x.shape)} and {tuple(x_adv.shape)}: expected the same"
            " examples, at least one, before and after an attack"
        )
    change = (x_adv - x).detach().double()
    return Perceptibility(
        linf=change.flatten(1).abs().amax(1).mean().item(),
        l2=lengths(change).mean().item(),
        mse=change.square().flatten(1).mean(1).mean().item(),
    )
