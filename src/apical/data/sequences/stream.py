"""Epochs of sequences; each a function of (seed, epoch) and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from apical.data.sequences.base import Task, batches


class Stream:
    """Batches of a task, on a device, counted in epochs: epoch e of k batches is the batches
    e k to (e + 1) k - 1 of ``tasks.batches``, so that a resumed run sees the same bits.

    Where a task has only so many sequences for a purpose, an epoch is all of them, in their order.

    Args: count: sequences in an epoch, >= 1.     batch_size: in a batch, >= 1; the last has what
            is left of ``count``.
        seed, purpose: of the stream.
        device: where the batches go.
    Attributes: split: as long as an epoch has sequences.
    Raises: ValueError for a count below 1.
    """

    def __init__(
        self,
        task: Task,
        count: int,
        batch_size: int,
        *,
        seed: int,
        purpose: str = "train",
        device: torch.device | str = "cpu",
    ) -> None:
        if count < 1 or batch_size < 1:
            raise ValueError(
                f"Stream: count={count} and batch_size={batch_size} must be at least 1"
            )
        self.task, self.batch_size = task, batch_size
        self.seed, self.purpose = seed, purpose
        self.fixed = task.fixed(purpose)
        self.split = range(count if self.fixed is None else self.fixed.count)
        self.device = torch.device(device)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return (len(self.split) - 1) // self.batch_size + 1

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch ``number``, inputs and targets as the task draws them."""
        if self.fixed is not None:
            for first in range(0, self.fixed.count, self.batch_size):
                x, y = self.fixed.batch(first, first + self.batch_size)
                yield x.to(self.device), y.to(self.device)
            return
        start, left = number * len(self), len(self.split)
        drawn = batches(
            self.task, self.batch_size, seed=self.seed, purpose=self.purpose, start=start
        )
        for _, (x, y) in zip(range(len(self)), drawn, strict=False):
            size = min(left, self.batch_size)
            yield x[:size].to(self.device), y[:size].to(self.device)
            left -= size

    def correct(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Which sequences are solved, (N,), or to which share."""
        return self.task.correct(scores, targets)

    def weights(self, targets: Tensor) -> Tensor:
        """How much each sequence counts in an accuracy, (N,)."""
        return self.task.weights(targets)
