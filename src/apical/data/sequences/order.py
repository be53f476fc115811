"""Temporal order: which symbols came, and in which order, among distractors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.data.sequences.base import Task, whole

SYMBOLS = 6  # two that matter, four that do not
EVIDENCE_FROM = 20  # below, a tenth of the length is one step: every position is fixed


def _sequences(
    task: Task, count: int, beginnings: tuple[float, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """One of the symbols 0 and 1 within a tenth of the length behind each beginning; the class
    has them as its binary digits, the first the lowest."""
    symbols = 2 + whole(SYMBOLS - 2, (count, task.length), generator)
    classes = torch.zeros(count, dtype=torch.int64)
    for digit, share in enumerate(beginnings):
        positions = task.part(share) + whole(task.part(0.1), (count,), generator)
        values = whole(2, (count,), generator)
        symbols[torch.arange(count), positions] = values
        classes += values << digit
    return F.one_hot(symbols, SYMBOLS).float(), classes


@dataclass(frozen=True)
class TemporalOrder(Task):
    """Class v0 + 2 v1 of two symbols, one in [.1 T, .2 T) and one in [.5 T, .6 T).

    The rest is one of four distractors; all six symbols are one-hot. Chance is 1/4; below 20
    steps both positions are fixed.

    Args: length: T, at least 10.
    Source: Hochreiter, Schmidhuber 1997, with the positions of Pascanu et al. 2013.
    """

    inputs: ClassVar[int] = SYMBOLS
    outputs: ClassVar[int] = 4
    evidence_from: ClassVar[int] = EVIDENCE_FROM

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return _sequences(self, count, (0.1, 0.5), generator)


@dataclass(frozen=True)
class TemporalOrder3(Task):
    """Class v0 + 2 v1 + 4 v2 of three symbols, behind .1 T, .3 T and .6 T. Chance is 1/8.

    Args: length: T, at least 10.     Source: as `TemporalOrder`.
    """

    inputs: ClassVar[int] = SYMBOLS
    outputs: ClassVar[int] = 8
    evidence_from: ClassVar[int] = EVIDENCE_FROM

    @property
    def name(self) -> str:
        return "temporal_order_3bit"

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return _sequences(self, count, (0.1, 0.3, 0.6), generator)
