"""Progress bars on standard error; nothing at all where that is not a terminal."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from apical.bench.experiment.experiment import Experiment

EVERY = 0.2
"""Seconds, at least, between two moves of a bar by optimizer steps."""


class Bar:
    """The bar of a run: its unit is the optimizer step, its text that of the last epoch."""

    def __init__(self, move: Callable[[str, int, int], None], per_epoch: int, total: int) -> None:
        self.move, self.per_epoch, self.total = move, per_epoch, total
        self.text = ""
        self._next = 0.0

    def step(self, done: int) -> None:
        """So many steps are done."""
        now = time.monotonic()
        if now >= self._next:
            self._next = now + EVERY
            self.move(self.text, done, self.total)

    def epoch(self, rows: list[dict[str, Any]], done: int) -> None:
        """Epochs are finished, so many; the rows are those of the last."""
        row = next(row for row in rows if row["kind"] == "epoch")
        parts = [f"loss {row['train_loss']:.3f}", f"train {row['train_acc']:.1%}"]
        if "val_acc" in row:
            parts.append(f"validation {row['val_acc']:.1%}")
        self.text = "  ".join(parts)
        self.move(self.text, done * self.per_epoch, self.total)


@contextlib.contextmanager
def bar(experiment: Experiment, done: int, per_epoch: int, *, quiet: bool) -> Iterator[Bar]:
    """The bar of a run.

    Args: done: steps finished before.     per_epoch: steps in an epoch.
        quiet: no bar, even in a terminal.
    """
    total = experiment.epochs * per_epoch
    with steps(experiment.name, quiet=quiet, done=done, total=total, unit="steps") as move:
        yield Bar(move, per_epoch, total)


@contextlib.contextmanager
def steps(
    title: str, *, quiet: bool, done: int = 0, total: int | None = None, unit: str = ""
) -> Iterator[Callable[[str, int, int], None]]:
    """Give a function that takes what was just done, how many are done, and of how many; the bar
    shows the rate and the time that remains."""
    if quiet or not sys.stderr.isatty():
        yield lambda text, done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, Task, TextColumn
    from rich.progress import ProgressColumn as Column
    from rich.progress import TimeRemainingColumn as Remaining
    from rich.text import Text

    class Rate(Column):
        def render(self, task: Task) -> Text:
            if not task.speed:
                return Text("")
            slow = task.speed < 1
            value = 1 / task.speed if slow else task.speed
            return Text(f"{value:.1f} {'s each' if slow else f'{unit}/s'.lstrip('/')}")

    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), Rate(), Remaining()
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True)) as shown:
        task = shown.add_task(title, total=total, completed=done)

        def show(text: str, done: int, total: int) -> None:
            shown.update(task, completed=done, total=total, description=f"{title}  {text}")

        yield show
