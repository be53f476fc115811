"""The database that is searched, and which of its items are relevant."""

from dataclasses import dataclass

import torch
from torch import Tensor

from apical.retrieval.codes import Codes, warn_of_constant_bits

_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


@dataclass(frozen=True, eq=False)
class Database:
    """Codes to be searched and their labels.

    Args: codes: N codes. labels: (N,) class numbers, or (N, classes) of 0 and 1 for items with
        several labels.
    Raises: ValueError if they do not fit together.
    Warns: ConstantBitWarning for bits that never change.
    """

    codes: Codes
    labels: Tensor

    def __post_init__(self) -> None:
        if not len(self.codes):
            raise ValueError("Database: no codes")
        check_labels(self.labels, len(self.codes))
        object.__setattr__(self, "labels", self.labels.detach().cpu())
        warn_of_constant_bits(self.codes)

    def __len__(self) -> int:
        return len(self.codes)


def relevant(labels: Tensor, others: Tensor) -> Tensor:
    """Which pairs are alike: the same class, or at least one label in common.

    Shapes: labels (Q,) and others (N,) class numbers, or (Q, C) and (N, C) -> (Q, N) bool.
    Raises: ValueError if one has class numbers and the other 0 and 1 per class.

    >>> relevant(torch.tensor([0, 2]), torch.tensor([2, 0, 0])).int().tolist()
    [[0, 1, 1], [1, 0, 0]]
    """
    check_alike(labels, others)
    if labels.dim() == 1:
        return labels[:, None] == others
    return labels.float() @ others.float().T > 0  # counts of at most C: exact in float32


def check_alike(labels: Tensor, others: Tensor) -> None:
    """Raises: ValueError unless both are class numbers, or 0 and 1 for as many classes."""
    if labels.shape[1:] != others.shape[1:] or labels.dim() not in (1, 2):
        raise ValueError(
            f"labels of shapes {tuple(labels.shape)} and {tuple(others.shape)} cannot be compared:"
            " both must be class numbers (N,), or both 0 and 1 per class (N, classes)"
        )


def check_labels(labels: Tensor, count: int) -> None:
    """Raises: ValueError unless these are labels of `count` items."""
    numbers = labels.dim() == 1 and labels.dtype in _INTEGERS
    flags = labels.dim() == 2 and bool(((labels == 0) | (labels == 1)).all())
    if not (numbers or flags) or len(labels) != count:
        raise ValueError(
            f"labels of type {labels.dtype} and shape {tuple(labels.shape)} for {count} items:"
            f" expected class numbers ({count},), or 0 and 1 per class ({count}, classes)"
        )
