"""Priority sort: symbols with a priority each, asked for from the highest to the lowest."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.tasks.asked import NOTHING, AskedTask, option
from apical.tasks.base import whole


@dataclass(frozen=True)
class PrioritySort(AskedTask):
    """n symbols with priorities, then n steps at which they are asked for by falling priority.

    Inputs: the symbol, one-hot, its priority, uniform in [-1, 1), and 1 where one is asked for.

    Args: length: T = 2 n.     symbols: classes, >= 2.
    Raises: ValueError for an odd length.
    Source: Graves et al. 2014; Munkhdalai et al. 2019; symbols stand for vectors of bits.
    """

    symbols: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        option(self, "symbols", 2)
        assert self.shown

    @property
    def shown(self) -> int:
        """n."""
        return self.parts_of(2, "every symbol is shown and asked for")

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.symbols + 2

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return self.symbols

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shown = self.shown
        symbols = whole(self.symbols, (count, shown), generator)
        priorities = 2 * torch.rand(count, shown, generator=generator) - 1
        x = torch.zeros(count, self.length, self.inputs)
        x[:, :shown, : self.symbols] = F.one_hot(symbols, self.symbols).float()
        x[:, :shown, -2] = priorities
        x[:, shown:, -1] = 1.0
        y = torch.full((count, self.length), NOTHING)
        y[:, shown:] = symbols.gather(1, priorities.argsort(1, descending=True))
        return x, y
