"""An experiment: one training run as a value, its JSON form and its key."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar

from apical import nets
from apical.bench.experiment import own_code
from apical.bench.experiment.data_settings import DataSettings
from apical.bench.experiment.learner_settings import (
    LearnerSettings,
    is_default,
    learner_label,
    learner_values,
)
from apical.bench.experiment.loss_settings import LossSettings
from apical.bench.experiment.net_settings import NetSettings
from apical.bench.experiment.probe_settings import ProbeSettings
from apical.bench.experiment.rule_settings import (
    RuleSettings,
    rule_assignment,
    rule_label,
    rule_values,
    rules_of,
)
from apical.bench.experiment.settings import Settings, differing, from_json
from apical.bench.experiment.task_settings import TaskSettings
from apical.bench.experiment.training_settings import TrainingSettings
from apical.core.feedback import FEEDBACK_VERSION
from apical.nets import memory

if TYPE_CHECKING:
    from apical.learners import Learner

VERSION = 1
"""Raised when a change of this library alters what an experiment computes."""

KEY_DIGITS = 10

SEQUENCE_NETS = (*nets.CELLS, *memory.NETS, *nets.TRANSFORMERS)
"""Nets that take sequences: recurrent ones, those with a memory, and transformers."""

OF_THE_TASK = ("inputs", "outputs", "output")
"""Options of such nets that follow from the task."""


@dataclass(frozen=True, repr=False)
class Experiment(
    ProbeSettings,  # dataclasses take the fields of the last base first
    TrainingSettings,
    LossSettings,
    LearnerSettings,
    RuleSettings,
    NetSettings,
    TaskSettings,
    DataSettings,
):
    """One training run: everything that influences its result.

    Each field is explained in the group of settings that it belongs to. How a run is executed
    (device, threads, folder) is not part of it: see ``Execution``.

    Raises: ValueError naming every value out of range, and all that cannot be combined.
    """

    label: ClassVar[str] = "experiment"
    __repr__ = Settings.__repr__  # not that of a group

    def problems(self) -> list[str]:
        found = super().problems()
        if found:  # pairs are checked once each group is valid
            return found
        found += self._epoch_problems()
        found += self._sequence_problems()
        found += self._hashing_problems()
        try:
            first = self.before
        except ValueError as error:
            return [*found, f"start: {error}"]
        if first is not None and first.task is not None:
            found.append(f"start: its experiment learns sequences (task={first.task!r}), no images")
        return found

    def _epoch_problems(self) -> list[str]:
        found = []
        rising = list(self.test_at) == sorted(set(self.test_at))
        if not rising or any(not 1 <= epoch <= self.epochs for epoch in self.test_at):
            found.append(f"test_at={self.test_at}: must rise, within 1 to {self.epochs} epochs")
        for epoch in self.switch:
            if isinstance(epoch, int) and epoch >= self.epochs:
                found.append(f"switch at {epoch}: must be below epochs={self.epochs}")
        return found

    def _sequence_problems(self) -> list[str]:
        takes_sequences = self.net in SEQUENCE_NETS
        if self.task is None:
            if takes_sequences:
                return [f"net={self.net!r} takes sequences: it needs a task and a length"]
            return []
        found = []
        if not takes_sequences:
            allowed = ", ".join(SEQUENCE_NETS)
            found.append(f"net={self.net!r} takes no sequences: allowed are {allowed}")
        found += [
            f"net_options: {name!r} follows from the task; leave it out"
            for name in OF_THE_TASK
            if name in self.net_options
        ]
        if self.test_lengths and not self.test:
            found.append(f"test_lengths={self.test_lengths} cannot be combined with test=False")
        from apical.data import sequences

        kind = sequences.TASKS.get(self.task)
        if kind is not None and kind.answers == "every" and self.differs("learner"):
            found.append(
                f"learner={self.learner!r} cannot be combined with task={self.task!r}, which has "
                "answers at several steps: leave out the learner"
            )
        return found

    def _hashing_problems(self) -> list[str]:
        if self.hashing is None:
            return []
        found = []
        for rule in (self.rule, *self.switch.values()):
            if any(each.needs is not None and each.needs.labels for each in rules_of(rule)):
                found.append(
                    f"rule={rule!r} learns from one label for each output: codes have none"
                )
        if self.accumulate > 1:
            found.append(
                f"accumulate={self.accumulate}: a batch of hashing is compared with itself, parts "
                "of it would be other pairs"
            )
        return found

    @cached_property
    def before(self) -> Experiment | None:
        """The experiment whose trained net this one starts from, if it does."""
        source = self.start.source
        return from_dict(source, trust=True) if isinstance(source, dict) else None

    def assignment(self, epoch: int = 0) -> Any:
        """What ``apical.convert`` takes once so many epochs (>= 0) are finished. On trained
        weights, feedback has their norm unless a rule names its scale."""
        return rule_assignment(self.rule_at(epoch), norm=bool(self.start.source))

    def build_learner(self) -> Learner:
        """The learner, with the loss of the experiment."""
        from apical import learners

        form = learners.to_dict(learners.build(self.learner))
        return learners.build(form, loss=self.objective)

    @property
    def objective(self) -> str:
        """Name of the loss: the task's own where there is one."""
        if self.hashing is not None:
            return self.hashing.loss_name
        if self.task is None:
            return self.loss
        from apical.data import sequences

        return sequences.TASKS[self.task].loss

    @cached_property
    def code(self) -> dict[str, str]:
        """Digests of the user's own code and image folders, by their names in the fields; computed
        once for each object."""
        return own_code.digests(to_dict(self))

    @property
    def key(self) -> str:
        """Short hash of all that influences the outcome: the versions, every field that differs
        from its default, and the user's own code. Left-out defaults keep old keys valid when a
        field is added; whoever changes a default raises `VERSION`."""
        return self.key_with(self.code)

    def key_with(self, code: Mapping[str, str]) -> str:
        """The key that the experiment has, or had, with such `code`."""
        norm = bool(self.start.source)
        value = differing(self) | {"rule": rule_values(self.rule, norm=norm), "version": versions()}
        if not is_default(self.learner):
            value["learner"] = learner_values(self.learner)
        else:
            value.pop("learner", None)
        if self.switch:
            rules_by_epoch = self.switch.items()
            value["switch"] = [[epoch, rule_values(r, norm=norm)] for epoch, r in rules_by_epoch]
        if norm:
            value["start"].pop("source")  # its content counts, not its place
            value["start"].pop("entry", None)
            before = self.before
            value["start"]["weights"] = before.key_with({}) if before else self.start.digest
            value["start"].pop("digest", None)
        if code:
            value["code"] = dict(code)
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]

    @property
    def name(self) -> str:
        """Readable folder name, unique by its key."""
        label = "_then_".join(map(rule_label, (self.rule, *self.switch.values())))
        if not is_default(self.learner):
            learner = learner_label(self.learner)
            label = learner if label == "bp" else f"{label}_{learner}"
        if self.start.source:
            label += "_tuned"
        source = self.data if self.task is None else f"{self.task}_{self.length}"
        if self.hashing is not None:
            source = f"{source}_{self.hashing.loss_name}_{self.hashing.bits}"
        words = (source, self.net, label, f"s{self.seed}", self.key)
        return "-".join("".join(c if c.isalnum() else "_" for c in word) for word in words)


GROUPS: tuple[type[Settings], ...] = tuple(reversed(Experiment.__bases__))
"""The groups of settings that an experiment consists of."""


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """Plain values (lists, not tuples), as JSON gives them back."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def from_dict(
    values: Mapping[str, Any], *, trust: bool = False, where: str = "the experiment"
) -> Experiment:
    """The experiment of a JSON object; absent keys take their defaults.

    Args:
        trust: whether it may name code outside this library, as ``my_rules:Mine``, which is
            imported then. Only for settings that the user wrote.
        where: the file that they come from, for errors.
    Raises: ValueError for an unknown key, with similar names, a value out of range, or code that
        is not trusted.
    """
    if not trust:
        own_code.refuse(values, where)
    return from_json(Experiment, values, "experiment")


def versions() -> dict[str, int]:
    """The versions that are part of every key and checkpoint."""
    return {"experiment": VERSION, "feedback": FEEDBACK_VERSION}
