"""Tasks that ask at several steps of a sequence, and what they have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.data.sequences.base import Task

NOTHING = -100
"""Target of steps at which nothing is asked; PyTorch's losses leave it out by themselves."""


@dataclass(frozen=True)
class AskedTask(Task):
    """A task with a class to name at some of its steps, `NOTHING` at the others.

    Shapes: scores (N, T, outputs), targets (N, T).
    """

    answers: ClassVar[Literal["last", "every"]] = "every"
    shortest: ClassVar[int] = 2
    evidence_from: ClassVar[int] = 0  # what is asked for is resampled for every sequence

    def correct(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The share of its questions that each sequence answers, (N,) float64."""
        asked = targets != NOTHING
        right = (scores.argmax(2) == targets) & asked
        return right.sum(1) / asked.sum(1).clamp(min=1).double()

    def weights(self, targets: Tensor) -> Tensor:
        return (targets != NOTHING).sum(1).double()

    def parts_of(self, parts: int, what: str) -> int:
        """The length over the number of equal parts that a sequence has.

        Raises: ValueError for a length that does not divide.
        """
        if self.length % parts:
            near = max(parts, self.length - self.length % parts)
            raise ValueError(
                f"{self.name}: length={self.length}, but {what}: a multiple of {parts}, as {near}"
            )
        return self.length // parts


@dataclass(frozen=True)
class SymbolTask(AskedTask):
    """Symbols are shown, one a step and one-hot; then they are asked for.

    Further inputs follow the symbol's; the last is 1 where one is asked for.
    Raises: ValueError for a length that does not divide into `parts`, or fewer than two symbols.
    """

    symbols: int = 8

    parts: ClassVar[int]
    """Of the sequence, each as long as what is shown."""
    why: ClassVar[str]
    further: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        option(self, "symbols", 2)
        self.parts_of(self.parts, self.why)  # raises where the length does not divide

    @property
    def shown(self) -> int:
        """n, the number of symbols of a sequence."""
        return self.parts_of(self.parts, self.why)

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.symbols + self.further

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return self.symbols

    def show(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs that show these symbols (N, n) and then ask; targets, none of them set yet."""
        count, shown = symbols.shape
        x = torch.zeros(count, self.length, self.inputs)
        x[:, :shown, : self.symbols] = F.one_hot(symbols, self.symbols).float()
        x[:, shown:, -1] = 1.0
        return x, torch.full((count, self.length), NOTHING)


def option(task: Task, name: str, low: int) -> int:
    """A whole number among the options of a task.     Raises: ValueError below `low`."""
    value = getattr(task, name)
    if type(value) is not int or value < low:
        raise ValueError(f"{task.name}: {name}={value!r} must be a whole number of at least {low}")
    return value
