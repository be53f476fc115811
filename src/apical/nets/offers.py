"""What a net may offer besides scores: a loss of its own, and a look at every step.

Code that trains or measures checks for the offer, never for the class of a net.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class OwnLoss(Protocol):
    """A net that adds a loss of its own to that of its task."""

    @property
    def has_own_loss(self) -> bool:
        """Whether there is one, as the net is set."""

    def __call__(self, x: Tensor, *, own_loss: bool) -> Any:
        """Scores; with `own_loss`, (scores, loss): a mean over samples, weighted already."""


class Problem(NamedTuple):
    """Something wrong with a net.

    Attributes: kind: in a word or two.     value, threshold: what was measured, and from where on
        it is worth a warning.     message: what, and what to do.
    """

    kind: str
    value: float
    threshold: float
    message: str


@runtime_checkable
class Traced(Protocol):
    """A net that tells what it does at every step."""

    def trace(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Scores, and named numbers of every step, (T,), without a graph."""

    def problems(self, trace: Mapping[str, Tensor], solved: float) -> list[Problem]:
        """What such a trace says is wrong.     Args: solved: share of right answers in it."""
