"""Tasks with long time lags (Hochreiter, Schmidhuber 1997), answered after the last step."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.data.sequences.base import Task

CLOSE = 0.04  # squared error up to which a sequence of the addition task counts as solved
ORDER_SYMBOLS = 6  # two that matter, four that do not
ORDER_EVIDENCE_FROM = 20  # below, a tenth of the length is one step: every position is fixed
PERMUTED_SYMBOLS = 100


@dataclass(frozen=True)
class Addition(Task):
    """The mean of the two of T numbers in [0, 1] (channel 1) that are marked (channel 0).

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
        first = torch.randint(self.part(0.1), (count,), generator=generator)
        second = self.part(0.1) + torch.randint(self.part(0.4), (count,), generator=generator)
        x[rows, first, 0] = x[rows, second, 0] = 1.0
        return x, ((x[rows, first, 1] + x[rows, second, 1]) / 2)[:, None]

    def correct(self, scores: Tensor, targets: Tensor) -> Tensor:
        return (scores - targets).square().squeeze(1) <= CLOSE


@dataclass(frozen=True)
class TemporalOrder(Task):
    """Class v0 + 2 v1 of two binary symbols v0, in [.1 T, .2 T), and v1, in [.5 T, .6 T).

    At the other steps there is one of four distractors; all six symbols are one-hot. Chance is 1/4;
    below 20 steps both positions are fixed.

    Args: length: T, at least 10.
    Source: Hochreiter, Schmidhuber 1997, with the positions of Pascanu et al. 2013.
    """

    inputs: ClassVar[int] = ORDER_SYMBOLS
    outputs: ClassVar[int] = 4
    evidence_from: ClassVar[int] = ORDER_EVIDENCE_FROM

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return _sequences(self, count, (0.1, 0.5), generator)


@dataclass(frozen=True)
class TemporalOrder3(Task):
    """Class v0 + 2 v1 + 4 v2 of three symbols, in the tenths of T that begin at .1 T, .3 T and
    .6 T. Chance is 1/8.

    Args: length: T, at least 10.     Source: as `TemporalOrder`.
    """

    inputs: ClassVar[int] = ORDER_SYMBOLS
    outputs: ClassVar[int] = 8
    evidence_from: ClassVar[int] = ORDER_EVIDENCE_FROM

    @property
    def name(self) -> str:
        return "temporal_order_3bit"

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        return _sequences(self, count, (0.1, 0.3, 0.6), generator)


@dataclass(frozen=True)
class RandomPermutation(Task):
    """The class is the first symbol, 0 or 1; T - 1 symbols out of 2 to 99 follow it.

    100 one-hot symbols and 100 classes, of which only two occur: chance is 1/2 for a net that has
    learned that.

    Args: length: T, at least 2.
    Source: Hochreiter, Schmidhuber 1997; Martens, Sutskever 2011.
    """

    inputs: ClassVar[int] = PERMUTED_SYMBOLS
    outputs: ClassVar[int] = PERMUTED_SYMBOLS
    shortest: ClassVar[int] = 2

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        symbols = 2 + torch.randint(PERMUTED_SYMBOLS - 2, (count, self.length), generator=generator)
        symbols[:, 0] = torch.randint(2, (count,), generator=generator)
        return F.one_hot(symbols, PERMUTED_SYMBOLS).float(), symbols[:, 0].clone()


def _sequences(
    task: Task, count: int, beginnings: tuple[float, ...], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A symbol 0 or 1 in the tenth of the length that starts at each beginning. They are the binary
    digits of the class, the first one the lowest."""
    symbols = 2 + torch.randint(ORDER_SYMBOLS - 2, (count, task.length), generator=generator)
    classes = torch.zeros(count, dtype=torch.int64)
    for digit, share in enumerate(beginnings):
        positions = task.part(share) + torch.randint(task.part(0.1), (count,), generator=generator)
        values = torch.randint(2, (count,), generator=generator)
        symbols[torch.arange(count), positions] = values
        classes += values << digit
    return F.one_hot(symbols, ORDER_SYMBOLS).float(), classes
