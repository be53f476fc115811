"""Settings of the loss; of hash codes for retrieval, with the loss that they describe."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from apical.bench.experiment.settings import Settings, setting
from apical.names import unknown
from apical.retrieval.codes import Continuation
from apical.retrieval.losses import LOSSES, CentreLoss, HashLoss


@dataclass(frozen=True)
class Hashing(Settings):
    """A net that learns hash codes for retrieval in place of class scores.

    Images of the test split, or of the validation split, are the queries; the database is the
    training split less the validation split. Losses on pairs compare a batch with itself.

    Args:
        bits: of a code, the outputs of the net (>= 2).
        loss: csq, dph, dpn, dpsh, dsh, hashnet, or with its fields
            ``{"loss": "dpsh", "pair_weight": "balanced"}``; the number of classes is that of the
            data.
        k: items of the ranking that count, mAP@k (>= 1; absent: the whole database).
        continuation: how the tanh becomes steeper during training, by optimizer steps (absent: it
            stays as it is).
    Raises: ValueError for an unknown loss or option of it, or a number of bits that it does not
        support.
    """

    bits: int = setting(16, "[2, inf)")
    loss: str | dict[str, Any] = "csq"
    k: int | None = setting(None, "[1, inf)")
    continuation: Continuation | None = None

    label: ClassVar[str] = "hashing"

    def __post_init__(self) -> None:
        if isinstance(self.continuation, Mapping):  # as JSON has it
            object.__setattr__(self, "continuation", Continuation(**self.continuation))
        super().__post_init__()
        object.__setattr__(self, "loss", _shortest(self.loss))  # one form, so one key

    def problems(self) -> list[str]:
        found = super().problems()
        try:
            self.loss_for(1)
        except ValueError as error:
            found.append(str(error))
        return found

    @property
    def loss_name(self) -> str:
        """The name of the loss, without its options."""
        return self.loss if isinstance(self.loss, str) else str(self.loss["loss"])

    def loss_for(self, classes: int) -> HashLoss:
        """The loss, for so many classes.

        Raises: ValueError if there are not enough codes of so many bits for them.
        """
        given = {"loss": self.loss} if isinstance(self.loss, str) else self.loss
        options: dict[str, Any] = dict(given)
        name = options.pop("loss", None)
        if name not in LOSSES:
            raise unknown("loss of hashing", str(name), LOSSES)
        if "classes" in options:
            raise ValueError(f"classes={options['classes']!r} follows from the data: leave it out")
        kind = LOSSES[name]
        allowed = [field.name for field in dataclasses.fields(kind) if field.name != "classes"]
        for option in options:
            if option not in allowed:
                raise unknown(f"option of the loss {name}", option, allowed)
        if issubclass(kind, CentreLoss):
            options["classes"] = classes
        loss = kind(**options)
        loss.check(self.bits, classes)
        return loss


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


def _shortest(given: str | dict[str, Any]) -> str | dict[str, Any]:
    """A loss by its name, with those of its options that are not at their defaults."""
    if isinstance(given, str):
        return given
    fields = dataclasses.fields(LOSSES[given["loss"]])
    defaults = {field.name: field.default for field in fields}
    kept = {n: v for n, v in given.items() if n != "loss" and v != defaults[n]}
    return {"loss": given["loss"], **kept} if kept else str(given["loss"])
