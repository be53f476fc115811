"""Where a run stands: kept in its checkpoint, and taken up from there to the same bits."""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment, versions
from apical.bench.storage import checkpoint, records, schema
from apical.bench.training import build, sharding
from apical.data import generators

GROUPING = ("processes", "parallel")
"""What a checkpoint belongs to that decides on roundings alone."""


@dataclass
class Position:
    """How far a run is; with model, optimizer and random states, all that a resume needs."""

    epoch: int = 0  # epochs finished
    step: int = 0  # optimizer steps done, over all epochs
    epoch_step: int = 0  # those of the epoch under way
    seconds: float = 0.0  # wall time of all epochs
    epoch_seconds: float = 0.0
    epoch_cpu_seconds: float = 0.0
    step_ms: list[float] = field(default_factory=list)  # mean of each epoch
    train_loss: float = math.nan  # of the last epoch finished
    train_acc: float = math.nan


_SHAPES = {int: schema.COUNT, float: schema.MAYBE_NAN, list: [float]}
_POSITION = {name: _SHAPES[type(value)] for name, value in vars(Position()).items()}


def restore(
    experiment: Experiment,
    parts: build.Parts,
    folder: Path,
    belongs_to: dict[str, Any],
    regroup: bool = False,
) -> tuple[Position, Tensor, int]:
    """Take up what the folder's checkpoint holds, if there is one; else the beginning.

    Switches of the rule up to there are done once more, since the order in which they changed the
    optimizer is part of its state. Rows of the records beyond the checkpoint are cut off: what
    they tell of is done again.

    Args: regroup: as of ``Execution``.
    Returns: the position; sums of loss, hits and images of the epoch under way; number of valid
        rows.
    Raises: ValueError if the checkpoint is damaged, differs from ``belongs_to``, or was made with
        other data.
    """
    at, rows = Position(), 0
    sums = torch.zeros(3, dtype=torch.float64, device=parts.device)
    path = folder / "checkpoint.pt"
    if path.exists():
        ignoring = GROUPING if regroup else ()
        state = checkpoint.load(path, belongs_to=belongs_to, ignoring=ignoring)
        schema.check(state["position"], _POSITION, f"{path}, position")
        at = Position(**{name: state["position"][name] for name in _POSITION})
        rows = state["rows"]
        if state.get("data", parts.content) != parts.content:
            raise ValueError(
                f"{path}: the images or labels are no longer those that the run began with, so it "
                "cannot go on. Restore them (--data-root and APICAL_DATA say where data sets lie), "
                "or train anew in another folder"
            )
        if parts.group.rank == 0:
            check_records(folder, state)
        for epoch in range(1, at.epoch + 1):
            build.follow_switch(experiment, parts, epoch)
        try:
            _load(parts, state)
            _take_up(state["processes"], parts, sums)
        except (RuntimeError, ValueError, KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"{path} does not fit the net of its experiment ({error}). Use the version of "
                "apical that wrote it (environment.json names it), or train anew elsewhere"
            ) from error
    if parts.group.rank == 0:
        records.truncate(folder / "records.jsonl", rows)
    parts.group.wait()
    return at, sums, rows


def check_records(folder: Path, state: Mapping[str, Any]) -> None:
    """Raises: ValueError if the rows that a checkpoint counts are not those it was made with."""
    path, rows, digest = folder / "records.jsonl", state.get("rows", 0), state.get("records")
    # fewer rows have no digest, and are refused where the rest is cut off
    if digest is not None and records.digest(path, rows) not in (digest, None):
        raise ValueError(
            f"{path} is damaged, or was changed: its first {rows} rows are not those that the "
            f"checkpoint was made with. Restore it, or remove it and {folder / 'checkpoint.pt'} to "
            "train the run anew"
        )


def _load(parts: build.Parts, state: dict[str, Any]) -> None:
    """Put the states of model, optimizer and scaler in their places."""
    parts.model.load_state_dict(state["model"])
    for group, own in zip(
        state["optimizer"]["param_groups"], parts.optimizer.param_groups, strict=True
    ):
        group |= {"fused": own["fused"]} if "fused" in own else {}  # not the same when sharded
    if parts.sharded:
        sharding.load_model(parts.net, state["model"])
        sharding.load_optimizer(parts.optimizer, state["optimizer"])
    else:
        parts.optimizer.load_state_dict(state["optimizer"])
    parts.scaler.load_state_dict(state["scaler"])


def _take_up(processes: list[dict[str, Any]], parts: build.Parts, sums: Tensor) -> None:
    """The sums and random states of the process; of another number of processes, all sums go to
    the first, and processes that are new keep the random states of their rank."""
    rank = parts.group.rank
    if len(processes) == parts.group.size:
        sums.copy_(processes[rank]["sums"])
    elif rank == 0:
        sums.copy_(torch.stack([mine["sums"] for mine in processes]).sum(0))
    if rank < len(processes):
        generators.restore(processes[rank])
        if "cuda_random" in processes[rank]:
            torch.cuda.set_rng_state(processes[rank]["cuda_random"], parts.device)


def state(parts: build.Parts, at: Position, sums: Tensor, rows: int) -> dict[str, Any]:
    """What ``restore`` needs, as a checkpoint keeps it. Every process of the group must call."""
    return {
        "model": parts.model.state_dict(),
        "optimizer": sharding.whole(parts.optimizer.state_dict())
        if parts.sharded
        else parts.optimizer.state_dict(),
        "scaler": parts.scaler.state_dict(),
        "position": dataclasses.asdict(at),
        "processes": _process_states(parts, sums),
        "rows": rows,
        "data": parts.content,
    }


def belongs_to(experiment: Experiment, parts: build.Parts, execution: Execution) -> dict[str, Any]:
    """What must be the same for a run to go on to the same bits."""
    return {
        "experiment": experiment.key,
        **{f"version of {name}": value for name, value in versions().items()},
        "torch": str(torch.__version__),
        "device": parts.device.type,
        "threads": execution.threads,
        "processes": parts.group.size,
        **({"parallel": "fsdp"} if parts.sharded else {}),
    }


def _process_states(parts: build.Parts, sums: Tensor) -> list[dict[str, Any]]:
    """What differs between processes: random generators and sums, one entry each."""
    mine = {"sums": sums.cpu(), **generators.state()}
    if parts.device.type == "cuda":
        mine["cuda_random"] = torch.cuda.get_rng_state(parts.device)
    if parts.group.size == 1:
        return [mine]
    every: list[Any] = [None] * parts.group.size
    torch.distributed.all_gather_object(every, mine)
    return every
