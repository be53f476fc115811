"""Progress bars on standard error; nothing at all where that is not a terminal."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from apical.bench.experiment.experiment import Experiment

Show = Callable[[list[dict[str, Any]]], None]


@contextlib.contextmanager
def bar(experiment: Experiment, done: int, *, quiet: bool) -> Iterator[Show]:
    """Give a function that takes the records of an epoch and moves the bar of a run by one.

    Args: done: epochs finished before.     quiet: no bar, even in a terminal.
    """
    with steps(experiment.name, quiet=quiet, done=done, total=experiment.epochs) as move:

        def show(rows: list[dict[str, Any]]) -> None:
            nonlocal done
            done += 1
            move(_told(rows), done, experiment.epochs)

        yield show


@contextlib.contextmanager
def steps(
    title: str, *, quiet: bool, done: int = 0, total: int | None = None
) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that takes what was just done, how many are done, and of how many."""
    if quiet or not sys.stderr.isatty():
        yield lambda text, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
    from rich.progress import TimeRemainingColumn as Remaining

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Remaining())
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=total, completed=done)

        def show(text: str, done: int, total: int) -> None:
            shown.update(task, completed=done, total=total, description=f"{title}  {text}")

        yield show


def _told(rows: list[dict[str, Any]]) -> str:
    row = next(row for row in rows if row["kind"] == "epoch")
    parts = [f"loss {row['train_loss']:.3f}", f"train {row['train_acc']:.1%}"]
    if "val_acc" in row:
        parts.append(f"validation {row['val_acc']:.1%}")
    return "  ".join(parts)
