"""What a run measures of its layers while it trains: when, what, and what it warns of."""

import copy
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from apical import data, learners, nets
from apical.bench.experiment import learner_settings
from apical.bench.experiment.experiment import Experiment
from apical.bench.training import splits, starts
from apical.bench.training.build import Parts
from apical.data import sequences
from apical.measure import fine_tuning, gradient_over_time
from apical.measure.diagnostics import Watch, measure
from apical.measure.findings import Finding
from apical.measure.linear_probe import linear_probe
from apical.nets.spiking import activity, has_spikes

FIXED_STEPS = 4
"""Training steps that a measurement takes besides its passes: comparing, ranking, waiting."""

LINEAR_SHARE = 0.03
"""Most of a run's steps that both linear probes, before and after training, may cost together."""
LINEAR_FIT_STEPS = 5
"""Training steps that the closed forms of one linear probe take, beside its forward pass, which
takes a third of a step for each batch."""
LINEAR_IMAGES = (100, 1000)
"""Fewest training images from which a linear probe is recorded, and the most that it uses."""
LINEAR_VALUES = 1 << 25
"""Most numbers in these images together, 128 MiB."""
LINEAR_FEATURES = 128
"""Of its classifiers: activations with more numbers are reduced to these."""

CONSTANT_SHARE = 0.5
"""Share of a layer's spiking neurons from which on it is warned of, if their output is constant."""
CONSTANT = {
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
        self.steps = gradient_over_time.Watch()
        self.epochs = epochs_to_measure(experiment, self.per_epoch)
        self.before: fine_tuning.Before | None = None
        start = experiment.start
        if start.source and not parts.group.rank:
            known = start.new_head or start.head_by == "bp"
            head = starts.head_name(parts.model, start) if known else ""
            self.before = fine_tuning.Before(parts.model, head)
        self.linear_count = 0 if self.probe is None else _linear_count(experiment, parts)
        self.warned: set[str] = set()

    def recall(self, rows: Iterable[Row]) -> None:
        """Take up what was measured, and warned of, before an interruption."""
        rows = list(rows)
        self.warned |= {row["finding"] for row in rows if row["kind"] == "warning"}
        self.steps.recall(rows)
        if self.watch is not None:
            self.watch.recall(rows)

    def at_epoch(self, epoch: int) -> list[Row]:
        """The rows due when so many epochs are finished; 0 is before training."""
        step = epoch * self.per_epoch
        rows = self._rows(epoch) if epoch in self.epochs or self.within(step) else []
        return rows + (self._linear(0) if epoch == 0 else [])

    def within(self, step: int) -> bool:
        """Whether the experiment names this step."""
        return self.experiment.probe_every > 0 and step in self.experiment.probe_steps

    def at_step(self, step: int) -> list[Row]:
        """The rows of a named step within an epoch; their epoch is a fraction."""
        return [{**row, "step": step} for row in self._rows(round(step / self.per_epoch, 6))]

    def at_end(self) -> list[Row]:
        """The linear probes of the trained net, and what became of the weights that the run started
        from, one row for each layer."""
        rows = self._linear(self.experiment.epochs)
        if self.before is None:
            return rows
        loss = self.parts.objective.loss
        return rows + self.before.rows(self.parts.model, loss, self.probe)

    def warnings(self, rows: Sequence[Row]) -> list[Row]:
        """What these new rows give reason to warn of, once for each layer and reason: warned of
        and, as rows, for the records."""
        if not rows:
            return []
        found = self.steps.add(rows) + self._too_short(rows) + self._constant(rows)
        if self.watch is not None:
            found += self.watch.add(rows)
        for finding in found:
            warnings.warn(str(finding), LearningWarning, stacklevel=3)
        return [finding.row() for finding in found]

    def _constant(self, rows: Sequence[Row]) -> list[Finding]:
        """Layers of neurons most of which never fire, or always; each once."""
        found = []
        for row in rows:
            for part, what in CONSTANT.items():
                key = f"{part} {row.get('layer')}"
                if row["kind"] != "spikes" or key in self.warned:
                    continue
                if row[part] >= CONSTANT_SHARE:
                    self.warned.add(key)
                    text = f"{row[part]:.0%} of its neurons {what}"
                    about = (row["layer"], key, row[part], CONSTANT_SHARE, row["epoch"], text)
                    found.append(Finding(*about))
        return found

    def _too_short(self, rows: Sequence[Row]) -> list[Finding]:
        """Of sequences that are no evidence, with the measurement before training."""
        task, length = self.experiment.task, self.experiment.length
        if task is None or length is None or any(row["epoch"] for row in rows):
            return []
        finding = gradient_over_time.too_short(task, length, sequences.TASKS[task].evidence_from)
        return [] if finding is None else [finding]

    def _rows(self, epoch: float) -> list[Row]:
        if self.probe is None:
            return []
        model, probe, rows = self.parts.model, self.probe, []
        with torch.random.fork_rng([probe[0].device] if probe[0].is_cuda else []):
            if self.watch is not None:
                rows += measure(model, self.parts.objective.loss, *probe, self.watch.start)
            else:
                rows += of_weights(model, self.experiment.build_learner(), probe)
            if has_spikes(model):
                found = activity(model, probe[0])
                rows += [{"kind": "spikes", "layer": n, **a._asdict()} for n, a in found.items()]
            if isinstance(model, nets.Traced):
                rows += self._traced(model, epoch)
            elif isinstance(model, nets.Recurrent):
                rows += of_steps(model, self.experiment.build_learner(), probe)
        return [_finite(row, epoch) for row in rows]

    def _linear(self, epoch: int) -> list[Row]:
        """Rows of kind ``linear``, one for each layer and, with the name "", the output:
        ``accuracy`` of a linear probe on what it reads, on ``images`` of the training split that
        its fit has not seen."""
        count, parts = self.linear_count, self.parts
        if not count:
            return []
        assert isinstance(parts.train, data.Batches) and isinstance(parts.source, data.ImageData)
        split = parts.train.split
        # evenly spaced, as image folders are sorted by class
        chosen = split.take(torch.linspace(0, len(split) - 1, count).long())
        shared = splits.common(self.experiment, parts.source, parts.device)
        x, y = next(iter(data.Batches(chosen, count, **shared).epoch(0)))
        held_out = torch.arange(count, device=y.device) % 4 == 3
        if 2 * len(y[held_out].unique()) <= len(y.unique()):  # labels that repeat with the step
            order = torch.randperm(count, generator=torch.Generator().manual_seed(0), device="cpu")
            held_out = held_out[order.to(y.device)]
        found = linear_probe(
            parts.model,
            train=(x[~held_out], y[~held_out]),
            test=(x[held_out], y[held_out]),
            features=LINEAR_FEATURES,
        )
        images = int(held_out.sum())
        return [
            {"kind": "linear", "epoch": epoch, "layer": name, "accuracy": value, "images": images}
            for name, value in found.items()
        ]

    def _traced(self, model: nets.Traced, epoch: float) -> list[Row]:
        """Rows of kind ``step`` of a net that traces its steps; each of its problems once."""
        assert self.probe is not None
        x, y = self.probe
        scores, found = model.trace(x)
        rows = _by_step({name: tensor.tolist() for name, tensor in found.items()})
        solved = float(self.parts.train.correct(scores, y).double().mean())
        problems = model.problems(found, solved) if epoch else []
        for problem in problems:
            if problem.kind not in self.warned:
                self.warned.add(problem.kind)
                warnings.warn(problem.message, LearningWarning, stacklevel=2)
                rows.append(Finding("", *problem[:3], epoch, problem.message).row())
        return rows


def linear_images(experiment: Experiment, steps: int) -> int:
    """Training images for the linear probes of a run of so many steps; 0 where they cost too much.

    As many as `LINEAR_SHARE` of the steps pays for, and no more than `probe_share` does. It depends
    on the experiment alone, not on the machine.
    """
    share = min(LINEAR_SHARE, experiment.probe_share)
    batches = 3 * (share * steps / 2 - LINEAR_FIT_STEPS)
    fewest, most = LINEAR_IMAGES
    images = min(most, int(batches * experiment.batch_size))
    return images if experiment.probe_every and images >= fewest else 0


def _linear_count(experiment: Experiment, parts: Parts) -> int:
    """Images of this run's training split for its linear probes; 0 for none."""
    if not isinstance(parts.train, data.Batches):
        return 0
    split = parts.train.split
    wanted = linear_images(experiment, experiment.epochs * len(parts.train))
    count = min(wanted, len(split), LINEAR_VALUES // math.prod(split.shape))
    return count if count >= LINEAR_IMAGES[0] else 0


def of_weights(model: nn.Module, learner: learners.Learner, batch: learners.Batch) -> list[Row]:
    """Rows of kind ``layer``: how far a learner's gradients of weights are from backprop's."""
    found = learners.alignment(model, learner, batch)
    return [
        {"kind": "layer", "layer": name.removesuffix(".weight")}
        | {f"gradient_{key}": value for key, value in row.items()}
        for name, row in found.items()
        if name.endswith(".weight")
    ]


def of_steps(model: nn.Module, learner: learners.Learner, batch: learners.Batch) -> list[Row]:
    """Rows of kind ``step``, one for each step ``t`` of a sequence, from 1: the norm of the
    teaching ``signal``; of the step's share in the gradient of the recurrent weight (``norm``);
    its ``local_loss``. What a learner does not give is absent."""
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
