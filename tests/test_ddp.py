"""Two processes: the same weights and feedback on both, the gradients of one big batch."""

import copy
import tempfile
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import apical
from apical.rules import DFA, FA, RULES
from processes import METHOD

STEPS, WORLD = 3, 2
VARIANTS = {
    **{
        name: RULES[name]
        for name in ("bp", "brsf", "dfa", "fa", "frozen", "frsf", "kp", "redrawn", "usf")
    },
    "norm": FA(scale="norm", constrain_weights=True),
    "kernel": DFA(layout="kernel"),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(64, 6), nn.Tanh(),
        nn.Linear(6, 3),
    ).double()  # fmt: skip


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(8, 2, 4, 4, generator=generator).double(), torch.arange(8) % 3


def train(model: nn.Module, called: nn.Module, rows: slice) -> dict[str, Tensor]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for step in range(STEPS):
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(called(x[rows]), y[rows]).backward()
        optimizer.step()
        apical.learn(model)
    return copy.deepcopy(model.state_dict())


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=WORLD
    )
    seen = {}
    for name, rule in VARIANTS.items():
        model = net()
        torch.manual_seed(100 + rank)  # what differs between the processes must not matter
        apical.convert(model, rule, example=batch(0)[0])
        share = slice(4 * rank, 4 * rank + 4)
        called = DistributedDataParallel(model, find_unused_parameters=rule.sends_nothing)
        seen[name] = train(model, called, share)
    torch.save(seen, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def ranks() -> list[dict[str, dict[str, Tensor]]]:
    """The final states of every rule, by rank: one pair of processes trains them all."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_worker, (folder,), nprocs=WORLD, start_method=METHOD)
        return [torch.load(Path(folder) / f"{rank}.pt") for rank in range(WORLD)]


def test_ranks_agree_with_each_other_and_with_one_big_batch(
    ranks: list[dict[str, dict[str, Tensor]]],
) -> None:
    for name in VARIANTS:
        first, second = (rank[name] for rank in ranks)
        assert_close(first, second, rtol=0, atol=0)  # weights, and feedback drawn after each update
        model = apical.convert(net(), VARIANTS[name], example=batch(0)[0])
        single = train(model, model, slice(None))
        assert_close(first, dict(single), rtol=1e-10, atol=1e-12)
        start = net().state_dict()
        moved = {key for key in start if not torch.equal(first[key], start[key])}
        assert moved == ({"5.weight", "5.bias"} if name == "frozen" else start.keys())
