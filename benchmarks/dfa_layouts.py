"""Layouts and initialisations of B for direct feedback alignment, compared on small real tasks.

Two tasks: LeNet (CIFAR form) on a part of CIFAR-10, LeNet (MNIST form) on a part of MNIST. Every
combination of layout and law has the same grid of learning rates; one run with each, evaluated on
the validation images, chooses the rate (lower rates are added while the lowest is best); then runs
with other seeds and this rate are evaluated on test images.

    APICAL_DATA=... python benchmarks/dfa_layouts.py --out results/dfa_layouts.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical import data, nets
from apical.rules import BP, DFA, FA, Rule, spell

LEARNING_RATES = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Task:
    """What is learned. `train`, `validation`, `test`: numbers of images; `size`: pixels a side."""

    name: str
    size: int
    batch_size: int
    train: int
    validation: int
    test: int
    epochs: int
    laws: tuple[str, ...]


TASKS = (
    Task("cifar10", 20, 64, 6_000, 2_000, 5_000, epochs=5, laws=("xavier", "noekland")),
    Task("mnist", 32, 64, 6_000, 2_000, 5_000, epochs=3, laws=("xavier",)),
)


def candidates(task: Task) -> Iterator[Rule]:
    """Every layout with every law of the task, and two references."""
    yield from (BP(), FA())
    for init, layout in product(task.laws, ("full", "kernel", "channel")):
        yield DFA(layout=layout, init=init)


@dataclass(frozen=True)
class Images:
    """One task's data, as the runs use it."""

    task: Task
    shape: tuple[int, int, int]
    batches: data.Batches
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @classmethod
    def load(cls, task: Task) -> Images:
        loaded = data.load(task.name, size=task.size)
        train, validation = data.split_validation(loaded.train, task.validation, seed=0)
        train = train.take(torch.arange(task.train))
        norm = {"mean": loaded.mean, "std": loaded.std}

        def whole(split: data.Images, count: int) -> tuple[Tensor, Tensor]:
            part = split.take(torch.arange(count))
            return next(data.Batches(part, count, channels_last=True, **norm).epoch(0))

        batches = data.Batches(
            train, task.batch_size, shuffle_seed=0, drop_last=True, channels_last=True, **norm
        )
        tested = whole(loaded.test, task.test)
        return cls(task, loaded.shape, batches, whole(validation, task.validation), tested)


def train(images: Images, rule: Rule, lr: float, seed: int, epochs: int) -> nn.Module | None:
    """A trained LeNet, or None if its loss left the finite numbers."""
    model = nets.build("lenet", in_shape=images.shape, num_classes=10, seed=seed)
    nets.initialise(model, "xavier", torch.Generator().manual_seed(seed))
    apical.convert(model.to(memory_format=torch.channels_last), rule, seed=seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, fused=True)
    for epoch in range(epochs):
        for x, y in images.batches.epoch(1000 * seed + epoch):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            if not math.isfinite(loss.item()):
                return None
            loss.backward()
            optimizer.step()
    return model


@torch.no_grad()
def accuracy(model: nn.Module | None, images: tuple[Tensor, Tensor]) -> float:
    """Share of right answers in [0, 1]; 0 for a run that diverged."""
    if model is None:
        return 0.0
    model.eval()
    parts = zip(images[0].split(500), images[1].split(500), strict=True)
    return sum(int((model(x).argmax(1) == y).sum()) for x, y in parts) / len(images[1])


def measure(images: Images, rule: Rule) -> dict:
    """The row of one rule on one task."""
    task, start = images.task, time.process_time()
    chosen: dict[float, float] = {}

    def score(lr: float) -> float:
        return accuracy(train(images, rule, lr, 0, task.epochs), images.validation)

    for lr in LEARNING_RATES:
        chosen[lr] = score(lr)
    # a best rate at the lower end of the grid says that the grid ends too early
    while (lr := max(chosen, key=lambda lr: chosen[lr])) == min(chosen):
        lower = float(f"{lr / 10**0.5:.0e}")
        chosen[lower] = score(lower)
    scores = [accuracy(train(images, rule, lr, seed, task.epochs), images.test) for seed in SEEDS]
    return {
        "task": task.name,
        "rule": spell(rule),
        "lr": lr,
        "validation": chosen,
        "test": scores,
        "n": len(scores),
        "mean": statistics.mean(scores),
        "sd": statistics.stdev(scores),
        "cpu_seconds": round(time.process_time() - start, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=_Formatter)
    parser.add_argument("--out", type=Path, default=Path("results/dfa_layouts.json"))
    parser.add_argument("--task", choices=[task.name for task in TASKS], nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = json.loads(options.out.read_text())["rows"] if options.out.exists() else []
    done = {(row["task"], row["rule"]) for row in rows}
    for task in TASKS:
        if options.task and task.name not in options.task:
            continue
        images = Images.load(task)
        for rule in candidates(task):
            if (task.name, spell(rule)) in done:
                continue
            row = measure(images, rule)
            rows.append(row)
            print(f"{row['task']:8} {row['rule']:42} lr {row['lr']:<7g} n={row['n']}"
                  f" {100 * row['mean']:.2f} +- {100 * row['sd']:.2f} %"
                  f" ({row['cpu_seconds']} s)", flush=True)  # fmt: skip
            settings = {task.name: vars(task) for task in TASKS}
            made = {"torch": torch.__version__, "tasks": settings, "rows": rows}
            options.out.write_text(json.dumps(made, indent=1) + "\n")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()
