"""The losses that attacks maximise: of each example, as functions of the scores.

Notation: z the scores (logits) of one example, y its label, z_(1) >= z_(2) >= ... sorted. All are
larger the worse the scores. Shapes: scores (N, classes), labels (N,) -> (N,).
"""

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LossName = Literal["ce", "dlr", "margin"]
Loss = Callable[[Tensor], Tensor]
"""From scores (N, classes) to one number per example (N,)."""


def cross_entropy(scores: Tensor, labels: Tensor) -> Tensor:
    """log sum_k exp z_k - z_y. Its gradient vanishes where the scores differ much."""
    return F.cross_entropy(scores, labels, reduction="none")


def margin(scores: Tensor, labels: Tensor) -> Tensor:
    """max_{k != y} z_k - z_y: above 0 where the example is misclassified.

    Source: Carlini, Wagner 2017.
    >>> margin(torch.tensor([[3.0, 1.0, 0.0]]), torch.tensor([0]))
    tensor([-2.])
    """
    chosen = scores.gather(1, labels[:, None])
    others = scores.scatter(1, labels[:, None], float("-inf"))
    return others.amax(1) - chosen.squeeze(1)


def dlr(scores: Tensor, labels: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{k != y} z_k - z_y) / (z_(1) - z_(3)).

    It does not change when all scores are scaled or shifted. Needs three classes; where
    z_(1) = z_(3) it is the numerator.
    Source: Croce, Hein 2020.
    >>> dlr(torch.tensor([[4.0, 2.0, 0.0]]), torch.tensor([0]))
    tensor([-0.5000])
    """
    ordered, order = scores.sort(dim=1, descending=True)
    rival = torch.where(order[:, 0] == labels, ordered[:, 1], ordered[:, 0])
    chosen = scores.gather(1, labels[:, None]).squeeze(1)
    return (rival - chosen) / _spread(ordered[:, 0] - ordered[:, 2])


def targeted_dlr(scores: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """(z_t - z_y) / (z_(1) - (z_(3) + z_(4)) / 2) for the target class t. Needs four classes.

    Source: Croce, Hein 2020.
    """
    ordered = scores.sort(dim=1, descending=True).values
    towards = scores.gather(1, targets[:, None]).squeeze(1)
    away = scores.gather(1, labels[:, None]).squeeze(1)
    scale = ordered[:, 0] - 0.5 * (ordered[:, 2] + ordered[:, 3])
    return (towards - away) / _spread(scale)


def divergence(scores: Tensor, reference: Tensor) -> Tensor:
    """KL divergence from softmax(reference) to softmax(scores). Source: Zhang et al. 2019."""
    log_probabilities = F.log_softmax(scores, dim=1)
    return F.kl_div(log_probabilities, F.softmax(reference, dim=1), reduction="none").sum(1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "dlr": dlr,
    "margin": margin,
}

FEWEST_CLASSES = {"ce": 2, "dlr": 3, "dlr-targeted": 4, "margin": 2}


def check_classes(owner: str, loss: str, classes: int) -> None:
    """Raises: ValueError if a loss needs more classes than there are."""
    if classes < FEWEST_CLASSES[loss]:
        raise ValueError(
            f"{owner}: loss={loss!r} needs {FEWEST_CLASSES[loss]} classes, the model has {classes};"
            " use 'margin'"
        )


def against(labels: Tensor, name: str) -> Loss:
    """The loss of that name for these labels."""
    return lambda scores: LOSSES[name](scores, labels)


def broken(scores: Tensor, labels: Tensor) -> Tensor:
    """Whether each example is misclassified; scores that are not finite count as misclassified."""
    return (scores.argmax(1) != labels) | ~scores.isfinite().all(1)


def _spread(difference: Tensor) -> Tensor:
    """A divisor: 1 in place of 0."""
    return torch.where(difference == 0, torch.ones_like(difference), difference)
