"""Losses of a net's outputs, with their gradients written out.

A loss is a sum over outputs and a mean over samples (and over steps, where each is read out).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor


class Objective(NamedTuple):
    """A loss.

    Attributes:
        value: (scores, targets) -> the mean loss, a number that autograd can follow.
        error: (scores, targets) -> gradient of each sample's own loss at the scores, without the
            1 / N of the mean; shaped as the scores.
        minuend: scores -> the first term of the difference that `error` is; shaped as the scores.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]
    minuend: Callable[[Tensor], Tensor]


def _cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten())


def _cross_entropy_error(scores: Tensor, targets: Tensor) -> Tensor:
    error = torch.softmax(scores, -1)
    places = targets.unsqueeze(-1)
    return error.scatter_add_(-1, places, -torch.ones_like(places, dtype=error.dtype))


def _squared_error(scores: Tensor, targets: Tensor) -> Tensor:
    if scores.shape != targets.shape:
        raise ValueError(
            f"squared_error: outputs {tuple(scores.shape)} and targets {tuple(targets.shape)} must "
            "have the same shape"
        )
    return (scores - targets).square().sum(-1).mean()


def _squared_error_error(scores: Tensor, targets: Tensor) -> Tensor:
    return 2 * (scores - targets)


OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": Objective(
        _cross_entropy, _cross_entropy_error, lambda scores: torch.softmax(scores, -1)
    ),
    "squared_error": Objective(_squared_error, _squared_error_error, lambda scores: 2 * scores),
}
