"""The cost of spiking neurons: forward and backward passes of a spiking net over snnTorch's.

One net, 784-1000-10 with 25 steps and 64 samples, in one process in turn with a base, as in
`pairs.py`: ratios of CPU time, one thread, and a second copy of the base as the control, whose
error is that of all ratios. All have the same weights, inputs and surrogate; the column of
differences is the largest difference of output spike counts from the base's.

    python benchmarks/lif_time.py --out results/lif_time.json
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent)]

import recorded
import torch
import torch.nn.functional as F
from controlled import headline, parser, verdict
from pairs import compare
from torch import Tensor, nn

from apical import nets
from apical.nets import spiking

CONTROL = "snnTorch again (control)"
OURS = "ours, all steps at once"
TARGET = 1.0
STEPS, SAMPLES, WIDTHS = 25, 64, (784, 1000, 10)
DECAY = 0.9


def subject() -> tuple[spiking.SpikingNet, Tensor, Tensor]:
    """The net, its input spikes (steps * samples, 784), and labels."""
    net = nets.build(
        "spiking_mlp",
        in_shape=(STEPS, 28, 28),
        num_classes=WIDTHS[2],
        seed=0,
        hidden=[WIDTHS[1]],
        steps=STEPS,
        encoding="frames",
        output="count",
        decay=DECAY,
    )
    generator = torch.Generator().manual_seed(0)
    x = (torch.rand(SAMPLES, STEPS, 28, 28, generator=generator) < 0.2).float()
    return net, x, torch.randint(10, (SAMPLES,), generator=generator)


def step_by_step(net: nn.Module, neurons: Callable[[], nn.Module]) -> Callable[[Tensor], Tensor]:
    """The same net as a loop over steps, as snnTorch's tutorials write it."""
    first, second = net.get_submodule("fc1"), net.get_submodule("fc2")
    hidden, output = neurons(), neurons()

    def forward(x: Tensor) -> Tensor:
        rows = x.transpose(0, 1).flatten(2)
        h = rows.new_zeros(len(x), WIDTHS[1])
        o = rows.new_zeros(len(x), WIDTHS[2])
        count = torch.zeros_like(o)
        for arriving in rows:
            spike, h = hidden(first(arriving), h)
            spike, o = output(second(spike), o)
            count = count + spike
        return count

    return forward


def contestants() -> dict[str, Callable[[], Tensor]]:
    """Every way to run the net once, forward and backward; results are the counts."""
    try:
        import snntorch
    except ImportError as error:
        raise SystemExit("this compares with snnTorch: pip install snntorch") from error
    net, x, y = subject()

    def leaky() -> nn.Module:
        return snntorch.Leaky(beta=DECAY)

    plugged, _, _ = subject()
    plugged.lif1 = spiking.OverTime(leaky(), STEPS)
    plugged.lif_out = spiking.OverTime(leaky(), STEPS)
    ways = {"snnTorch": step_by_step(net, leaky), OURS: net, "snnTorch's neurons in ours": plugged}
    return {name: _once(way, net, x, y) for name, way in ways.items()}


def _once(
    way: Callable[[Tensor], Tensor], net: nn.Module, x: Tensor, y: Tensor
) -> Callable[[], Tensor]:
    def run() -> Tensor:
        net.zero_grad(set_to_none=True)
        counts = way(x)
        F.cross_entropy(counts, y).backward()
        return counts.detach()

    return run


def measure(rounds: int) -> dict[str, Any]:
    """The table, as a JSON value."""
    ways = contestants()
    base = ways.pop("snnTorch")
    counts = base()
    differences = {name: float((run() - counts).abs().max()) for name, run in ways.items()}
    times = compare(base, {CONTROL: base, **ways}, rounds=rounds, seed=0)
    rows = {name: found.summary() for name, found in times.items()}
    for name, row in rows.items():
        row["largest_difference"] = differences.get(name, 0.0)
    rows[OURS] |= {"target": TARGET, "met": bool(rows[OURS]["cpu_ratio"] <= TARGET)}
    return {
        "net": "-".join(map(str, WIDTHS)),
        "steps": STEPS,
        "samples": SAMPLES,
        "base": "snnTorch",
        "spikes": float(counts.mean()),
        "rounds": rounds,
        **verdict(rows[CONTROL]),
        "ways": rows,
    }


def show(table: dict[str, Any]) -> None:
    """Print the table."""
    title = f"{table['net']}, {table['steps']} steps, {table['samples']} samples, over snnTorch"
    print(headline(title, table))
    print(f"{'way':28} {'cpu ratio':>10} {'+-':>6} {'cpu ms':>8}  difference")
    for name, row in table["ways"].items():
        print(
            f"{name:28} {row['cpu_ratio']:10.3f} {row.get('cpu_spread', 0):6.3f} "
            f"{row['cpu_ms']:8.1f}  {row['largest_difference']:g}"
        )


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__, rounds=15).parse_args(arguments)
    torch.set_num_threads(1)
    table = measure(options.rounds)
    show(table)
    recorded.write(options.out, [table])


if __name__ == "__main__":
    main()
