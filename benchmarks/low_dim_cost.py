"""The cost of low-dimensional feedback over its rank: step time and multiply-adds of backward.

Step times are ratios to plain backprop as in `step_time.py`: adjacent pairs in one process, one
thread, CPU time of the process, and a second copy of backprop as the control, whose error is that
of all ratios. Multiply-adds are counted from the layers' shapes for the backward pass of
convolutions and linear layers, with those that the rule adds (Oja's rule, the gradient of Q).

    python benchmarks/low_dim_cost.py --out results/low_dim_cost.json
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import recorded
import torch
from controlled import headline, parser, verdict
from pairs import compare
from subjects import CONTROL, Subject, training_step
from torch import nn

import apical
from apical import nets
from apical.rules import BP, KolenPollack, LowDimensional, Rule, factors, oja
from apical.rules.factors import Sizes

RANKS: tuple[int | float, ...] = (5, 10, 20, 0.125, 0.25, 0.5)


def _vgg() -> nn.Module:
    return nets.build("vgg", in_shape=(3, 32, 32), num_classes=10)


def _mlp() -> nn.Module:
    return nets.build("mlp", in_shape=(3, 32, 32), num_classes=10, hidden=[512] * 4)


SUBJECTS = {
    "mlp": Subject("mlp", "MLP 3072-4x512-10", (128, 3, 32, 32), False, _mlp),
    "vgg": Subject("vgg", "VGG-like net, 64 to 512 channels", (64, 3, 32, 32), True, _vgg),
}


def rules() -> dict[str, Rule]:
    """Backprop as the control, Kolen-Pollack, and each rank with a fixed and a learned P."""
    table: dict[str, Rule] = {CONTROL: BP(), "kp": KolenPollack()}
    for rank in RANKS:
        table[f"r={rank} fixed"] = LowDimensional(rank, projection="fixed")
        table[f"r={rank} learned"] = LowDimensional(rank)
    return table


def converted(subject: Subject, rule: Rule, *, channels_last: bool) -> nn.Module:
    """The net, its output layer at the rank it can have."""
    torch.manual_seed(0)
    model = subject.make()
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
    rank = getattr(rule, "rank", None)
    if not isinstance(rank, int):
        return apical.convert(model, rule)
    layers = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    last = model.get_submodule(layers[-1])
    limited = LowDimensional(min(rank, len(last.weight)), projection=rule.projection)
    return apical.convert(model, {layers[-1]: limited, "*": rule})


def multiply_adds(subject: Subject, rule: Rule) -> float:
    """Of one backward pass, for one image: messages, weight gradients, and what the rule adds."""
    samples, shapes = subject.shape[0], _shapes(subject)
    total = 0.0
    for place, (outputs, inputs, kernel, positions) in enumerate(shapes):
        whole = outputs * inputs * kernel * positions
        sends = place > 0  # the first layer sends nothing
        total += whole  # gradient of the weight
        if not isinstance(rule, LowDimensional):
            total += whole * sends
            continue
        rank = min(oja.dimensions(rule.rank, outputs), outputs)
        convolution = kernel > 1 or positions > 1
        sizes = Sizes(samples * positions, outputs, inputs * kernel, convolution)
        total += _added(sizes, rank, sends, sends and rule.projection == "oja") / samples
    return total


def _added(sizes: Sizes, rank: int, sends: bool, learns: bool) -> float:
    """Of a batch: the message by its cheaper way, the gradient of Q, Oja's rule for P."""
    samples, outputs, inputs, convolution = sizes
    few_channels = convolution and outputs < factors.FEW_CHANNELS
    thin = sends and not few_channels and sizes.thin_message(rank)
    from_signal = not few_channels and sizes.thin_gradient()
    total = (thin or from_signal or learns) * samples * rank * outputs  # P delta, once
    if sends:
        message = samples * rank if thin else (samples + rank) * outputs
        total += message * inputs
    total += rank * inputs * (samples if from_signal else outputs)
    if learns:
        total += samples * rank * outputs + rank * outputs * min(samples, 2 * rank)
    return total


def _shapes(subject: Subject) -> list[tuple[int, int, int, int]]:
    """Outputs, inputs, kernel size, output positions of each layer, from below."""
    found: list[tuple[int, int, int, int]] = []

    def note(layer: Any, _: Any, y: torch.Tensor) -> None:
        positions = y[0, 0].numel()
        outputs, inputs, *kernel = layer.weight.shape
        found.append((outputs, inputs, torch.Size(kernel).numel(), positions))

    model = subject.make().eval()
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(note)
    with torch.no_grad():
        model(subject.batch(False)[0][:1])
    return found


def measure(subject: Subject, rounds: int) -> dict[str, Any]:
    """The table of one net, as a JSON value."""
    layout, table = subject.channels_last, rules()
    batch = subject.batch(layout)
    base = training_step(converted(subject, BP(), channels_last=layout), *batch)
    steps = {
        name: training_step(converted(subject, rule, channels_last=layout), *batch)
        for name, rule in table.items()
    }
    times = compare(base, steps, rounds=rounds, seed=0)
    whole = multiply_adds(subject, BP())
    rows = {
        name: {
            **times[name].summary(),
            "multiply_adds": round(multiply_adds(subject, rule)),
            "multiply_adds_ratio": round(multiply_adds(subject, rule) / whole, 4),
        }
        for name, rule in table.items()
    }
    return {
        "net": subject.name,
        "title": f"{subject.title}, batch {len(batch[0])}{', channels_last' * layout}",
        "rounds": rounds,
        **verdict(rows[CONTROL]),
        "rules": rows,
    }


def show(table: dict[str, Any]) -> None:
    """Print one table."""
    print("\n" + headline(table["title"], table))
    print(f"{'rule':16} {'cpu ratio':>10} {'+-':>6} {'ms':>8} {'multiply-adds':>14} {'ratio':>6}")
    for name, row in table["rules"].items():
        print(
            f"{name:16} {row['cpu_ratio']:10.3f} {row.get('cpu_spread', 0):6.3f}"
            f" {row['cpu_ms']:8.1f} {row['multiply_adds'] / 1e6:12.2f} M"
            f" {row['multiply_adds_ratio']:6.3f}"
        )


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, rounds=9)
    command.add_argument("--net", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    command.add_argument("--quick", action="store_true", help="batch 8, two rounds: does it run")
    options = command.parse_args(arguments)
    torch.set_num_threads(1)
    tables = []
    for name in options.net:
        subject = SUBJECTS[name].small() if options.quick else SUBJECTS[name]
        tables.append(measure(subject, 2 if options.quick else options.rounds))
        show(tables[-1])
    recorded.write(options.out, tables)


if __name__ == "__main__":
    main()
