"""The weights that a run starts from: read, or trained first by another run."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apical.bench.experiment.experiment import Experiment
from apical.bench.storage import checkpoint, claims, run_folder
from apical.nets import pretrained

FOLDER = "starts"
"""Beside the runs that start from them: the runs of the experiments they start from."""

Train = Callable[[Experiment, Path], dict[str, Any]]
"""Trains an experiment in a folder, or goes on with it; returns the row that closes it."""


def weights(experiment: Experiment, folder: Path, train: Train) -> pretrained.State | None:
    """The weights that the start of an experiment names, None without one.

    Args: folder: of the run that is to start from them.
    Raises: ValueError if they are not there, not what the experiment was described with, or could
        not be trained.
    """
    start, before = experiment.start, experiment.before
    if before is not None:
        return _trained(before, place(before, folder), train)
    if not start.source:
        return None
    found = pretrained.read(start.source, entry=start.entry or None)
    if (here := pretrained.digest(found)) != start.digest:
        raise ValueError(
            f"start: {start.source} holds the weights {here}, the experiment was described with "
            f"{start.digest}. Restore the file, or describe a new experiment without a digest"
        )
    return plain(found)


def place(before: Experiment, folder: Path) -> Path:
    """The folder of the run that trains a start: one that is there already, also of the study
    around, else beside the run in this folder."""
    here, above = (
        parent / FOLDER / before.name for parent in (folder.parent, folder.parent.parent)
    )
    return above if run_folder.state(here) == "new" and above.exists() else here


def _trained(before: Experiment, folder: Path, train: Train) -> pretrained.State:
    """The weights of another run's net, which is trained if it was not yet."""
    if run_folder.end(folder) is None and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            f"start: its experiment is not trained yet ({folder}). Train it without torchrun first"
        )
    row = None
    while row is None:
        try:
            row = train(before, folder)
        except claims.Held:  # another run that starts from it is at it
            time.sleep(1.0)
    if row["kind"] != "final":
        raise ValueError(f"start: its training {row['kind']} ({row.get('reason')}): {folder}")
    if not (folder / "checkpoint.pt").exists():
        raise ValueError(
            f"start: {folder} has records but no checkpoint.pt; remove the folder to train it anew"
        )
    state, belongs_to = checkpoint.read(folder / "checkpoint.pt")
    if belongs_to.get("experiment") != before.key:
        raise ValueError(
            f"start: {folder / 'checkpoint.pt'} belongs to the experiment "
            f"{belongs_to.get('experiment')}, not {before.key}; remove the folder to train it anew"
        )
    return plain(state["model"])


def plain(found: pretrained.State) -> pretrained.State:
    """A state dict without what rules and learners remembered: the weights of the plain net."""
    memory = (".feedback.", "learner.")
    return {k: v for k, v in found.items() if memory[0] not in k and not k.startswith(memory[1])}
