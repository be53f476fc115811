"""The cost of attacks: PGD over torchattacks', and the saving by not computing parameter gradients.

All run in one process in turn with a base, as in `pairs.py`: ratios of CPU time, one thread, and a
second copy of the base as the control, whose error is that of all ratios. All start from the same
weights and images, and return the same points if they are the same attack.

    python benchmarks/attack_time.py --out results/attack_time.json
"""

from __future__ import annotations

import copy
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT.parent / "tests")]

import recorded
import torch
import torch.nn.functional as F
from controlled import headline, parser, verdict
from pairs import compare
from torch import Tensor, nn

import apical
from apical import attacks, data, nets

CONTROL = "base again (control)"
EPS, ALPHA = 0.1, 0.01
STEPS, QUICK_STEPS = 20, 2
LAST = "ours / exact, channels_last"
TARGETS = {("lenet", "ours / exact"): 1.0, ("resnet20", LAST): 0.68}
"""CPU time over the base's, at most: torchattacks on LeNet, a plain loop on ResNet-20."""


def plain_loop(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """PGD as it is usually written: `loss.backward()`, which fills parameters' gradients too."""
    generator = torch.Generator().manual_seed(0)
    start = torch.empty_like(x).uniform_(-EPS, EPS, generator=generator)
    point = (x + start).clamp(0, 1)
    for _ in range(steps):
        point = point.detach().requires_grad_()
        F.cross_entropy(model(point), y).backward()
        step = ALPHA * point.grad.sign()
        point = (x + (point.detach() + step - x).clamp(-EPS, EPS)).clamp(0, 1)
    model.zero_grad()
    return point.detach()


def torchattacks_pgd(model: nn.Module, steps: int) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The other library's attack; None where it is not installed."""
    try:
        from torchvision_ops import import_torchvision

        import_torchvision()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import torchattacks
    except ImportError:
        return None
    attack = torchattacks.PGD(model, eps=EPS, alpha=ALPHA, steps=steps)

    def call(x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(0)
        return attack(x, y)

    return call


def digits_of_mnist(count: int) -> tuple[Tensor, Tensor]:
    """Test images of MNIST in [0, 1], 32 by 32; random ones where MNIST is not at hand."""
    try:
        images = data.load("mnist", size=32, download=False)
    except ValueError:
        return noise((count, 1, 32, 32))
    batches = data.Batches(images.test, count, mean=(0.0,), std=(1.0,))
    return next(iter(batches.epoch(0)))


def noise(shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(shape, generator=generator)
    return x, torch.randint(10, (len(x),), generator=generator)


def lenet(quick: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """LeNet on 1,000 images of MNIST."""
    model = nets.build("lenet", in_shape=(1, 32, 32), num_classes=10, seed=0).eval()
    return model, *digits_of_mnist(8 if quick else 1000)


def resnet20(quick: bool) -> tuple[nn.Module, Tensor, Tensor]:
    """ResNet-20 on 32 images of the size of CIFAR's."""
    model = nets.build("resnet20", in_shape=(3, 32, 32), num_classes=10, seed=0).eval()
    return model, *noise((4 if quick else 32, 3, 32, 32))


def contestants(
    model: nn.Module, x: Tensor, y: Tensor, steps: int
) -> tuple[str, dict[str, Callable[[], Tensor]]]:
    """The base's name, and every way to attack the net."""
    pgd = attacks.PGD(EPS, steps, step_size=ALPHA)
    stopping = attacks.PGD(EPS, steps, step_size=ALPHA, stop_when_broken=True)
    fa = apical.convert(copy.deepcopy(model), "fa")
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    x_last = x.contiguous(memory_format=torch.channels_last)
    found: dict[str, Callable[[], Tensor]] = {"plain loop": lambda: plain_loop(model, x, y, steps)}
    other = torchattacks_pgd(model, steps)
    base = "plain loop" if other is None else "torchattacks"
    if other is not None:
        found["torchattacks"] = lambda: other(x, y)
    found["ours / exact"] = lambda: pgd(model, x, y)
    found[LAST] = lambda: pgd(last, x_last, y)
    found["ours / exact, stopping"] = lambda: stopping(model, x, y)
    found["ours / exact, of an FA net"] = lambda: pgd(fa, x, y)
    found["ours / own, of an FA net"] = lambda: pgd(fa, x, y, gradient="own")
    found["plain loop, frozen"] = lambda: _frozen(model, x, y, steps)
    return base, found


def _frozen(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
    """The plain loop without gradients of parameters: what freezing alone saves."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    try:
        return plain_loop(model, x, y, steps)
    finally:
        for parameter in model.parameters():
            parameter.requires_grad_(True)


def measure(
    name: str, make: Callable[[bool], tuple[nn.Module, Tensor, Tensor]], rounds: int, quick: bool
) -> dict[str, Any]:
    """The table of one net, as a JSON value."""
    model, x, y = make(quick)
    steps = QUICK_STEPS if quick else STEPS
    base, attempts = contestants(model, x, y, steps)
    if name == "resnet20":
        base = "plain loop"
    reference = attempts["ours / exact"]()
    same = {k: bool(torch.equal(run(), reference)) for k, run in attempts.items()}
    first = attempts[base]
    others = {CONTROL: first} | {key: run for key, run in attempts.items() if key != base}
    times = compare(first, others, rounds=rounds, seed=0)
    rows = {key: found.summary() for key, found in times.items()}
    for key, row in rows.items():
        row["same_points"] = same.get(key, True)
        target = TARGETS.get((name, key))
        if target is not None and (name != "lenet" or base == "torchattacks"):
            row |= {"target": target, "met": bool(row["cpu_ratio"] <= target)}
    return {
        "net": name,
        "title": f"{(make.__doc__ or '').splitlines()[0].rstrip('.')}, PGD-{steps}",
        "base": base,
        "images": len(x),
        "rounds": rounds,
        "quick": quick,
        **verdict(rows[CONTROL]),
        "attacks": rows,
    }


def show(table: dict[str, Any]) -> None:
    """Print one table."""
    print("\n" + headline(f"{table['title']} over {table['base']}", table))
    print(f"{'attack':30} {'cpu ratio':>10} {'+-':>6} {'cpu ms':>9}  same points  target")
    for name, row in table["attacks"].items():
        target = ""
        if "target" in row:
            target = f"<= {row['target']:.2f} {'met' if row['met'] else 'MISSED'}"
        same = "yes" if row["same_points"] else "no"
        print(
            f"{name:30} {row['cpu_ratio']:10.3f} {row.get('cpu_spread', 0):6.3f}"
            f" {row['cpu_ms']:9.1f}  {same:11}  {target}".rstrip()
        )


SUBJECTS = {"lenet": lenet, "resnet20": resnet20}


def main(arguments: list[str] | None = None) -> None:
    command = parser(__doc__, rounds=7)
    command.add_argument("--net", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    command.add_argument("--quick", action="store_true", help="a few images and steps: does it run")
    options = command.parse_args(arguments)
    torch.set_num_threads(1)
    tables = []
    for name in options.net:
        rounds = 2 if options.quick else options.rounds
        tables.append(measure(name, SUBJECTS[name], rounds, options.quick))
        show(tables[-1])
        recorded.write(options.out, tables)  # each time: a long run may break off


if __name__ == "__main__":
    main()
