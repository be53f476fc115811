"""Training: one flat loop, resumable to the same bits."""

import contextlib
import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.rule_settings import rule_label
from apical.bench.storage import checkpoint, claims, records, run_folder
from apical.bench.training import batch_step, build, evaluate, progress, resume, starts, tracking
from apical.bench.training.build import Split
from apical.bench.training.group import settings
from apical.bench.training.monitor import Monitor

CHECK_STEPS = 50
"""Steps between two checks of the loss where each check waits for a GPU or other processes."""


def run(
    experiment: Experiment,
    folder: str | Path,
    execution: Execution | None = None,
    *,
    given: build.Given | None = None,
) -> dict[str, Any]:
    """Train an experiment in a folder, or go on where a killed run stopped, or do nothing.

    One that starts from another experiment has that trained first, in ``starts`` beside the folder.

    Args: given: objects that the experiment names by their digest; see `apical.bench.fit`.
    Returns: the last record: of kind ``final``, or ``stopped`` if the loss became non-finite.
    Raises: ValueError if the experiment cannot be built, its tracker is not installed or the folder
            holds another one;
        claims.Held if another living process works on the folder.
    """
    folder, execution = Path(folder), execution or Execution()
    run_folder.check(folder, experiment)
    ended = run_folder.end(folder)
    if ended is not None:
        claims.clear(folder)  # a kill after the last row leaves one
        return ended
    build.check_device(execution.device, experiment)
    tracking.check(execution.track)
    weights = starts.weights(experiment, folder, lambda e, place: run(e, place, execution))
    with settings(execution):
        parts = build.build(
            experiment,
            device=execution.device,
            data_root=execution.data_root,
            download=execution.download,
            weights=weights,
            given=given,
            parallel=execution.parallel,
        )
        try:
            if parts.group.rank:
                return classification(experiment, parts, folder, execution, lambda: None)
            with claims.hold(folder) as claim:
                run_folder.check(folder, experiment)
                row = run_folder.end(folder)
                if row is None:
                    run_folder.create(folder, experiment, execution)
                    steps = len(parts.train)
                    with tracking.track(experiment, folder, execution, steps) as tracked:
                        row = classification(
                            experiment, parts, folder, execution, claim.check, tracked
                        )
        finally:
            parts.group.close()
    claims.clear(folder)
    return row


def classification(
    experiment: Experiment,
    parts: build.Parts,
    folder: Path,
    execution: Execution,
    still_mine: Callable[[], None],
    tracked: Callable[[list[dict[str, Any]]], None] = lambda rows: None,
) -> dict[str, Any]:
    """Train a net to its last epoch, then read the test split once.

    Args: still_mine: raises if the claim on the folder is lost.     tracked: takes every row.
    """
    belongs_to = resume.belongs_to(experiment, parts, execution)
    monitor = Monitor(experiment, parts)  # which must see the weights that training began with
    at, sums, rows = resume.restore(experiment, parts, folder, belongs_to, execution.regroup)
    before = records.read(folder / "records.jsonl")
    monitor.recall(before)
    tracked(before)
    writes = parts.group.rank == 0

    def save(*new: dict[str, Any]) -> None:
        """Rows first, then the checkpoint that counts them: a kill between repeats the rows."""
        nonlocal rows
        new = (*new, *monitor.warnings(new))
        rows += len(new)
        state = resume.state(parts, at, sums, rows)
        if writes:
            still_mine()
            records.append(folder / "records.jsonl", *new)
            state["records"] = records.digest(folder / "records.jsonl", rows)
            checkpoint.save(folder / "checkpoint.pt", state, belongs_to=belongs_to)
            tracked([*new])

    def end(*new: dict[str, Any]) -> None:
        """The last rows; no checkpoint follows."""
        still_mine()
        records.close(folder / "records.jsonl", *new)
        checkpoint.previous(folder / "checkpoint.pt").unlink(missing_ok=True)
        tracked([*new])

    if not (at.step or rows):
        save(*monitor.at_epoch(0))
    quiet = execution.quiet or not writes
    with progress.bar(experiment, at.step, len(parts.train), quiet=quiet) as show:
        while at.epoch < experiment.epochs:
            stopped = _train_epoch(
                experiment, parts, at, sums, monitor, execution.checkpoint_steps, save, show.step
            )
            if stopped is None:
                at.epoch += 1
                parts.gather()
                scores = _epoch_rows(experiment, parts, at, sums)
                overflowed = _nonfinite_split(scores)
                if parts.group.agree(bool(overflowed), parts.device):
                    stopped = _stopped(at.epoch, at.step, overflowed)
            if stopped is not None:
                if writes:
                    end(stopped)
                return stopped
            new = [*scores, *monitor.at_epoch(at.epoch)]
            new += _switch_rows(experiment, parts, at.epoch)
            at.epoch_step, at.epoch_seconds, at.epoch_cpu_seconds = 0, 0.0, 0.0
            sums.zero_()
            save(*new)
            show.epoch(new, at.epoch)
    ending = _final_rows(experiment, parts, at, folder) if writes else [{}]
    parts.group.wait()
    if writes:
        if overflowed := _nonfinite_split(ending):
            ending = [_stopped(at.epoch, at.step, overflowed)]
        else:
            ending = [*monitor.at_end(), *ending]
        end(*ending)
    return ending[-1]


def _train_epoch(
    experiment: Experiment,
    parts: build.Parts,
    at: resume.Position,
    sums: Tensor,
    monitor: Monitor,
    checkpoint_steps: int,
    save: Callable[..., None],
    show: Callable[[int], None],
) -> dict[str, Any] | None:
    """Train to the end of the epoch under way.

    Returns: the row of kind ``stopped`` if the loss became non-finite, else None.
    """
    group, device = parts.group, parts.device
    per_epoch = len(parts.train)
    check = 1 if device.type == "cpu" and group.size == 1 else CHECK_STEPS
    gradients = batch_step.function(
        experiment, parts, lambda: at.step, lambda: _update(experiment, parts)
    )
    net: Any = parts.net
    net.train()
    distributed = isinstance(net, torch.nn.parallel.DistributedDataParallel)
    clock = _Clock(at)
    for x, y in itertools.islice(parts.train.epoch(at.epoch), at.epoch_step, None):
        done = at.epoch + at.epoch_step / per_epoch
        for options in parts.optimizer.param_groups:
            rate = experiment.lr * (options["rate"] if experiment.start.rates else 1)
            options["lr"] = rate * experiment.schedule.factor(done, experiment.epochs)
        x_parts, y_parts = x.chunk(experiment.accumulate), y.chunk(experiment.accumulate)
        for number, (x_part, y_part) in enumerate(zip(x_parts, y_parts, strict=True), 1):
            share = len(y_part) / len(y)  # gradients of parts add up to the mean over all images
            # processes exchange gradients with the last part of a batch only
            waits = distributed and number < len(x_parts)
            with net.no_sync() if waits else contextlib.nullcontext():
                loss, scores = gradients(x_part, y_part, share)
            sums[0] += loss * len(y_part)
            sums[1] += parts.objective.correct(scores, y_part).sum()
        sums[2] += len(y)
        at.epoch_step += 1
        if at.epoch_step % check == 0 or at.epoch_step == per_epoch:
            if group.agree(not math.isfinite(sums[0].item()), device):
                parts.gather()
                where = "" if group.rank else evaluate.first_nonfinite(parts.model, x)
                return _stopped(at.epoch + 1, at.step + 1, where)
        _update(experiment, parts)
        at.step += 1
        show(at.step)
        measure = monitor.within(at.step)
        keep = measure or (checkpoint_steps and at.step % checkpoint_steps == 0)
        if keep and at.epoch_step < per_epoch:
            clock.stop()
            parts.gather()
            save(*(monitor.at_step(at.step) if measure else ()))
            clock = _Clock(at)
    clock.stop()
    return None


def _update(experiment: Experiment, parts: build.Parts) -> None:
    """One optimizer step; rules that act on it are notified by the optimizer."""
    if experiment.clip_norm is not None:
        parts.scaler.unscale_(parts.optimizer)
        torch.nn.utils.clip_grad_norm_(parts.trained.parameters(), experiment.clip_norm)
    parts.scaler.step(parts.optimizer)
    parts.scaler.update()
    parts.optimizer.zero_grad(set_to_none=True)


def _epoch_rows(
    experiment: Experiment, parts: build.Parts, at: resume.Position, sums: Tensor
) -> list[dict[str, Any]]:
    """The rows of the epoch just finished."""
    at.seconds += at.epoch_seconds
    at.step_ms.append(1000 * at.epoch_seconds / at.epoch_step)
    if parts.group.size > 1:
        torch.distributed.all_reduce(sums)
    at.train_loss, at.train_acc = (sums[:2] / sums[2]).tolist()
    done = at.epoch - 1 / at.epoch_step  # the rate of the last step
    row: dict[str, Any] = {
        "kind": "epoch",
        "epoch": at.epoch,
        "step": at.step,
        "train_loss": at.train_loss,
        "train_acc": at.train_acc,
        "lr": experiment.lr * experiment.schedule.factor(done, experiment.epochs),
        "seconds": round(at.epoch_seconds, 3),
        "cpu_seconds": round(at.epoch_cpu_seconds, 3),
        "step_ms": round(at.step_ms[-1], 4),
    }
    if parts.group.rank == 0:
        if parts.validation is not None:
            row |= _scores(experiment, parts, "val", parts.validation)
        row["memory_mb"] = evaluate.memory_mb(parts.device)
    tests = []
    if at.epoch in experiment.test_at and parts.group.rank == 0:
        scores = _scores(experiment, parts, "test", parts.test)
        tests = [{"kind": "test", "epoch": at.epoch, **scores}]
    parts.group.wait()
    return [row, *tests]


def _scores(
    experiment: Experiment, parts: build.Parts, name: str, split: Split
) -> dict[str, float]:
    """Loss, accuracy and the like on a split, under its name."""
    autocast = batch_step.autocasting(experiment, parts.device)
    found = parts.objective.scores(parts.model, split, autocast)
    return {f"{name}_{key}": value for key, value in found.items()}


def _switch_rows(experiment: Experiment, parts: build.Parts, epoch: int) -> list[dict[str, Any]]:
    """The row of kind ``switch``, where the rule is switched after this epoch."""
    if not build.follow_switch(experiment, parts, epoch):
        return []
    rule, before = (rule_label(experiment.rule_at(e)) for e in (epoch, epoch - 1))
    return [{"kind": "switch", "epoch": epoch, "rule": rule, "before": before}]


def _final_rows(
    experiment: Experiment, parts: build.Parts, at: resume.Position, folder: Path
) -> list[dict[str, Any]]:
    """The row that closes a run, after those of kind ``course`` where its objective has some. The
    test split is read here and at ``test_at``, nowhere else."""
    epochs = [r for r in records.read(folder / "records.jsonl") if r["kind"] == "epoch"]
    steps = at.step / len(epochs)
    row: dict[str, Any] = {"kind": "final", "epoch": at.epoch}
    splits = {"val": parts.validation, "test": parts.test if experiment.test else None}
    splits |= build.other_tests(experiment, parts)
    autocast, courses = batch_step.autocasting(experiment, parts.device), []
    for name, split in splits.items():
        if split is not None:
            row |= _scores(experiment, parts, name, split)
            row[f"{name}_count"] = len(split.split)
            course = parts.objective.course(parts.model, split, autocast)
            courses += [{"kind": "course", "split": name, **point} for point in course]
    row |= {
        "train_acc": at.train_acc,
        "train_loss": at.train_loss,
        "seconds": round(at.seconds, 3),
        "step_ms": round(median(at.step_ms), 4),
        "step_cpu_ms": round(median(1000 * r["cpu_seconds"] / steps for r in epochs), 4),
        "parameters": evaluate.parameter_count(parts.model),
        "feedback_bytes": evaluate.feedback_bytes(parts.model),
    }
    if experiment.task is None:
        row["data_sha256"] = parts.content[:12]
    return [*courses, row]


def _nonfinite_split(rows: Sequence[Mapping[str, Any]]) -> str:
    """The split whose loss is not finite; "" if all are. The loss of the training batches may be
    finite where a net whose scores grow without bound is close to overflow."""
    for row in rows:
        for key, value in row.items():
            if key.endswith("_loss") and not math.isfinite(value):
                return f"the split {key.removesuffix('_loss')!r}"
    return ""


def _stopped(epoch: int, step: int, where: str) -> dict[str, Any]:
    return {
        "kind": "stopped",
        "reason": "non-finite loss",
        "epoch": epoch,
        "step": step,
        "where": where,
    }


class _Clock:
    """Adds the wall and processor time until ``stop`` to the epoch under way."""

    def __init__(self, at: resume.Position) -> None:
        self.at, self.wall, self.cpu = at, time.perf_counter(), time.process_time()

    def stop(self) -> None:
        self.at.epoch_seconds += time.perf_counter() - self.wall
        self.at.epoch_cpu_seconds += time.process_time() - self.cpu
