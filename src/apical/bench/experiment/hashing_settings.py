"""Hashing as what a run is for: the options of an experiment, and what does not fit with them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from apical import rules
from apical.bench.experiment import learner_settings
from apical.bench.experiment.rule_settings import rule_assignment
from apical.hashing import LOSSES, CentreLoss, Continuation, HashLoss
from apical.names import unknown

if TYPE_CHECKING:
    from apical.bench.experiment.experiment import Experiment

OF_CLASSES = ("label_smoothing", "loss", "task")
"""Fields of an experiment that speak of class scores, or of sequences."""


@dataclass(frozen=True)
class Hashing:
    """A net that learns codes for retrieval in place of class scores.

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
    Raises: ValueError for a loss or an option of it that there is not, or a number of bits that
        it does not support.
    """

    bits: int = 16
    loss: str | dict[str, Any] = "csq"
    k: int | None = None
    continuation: Continuation | None = None

    def __post_init__(self) -> None:
        if isinstance(self.continuation, Mapping):  # as JSON has it
            object.__setattr__(self, "continuation", Continuation(**self.continuation))
        if self.bits < 2:
            raise ValueError(f"hashing: bits={self.bits} must be at least 2")
        if self.k is not None and self.k < 1:
            raise ValueError(f"hashing: k={self.k} must be at least 1, or absent for all")
        self.loss_for(1)
        object.__setattr__(self, "loss", _shortest(self.loss))  # one form, so one key

    @property
    def label(self) -> str:
        """What is learned, in a word."""
        return self.loss if isinstance(self.loss, str) else str(self.loss["loss"])

    def loss_for(self, classes: int) -> HashLoss:
        """The loss, for so many classes.

        Raises: ValueError if codes of so many bits cannot tell them apart.
        """
        given = {"loss": self.loss} if isinstance(self.loss, str) else self.loss
        options: dict[str, Any] = dict(given)
        name = options.pop("loss", None)
        if name not in LOSSES:
            raise unknown("loss of hashing", str(name), LOSSES)
        if "classes" in options:
            raise ValueError(f"hashing: classes={options['classes']!r} is that of the data set")
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


def from_dict(values: Mapping[str, Any]) -> Hashing:
    """The options of a JSON object; absent keys take their defaults.

    Raises: ValueError for an unknown key, with the nearest names, or a value out of range.
    """
    allowed = [field.name for field in dataclasses.fields(Hashing)]
    for key in values:
        if key not in allowed:
            raise unknown("key of hashing", key, allowed)
    return Hashing(**values)


def problems(experiment: Experiment) -> list[str]:
    """What an experiment asks for that has no meaning where codes are learned."""
    if experiment.hashing is None:
        return []
    plain = type(experiment)()
    found = [
        f"{name}={getattr(experiment, name)!r} has no effect with hashing"
        for name in OF_CLASSES
        if getattr(experiment, name) != getattr(plain, name)
    ]
    if not learner_settings.is_default(experiment.learner):
        found.append(f"learner={experiment.learner!r} knows class scores, no hashing")
    for rule in (experiment.rule, *experiment.switch.values()):
        if any(each.needs is not None and each.needs.labels for each in _rules(rule)):
            found.append(f"rule={rule!r} learns from one label for each output: codes have none")
    if experiment.accumulate > 1:
        found.append(
            f"accumulate={experiment.accumulate}: a batch of hashing is compared with itself, parts"
            " of it would be other pairs"
        )
    return found


def _rules(rule: str | dict[str, Any]) -> list[rules.Rule]:
    """Those of an assignment; none where it cannot be read, of which the experiment tells."""
    try:
        assigned = rule_assignment(rule)
    except ValueError:
        return []
    return list(assigned.values()) if isinstance(assigned, dict) else [assigned]


def _shortest(given: str | dict[str, Any]) -> str | dict[str, Any]:
    """A loss by its name, with those of its options that are not at their defaults."""
    if isinstance(given, str):
        return given
    fields = dataclasses.fields(LOSSES[given["loss"]])
    defaults = {field.name: field.default for field in fields}
    kept = {n: v for n, v in given.items() if n != "loss" and v != defaults[n]}
    return {"loss": given["loss"], **kept} if kept else str(given["loss"])
