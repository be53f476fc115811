"""Who teaches what: the learner and the task that an experiment names, and what does not fit."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from apical import learners, mnm, nets, tasks
from apical.names import unknown

if TYPE_CHECKING:
    from apical.bench.experiment.experiment import Experiment

DEFAULT = "backprop"
"""The learner whose gradients are those of ``loss.backward()``."""

OF_IMAGES = (
    "data", "size", "train_images", "test_images", "pixels", "init", "start", "shuffle",
    "drop_last", "augment", "loss", "label_smoothing", "channels_last",
)  # fmt: skip
SEQUENCE_NETS = (*nets.CELLS, *mnm.NETS)
"""Nets that take sequences: recurrent ones, and those with a memory."""

OF_THE_TASK = ("inputs", "outputs", "output")
"""Options of such nets that follow from the task."""

OF_BACKWARD = ("accumulate", "autocast", "compile", "label_smoothing", "switch")


def is_default(learner: str | dict[str, Any]) -> bool:
    """Whether the gradients are those of ``loss.backward()``, however that was written."""
    return learner_values(learner) == learner_values(DEFAULT)


def learner_values(learner: str | dict[str, Any]) -> dict[str, Any]:
    """The learner in one form, however it was given, with its version, for the key."""
    built = learners.build(learner)
    version = {} if built.version == 1 else {"version": built.version}
    return learners.to_dict(built) | version


def learner_label(learner: str | dict[str, Any]) -> str:
    """One word for a table or a folder name."""
    return learner if isinstance(learner, str) else str(learner["learner"])


def learner_of(experiment: Experiment) -> learners.Learner:
    """The learner, with the loss of the experiment."""
    form = learners.to_dict(learners.build(experiment.learner))
    return learners.build(form, loss=experiment.objective)


def task_of(experiment: Experiment, root: str | None = None) -> tasks.Task | None:
    """The task of sequences, None where images are trained on.

    Args: root: folder of data sets, for tasks that read files.
    Warns: of a length that is no evidence.
    """
    if experiment.task is None or experiment.length is None:
        return None
    options = dict(experiment.task_options)
    if root is not None and tasks.TASKS[experiment.task].from_files:
        options["root"] = root
    return tasks.build(experiment.task, experiment.length, **options)


def other_lengths(experiment: Experiment, task: tasks.Task) -> dict[int, tasks.Task]:
    """The task at the other lengths at which the trained net is tested."""
    return {length: replace(task, length=length) for length in experiment.test_lengths}


def problems(experiment: Experiment) -> list[str]:
    """What does not fit in the task and the learner of an experiment."""
    found = _of_images(experiment) if experiment.task is None else _of_task(experiment)
    return found + _of_learner(experiment)


def _of_images(experiment: Experiment) -> list[str]:
    found = [
        f"{name}={getattr(experiment, name)} has no effect without a task"
        for name in _set(experiment, ("length", "batches", "task_options", "test_lengths"))
    ]
    if experiment.net in SEQUENCE_NETS:
        found.append(
            f"net={experiment.net!r} takes sequences: name a task ({', '.join(tasks.TASKS)}) and a "
            "length"
        )
    return found


def _of_task(experiment: Experiment) -> list[str]:
    found = [
        f"{name}={getattr(experiment, name)!r} has no effect with task={experiment.task!r}"
        for name in _set(experiment, OF_IMAGES)
    ]
    if experiment.net not in SEQUENCE_NETS:
        allowed = ", ".join(SEQUENCE_NETS)
        found.append(f"net={experiment.net!r} takes no sequences: allowed are {allowed}")
    found += [
        f"net_options: {name!r} follows from the task; leave it out"
        for name in OF_THE_TASK
        if name in experiment.net_options
    ]
    if "root" in experiment.task_options:
        found.append("task_options: 'root' is where, not what: give --data-root or APICAL_DATA")
    if experiment.task not in tasks.TASKS:
        return [*found, str(unknown("task", str(experiment.task), tasks.TASKS))]
    if experiment.length is None:
        return [*found, f"task={experiment.task!r} needs a length: the steps of a sequence, as 30"]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # whoever builds the task is warned
            task = task_of(experiment)
            if task is not None:
                other_lengths(experiment, task)
    except ValueError as error:
        found.append(str(error))
    return found


def _of_learner(experiment: Experiment) -> list[str]:
    if isinstance(experiment.learner, dict) and "loss" in experiment.learner:
        return ["learner: its loss is that of the experiment or task; leave it out"]
    try:
        if is_default(experiment.learner):
            return []
    except (TypeError, ValueError) as error:
        return [f"learner: {error}"]
    label = learner_label(experiment.learner)
    task = None if experiment.task is None else tasks.TASKS.get(experiment.task)
    if task is not None and task.answers == "every":
        return [
            f"learner={label!r} is not possible with task={experiment.task!r}, which asks at "
            "several steps: leave out the learner, so that loss.backward() teaches"
        ]
    found = [
        f"{name}={getattr(experiment, name)!r} is not possible with learner={label!r}"
        for name in _set(experiment, OF_BACKWARD)
    ]
    if experiment.loss != "cross_entropy":
        found.append(f"loss={experiment.loss!r}: learner={label!r} knows cross_entropy alone")
    return found


def _set(experiment: Experiment, names: Iterable[str]) -> list[str]:
    """Those of the fields that differ from their defaults."""
    fields = type(experiment).__dataclass_fields__
    defaults = {
        name: field.default_factory() if callable(field.default_factory) else field.default
        for name, field in fields.items()
    }
    return [name for name in names if getattr(experiment, name) != defaults[name]]
