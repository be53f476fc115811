"""Tasks that ask at several steps of a sequence, and what they have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from apical.tasks.base import Task

NOTHING = -100
"""Target of steps at which nothing is asked; PyTorch's losses leave it out by themselves."""


@dataclass(frozen=True)
class AskedTask(Task):
    """A task with a class to name at some of its steps, `NOTHING` at the others.

    Shapes: scores (N, T, outputs), targets (N, T).
    """

    answers: ClassVar[Literal["last", "every"]] = "every"
    shortest: ClassVar[int] = 2
    evidence_from: ClassVar[int] = 0  # what is asked for is drawn anew for every sequence

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


def option(task: Task, name: str, low: int) -> int:
    """A whole number among the options of a task.     Raises: ValueError below `low`."""
    value = getattr(task, name)
    if type(value) is not int or value < low:
        raise ValueError(f"{task.name}: {name}={value!r} must be a whole number of at least {low}")
    return value
