"""Do targets that travel back through time teach a recurrent net? Accuracy by iterations, and cost.

Every learner trains the same net (SRN with 100 units, batch 20, SGD) on the same batches. The
read-out alone is what a random net does without learning in it. Step times are ratios to a plain
loop of clipped backpropagation through time: adjacent pairs in one process, processor time, and a
second copy of that loop as the control, which must read 1. Then 16 nets in one (`Many`) against 16
steps of one net each.

    python benchmarks/lra_rnn.py --seeds 3 --out lra_rnn.json
    python benchmarks/lra_rnn.py --times
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from pairs import compare

from apical import learners, nets, tasks
from apical.learners import LRA, TPTT, Backprop, EProp, Learner, ReadOut

HIDDEN, BATCH, EVALUATED, SEEDS = 100, 20, 2000, 16
RATE = 0.0
"""Of timed steps: nets stay as drawn. What they learn changes the times, by numbers too small for a
processor's fast paths."""
TASKS = (("temporal_order", 20), ("temporal_order", 30), ("random_permutation", 20))
LEARNERS: dict[str, tuple[Learner, float]] = {
    "read-out only": (ReadOut(), 0.1),
    "backprop, clipped": (Backprop(clip_norm=1.0), 0.05),
    "LRA, mean": (LRA("mean", gamma=10.0, inner=10), 0.1),
    "LRA, sum": (LRA("sum"), 0.1),
}
"""Learner and learning rate; LRA by mean as its authors have it."""


def build(task: tasks.Task, seed: int, hidden: int = HIDDEN) -> nets.Recurrent:
    """The net of every learner: the same weights for the same seed."""
    cell = nets.SRN(task.inputs, hidden)
    return nets.Recurrent(cell, task.outputs, generator=torch.Generator().manual_seed(seed))


def accuracies(
    task: tasks.Task, learner: Learner, lr: float, *, seed: int, iterations: int, every: int
) -> dict[int, float]:
    """Iteration -> share of unseen sequences solved."""
    net = learners.attach(build(task, seed), learner, seed=seed)
    optimizer = torch.optim.SGD(net.parameters(), lr=lr)
    x, y = next(tasks.batches(task, EVALUATED, seed=0, purpose="test"))
    found = {}
    for number, batch in zip(
        range(1, iterations + 1), tasks.batches(task, BATCH, seed=seed), strict=False
    ):
        optimizer.zero_grad()
        learner.gradients(net, batch)
        optimizer.step()
        if number % every == 0:
            with torch.no_grad():
                found[number] = task.correct(net(x), y).float().mean().item()
    return found


def study(args: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each task, learner and seed, printed as they come."""
    rows = []
    for name, length in TASKS:
        task = tasks.build(name, length)
        for label, (learner, lr) in LEARNERS.items():
            for seed in range(args.seeds):
                start = time.process_time()
                found = accuracies(
                    task, learner, lr, seed=seed, iterations=args.iterations, every=args.every
                )
                seconds = round(time.process_time() - start, 1)
                row = {"task": name, "length": length, "learner": label, "seed": seed}
                rows.append({**row, "accuracy": found, "cpu_seconds": seconds})
                curve = " ".join(f"{value:.3f}" for value in found.values())
                print(
                    f"{name} {length} | {label} | seed {seed} | {curve} | {seconds} s", flush=True
                )
    return rows


def step(learner: Learner | None, task: tasks.Task) -> Callable[[], None]:
    """A training step; without a learner, the loop of clipped backprop that anyone would write."""
    net = build(task, 0)
    if learner is not None:
        learners.attach(net, learner)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    x, y = next(tasks.batches(task, BATCH, seed=0))

    def run() -> None:
        optimizer.zero_grad()
        if learner is None:
            torch.nn.functional.cross_entropy(net(x), y).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        else:
            learner.gradients(net, (x, y))
        optimizer.step()

    return run


def times(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Ratio of each learner's step to a plain step of clipped backprop through time."""
    rows = []
    contestants: dict[str, Learner | None] = {
        "control": None,
        "Backprop(clip_norm=1)": Backprop(clip_norm=1.0),
        "LRA": LRA("sum"),
        "LRA, not clipped": LRA("sum", clip="none"),
        "LRA, regularised": LRA("sum", alpha_weights=0.1, alpha_targets=0.1),
        "TPTT": TPTT("sum"),
        "EProp": EProp(),
        "ReadOut": ReadOut(),
    }
    for length in (20, 60):
        task = tasks.TemporalOrder(length)
        others = {name: step(learner, task) for name, learner in contestants.items()}
        for name, result in compare(step(None, task), others, rounds=args.rounds, seed=0).items():
            row = result.summary()
            rows.append({"length": length, "learner": name, **row})
            print(f"{length} steps | {name} | {row['cpu_ratio']:.2f} | {row['cpu_ms']:.2f} ms")
    return [*rows, *many_times(args)]


def many_times(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Ratio of a step of SEEDS nets in one to SEEDS steps of one net each."""
    rows, task = [], tasks.TemporalOrder(20)
    for hidden in (30, HIDDEN):
        for learner in (LRA("sum"), Backprop(clip_norm=1.0)):
            alone, one = steps_of_many(learner, task, hidden)
            found = compare(alone, {"one": one, "control": alone}, rounds=args.rounds // 4, seed=0)
            for name, result in found.items():
                row = {"hidden": hidden, "learner": str(learner), "nets": SEEDS, "as": name}
                rows.append({**row, **result.summary()})
                ratio = rows[-1]["cpu_ratio"]
                print(f"{SEEDS} nets, {hidden} units | {row['learner']} | {name} | {ratio:.2f}")
    return rows


def steps_of_many(
    learner: Learner, task: tasks.Task, hidden: int
) -> tuple[Callable[[], None], Callable[[], None]]:
    """The same training step of SEEDS nets, one after the other and in one."""
    alone = [build(task, seed, hidden) for seed in range(SEEDS)]
    many = learners.Many(alone)
    own = [torch.optim.SGD(net.parameters(), lr=RATE) for net in alone]
    shared = torch.optim.SGD(many.parameters(), lr=RATE)
    data = [next(tasks.batches(task, BATCH, seed=seed)) for seed in range(SEEDS)]
    x, y = (torch.stack(part) for part in zip(*data, strict=True))

    def separately() -> None:
        for net, optimizer, batch in zip(alone, own, data, strict=True):
            optimizer.zero_grad()
            learner.gradients(net, batch)
            optimizer.step()

    def together() -> None:
        shared.zero_grad()
        many.gradients(learner, (x, y))
        shared.step()

    return separately, together


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--iterations", type=int, default=400)
    parser.add_argument("--every", type=int, default=100, help="iterations between evaluations")
    parser.add_argument("--times", action="store_true", help="measure step times instead")
    parser.add_argument("--rounds", type=int, default=40, help="of step times")
    parser.add_argument("--out", type=Path, help="write the rows there, as JSON")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = times(args) if args.times else study(args)
    if args.out is not None:
        args.out.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
