"""Double copy: a sequence of symbols is shown, and has to be said twice."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.tasks.asked import NOTHING, AskedTask, option
from apical.tasks.base import whole


@dataclass(frozen=True)
class DoubleCopy(AskedTask):
    """n symbols, then 2 n steps at which the same ones are asked for, in their order, twice.

    Inputs: the symbol, one-hot, and 1 where one is asked for.

    Args: length: T = 3 n.     symbols: classes, >= 2.
    Raises: ValueError for a length that is no multiple of 3.
    Source: Munkhdalai et al. 2019; symbols stand for its vectors of bits.
    """

    symbols: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        option(self, "symbols", 2)
        assert self.shown

    @property
    def shown(self) -> int:
        """n."""
        return self.parts_of(3, "what is shown is asked for twice")

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.symbols + 1

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return self.symbols

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shown = self.shown
        symbols = whole(self.symbols, (count, shown), generator)
        x = torch.zeros(count, self.length, self.inputs)
        x[:, :shown, :-1] = F.one_hot(symbols, self.symbols).float()
        x[:, shown:, -1] = 1.0
        y = torch.full((count, self.length), NOTHING)
        y[:, shown:] = symbols.repeat(1, 2)
        return x, y
