"""The cost of measuring the layers of a run, with default settings, relative to its training.

The time of one measurement (`apical.diagnostics.measure`, what a run records at an epoch's end) is
a ratio to a training step as in `step_time.py`: adjacent pairs in one process, one thread, with a
second copy of the step as the control. Times the number of measurements that a run of so many
epochs makes, over its number of steps, that is the share of a run; the limit is
`Experiment.probe_share`. Images are random: only their number and shape matter.

    python benchmarks/probe_cost.py --out results/probe_cost.json
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import recorded
import torch
import torch.nn.functional as F
from controlled import headline, parser, verdict
from pairs import compare
from subjects import training_step
from torch import nn

import apical
from apical import nets
from apical.bench.experiment.experiment import Experiment
from apical.bench.training.monitor import FIXED_STEPS, epochs_to_measure
from apical.measure import diagnostics

CONTROL = "step (control)"
RULES = ("bp", "brsf", "dfa", "fa", "kp", "usf")


@dataclass(frozen=True)
class Setting:
    """A run: its experiment, with the shape and number of images that it trains on."""

    title: str
    experiment: Experiment
    shape: tuple[int, ...]
    images: int
    channels_last: bool = False

    @property
    def steps(self) -> int:
        """Per epoch."""
        return -(-self.images // self.experiment.batch_size)

    @property
    def measurements(self) -> int:
        """In the whole run."""
        return len(epochs_to_measure(self.experiment, self.steps))

    def share(self, ratio: float) -> float:
        """Of the run's steps, where a measurement takes `ratio` of them."""
        return self.measurements * ratio / (self.experiment.epochs * self.steps)

    def model(self, rule: str) -> nn.Module:
        torch.manual_seed(0)
        options = self.experiment.net_options
        model = nets.build(self.experiment.net, in_shape=self.shape, num_classes=10, **options)
        if self.channels_last:
            model = model.to(memory_format=torch.channels_last)
        return apical.convert(model, rule, example=self.batch(2)[0])

    def batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn((count, *self.shape), generator=generator)
        if self.channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        return x, torch.randint(10, (count,), generator=generator)


SETTINGS = {
    "digits": Setting("digits, default MLP and epochs", Experiment(), (1, 8, 8), 1437),
    "smoke": Setting(
        "digits MLP of the smoke study",
        Experiment(net_options={"hidden": [128, 64]}, epochs=30, batch_size=32),
        (1, 8, 8),
        1437,
    ),
    "lenet": Setting("LeNet on MNIST", Experiment(net="lenet", epochs=100), (1, 32, 32), 60_000),
    "resnet20": Setting(
        "ResNet-20 on CIFAR-10",
        Experiment(net="resnet20", epochs=100, batch_size=128),
        (3, 32, 32),
        50_000,
        channels_last=True,
    ),
}


def measuring(model: nn.Module, x: torch.Tensor, y: torch.Tensor) -> Callable[[], None]:
    """What a run does at the end of an epoch that it measures."""
    start = diagnostics.Start(model)

    def measure() -> None:
        diagnostics.measure(model, F.cross_entropy, x, y, start)

    return measure


def table(name: str, rules: list[str], *, rounds: int, seed: int, clock: str) -> dict[str, Any]:
    """The costs of one setting, as a JSON value."""
    setting = SETTINGS[name]
    experiment = setting.experiment
    batch, probe = setting.batch(experiment.batch_size), setting.batch(experiment.probe_images)
    found, controls, start = {}, [], time.perf_counter()
    for rule in rules:
        model = setting.model(rule)
        others = {
            CONTROL: training_step(setting.model(rule), *batch),
            "measure": measuring(model, *probe),
        }
        times = compare(training_step(model, *batch), others, rounds=rounds, seed=seed)
        controls.append(times[CONTROL].summary())
        row = times["measure"].summary()
        found[rule] = {
            **row,
            "step_ms": round(controls[-1][f"{clock}_ms"], 4),
            "share": round(setting.share(row[f"{clock}_ratio"]), 5),
        }
    return {
        "setting": name,
        "title": setting.title,
        "epochs": experiment.epochs,
        "steps_per_epoch": setting.steps,
        "measurements": setting.measurements,
        "modelled_steps": FIXED_STEPS + 2 * experiment.probe_images / experiment.batch_size,
        "limit": experiment.probe_share,
        "rounds": rounds,
        "clock": clock,
        **max((verdict(row, clock) for row in controls), key=itemgetter("control_off")),
        "seconds": round(time.perf_counter() - start, 1),
        "rules": found,
    }


def show(made: dict[str, Any]) -> None:
    """Print one table."""
    title = (
        f"{made['title']}: {made['measurements']} measurements in {made['epochs']} epochs of"
        f" {made['steps_per_epoch']} steps, {made['clock']} time"
    )
    print("\n" + headline(title, made))
    print(f"{'rule':<6}{'step ms':>9}{'measurement, steps':>20}{'share of the run':>18}")
    for rule, row in made["rules"].items():
        verdict = "met" if row["share"] <= made["limit"] else "MISSED"
        ratio = row[f"{made['clock']}_ratio"]
        print(
            f"{rule:<6}{row['step_ms']:>9.2f}{ratio:>20.2f}{100 * row['share']:>16.2f} %"
            f"  {verdict} (<= {100 * made['limit']:g} %)"
        )


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    command = parser(__doc__, rounds=11)
    add = command.add_argument
    add("--setting", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    add("--rule", nargs="+", choices=RULES, default=list(RULES))
    add("--clock", choices=["cpu", "wall"], default="cpu", help="which decides; default: cpu")
    add("--seed", type=int, default=0, help="of the order within a round; default: 0")
    add("--quick", action="store_true", help="the smallest run: one setting, one rule, two rounds")
    options = command.parse_args(arguments)
    if options.quick:
        options.setting, options.rule, options.rounds = ["smoke"], ["fa"], 2
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(1)
    made = []
    for name in options.setting:
        made.append(
            table(name, options.rule, rounds=options.rounds, seed=options.seed, clock=options.clock)
        )
        show(made[-1])
    recorded.write(options.out, made)


if __name__ == "__main__":
    main()
