"""What the values of an experiment may be, each alone and together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from apical.bench.experiment.rule_settings import rule_assignment

if TYPE_CHECKING:
    from apical.bench.experiment.experiment import Experiment

LOWEST = {
    "size": 1,
    "train_images": 1,
    "test_images": 1,
    "length": 1,
    "batches": 1,
    "validation": 0,
    "epochs": 1,
    "batch_size": 1,
    "accumulate": 1,
    "probe_every": 0,
    "probe_images": 1,
    "seed": 0,
}
ALLOWED = {
    "pixels": ("standard", "unit"),
    "init": ("net", "default", "normal", "xavier"),
    "loss": ("binary_cross_entropy", "cross_entropy"),
    "augment": ("none", "flip_crop", "zoom_flip"),
    "autocast": ("off", "bf16", "fp16"),
}


def problems(experiment: Experiment) -> list[str]:
    """A sentence for everything out of range; see `teaching` and `hashing` for theirs."""
    found = [
        f"{name}={getattr(experiment, name)}: must be at least {low}"
        for name, low in LOWEST.items()
        if getattr(experiment, name) is not None and getattr(experiment, name) < low
    ]
    for name, allowed in ALLOWED.items():
        if getattr(experiment, name) not in allowed:
            found.append(f"{name}={getattr(experiment, name)!r}: allowed are {', '.join(allowed)}")
    if not (experiment.lr > 0 and math.isfinite(experiment.lr)):
        found.append(f"lr={experiment.lr}: must be positive and finite")
    if not 0 <= experiment.label_smoothing < 1:
        found.append(f"label_smoothing={experiment.label_smoothing}: must lie in [0, 1)")
    if experiment.clip_norm is not None and not experiment.clip_norm > 0:
        found.append(f"clip_norm={experiment.clip_norm}: must be positive, or absent for none")
    if not (experiment.test or experiment.validation):
        found.append("test=False without validation: nothing would be measured")
    if experiment.label_smoothing and experiment.loss != "cross_entropy":
        found.append(f"label_smoothing has no effect with loss={experiment.loss!r}")
    if not experiment.shuffle and experiment.augment != "none":
        found.append(f"augment={experiment.augment!r} draws anew for every epoch: needs shuffle")
    found += _of_tests(experiment)
    found += _of_probes(experiment)
    found += _of_switch(experiment)
    found += _of_start(experiment)
    if experiment.accumulate > experiment.batch_size:
        found.append(
            f"accumulate={experiment.accumulate}: exceeds batch_size={experiment.batch_size}"
        )
    return found


def _of_tests(experiment: Experiment) -> list[str]:
    found = []
    rising = list(experiment.test_at) == sorted(set(experiment.test_at))
    if not rising or any(not 1 <= epoch <= experiment.epochs for epoch in experiment.test_at):
        found.append(
            f"test_at={experiment.test_at}: must rise, within 1 to {experiment.epochs} epochs"
        )
    lengths = experiment.test_lengths
    if list(lengths) != sorted(set(lengths)) or experiment.length in lengths:
        found.append(
            f"test_lengths={lengths}: must rise, and differ from length={experiment.length}"
        )
    if lengths and not experiment.test:
        found.append(f"test_lengths={lengths} are tested on, test=False forbids it")
    if experiment.test_at and not experiment.test:
        found.append(f"test_at={experiment.test_at} reads the test split, test=False forbids it")
    return found


def _of_probes(experiment: Experiment) -> list[str]:
    found = []
    if not 0 < experiment.probe_share <= 1:
        found.append(f"probe_share={experiment.probe_share}: must lie in (0, 1]")
    steps = experiment.probe_steps
    if list(steps) != sorted(set(steps)) or any(step < 1 for step in steps):
        found.append(f"probe_steps={steps}: must rise, each at least 1")
    if steps and not experiment.probe_every:
        found.append(f"probe_steps={steps} have no effect with probe_every=0")
    return found


def _of_switch(experiment: Experiment) -> list[str]:
    found = []
    for epoch, rule in experiment.switch.items():
        if type(epoch) is not int or not 1 <= epoch < experiment.epochs:
            found.append(
                f"switch at {epoch!r}: must be a whole number of epochs finished, at least 1 "
                f"and below epochs={experiment.epochs}"
            )
        try:
            rule_assignment(rule)
        except ValueError as error:
            found.append(f"switch at epoch {epoch}: {error}")
    return found


def _of_start(experiment: Experiment) -> list[str]:
    if not experiment.start.source:
        return []
    try:
        first = experiment.before
    except ValueError as error:
        return [f"start: {error}"]
    if first is not None and first.task is not None:
        return [f"start: its experiment is of sequences (task={first.task!r}), not of images"]
    return []
