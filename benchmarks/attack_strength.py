"""Whether other tools break images that reports call robust: same nets, same images, CPU time.

Nets trained by BP, FA, DFA, uSF, and adversarially by BP, on digits, MNIST and CIFAR-10 (LeNet),
and a ResNet-18 that a package brings, trained by BP on all of CIFAR-10. Each is attacked by the
report at default effort and at high effort, by AutoAttack's standard version (pyautoattack), and,
of the images that our high effort leaves, by foolbox's HopSkipJump, which sees decisions only (not
in L1, which it does not know). All follow the exact gradient.

    python benchmarks/attack_strength.py --out results/attack_strength.json
    python benchmarks/attack_strength.py --page docs/robustness.md

The first adds its rows to those of the file, which keep the environment that they were measured in
where it is not that of the file; the second writes them into a document, between
`<!-- attack-strength -->` and `<!-- end -->`.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
ROOT = Path(__file__).resolve().parent
sys.path[:0] = [str(ROOT), str(ROOT.parent / "tests")]

import recorded
import torch
from torch import Tensor, nn

import apical
from apical.attacks import Effort, Plugin, robust_report
from apical.attacks.ball import lengths
from apical.bench.evaluate.trained_net import from_run
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Adversarial
from apical.bench.studies.sign_symmetry_finetune import DIGESTS, RESNET18
from apical.bench.training import loop
from apical.nets.pretrained import Start

RULES: dict[str, Any] = {"bp": "bp", "fa": "fa", "dfa": "dfa", "usf": "usf"}
ADVERSARIAL = "bp, adversarial"
MOMENTUM = {"momentum": 0.9}
LENET: dict[str, Any] = {"net": "lenet", "size": 32, "optimizer_options": MOMENTUM, "lr": 0.02}
PACKAGED = "cifar10, ResNet-18"
"""A net that a package brings, as it comes: an epoch at a learning rate of zero."""
DATA = {
    "digits": Experiment(data="digits", net_options={"hidden": [100]}, epochs=15, lr=0.1),
    "mnist": Experiment(data="mnist", train_images=4000, epochs=3, **LENET),
    "cifar10": Experiment(data="cifar10", train_images=6000, epochs=5, **LENET),
    PACKAGED: Experiment(
        data="cifar10_unseen",
        pixels="unit",
        train_images=32,
        test_images=1000,
        epochs=1,
        net="pyautoattack.examples.resnet:ResNet18",
        start=Start(RESNET18, DIGESTS[RESNET18], new_head=False, norms="frozen", rates={"*": 0.0}),
        batch_size=32,
    ),
}
RATES = {
    "mnist": {"fa": 0.003, "dfa": 0.001, "usf": 0.01},
    "cifar10": {"fa": 0.003, "dfa": 0.0003, "usf": 0.01},
}
"""Of LeNet, where they differ: those that the study rules-overview, tier short, chose on MNIST; DFA
does not train at that rate on CIFAR-10."""
SLOWER = 4
"""Times as many epochs at these rates, which are smaller than backpropagation's."""
RADII: dict[str, dict[Any, float]] = {
    "digits": {"linf": 0.1, "l2": 0.5, "l1": 1.5},
    "mnist": {"linf": 0.1, "l2": 1.0},
    "cifar10": {"linf": 2 / 255, "l2": 0.25},
    PACKAGED: {"linf": 0.3 / 255, "l2": 0.04},
}
"""At which about half of the images that are right stay so."""
HSJA_NORMS = ("linf", "l2")
HSJA = {"steps": 12, "initial_gradient_eval_steps": 50, "max_gradient_eval_steps": 500}

Attacked = Callable[[nn.Module, Tensor, Tensor], Tensor]


def trained(name: str, rule: str, folder: Path, data_root: str | None) -> Any:
    """A net of a data set, by the runner."""
    experiment = dataclasses.replace(DATA[name], probe_every=0)
    if rule == ADVERSARIAL:
        harm = Adversarial(eps=RADII[name]["linf"], attack="fgsm")
        experiment = dataclasses.replace(experiment, adversarial=harm)
    else:
        experiment = dataclasses.replace(experiment, rule=RULES[rule])
        if rate := RATES.get(name, {}).get(rule):
            epochs = SLOWER * experiment.epochs
            experiment = dataclasses.replace(experiment, lr=rate, epochs=epochs)
    execution = Execution(quiet=True, data_root=data_root, download=False)
    loop.run(experiment, folder, execution)
    return from_run(folder, data_root=data_root, download=False, trust=True)


def autoattack(norm: str, eps: float) -> Attacked:
    """The standard version, as its authors have it."""
    from torchvision_ops import import_torchvision

    import_torchvision()
    from pyautoattack.autoattack import AutoAttack

    name = norm.replace("l", "L", 1)

    def call(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with apical.exact_gradients(model):
            attack = AutoAttack(model, norm=name, eps=eps, version="standard", device="cpu", seed=0)
            return attack.run_standard_evaluation(x, y, batch_size=len(x))[0]

    return call


def hop_skip_jump(norm: str, eps: float) -> Attacked:
    """A decision-based attack of foolbox, through the plug-in that checks its points."""
    import foolbox

    def call(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        torch.manual_seed(0)
        wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        attack = foolbox.attacks.HopSkipJumpAttack(constraint=norm, **HSJA)
        points = x.clone()
        for i in range(len(x)):  # one at a time: it refuses a batch for an image without a start
            with contextlib.suppress(ValueError):
                points[i] = attack(wrapped, x[i : i + 1], y[i : i + 1], epsilons=eps)[1][0]
        return points

    return Plugin(call, "HopSkipJump", eps=eps, norm=norm)  # type: ignore[arg-type, return-value]


def survives(model: nn.Module, points: Tensor, x: Tensor, y: Tensor, norm: Any, eps: float) -> Any:
    """Which images are right at points of another tool, those outside the ball left out."""
    size = lengths(points - x, norm)
    with torch.no_grad():
        wrong = model(points).argmax(1) != y
    return ~(wrong & (size <= eps * (1 + 1e-5) + 1e-6))


def measure(name: str, rule: str, norm: Any, net: Any, images: int) -> dict[str, Any]:
    """One row: what each tool leaves, and its CPU seconds."""
    x, y = net.examples(images)
    eps, left, seconds = RADII[name][norm], {}, {}

    def timed(tool: str, call: Callable[[], Tensor]) -> Tensor:
        begin = time.process_time()
        left[tool] = call()
        seconds[tool] = round(time.process_time() - begin, 2)
        return left[tool]

    def ours(effort: Effort) -> Tensor:
        report = robust_report(net.model, x, y, eps=eps, norm=norm, effort=effort)
        return torch.tensor(report.worst[0].robust)

    with torch.no_grad():
        clean = net.model(x).argmax(1) == y
    timed("default", lambda: ours(Effort()))
    high = timed("high", lambda: ours(Effort.high()))
    other = autoattack(norm, eps)
    timed(
        "AutoAttack", lambda: clean & survives(net.model, other(net.model, x, y), x, y, norm, eps)
    )
    jump = high.clone()
    if high.any() and norm in HSJA_NORMS:
        decision = hop_skip_jump(norm, eps)

        def jumped() -> Tensor:
            points = decision(net.model, x[high], y[high])
            jump[high] = survives(net.model, points, x[high], y[high], norm, eps)
            return jump

        timed("HopSkipJump", jumped)
    others = left["AutoAttack"] & (jump | ~high)  # what high effort breaks HopSkipJump is not given
    return {
        "data": name,
        "rule": rule,
        "norm": norm,
        "eps": eps,
        "images": len(x),
        "clean": int(clean.sum()),
        "left": {tool: int(kept.sum()) for tool, kept in left.items()},
        "cpu_seconds": seconds,
        "lost": {tool: int((kept & ~others).sum()) for tool, kept in left.items() if tool in OURS},
        "only_ours": int((others & ~high).sum()),
    }


OURS = ("default", "high")


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The rows in Markdown."""
    from apical.bench.report.names import display_name
    from apical.measure.robustness_verdict import radius

    heads = ("data", "net", "norm, radius", "images", "clean", "default", "high", "AutoAttack",
             "lost at default", "lost at high", "found by us alone", "CPU s, default", "high",
             "AutoAttack", "HopSkipJump")  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---|---|---|" + "---:|" * (len(heads) - 3)]
    for row in rows:
        left, seconds = row["left"], row["cpu_seconds"]
        cells = [row["data"], display_name(row["rule"]), f"{row['norm']} {radius(row['eps'])}"]
        cells += [row["images"], row["clean"], *(left[tool] for tool in (*OURS, "AutoAttack"))]
        cells += [row["lost"]["default"], row["lost"]["high"], row["only_ours"]]
        tools = (*OURS, "AutoAttack", "HopSkipJump")
        cells += [f"{seconds[tool]:.1f}" if tool in seconds else "" for tool in tools]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    total = [sum(row["lost"][tool] for row in rows) for tool in OURS]
    spent = {t: sum(row["cpu_seconds"][t] for row in rows) for t in (*OURS, "AutoAttack")}
    lines += [
        "",
        f"Images that stay right under each tool. Lost: called robust by us, broken by AutoAttack "
        f"(standard) or, of those that high effort leaves, by HopSkipJump ({HSJA['steps']} steps): "
        f"{total[0]} at default effort, {total[1]} at high effort, of "
        f"{sum(row['clean'] for row in rows)} attacked. CPU time of one thread, over AutoAttack's: "
        f"{spent['default'] / spent['AutoAttack']:.2f} at default effort, "
        f"{spent['high'] / spent['AutoAttack']:.2f} at high effort; a report runs more than is "
        "needed to break images (both gradients, checks, audit).",
    ]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="JSON file to add the rows to")
    parser.add_argument("--page", type=Path, help="document to write the recorded rows into")
    parser.add_argument("--data", nargs="+", choices=list(DATA), default=list(DATA))
    parser.add_argument("--rule", nargs="+", choices=[*RULES, ADVERSARIAL])
    parser.add_argument(
        "--norm", nargs="+", choices=["linf", "l2", "l1"], help="absent: all that RADII has"
    )
    parser.add_argument("--images", type=int, default=64)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    if options.page:
        rows = json.loads((ROOT.parent / "results" / "attack_strength.json").read_text())["tables"]
        recorded.write_page(options.page, "attack-strength", table(rows))
        return
    for name in options.data:
        if missing := set(options.norm or ()) - set(RADII[name]):
            parser.error(f"--data {name}: RADII has no radius in {', '.join(sorted(missing))}")
    rows = []
    if options.out and options.out.exists():
        kept = json.loads(options.out.read_text())  # of other machines, perhaps
        rows = [{"environment": kept["environment"], **row} for row in kept["tables"]]
    for name in options.data:
        for rule in options.rule or (["bp"] if name == PACKAGED else [*RULES, ADVERSARIAL]):
            with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
                warnings.simplefilter("ignore")
                net = trained(name, rule, Path(folder) / "run", os.environ.get("APICAL_DATA"))
                for norm in options.norm or RADII[name]:
                    new = measure(name, rule, norm, net, options.images)
                    same = ("data", "rule", "norm")
                    rows = [r for r in rows if any(r[key] != new[key] for key in same)] + [new]
                    print(table([new]).splitlines()[2], flush=True)
                    recorded.write(options.out, rows)  # each time: a long run may break off


if __name__ == "__main__":
    main()
