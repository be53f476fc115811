"""Random permutation: the first symbol must be remembered to the end."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.data.sequences.base import Task, whole

SYMBOLS = 100


@dataclass(frozen=True)
class RandomPermutation(Task):
    """The first symbol, 0 or 1, after T - 1 others out of 2 to 99.

    100 one-hot symbols and 100 classes, of which two ever occur: chance is 1/2 for a net that has
    learned as much.

    Args: length: T, at least 2.
    Source: Hochreiter, Schmidhuber 1997; Martens, Sutskever 2011.
    """

    inputs: ClassVar[int] = SYMBOLS
    outputs: ClassVar[int] = SYMBOLS
    shortest: ClassVar[int] = 2

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        symbols = 2 + whole(SYMBOLS - 2, (count, self.length), generator)
        symbols[:, 0] = whole(2, (count,), generator)
        return F.one_hot(symbols, SYMBOLS).float(), symbols[:, 0].clone()
