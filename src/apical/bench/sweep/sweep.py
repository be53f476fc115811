"""Sweeps: many runs, each done once, by however many processes work on them.

What is done is read from the folders: a finished run is skipped, an interrupted one goes on, one
that another living process holds is waited for.
"""

import concurrent.futures
import time
import traceback
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.storage import claims, run_folder
from apical.bench.sweep import workers
from apical.bench.training import loop

WAIT_SECONDS = 1.0
"""Between two looks at runs that other processes hold."""

DEATHS = 3
"""Times a run may take its worker process down, without progress between, before it counts as
failed."""

PROGRESS = ("checkpoint.pt", "trials.jsonl")
"""Files of a job that change as it proceeds."""

Say = Callable[[str], None]


class Job(Protocol):
    """Work that leaves its result in a folder, and does nothing where it is there already."""

    @property
    def folder(self) -> Path: ...
    @property
    def label(self) -> str:
        """What distinguishes it from the others of a sweep, for a line of progress."""

    def ended(self) -> dict[str, Any] | None:
        """The row that closes it, None if it is not there yet.

        Raises: ValueError if the folder holds something else.
        """

    def do(self, execution: Execution) -> dict[str, Any]:
        """Do it, or go on with it. Returns: the row that closes it."""

    def summary(self, row: dict[str, Any]) -> str:
        """Its result, in a few words."""


@dataclass(frozen=True)
class Task:
    """A run to be done: an experiment, its folder, and where it stands among the others."""

    experiment: Experiment
    folder: Path
    label: str = ""

    def ended(self) -> dict[str, Any] | None:
        run_folder.check(self.folder, self.experiment)
        return run_folder.end(self.folder)

    def do(self, execution: Execution) -> dict[str, Any]:
        return loop.run(self.experiment, self.folder, execution)

    def summary(self, row: dict[str, Any]) -> str:
        names = {"test_acc": "test accuracy", "val_acc": "validation accuracy"}
        names |= {"test_map": "mAP", "val_map": "mAP"}
        scores = [f"{name} {row[key]:.2%}" for key, name in names.items() if key in row]
        return f"{', '.join(scores)} ({row['seconds']:.0f} s)"


@dataclass
class Outcome:
    """What became of the jobs: ``failed`` maps folders to reasons."""

    finished: list[Job] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        text = f"Outcome({len(self.finished)} finished, {len(self.failed)} failed"
        if self.failed:
            path, reason = next(iter(self.failed.items()))
            text += f"; {path.name}: {reason}"
        return text + ")"


def sweep(
    tasks: Sequence[Job],
    execution: Execution,
    *,
    executor: str | workers.Make = "local",
    options: Mapping[str, Any] | None = None,
    jobs: int = 1,
    say: Say = lambda text: None,
) -> Outcome:
    """Do all runs that are not done; one that fails does not stop the others.

    Args: executor, options: where runs are executed, as in ``workers.choose``.
        jobs: runs (>= 1) under way at once.     say: called with a line for every run that ends.
    Returns: once every run has ended, here or in other processes.
    Raises: ValueError for fewer than one job, or as ``workers.choose`` does.
    """
    if jobs < 1:
        raise ValueError(f"jobs={jobs}: must be at least 1")
    make = workers.choose(executor, jobs=jobs, options=options)
    work = _Work(execution, say, len(tasks))
    waiting = deque(work.sort_out(tasks))
    while waiting:
        try:
            with make() as opened:
                _drive(work, opened, waiting, jobs)
        except BrokenProcessPool:
            say("a worker process died; starting others")
    return work.outcome


def attempt(task: Job, execution: Execution) -> dict[str, Any]:
    """In a worker: one run. Returns its last row, or a row of kind ``held`` or ``error``."""
    try:
        return task.do(execution)
    except claims.Held as held:
        return {"kind": "held", "reason": str(held)}
    except (ValueError, OSError) as error:
        return {"kind": "error", "reason": str(error)}
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        return {"kind": "error", "reason": reason, "traceback": traceback.format_exc()}


@dataclass
class _Work:
    execution: Execution
    say: Say
    total: int
    outcome: Outcome = field(default_factory=Outcome)
    deaths: dict[Path, tuple[int, list[int]]] = field(default_factory=dict)
    skipped: int = 0

    def sort_out(self, tasks: Sequence[Job]) -> list[Job]:
        """Book the runs that have ended; return the others."""
        left = []
        for task in tasks:
            row = _end(task)
            if row is None:
                left.append(task)
            else:
                self.skipped += row["kind"] == "final"
                self.book(task, row, quiet=row["kind"] == "final")
        if self.skipped:
            self.say(f"{self.skipped} of {self.total} runs are finished already")
        return left

    def book(self, task: Job, row: dict[str, Any], *, quiet: bool = False) -> None:
        """Enter the end of a run."""
        if row["kind"] == "final":
            self.outcome.finished.append(task)
            text = task.summary(row)
        else:
            self.outcome.failed[task.folder] = _why(row)
            text = f"FAILED: {_why(row)}" + f" ({task.folder.name})" * bool(task.label)
            if "traceback" in row:
                text += "\n" + row["traceback"]
        if not quiet:
            ended = len(self.outcome.finished) + len(self.outcome.failed)
            self.say(f"[{ended}/{self.total}] {task.label or task.folder.name}: {text}")


def _drive(work: _Work, executor: Executor, waiting: deque[Job], jobs: int) -> None:
    """Keep ``jobs`` runs under way until none waits; a task leaves ``waiting`` when it ends."""
    running: dict[Future[dict[str, Any]], Job] = {}
    held: deque[Job] = deque()
    try:
        while waiting or running or held:
            while waiting and len(running) < jobs:
                task = waiting.popleft()
                running[executor.submit(attempt, task, work.execution)] = task
            if running:
                done, _ = concurrent.futures.wait(
                    running, WAIT_SECONDS, concurrent.futures.FIRST_COMPLETED
                )
                for future in done:
                    _settle(work, future, running, held, waiting)
            else:
                time.sleep(WAIT_SECONDS)
            if not waiting:
                _look_at_held(work, held, waiting)
    finally:
        waiting.extend(running.values())
        waiting.extend(held)


def _settle(
    work: _Work,
    future: Future[dict[str, Any]],
    running: dict[Future[dict[str, Any]], Job],
    held: deque[Job],
    waiting: deque[Job],
) -> None:
    task = running[future]
    try:
        row = future.result()
    except BrokenProcessPool:  # it is not known which run broke it
        for suspect, each in list(running.items()):
            if _gives_up(work, each, "out of memory?"):
                del running[suspect]
        raise
    except workers.Died as death:
        del running[future]
        if not _gives_up(work, task, str(death)):
            waiting.append(task)
        return
    del running[future]
    if row["kind"] == "held":
        held.append(task)
    else:
        work.book(task, row)


def _gives_up(work: _Work, task: Job, reason: str) -> bool:
    """Count the death of a run's worker; one death too many is the end of the run."""
    times = [(task.folder / name).stat().st_mtime_ns for name in PROGRESS
             if (task.folder / name).exists()]  # fmt: skip
    deaths, before = work.deaths.get(task.folder, (0, times))
    deaths = deaths + 1 if times == before else 1
    work.deaths[task.folder] = deaths, times
    if deaths < DEATHS:
        return False
    reason = f"its worker process died {DEATHS} times without progress; {reason}"
    work.book(task, {"kind": "error", "reason": reason})
    return True


def _look_at_held(work: _Work, held: deque[Job], waiting: deque[Job]) -> None:
    """Book what others have finished; take back what they have left."""
    for _ in range(len(held)):
        task = held.popleft()
        row = _end(task)
        if row is not None:
            work.book(task, row)
        elif claims.owner(task.folder) is None:
            waiting.append(task)
        else:
            held.append(task)


def _end(task: Job) -> dict[str, Any] | None:
    """The row that closes a run; of kind ``error`` where its folder cannot be read."""
    try:
        return task.ended()
    except (ValueError, OSError) as error:
        return {"kind": "error", "reason": str(error)}


def _why(row: dict[str, Any]) -> str:
    if row["kind"] == "stopped":
        return f"{row['reason']} in epoch {row['epoch']}, step {row['step']}, at {row['where']}"
    return str(row["reason"])
