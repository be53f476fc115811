"""What a study will cost, from a few timed steps; an estimate, and called one."""

import dataclasses
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median

import torch

from apical.bench.experiment import learner_settings
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.rule_settings import rule_label
from apical.bench.experiment.training_settings import Schedule
from apical.bench.storage import run_folder
from apical.bench.storage.records import grouped
from apical.bench.sweep.sweep import Task
from apical.bench.training import batch_step, build, group
from apical.core.converted import learn

WARM_STEPS, TIMED_STEPS = 2, 5
OVERHEAD = 1.1
"""Evaluation, probes and checkpoints beside the steps; a rough factor."""
RUN_SECONDS = 0.1
"""Of a run, whatever its length: building it, its folder, its last row; a rough value."""


@dataclass(frozen=True)
class Cost:
    """Estimated seconds of work left, and where they go: (what, runs, seconds).

    Args: extensions: seconds more at most, if grids of learning rates are extended.
    """

    seconds: float
    parts: tuple[tuple[str, int, float], ...]
    extensions: float = 0.0

    @classmethod
    def of(cls, work: Iterable[tuple[str, float]], extensions: float = 0.0) -> "Cost":
        """Args: work: what each run is, and its seconds."""
        kinds = grouped(work, lambda run: run[0]).items()
        parts = tuple((kind, len(runs), sum(s for _, s in runs)) for kind, runs in kinds)
        return cls(sum(s for *_, s in parts), parts, extensions)

    def text(self, jobs: int) -> str:
        """One paragraph for the terminal."""
        if not (self.parts or self.extensions):
            return "estimate: all runs are finished, nothing is left to train"
        return (
            f"estimate, from {TIMED_STEPS} timed steps of each net and rule: {self.summary(jobs)}"
        )

    def summary(self, jobs: int) -> str:
        """The numbers, for so many runs at once (>= 1)."""
        workers = min(jobs, max(1, sum(runs for _, runs, _ in self.parts)))
        each = "; ".join(f"{n} x {what} {_time(s)}" for what, n, s in self.parts)
        more = ""
        if self.extensions:
            most = (self.seconds + self.extensions) / workers
            more = f", up to {_time(most)} if every search of a learning rate is extended"
        return (
            f"{_time(self.seconds)} of one worker, {_time(self.seconds / workers)} with --jobs "
            f"{jobs}{more} ({each})"
        )


def estimate(tasks: Sequence[Task], execution: Execution, extensions: Sequence[Task] = ()) -> Cost:
    """Time what is not finished, one net and rule at a time.

    Args: extensions: tasks that may come on top.
    Raises: whatever building an experiment raises: a study that cannot run says so before it
        starts.
    """
    step_seconds: dict[str, tuple[float, int]] = {}

    def seconds_of(task: Task) -> float:
        if run_folder.end(task.folder) is not None:
            return 0.0
        rows = run_folder.rows(task.folder)
        done = max((row["epoch"] for row in rows if row.get("kind") == "epoch"), default=0)
        epochs = task.experiment.epochs - done
        if not epochs:
            return 0.0
        alike = _alike(task.experiment)
        if alike not in step_seconds:
            step_seconds[alike] = _measure(task.experiment, execution)
        each, steps = step_seconds[alike]
        return RUN_SECONDS + epochs * steps * each * OVERHEAD

    work = [(_kind(t.experiment), seconds) for t in tasks if (seconds := seconds_of(t))]
    return Cost.of(work, sum(map(seconds_of, extensions)))


def _measure(experiment: Experiment, execution: Execution) -> tuple[float, int]:
    """Seconds of a step, steps of an epoch."""
    plain = dataclasses.replace(experiment, compile=False, probe_every=0)
    with group.settings(execution):
        parts = build.build(
            plain,
            device=execution.device,
            data_root=execution.data_root,
            download=execution.download,
        )

        def update() -> None:
            parts.optimizer.step()
            parts.optimizer.zero_grad()

        gradients = batch_step.function(plain, parts, lambda: 0, update)
        seconds = []
        batches = parts.train.epoch(0)
        for _, (x, y) in zip(range(WARM_STEPS + TIMED_STEPS), batches, strict=False):
            begin = time.perf_counter()
            gradients(x, y)
            update()
            learn(parts.model)
            if parts.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    return median(seconds[WARM_STEPS:] or seconds), len(parts.train)


def _alike(experiment: Experiment) -> str:
    """The same for experiments whose steps cost the same, and whose epochs have nearly as many."""
    return dataclasses.replace(
        experiment,
        lr=1.0,
        epochs=1,
        schedule=Schedule(),
        switch={},
        seed=0,
        validation=experiment.validation if experiment.task else 0,
        test=True,
        test_at=(),
        test_lengths=(),
        probe_every=0,
        probe_steps=(),
    ).key


def _kind(experiment: Experiment) -> str:
    source = experiment.task or experiment.data
    words = [source, experiment.net, experiment.optimizer, rule_label(experiment.rule)]
    if not learner_settings.is_default(experiment.learner):
        words.append(learner_settings.learner_label(experiment.learner))
    return " ".join(words)


def _time(seconds: float) -> str:
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
