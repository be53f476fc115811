"""Double copy: a sequence of symbols is shown, and has to be repeated twice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from apical.data.sequences.asked import SymbolTask
from apical.data.sequences.base import whole


@dataclass(frozen=True)
class DoubleCopy(SymbolTask):
    """n symbols, then 2 n steps at which the same ones are asked for, in their order, twice.

    Inputs: the symbol, one-hot, and 1 where one is asked for.

    Args: length: T = 3 n.     symbols: classes, >= 2.
    Raises: ValueError for a length that is no multiple of 3.
    Source: Munkhdalai et al. 2019; symbols stand for its vectors of bits.
    """

    parts = 3
    why = "what is shown is asked for twice"

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        symbols = whole(self.symbols, (count, self.shown), generator)
        x, y = self.show(symbols)
        y[:, self.shown :] = symbols.repeat(1, 2)
        return x, y
