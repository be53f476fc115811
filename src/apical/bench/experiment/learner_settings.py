"""Settings of the learner, and the learner that they describe."""

from dataclasses import dataclass
from typing import Any, ClassVar

from apical.bench.experiment.settings import Settings, setting

DEFAULT = "backprop"
"""The learner whose gradients are those of ``loss.backward()``."""


@dataclass(frozen=True)
class LearnerSettings(Settings):
    """What computes the gradients of the weights.

    Args:
        learner: ``backprop`` is ``loss.backward()``, by the rules of the layers; else a learner's
            name or package.module:Class, or its fields ``{"learner": "lra", "reduction": "sum"}``.
    """

    learner: str | dict[str, Any] = setting(DEFAULT, not_with=("hashing",))

    label: ClassVar[str] = "learner"

    def problems(self) -> list[str]:
        found = super().problems()
        if isinstance(self.learner, dict) and "loss" in self.learner:
            found.append("learner: its loss is that of the experiment or task; leave it out")
        try:
            is_default(self.learner)
        except (TypeError, ValueError) as error:
            found.append(f"learner: {error}")
        return found

    def differs(self, name: str) -> bool:
        if name != "learner":
            return super().differs(name)
        try:
            return not is_default(self.learner)
        except (TypeError, ValueError):
            return True


def is_default(learner: str | dict[str, Any]) -> bool:
    """Whether the gradients are those of ``loss.backward()``, however that was written."""
    return learner == DEFAULT or learner_values(learner) == learner_values(DEFAULT)


def learner_values(learner: str | dict[str, Any]) -> dict[str, Any]:
    """The learner in one form, however it was written, with its version, for the key."""
    from apical import learners

    built = learners.build(learner)
    version = {} if built.version == 1 else {"version": built.version}
    return learners.to_dict(built) | version


def learner_label(learner: str | dict[str, Any]) -> str:
    """One word for a table or a folder name."""
    return learner if isinstance(learner, str) else str(learner["learner"])
