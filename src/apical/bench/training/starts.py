"""The weights that a run starts from, read or trained by another run; what they do to a net."""

import os
import time
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import nn

from apical.bench.experiment.experiment import Experiment
from apical.bench.storage import checkpoint, claims, run_folder
from apical.names import unknown
from apical.nets import pretrained
from apical.rules import Rule

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


def begin(model: nn.Module, start: pretrained.Start, weights: pretrained.State | None) -> None:
    """Before the conversion: the weights, all but the head's, and the statistics of norms.

    Args: weights: what the source holds; None leaves the net's own, to measure or rebuild it.
    Raises: ValueError if the head is not certain, or a tensor does not fit; names them.
    """
    skip = [*start.skip, f"{head_name(model, start)}.*"] if start.new_head else start.skip
    if weights is not None:
        try:
            pretrained.load(model, weights, skip=skip, rename=start.rename)
        except ValueError as error:
            own = isinstance(start.source, dict)
            source = "the experiment it starts from" if own else start.source
            raise ValueError(f"start, {source}: {error}") from error
    if start.norms == "frozen":
        pretrained.norm_statistics(model, "frozen")


def assigned(model: nn.Module, start: pretrained.Start, rule: Any) -> Any:
    """What `apical.convert` takes, with the head's exact gradient where the start says so.

    Raises: ValueError if the rules name the head as well.
    """
    if start.head_by == "rule":
        return rule
    rest = rule if isinstance(rule, Mapping) else {"*": rule}
    head = head_name(model, start)
    if head in rest:
        raise ValueError(
            f"start.head_by='bp' beside a rule for the layer {head!r}, which is the head: give one "
            "of the two"
        )
    of_head = next((r for pattern, r in rest.items() if fnmatchcase(head, pattern)), None)
    if isinstance(of_head, Rule) and of_head.sends_nothing:  # exact in the head itself, too
        return rule
    return {head: "bp", **rest}


def head_name(model: nn.Module, start: pretrained.Start) -> str:
    """The name of the last layer: as the start says, else as it is called.

    Raises: ValueError if there is no such layer, or it is not certain; names the candidates.
    """
    if start.head:
        layers = [
            name
            for name, layer in model.named_modules()
            if isinstance(getattr(layer, "weight", None), torch.Tensor)
        ]
        if start.head not in layers:
            raise unknown("layer for start.head", start.head, layers)
        return start.head
    try:
        return pretrained.find_head(model)
    except ValueError as error:
        why = str(error).partition(" Say which")[0].partition(" Give its name")[0]
        raise ValueError(f"start: {why} Say which: start.head") from error
