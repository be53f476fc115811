"""Losses by name, from scores and class labels, or from outputs and numbers."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Loss = Callable[..., Tensor]


def binary_cross_entropy(
    scores: Tensor, labels: Tensor, *, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Cross entropy of a sigmoid at each output with the one-hot label, summed over outputs.

    Its error at the outputs is sigmoid(score) - label, over the number of images for "mean".

    Shapes: scores (N, classes), labels (N,) int64, result a number.

    >>> binary_cross_entropy(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]))  # 3 log 2
    tensor(2.0794)
    """
    targets = torch.zeros_like(scores).scatter_(1, labels[:, None], 1.0)
    total = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
    return total / len(scores) if reduction == "mean" else total


def squared_error(
    scores: Tensor, targets: Tensor, *, reduction: Literal["mean", "sum"] = "mean"
) -> Tensor:
    """Squared distance of the scores from the targets, (N, outputs) both, summed over outputs."""
    total = (scores - targets).square().sum()
    return total / len(scores) if reduction == "mean" else total


def cross_entropy(
    scores: Tensor,
    labels: Tensor,
    *,
    reduction: Literal["mean", "sum"] = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Cross entropy of a softmax with the label.

    Where a net answers at every step, the loss of a sequence is the mean over the steps that have
    a label, which is not -100.

    Shapes: scores (N, classes), labels (N,); or (N, T, classes) and (N, T); result a number.
    """
    if scores.dim() == 2:
        return F.cross_entropy(scores, labels, reduction=reduction, label_smoothing=label_smoothing)
    each = F.cross_entropy(
        scores.mT, labels, reduction="none", label_smoothing=label_smoothing
    ).sum(1)
    total = (each / (labels != -100).sum(1).clamp(min=1)).sum()
    return total / len(scores) if reduction == "mean" else total


LOSSES: dict[str, Loss] = {
    "binary_cross_entropy": binary_cross_entropy,
    "cross_entropy": cross_entropy,
    "squared_error": squared_error,
}
"""Each takes scores, labels and `reduction`, "mean" or "sum" over images."""
