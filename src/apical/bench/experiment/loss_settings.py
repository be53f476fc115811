"""Settings of the loss."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from apical.bench.experiment.hashing_settings import Hashing
from apical.bench.experiment.settings import Settings, setting


@dataclass(frozen=True)
class LossSettings(Settings):
    """What the net minimises.

    Args:
        loss: ``cross_entropy`` of a softmax, or ``binary_cross_entropy``: of a sigmoid at each
            output, summed over outputs.
        hashing: learn hash codes for retrieval in place of class scores, with a loss of their own;
            absent: class scores.
        label_smoothing: in [0, 1), training loss only; ``cross_entropy`` only.
    """

    loss: Literal["cross_entropy", "binary_cross_entropy"] = setting(
        "cross_entropy", not_with=("task", "learner", "hashing")
    )
    hashing: Hashing | None = None
    label_smoothing: float = setting(0.0, "[0, 1)", not_with=("loss", "task", "learner", "hashing"))

    label: ClassVar[str] = "loss"
