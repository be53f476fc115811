"""Splits of the user's data: tensors in memory, and items of a dataset."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from apical.data import generators

MOST_CLASSES = 1_000_000
"""More are taken for a mistake: the net has an output for each."""


@dataclass(frozen=True, eq=False)
class TensorSplit:
    """Inputs of any shape in memory, which the net receives as they are.

    Shapes: inputs float32 (N, ...); labels int64 (N,).
    """

    inputs: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of one input."""
        return tuple(self.inputs.shape[1:])

    def take(self, indices: Tensor) -> "TensorSplit":
        """The inputs at `indices`, copied, in that order."""
        return TensorSplit(self.inputs[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> "TensorSplit":
        """The same inputs on another device."""
        return TensorSplit(self.inputs.to(device), self.labels.to(device))

    def resized(self, size: int) -> "TensorSplit":
        """Raises: ValueError: these inputs are not resized."""
        raise _not_resized(size)

    def batches(
        self, indices: Sequence[Tensor], zooms: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) for each tensor of indices. Raises: ValueError if zooms are given."""
        _no_zoom(zooms)
        for chosen in indices:
            chosen = chosen.to(self.labels.device)
            yield self.inputs.index_select(0, chosen), self.labels.index_select(0, chosen)


@dataclass(frozen=True, eq=False)
class DatasetSplit:
    """Items of a ``torch.utils.data.Dataset``, read again in every epoch.

    Args: indices: of the items, in their order.     labels: int64, of those items.
        shape: of one input.     collate: from a list of items to (inputs, labels).
        workers: processes that read items in advance.
    """

    dataset: Any
    indices: Tensor
    labels: Tensor
    shape: tuple[int, ...]
    collate: Any
    workers: int = 0

    def __len__(self) -> int:
        return len(self.indices)

    def take(self, indices: Tensor) -> "DatasetSplit":
        """The items at `indices`, in that order."""
        return replace(self, indices=self.indices[indices], labels=self.labels[indices])

    def to(self, device: torch.device | str) -> "DatasetSplit":
        """Itself: items are read on the CPU, whatever the device."""
        return self

    def resized(self, size: int) -> "DatasetSplit":
        """Raises: ValueError: these inputs are not resized."""
        raise _not_resized(size)

    def batches(
        self, indices: Sequence[Tensor], zooms: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(inputs, labels) for each tensor of indices. Every item is read with a random seed of its
        own, a function of the order of all items, whatever the number of workers."""
        _no_zoom(zooms)
        order = torch.cat([*indices]) if len(indices) else torch.zeros(0, dtype=torch.int64)
        seed = int.from_bytes(hashlib.sha256(order.numpy().tobytes()).digest()[:6], "big")
        at = 0
        batches = []
        for chosen in indices:
            batches.append(
                [(i, seed + at + k) for k, i in enumerate(self.indices[chosen].tolist())]
            )
            at += len(chosen)
        loader = DataLoader(
            Seeded(self.dataset),
            batch_sampler=batches,
            collate_fn=self.collate,
            num_workers=self.workers,
            generator=torch.Generator(),  # the global one stays as it is
        )
        for x, y in loader:
            yield x if x.dtype == torch.uint8 else x.float(), checked_labels(y, "a dataset")


class Seeded(Dataset):
    """A dataset whose items are read with a seed each; global generators stay as they were."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, item: tuple[int, int]) -> Any:
        index, seed = item
        with generators.kept():
            generators.seed(seed)
            return self.dataset[index]


def checked_labels(labels: Any, part: str) -> Tensor:
    """Labels as int64.     Raises: ValueError unless they are whole numbers from 0, (N,)."""
    try:
        labels = torch.as_tensor(labels)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"data: the labels of {part} are no tensor, array or list of whole numbers: {error}"
        ) from error
    if labels.is_floating_point() or labels.is_complex() or labels.dim() != 1:
        raise ValueError(
            f"data: the labels of {part} are {labels.dtype} {tuple(labels.shape)}: they must be "
            "whole numbers from 0 to K - 1, one for each input, as labels.long() or "
            "one_hot.argmax(1)"
        )
    labels = labels.long()
    if len(labels) and int(labels.min()) < 0:
        raise ValueError(f"data: {part} has the label {int(labels.min())}: they begin at 0")
    if len(labels) and int(labels.max()) >= MOST_CLASSES:
        raise ValueError(
            f"data: {part} has the label {int(labels.max())}: labels number the classes from 0, at "
            f"most {MOST_CLASSES:,} of them"
        )
    return labels


def _not_resized(size: int) -> ValueError:
    return ValueError(f"size={size}: your own inputs are not resized; resize them where made")


def _no_zoom(zooms: Any) -> None:
    if zooms is not None:
        raise ValueError("augment='zoom_flip' is for image folders; use a transform of the dataset")
