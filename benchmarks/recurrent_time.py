"""The cost of converted recurrent layers: forward and backward pass over the plain layer's.

A plain layer computes all steps in one call of torch, a converted one step by step. In one process
in turn, as in `pairs.py`: ratios of CPU time, one thread, and a second copy of the plain layer as
the control.

    python benchmarks/recurrent_time.py --out results/recurrent_time.json
    python benchmarks/recurrent_time.py --page docs/adapters.md

The second writes the recorded rows into a document, between `<!-- recurrent-times -->` and
`<!-- end -->`.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path[:0] = [str(Path(__file__).resolve().parent)]

import recorded
import torch
from controlled import headline, parser, verdict
from pairs import compare
from torch import Tensor, nn

import apical

CONTROL = "plain again (control)"
RULES = ("fa", "usf")
LAYERS: dict[str, Callable[..., nn.RNNBase]] = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}
SIZES = ((64, 32, 28), (512, 64, 50))
"""Inputs and hidden units, samples, steps."""


def measure(name: str, size: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """The table of one layer, as a JSON value."""
    units, samples, steps = size
    torch.manual_seed(0)
    plain = LAYERS[name](units, units)
    x = torch.randn(steps, samples, units)
    made = {rule: apical.convert(copy.deepcopy(plain), rule, seed=0) for rule in RULES}
    base = _once(plain, x)
    others = {CONTROL: base, **{rule: _once(layer, x) for rule, layer in made.items()}}
    rows = {key: t.summary() for key, t in compare(base, others, rounds=rounds, seed=0).items()}
    about = {"layer": name, "units": units, "samples": samples, "steps": steps, "rounds": rounds}
    return {**about, **verdict(rows[CONTROL]), "rules": rows}


def _once(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    def run() -> None:
        layer.zero_grad(set_to_none=True)
        layer(x)[0].sum().backward()

    return run


def page(tables: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown, without rejected ones."""
    lines = ["| layer | units, samples, steps | FA | uSF |", "|---|---|---:|---:|"]
    kept = [table for table in tables if not table["rejected"]]
    for table in kept:
        size = ", ".join(str(table[key]) for key in ("units", "samples", "steps"))
        ratios = " | ".join(f"{table['rules'][rule]['cpu_ratio']:.2f}" for rule in RULES)
        lines.append(f"| {table['layer']} | {size} | {ratios} |")
    off = max((table["control_off"] for table in kept), default=0.0)
    noisy = "; ".join(f"{t['layer']} with {t['units']} units" for t in tables if t["rejected"])
    left_out = f" Left out, as theirs was off by more: {noisy}." if noisy else ""
    return "\n".join(
        [
            *lines,
            "",
            f"CPU time over that of the plain layer, a second copy of which is off by at most "
            f"{100 * off:.1f} %.{left_out} Regenerate: `python benchmarks/recurrent_time.py --out "
            "results/recurrent_time.json`.",
            "",
        ]
    )


def main(arguments: list[str] | None = None) -> None:
    made = parser(__doc__, rounds=9)
    made.add_argument("--page", type=Path, help="document to write the recorded rows into")
    options = made.parse_args(arguments)
    if options.page:
        path = recorded.ROOT / "results" / "recurrent_time.json"
        tables = json.loads(path.read_text())["tables"]
        recorded.write_page(options.page, "recurrent-times", page(tables))
        return
    torch.set_num_threads(1)
    tables = []
    for name in LAYERS:
        for size in SIZES:
            tables.append(measure(name, size, options.rounds))
            title = f"{name}, units, samples, steps: {size}"
            print(headline(title, tables[-1]))
            for rule in RULES:
                print(f"    {rule:4} {tables[-1]['rules'][rule]['cpu_ratio']:.3f}", flush=True)
    recorded.write(options.out, tables)


if __name__ == "__main__":
    main()
