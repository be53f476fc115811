"""Settings of a task of sequences, and the task that they describe."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from apical.bench.experiment.settings import Settings, setting
from apical.names import unknown

if TYPE_CHECKING:
    from apical.data.sequences import Task


@dataclass(frozen=True)
class TaskSettings(Settings):
    """A task of sequences, which a recurrent net learns instead of a data set.

    Args:
        task: name of the task; ``apical list`` shows them. It has a loss of its own.
        length: time steps of its sequences; each task says how many it needs at least.
        task_options: keyword arguments of the task.
        test_lengths: other lengths, rising, at which the trained net is tested as well.
        batches: batches in an epoch (>= 1), each of new random sequences.
    """

    task: str | None = setting(None, not_with=("hashing",))
    length: int | None = setting(None, "[1, inf)", needs="task")
    task_options: dict[str, Any] = setting(factory=dict, needs="task")
    test_lengths: tuple[int, ...] = setting((), needs="task")
    batches: int = setting(100, "[1, inf)", needs="task")

    label: ClassVar[str] = "task"

    def __post_init__(self) -> None:
        if self.task is not None:
            object.__setattr__(self, "task", self.task.replace("-", "_"))
        super().__post_init__()

    def problems(self) -> list[str]:
        found = super().problems()
        if self.task is None:
            return found
        from apical.data import sequences

        lengths = self.test_lengths
        if list(lengths) != sorted(set(lengths)) or self.length in lengths:
            found.append(f"test_lengths={lengths}: must rise, and differ from length={self.length}")
        if "root" in self.task_options:
            found.append("task_options: 'root' is a folder: give it by --data-root or APICAL_DATA")
        if self.task not in sequences.TASKS:
            found.append(str(unknown("task", self.task, sequences.TASKS)))
        elif self.length is None:
            found.append(f"task={self.task!r} needs a length: the steps of a sequence, as 30")
        else:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # shown where the task is built to be used
                    task = task_of(self)
                    if task is not None:
                        other_lengths(self, task)
            except ValueError as error:
                found.append(str(error))
        return found


def task_of(settings: TaskSettings, root: str | None = None) -> Task | None:
    """The task of sequences, None where images are trained on.

    Args: root: folder of data sets, for tasks that read files.
    Warns: if the length is too short to be evidence.
    """
    if settings.task is None or settings.length is None:
        return None
    from apical.data import sequences

    options = dict(settings.task_options)
    if root is not None and sequences.TASKS[settings.task].from_files:
        options["root"] = root
    return sequences.build(settings.task, settings.length, **options)


def other_lengths(settings: TaskSettings, task: Task) -> dict[int, Task]:
    """The task at the other lengths at which the trained net is tested."""
    return {length: replace(task, length=length) for length in settings.test_lengths}
