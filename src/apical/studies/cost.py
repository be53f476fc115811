"""What a study will cost, from a few timed steps; an estimate, and called one."""

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import torch

from apical import gradients, prepare, records, resume, teaching, training
from apical.assignment import rule_label
from apical.core.converted import learn
from apical.experiment import Experiment
from apical.sweep import Task

WARM_STEPS, TIMED_STEPS = 2, 5
OVERHEAD = 1.1
"""Evaluation, probes and checkpoints beside the steps; a rough factor."""


@dataclass(frozen=True)
class Cost:
    """Estimated seconds of work left, and where they go: (what, runs, seconds)."""

    seconds: float
    parts: tuple[tuple[str, int, float], ...]

    def text(self, jobs: int) -> str:
        """One paragraph for the terminal."""
        return f"estimate, from {TIMED_STEPS} timed steps of each net and rule: {self.told(jobs)}"

    def told(self, jobs: int) -> str:
        """The numbers."""
        each = "; ".join(f"{n} x {what} {_time(s)}" for what, n, s in self.parts)
        return (
            f"{_time(self.seconds)} of one worker, {_time(self.seconds / jobs)} with --jobs {jobs}"
            f" ({each})"
        )


def estimate(tasks: Sequence[Task], execution: training.Execution) -> Cost:
    """Time what is not finished, one net and rule at a time.

    Raises: whatever building an experiment raises: a study that cannot run says so before it
        starts.
    """
    step_seconds: dict[str, tuple[float, int]] = {}
    parts: dict[str, tuple[int, float]] = {}
    for task in tasks:
        left = _epochs_left(task)
        if not left:
            continue
        kind = _kind(task.experiment)
        if kind not in step_seconds:
            step_seconds[kind] = _measure(task.experiment, execution)
        each, steps = step_seconds[kind]
        runs, seconds = parts.get(kind, (0, 0.0))
        parts[kind] = (runs + 1, seconds + left * steps * each * OVERHEAD)
    total = sum(seconds for _, seconds in parts.values())
    rows = tuple((kind, runs, seconds) for kind, (runs, seconds) in parts.items())
    return Cost(total, rows)


def _measure(experiment: Experiment, execution: training.Execution) -> tuple[float, int]:
    """Seconds of a step, steps of an epoch."""
    plain = dataclasses.replace(experiment, compile=False, probe_every=0)
    with training.settings(execution):
        parts = prepare.build(
            plain,
            device=execution.device,
            data_root=execution.data_root,
            download=execution.download,
        )

        def update() -> None:
            parts.optimizer.step()
            parts.optimizer.zero_grad()

        teach = gradients.function(plain, parts, resume.Position(), update)
        seconds = []
        batches = parts.train.epoch(0)
        for _, (x, y) in zip(range(WARM_STEPS + TIMED_STEPS), batches, strict=False):
            begin = time.perf_counter()
            teach(x, y)
            update()
            learn(parts.model)
            if parts.device.type == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - begin)
    return median(seconds[WARM_STEPS:] or seconds), len(parts.train)


def _epochs_left(task: Task) -> int:
    rows = records.read(task.folder / "records.jsonl")
    if rows and rows[-1].get("kind") in ("final", "stopped"):
        return 0
    done = [row["epoch"] for row in rows if row.get("kind") == "epoch"]
    return task.experiment.epochs - max(done, default=0)


def _kind(experiment: Experiment) -> str:
    source = experiment.task or experiment.data
    words = [source, experiment.net, experiment.optimizer, rule_label(experiment.rule)]
    if not teaching.is_default(experiment.learner):
        words.append(teaching.learner_label(experiment.learner))
    return " ".join(words)


def _time(seconds: float) -> str:
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.1f} days"
