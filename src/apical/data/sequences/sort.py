"""Priority sort: symbols with a priority each, asked for from the highest to the lowest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apical.data.sequences.asked import SymbolTask
from apical.data.sequences.base import whole


@dataclass(frozen=True)
class PrioritySort(SymbolTask):
    """n symbols with priorities, then n steps at which they are asked for by falling priority.

    Inputs: the symbol, one-hot, its priority, uniform in [-1, 1), and 1 where one is asked for.

    Args: length: T = 2 n.     symbols: classes, >= 2.
    Raises: ValueError for an odd length.
    Source: Graves et al. 2014; Munkhdalai et al. 2019; symbols stand for vectors of bits.
    """

    parts = 2
    why = "every symbol is shown and asked for"
    further = 2

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        symbols = whole(self.symbols, (count, self.shown), generator)
        priorities = 2 * torch.rand(count, self.shown, generator=generator) - 1
        x, y = self.show(symbols)
        x[:, : self.shown, -2] = priorities
        y[:, self.shown :] = symbols.gather(1, priorities.argsort(1, descending=True))
        return x, y
