"""The cost of a step of each learner of recurrent nets, and the saving by many small nets in one.

The net is an SRN with 100 units, the batch 20 sequences. Ratios are to a plain loop of clipped
backpropagation through time: adjacent pairs in one process, processor time, and a second copy of
that loop as the control, whose ratio must be 1. Then SEEDS nets in one (`Many`) over as many steps
of one net each. The accuracies of the learners are in the study lra-rnn.

    python benchmarks/lra_rnn.py --out results/lra_time.json
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import recorded
import torch
from controlled import headline, parser, verdict
from pairs import compare

from apical import learners, nets
from apical.data import sequences
from apical.learners import LRA, TPTT, Backprop, EProp, Learner, ReadOut

HIDDEN, BATCH, SEEDS = 100, 20, 16
RATE = 0.0
"""Learning rate of timed steps: weights do not change. Otherwise subnormal numbers could slow down
some of the steps."""
CONTROL, TARGET = "the same loop again (control)", 1.0
SUBJECTS = (("temporal_order", 20), ("temporal_order", 60), ("random_permutation", 20))
LEARNERS: dict[str, Learner | None] = {
    CONTROL: None,
    "Backprop(clip_norm=1)": Backprop(clip_norm=1.0),
    "LRA": LRA("sum"),
    "LRA, not clipped": LRA("sum", clip="none"),
    "LRA, regularised": LRA("sum", alpha_weights=0.1, alpha_targets=0.1),
    "TPTT": TPTT("sum"),
    "EProp": EProp(),
    "ReadOut": ReadOut(),
}

Step = Callable[[], None]


def build(task: sequences.Task, seed: int, hidden: int = HIDDEN) -> nets.Recurrent:
    """The net of every learner: the same weights for the same seed."""
    cell = nets.SRN(task.inputs, hidden)
    return nets.Recurrent(cell, task.outputs, generator=torch.Generator().manual_seed(seed))


def step(learner: Learner | None, task: sequences.Task) -> Step:
    """A training step; without a learner, the loop of clipped backprop that anyone would write."""
    net = build(task, 0)
    if learner is not None:
        learners.attach(net, learner)
    optimizer = torch.optim.SGD(net.parameters(), lr=RATE)
    x, y = next(sequences.batches(task, BATCH, seed=0))

    def run() -> None:
        optimizer.zero_grad()
        if learner is None:
            torch.nn.functional.cross_entropy(net(x), y).backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        else:
            learner.gradients(net, (x, y))
        optimizer.step()

    return run


def of_learners(name: str, length: int, rounds: int) -> dict[str, Any]:
    """The table of one task: every learner's step over the plain loop's."""
    task = sequences.build(name, length)
    others = {label: step(learner, task) for label, learner in LEARNERS.items()}
    table = _table(f"{name}, {length} steps", step(None, task), others, rounds)
    table["ways"]["LRA"] |= {"target": TARGET}
    return table


def of_many(learner: Learner, hidden: int, rounds: int) -> dict[str, Any]:
    """The table of one learner: a step of SEEDS nets in one over SEEDS steps of one net each."""
    alone, together = steps_of_many(learner, sequences.TemporalOrder(20), hidden)
    title = f"{SEEDS} nets of {hidden} units in one, {type(learner).__name__}"
    return _table(title, alone, {CONTROL: alone, "Many": together}, rounds)


def steps_of_many(learner: Learner, task: sequences.Task, hidden: int) -> tuple[Step, Step]:
    """The same training step of SEEDS nets, one after the other and in one."""
    alone = [build(task, seed, hidden) for seed in range(SEEDS)]
    many = learners.Many(alone)
    own = [torch.optim.SGD(net.parameters(), lr=RATE) for net in alone]
    shared = torch.optim.SGD(many.parameters(), lr=RATE)
    data = [next(sequences.batches(task, BATCH, seed=seed)) for seed in range(SEEDS)]
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


def _table(title: str, base: Step, others: dict[str, Step], rounds: int) -> dict[str, Any]:
    times = compare(base, others, rounds=rounds, seed=0)
    rows = {name: found.summary() for name, found in times.items()}
    return {"title": title, "rounds": rounds, **verdict(rows[CONTROL]), "ways": rows}


def show(table: dict[str, Any]) -> None:
    """Print one table."""
    print("\n" + headline(table["title"], table))
    for name, row in table["ways"].items():
        spread = row.get("cpu_spread", 0)
        print(f"{name:30} {row['cpu_ratio']:6.3f} +- {spread:.3f} {row['cpu_ms']:8.2f} ms")
    sys.stdout.flush()


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__, rounds=40).parse_args(arguments)
    torch.set_num_threads(1)
    tables = []
    for name, length in SUBJECTS:
        tables.append(of_learners(name, length, options.rounds))
        show(tables[-1])
    for hidden in (30, HIDDEN):
        for learner in (LRA("sum"), Backprop(clip_norm=1.0)):
            tables.append(of_many(learner, hidden, max(1, options.rounds // 4)))
            show(tables[-1])
    recorded.write(options.out, tables)


if __name__ == "__main__":
    main()
