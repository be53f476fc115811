"""Addition: two of many numbers are marked, and their mean is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from apical.data.sequences.base import Task, whole

CLOSE = 0.04  # squared error up to which a sequence counts as solved


@dataclass(frozen=True)
class Addition(Task):
    """The mean of the two numbers in [0, 1] (channel 1) that are marked (channel 0).

    The first mark is in [0, .1 T), the second in [.1 T, .5 T).
    A sequence is solved when the squared error is at most .04.

    Args: length: T, at least 10.
    Source: Hochreiter, Schmidhuber 1997, with the positions of Pascanu et al. 2013.
    """

    inputs: ClassVar[int] = 2
    outputs: ClassVar[int] = 1
    loss: ClassVar[Literal["cross_entropy", "squared_error"]] = "squared_error"

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        rows = torch.arange(count)
        x = torch.zeros(count, self.length, 2)
        x[:, :, 1] = torch.rand(count, self.length, generator=generator)
        first = whole(self.part(0.1), (count,), generator)
        second = self.part(0.1) + whole(self.part(0.4), (count,), generator)
        x[rows, first, 0] = x[rows, second, 0] = 1.0
        return x, ((x[rows, first, 1] + x[rows, second, 1]) / 2)[:, None]

    def correct(self, scores: Tensor, targets: Tensor) -> Tensor:
        return (scores - targets).square().squeeze(1) <= CLOSE
