"""Optional interfaces of a net: an additional loss, and measurements of every step.

Code that trains or measures checks for the interface, never for the class of a net.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class OwnLoss(Protocol):
    """A net that adds a loss to that of its task."""

    @property
    def has_own_loss(self) -> bool:
        """Whether the net has one with its present settings."""

    def __call__(self, x: Tensor, *, own_loss: bool) -> Any:
        """Scores; with `own_loss`, (scores, loss): a mean over samples, with its weight."""


class Problem(NamedTuple):
    """Something wrong with a net.

    Attributes: kind: in one or two words.     value, threshold: what was measured, and the value
        at which it causes a warning.     message: what is wrong, and what to do.
    """

    kind: str
    value: float
    threshold: float
    message: str


@runtime_checkable
class Traced(Protocol):
    """A net that measures itself at every step."""

    def trace(self, x: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Scores, and named measurements of every step, (T,), without a graph."""

    def problems(self, trace: Mapping[str, Tensor], solved: float) -> list[Problem]:
        """The problems that a trace shows.     Args: solved: share of correct answers in it."""
