"""What a run measures of its layers while it trains: when, what, and what it warns of."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from apical import flow, learners, nets, tasks, tuning
from apical.bench.experiment import learner_settings
from apical.bench.experiment.experiment import Experiment
from apical.diagnostics import Watch, measure
from apical.findings import Finding
from apical.prepare import Parts
from apical.spiking import activity, has_spikes
from apical.starts import applied

FIXED_STEPS = 4
"""Training steps that a measurement takes beside its passes: comparing, ranking, waiting."""

DUMB_SHARE = 0.5
"""Share of a layer's spiking neurons that say nothing from which on it is worth a warning."""
DUMB = {
    "silent": "never fire; try larger initial weights (gain) or a lower threshold",
    "busy": "fire at every step; try smaller weights or a shorter memory (decay)",
}

Row = dict[str, Any]


class LearningWarning(UserWarning):
    """A layer that does not learn as it should."""


class Monitor:
    """The measurements of one run. To be made before a checkpoint is loaded: movement is
    measured from the weights that training began with."""

    def __init__(self, experiment: Experiment, parts: Parts) -> None:
        self.experiment, self.parts = experiment, parts
        self.per_epoch = len(parts.train)
        self.probe = None if parts.group.rank else parts.probe
        by_rules = learner_settings.is_default(experiment.learner)
        self.watch = Watch(parts.model) if self.probe is not None and by_rules else None
        self.steps = flow.Watch()
        self.epochs = epochs_to_measure(experiment, self.per_epoch)
        self.before = _before(experiment, parts)
        self.told: set[str] = set()

    def recall(self, rows: Iterable[Row]) -> None:
        """Take up what was measured, and warned of, before an interruption."""
        rows = list(rows)
        self.told |= {row["finding"] for row in rows if row["kind"] == "warning"}
        self.steps.recall(rows)
        if self.watch is not None:
            self.watch.recall(rows)

    def at_epoch(self, epoch: int) -> list[Row]:
        """The rows due when so many epochs are finished; 0 is before training."""
        step = epoch * self.per_epoch
        return self._rows(epoch) if epoch in self.epochs or self.within(step) else []

    def within(self, step: int) -> bool:
        """Whether the experiment names this step."""
        return self.experiment.probe_every > 0 and step in self.experiment.probe_steps

    def at_step(self, step: int) -> list[Row]:
        """The rows of a named step within an epoch; their epoch is a fraction."""
        return [{**row, "step": step} for row in self._rows(round(step / self.per_epoch, 6))]

    def at_end(self) -> list[Row]:
        """What became of the weights that the run started from, one row for each layer."""
        if self.before is None:
            return []
        return self.before.rows(self.parts.model, self.parts.objective.loss, self.probe)

    def warnings(self, rows: Sequence[Row]) -> list[Row]:
        """What these new rows give reason to warn of, once for each layer and reason: warned of
        and, as rows, for the records."""
        if not rows:
            return []
        found = self.steps.add(rows) + self._too_short(rows) + self._dumb(rows)
        if self.watch is not None:
            found += self.watch.add(rows)
        for finding in found:
            warnings.warn(str(finding), LearningWarning, stacklevel=3)
        return [finding.row() for finding in found]

    def _dumb(self, rows: Sequence[Row]) -> list[Finding]:
        """Layers of neurons most of which never fire, or always; told once each."""
        found = []
        for row in rows:
            for part, what in DUMB.items():
                key = f"{part} {row.get('layer')}"
                if row["kind"] == "spikes" and row[part] >= DUMB_SHARE and key not in self.told:
                    self.told.add(key)
                    message = f"{row[part]:.0%} of its neurons {what}"
                    limit = DUMB_SHARE
                    finding = Finding(row["layer"], key, row[part], limit, row["epoch"], message)
                    found.append(finding)
        return found

    def _too_short(self, rows: Sequence[Row]) -> list[Finding]:
        """Told with the measurement before training."""
        task, length = self.experiment.task, self.experiment.length
        if task is None or length is None or any(row["epoch"] for row in rows):
            return []
        finding = flow.too_short(task, length, tasks.TASKS[task].evidence_from)
        return [] if finding is None else [finding]

    def _rows(self, epoch: float) -> list[Row]:
        if self.probe is None:
            return []
        model, probe, rows = self.parts.model, self.probe, []
        with torch.random.fork_rng([probe[0].device] if probe[0].is_cuda else []):
            if self.watch is not None:
                rows += measure(model, self.parts.objective.loss, *probe, self.watch.start)
            else:
                rows += of_weights(
                    model,
                    self.experiment.build_learner(),
                    probe,
                )
            if has_spikes(model):
                rows += of_spikes(model, probe[0])
            if isinstance(model, nets.Traced):
                rows += self._traced(model, epoch)
            elif self.experiment.task is not None:
                rows += of_steps(
                    model,
                    self.experiment.build_learner(),
                    probe,
                )
        return [_finite(row, epoch) for row in rows]

    def _traced(self, model: nets.Traced, epoch: float) -> list[Row]:
        """Rows of kind ``step`` of a net that tells what it does; what is wrong, told once."""
        assert self.probe is not None
        x, y = self.probe
        scores, found = model.trace(x)
        rows = _by_step({name: tensor.tolist() for name, tensor in found.items()})
        solved = float(self.parts.train.correct(scores, y).double().mean())
        problems = model.problems(found, solved) if epoch else []
        for problem in problems:
            if problem.kind not in self.told:
                self.told.add(problem.kind)
                warnings.warn(problem.message, LearningWarning, stacklevel=2)
                rows.append(Finding("", *problem[:3], epoch, problem.message).row())
        return rows


def _before(experiment: Experiment, parts: Parts) -> tuning.Before | None:
    start = experiment.start
    if not start.source or parts.group.rank:
        return None
    known = start.new_head or start.head_by == "bp"
    return tuning.Before(parts.model, applied.head_name(parts.model, start) if known else "")


def of_weights(model: nn.Module, learner: learners.Learner, batch: learners.Batch) -> list[Row]:
    """Rows of kind ``layer``: how far a learner's gradients of weights are from backprop's."""
    found = learners.alignment(model, learner, batch)
    return [
        {"kind": "layer", "layer": name.removesuffix(".weight")}
        | {f"gradient_{key}": value for key, value in row.items()}
        for name, row in found.items()
        if name.endswith(".weight")
    ]


def of_spikes(model: nn.Module, x: torch.Tensor) -> list[Row]:
    """Rows of kind ``spikes``, one for each layer of spiking neurons: its mean ``rate`` (share of
    steps with a spike), and the shares of neurons that never fire (``silent``) or always
    (``busy``)."""
    return [
        {"kind": "spikes", "layer": name, **found._asdict()}
        for name, found in activity(model, x).items()
    ]


def of_steps(model: nn.Module, learner: learners.Learner, batch: learners.Batch) -> list[Row]:
    """Rows of kind ``step``, one for each step ``t`` of a sequence, from 1: the norm of the
    teaching ``signal``; of the step's share in the gradient of the recurrent weight (``norm``);
    its ``local_loss``. What a learner has not is absent."""
    twin = copy.deepcopy(model)
    twin.zero_grad(set_to_none=True)
    _, info = learner.gradients(twin, batch)
    values = {
        "signal": info.signals,
        "norm": info.norms.get("cell.recurrent.weight", torch.zeros(0)),
        "local_loss": info.local_losses,
    }
    return _by_step({name: tensor.tolist() for name, tensor in values.items() if len(tensor)})


def _by_step(columns: Mapping[str, Sequence[float]]) -> list[Row]:
    """A row for each step, from the numbers of all steps by name."""
    names, steps = list(columns), zip(*columns.values(), strict=True)
    return [
        {"kind": "step", "t": t, **dict(zip(names, step, strict=True))}
        for t, step in enumerate(steps, 1)
    ]


def epochs_to_measure(experiment: Experiment, steps_per_epoch: int) -> set[int]:
    """Epochs after which a run is measured.

    Before training, after every `probe_every`-th epoch, at `test_at` and at the end; as far as
    `probe_share` of the run's steps allows. Where it does not allow all, epochs are left out, the
    more the later in training: alignment happens early. What is left out depends on the
    experiment alone, not on the machine.

    >>> sorted(epochs_to_measure(Experiment(epochs=30, batch_size=32), 45))
    [0, 1, 3, 10, 30]
    """
    if not experiment.probe_every:
        return set()
    cost = FIXED_STEPS + 2 * experiment.probe_images / experiment.batch_size
    last = experiment.epochs
    afford = math.floor(experiment.probe_share * last * steps_per_epoch / cost)
    if experiment.probe_share == 1:
        afford = last + 1
    due = sorted({*range(experiment.probe_every, last + 1, experiment.probe_every), last})
    return {0, *_thinned(due, max(1, afford - 1)), *experiment.test_at}


def _thinned(due: Sequence[int], most: int) -> list[int]:
    """At most so many of the epochs, the last among them, in growing distances."""
    if len(due) <= most:
        return list(due)
    places: set[int] = {len(due)}
    for points in range(2, 20 * most):
        ratio = len(due) ** (1 / (points - 1))
        finer = {round(ratio**index) for index in range(points)}
        if len(finer) > most:
            break
        places = finer
    return [due[place - 1] for place in sorted(places)]


def _finite(row: Row, epoch: float) -> Row:
    """The row at its epoch; what does not exist (an angle to nothing) is absent, not null."""
    kept = {k: v for k, v in row.items() if isinstance(v, str) or math.isfinite(v)}
    return {"kind": kept.pop("kind"), "epoch": epoch, **kept}
