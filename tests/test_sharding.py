"""FSDP2 in the runner: the losses of one process, and checkpoints that either can go on from."""

import dataclasses
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn

import apical
from apical.bench import Execution, Experiment, load_run
from apical.bench.storage import checkpoint, records
from apical.bench.training import loop, sharding
from processes import METHOD

BASE = Experiment(
    net_options={"hidden": [32, 16]},
    batch_size=640,
    validation=157,  # 1,280 images are left to train: every batch divides among two processes
    epochs=2,
    lr=0.1,
    optimizer_options={"momentum": 0.9},
    clip_norm=5.0,
    probe_every=0,
)
pytestmark = pytest.mark.timeout(600)  # two processes that wait for each other on busy cores
RULES = ("brsf", "kp")
FSDP = Execution(parallel="fsdp", quiet=True, checkpoint_steps=1)
STEPS = 2 * 1280 // 640
# A gradient is the mean of two halves of a batch instead of the mean of it all: each of its sums of
# 640 terms is rounded in another order, a relative error of at most 640 eps a step, which a stable
# descent adds up linearly over its steps.
RTOL = STEPS * 640 * torch.finfo(torch.float32).eps


class Interrupted(Exception):
    pass


def experiment(rule: str) -> Experiment:
    return dataclasses.replace(BASE, rule=rule)


def until_second_epoch(rule: str, folder: Path, execution: Execution) -> None:
    """Stop as a kill in the second epoch would: its checkpoints are there, its rows are not."""
    original = loop._epoch_rows

    def interrupt(experiment: Any, parts: Any, at: Any, sums: Any) -> Any:
        if at.epoch == 2:
            raise Interrupted
        return original(experiment, parts, at, sums)

    loop._epoch_rows = interrupt
    try:
        loop.run(experiment(rule), folder, execution)
    except Interrupted:
        pass
    finally:
        loop._epoch_rows = original


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ["WORLD_SIZE"] = "2"  # as torchrun sets it
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    root = Path(folder)
    for rule in RULES:
        loop.run(experiment(rule), root / f"sharded-{rule}", FSDP)
    until_second_epoch("kp", root / "begun-sharded", FSDP)
    until_second_epoch("kp", root / "resumed-sharded", FSDP)
    loop.run(experiment("kp"), root / "resumed-sharded", FSDP)
    loop.run(experiment("kp"), root / "begun-alone", dataclasses.replace(FSDP, regroup=True))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def root() -> Any:
    with tempfile.TemporaryDirectory() as folder:
        until_second_epoch("kp", Path(folder) / "begun-alone", Execution(checkpoint_steps=1))
        mp.start_processes(_worker, (folder,), nprocs=2, start_method=METHOD)
        yield Path(folder)


def losses(folder: Path) -> torch.Tensor:
    rows = [row for row in records.read(folder / "records.jsonl") if row["kind"] == "epoch"]
    assert [row["epoch"] for row in rows] == [1, 2]
    return torch.tensor([[row["train_loss"], row["val_loss"]] for row in rows])


def test_losses_of_one_process(root: Path) -> None:
    for rule in RULES:
        loop.run(experiment(rule), root / rule, Execution())
        torch.testing.assert_close(
            losses(root / f"sharded-{rule}"), losses(root / rule), rtol=RTOL, atol=0
        )
        one, other = (
            load_run(root / name).model.state_dict() for name in (rule, f"sharded-{rule}")
        )
        assert list(one) == list(other)
        for key, value in one.items():
            scale = value.abs().max().item() or 1.0
            torch.testing.assert_close(other[key], value, rtol=0, atol=RTOL * scale)


def test_checkpoints_are_interchangeable(root: Path) -> None:
    alone, sharded = losses(root / "kp"), losses(root / "sharded-kp")
    torch.testing.assert_close(losses(root / "begun-alone"), alone, rtol=RTOL, atol=0)
    assert torch.equal(losses(root / "resumed-sharded"), sharded)
    folder = root / "begun-sharded"
    state, belongs_to = checkpoint.read(folder / "checkpoint.pt")
    assert (belongs_to["processes"], belongs_to["parallel"]) == (2, "fsdp")
    assert state["position"]["step"] == 3
    with pytest.raises(ValueError, match="processes: 2, not 1"):
        loop.run(experiment("kp"), folder, Execution())
    copy = root / "copy"
    shutil.copytree(folder, copy)
    loop.run(experiment("kp"), copy, Execution(regroup=True))
    torch.testing.assert_close(losses(copy), alone, rtol=RTOL, atol=0)


def test_what_cannot_be_sharded_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    odd = dataclasses.replace(BASE, switch={1: "fa"}, compile=True)
    with pytest.raises(ValueError, match=r"several processes.*compile=True; .*switch=") as told:
        sharding.check(odd, model, 1)
    assert "WeightMirror" not in str(told.value)
    for rule in ("wm", "ldfa"):
        converted = apical.convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), rule)
        with pytest.raises(ValueError, match=r"layer '\d'.*parallel='ddp' takes all"):
            sharding.check(BASE, converted, 2)
    sharding.check(BASE, apical.convert(model, "kp"), 2)


def test_blocks_that_share_parameters_stay_together() -> None:
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    third = nn.Sequential(nn.Linear(3, 3), nn.ReLU())
    net = nn.ModuleDict({"body": nn.Sequential(first, nn.Tanh(), second, third)})
    assert list(sharding._blocks(net)) == [third]
