"""Step time of every rule over plain backprop, in one process, with a control.

A step is zero_grad, forward, cross entropy, backward and a fused SGD step with momentum, the same
optimizer on both sides. Both sides use the memory layout in which plain backprop is fastest. The
table of a net is rejected if its control, a second copy of plain backprop, is off by more than 3 %.
Tables of other nets and modes that the written file holds already are kept.

    python benchmarks/step_time.py --out results/step_time.json
    python benchmarks/step_time.py --net resnet20 --compile --threads 1
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import recorded
import torch
from controlled import at_least_one, headline, parser, verdict
from expected import AGAINST_BIOTORCH, biotorch, target
from memory import peak_bytes
from pairs import compare
from subjects import (
    CONTROL,
    ORDINARY,
    SUBJECTS,
    UNTRAINED,
    Subject,
    Unavailable,
    rules,
    training_step,
)

import apical
from apical.rules import BP, Rule


def measure(
    subject: Subject, chosen: Mapping[str, Rule], options: argparse.Namespace
) -> dict[str, Any]:
    """The table of one net at the current number of threads, as a JSON value."""
    layout = subject.channels_last if options.layout == "best" else options.layout != "contiguous"
    x, y = subject.batch(layout)
    base = training_step(subject.model(BP(), channels_last=layout), x, y, compiled=options.compile)
    models = {name: subject.model(rule, channels_last=layout) for name, rule in chosen.items()}
    steps = {
        name: training_step(model, x, y, compiled=options.compile) for name, model in models.items()
    }
    for name, rule in chosen.items():
        if any(True for _ in apical.feedback_parameters(models[name])):
            untrained = subject.model(rule, channels_last=layout)
            steps[name + UNTRAINED] = training_step(
                untrained, x, y, compiled=options.compile, feedback=False
            )
    if not options.compile:
        plain = subject.model(BP(), channels_last=False)
        steps[ORDINARY] = training_step(plain, *subject.batch(False), fused=False)
    start = time.perf_counter()
    times = compare(base, steps, rounds=options.rounds, seed=options.seed)
    table = {name: times[name].summary() for name in steps}
    for name, extra in _extra_memory(models, steps).items():
        table[name]["extra_bytes"] = extra
    return {
        "net": subject.name,
        "small": options.quick,
        "title": f"{subject.title}, batch {len(x)}{', channels_last' if layout else ''}",
        "threads": torch.get_num_threads(),
        "compiled": options.compile,
        "rounds": options.rounds,
        "clock": options.clock,
        **verdict(table[CONTROL], options.clock),
        "seconds": round(time.perf_counter() - start, 1),
        "rules": table,
    }


def _extra_memory(models: Mapping[str, Any], steps: Mapping[str, Any]) -> dict[str, int]:
    """Peak bytes of each rule's step beyond backprop's."""
    peaks = {name: peak_bytes(steps[name], model) for name, model in models.items()}
    return {name: peak - peaks[CONTROL] for name, peak in peaks.items() if name != CONTROL}


def rows(table: Mapping[str, Any]) -> list[list[str]]:
    """The cells of a printed table, with one line for each rule."""
    clock, net = table["clock"], table["net"]
    head = ["rule", "ratio", "+-", "wall", "cpu", "ms", "target", "", "extra MB"]
    lines = [[*head, "BioTorch", "over BioTorch"]]
    for name, row in sorted(table["rules"].items()):
        ratio = row[f"{clock}_ratio"]
        limit = None
        if not table["small"] and table["threads"] == 1:  # what the targets are meant for
            limit = target(net, name, compiled=table["compiled"])
        verdict = "" if limit is None else _verdict(ratio, limit)
        extra = row.get("extra_bytes")
        lines.append(
            [
                name,
                f"{ratio:.3f}",
                f"{row.get(f'{clock}_spread', 0):.3f}",
                f"{row['wall_ratio']:.3f}",
                f"{row['cpu_ratio']:.3f}",
                f"{row[f'{clock}_ms']:.1f}",
                "" if limit is None else f"<= {limit:.2f}",
                verdict,
                "" if extra is None else f"{extra / 2**20:.2f}",
                *_beside_biotorch(table, name),
            ]
        )
    return lines


def _verdict(ratio: float, limit: float) -> str:
    return "met" if ratio <= limit else f"missed by {ratio - limit:.3f}"


def _beside_biotorch(table: Mapping[str, Any], name: str) -> tuple[str, str]:
    """BioTorch's ratio to ordinary backprop; and our step over BioTorch's, from that ratio and
    from the time of ordinary backprop (contiguous, default SGD) measured here."""
    alike = not (table["small"] or table["compiled"]) and table["threads"] == 1  # as it was timed
    known = biotorch(table["net"], name) if alike else None
    if known is None:
        return "", ""
    low, high = known
    spelled = f"{low:.2f}" if low == high else f"{low:.2f}-{high:.2f}"
    ordinary = table["rules"].get(ORDINARY)
    if ordinary is None:
        return spelled, ""
    key = f"{table['clock']}_ratio"
    ours = table["rules"][name][key] / ordinary[key]
    limit = AGAINST_BIOTORCH.get(table["net"], {}).get(name)
    goal = "" if limit is None else f" (<= {limit:.2f})"
    return spelled, f"{ours / high:.2f}-{ours / low:.2f}{goal}"


def show(table: Mapping[str, Any]) -> None:
    """Print one table."""
    title = (
        f"{table['title']}, {table['threads']} thread(s){', compiled' * table['compiled']},"
        f" {table['clock']} ratios"
    )
    print("\n" + headline(title, table))
    lines = rows(table)
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for line in lines:
        print("  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip())


def save(path: Path, tables: list[dict[str, Any]]) -> None:
    """Write the tables, in place of older ones of the same net, threads and mode."""
    key = ("net", "small", "threads", "compiled")
    old = json.loads(path.read_text())["tables"] if path.exists() else []
    fresh = {tuple(table[k] for k in key) for table in tables}
    kept = [table for table in old if tuple(table[k] for k in key) not in fresh]
    ordered = sorted(kept + tables, key=lambda table: [table[k] for k in key])
    recorded.write(path, ordered)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    command = parser(__doc__, rounds=11)
    add = command.add_argument
    add("--net", nargs="+", choices=list(SUBJECTS), default=list(SUBJECTS))
    add("--rule", nargs="+", choices=list(rules()), help="default: all; the control always runs")
    add("--threads", nargs="+", type=at_least_one, default=[1], help="default: 1")
    add("--clock", choices=["cpu", "wall"], help="which clock decides; default: cpu for 1 thread,"
        " wall for more, whose CPU time includes waiting for each other")  # fmt: skip
    add("--layout", choices=["best", "contiguous", "channels_last"], default="best")
    add("--compile", action="store_true", help="torch.compile on both sides; compiles for minutes")
    add("--seed", type=int, default=0, help="of the order of the rules; default: 0")
    add("--quick", action="store_true", help="the smallest run: the MLP, batch 8, two rounds")
    return command.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    subjects = [SUBJECTS[name] for name in options.net]
    if options.quick:
        subjects, options.rounds = [SUBJECTS["mlp"].small()], 2
    chosen = {name: rule for name, rule in rules().items() if name in (options.rule or rules())}
    chosen[CONTROL] = BP()
    decided = options.clock
    warnings.filterwarnings("ignore", message=".*optimizer")  # that leaves B out on purpose
    for threads in options.threads:
        torch.set_num_threads(threads)
        options.clock = decided or ("cpu" if threads == 1 else "wall")
        for subject in subjects:
            try:
                table = measure(subject, chosen, options)
            except Unavailable as reason:
                print(f"\n{subject.title}: skipped, {reason}")
                continue
            show(table)
            if options.out:
                save(options.out, [table])


if __name__ == "__main__":
    main()
