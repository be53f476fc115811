"""Architectures of torchvision and timm under FA, uSF and DFA: is any layer skipped silently?

One architecture of every family, in its smallest form, at the smallest image size it accepts, with
random weights and two images. Results are written after every check, and what is already there is
not done again.

    python benchmarks/architectures.py --out results/architectures.json
    python benchmarks/architectures.py --show results/architectures.json      as Markdown
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))

import torch
from families import NAMES
from sweep_check import CLASSES, Finding, check, logits
from torch import nn

from apical import nets
from apical.rules import DFA, FA, Rule, SignSymmetric
from torchvision_ops import import_torchvision

RULES: dict[str, Rule] = {"dfa": DFA(), "fa": FA(), "usf": SignSymmetric("uniform")}
SIZES = (32, 48, 64, 96, 128, 160, 192, 224, 240, 256, 299, 320, 384, 448)
REMEDIES: tuple[dict[str, Any], ...] = (
    {},
    {"output": 0},
    {"sample_axis": "folded"},
    {"on_unsupported": "keep"},
    {"on_unsupported": "keep", "sample_axis": "folded"},
)
"""Tried in this order, the strict conversion first. The sample axis is an option of DFA, and only
rules that broadcast ask which output carries the error."""


def smallest(name: str) -> tuple[int, nn.Module] | str:
    """Image size and net at the smallest size that can be trained; or why there is none."""
    reason = ""
    for size in SIZES:
        try:
            model = nets.build(name, in_shape=(3, size, size), num_classes=CLASSES, seed=0)
            torch.manual_seed(0)
            logits(model.train()(torch.randn(2, 3, size, size))).sum().backward()
        except Exception as error:  # any: whatever a foreign net does with images it cannot take
            reason = f"{type(error).__name__}: {error}"
            continue
        return size, model
    return reason


def examine(name: str, rule_names: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of one architecture."""
    found = smallest(name)
    if isinstance(found, str):
        for rule in rule_names:
            yield {"net": name, "rule": rule, "outcome": "unusable", "reason": short(found)}
        return
    size, model = found
    parameters = sum(p.numel() for p in model.parameters())
    for rule in rule_names:
        start = time.process_time()
        row = {"net": name, "rule": rule, "size": size, "parameters": parameters}
        row |= _under(name, size, rule)
        yield row | {"cpu_seconds": round(time.process_time() - start, 1)}


def _under(name: str, size: int, rule_name: str) -> dict[str, Any]:
    """Outcome of the first remedy with which the architecture converts and trains."""
    refusals: dict[str, str] = {}
    for remedy in REMEDIES:
        rule, options = RULES[rule_name], dict(remedy)
        if not isinstance(rule, DFA) and options.keys() & {"output", "sample_axis"}:
            continue
        if axis := options.pop("sample_axis", None):
            rule = DFA(sample_axis=axis)
        spelled = [f"{key}={value!r}" for key, value in remedy.items()]
        try:
            finding, excepted = _with_exceptions(name, size, rule, options)
        except (ValueError, RuntimeError) as error:
            refusals[", ".join(spelled) or "strict"] = short(f"{type(error).__name__}: {error}")
            continue
        if excepted:
            spelled.append(f"bp for {len(excepted)} layers without samples, as {excepted[0]!r}")
        return _outcome(finding, ", ".join(spelled), refusals.get("strict", ""))
    return {"outcome": "refused", "refusals": refusals}


def _with_exceptions(
    name: str, size: int, rule: Rule, options: Mapping[str, Any]
) -> tuple[Finding, list[str]]:
    """What `check` finds, after giving rule BP to layers whose input does not count samples."""
    excepted: list[str] = []
    while True:
        model = nets.build(name, in_shape=(3, size, size), num_classes=CLASSES, seed=0)
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(2, 3, size, size, generator=generator)
        assigned = {**dict.fromkeys(excepted, "bp"), "*": rule}
        try:
            return check(model, x, assigned if excepted else rule, **options), excepted
        except ValueError as error:
            found = re.match(r"(\S+): its input counts (\d+) samples", str(error))
            if not found or found[1] in excepted or int(found[2]) % len(x) == 0:
                raise
            excepted.append(found[1])


def _outcome(finding: Finding, remedy: str, refusal: str) -> dict[str, Any]:
    row: dict[str, Any] = {"outcome": "failed" if finding.problems else "ok"}
    if remedy:
        row |= {"with": remedy, "refusal": refusal}
    row |= {key: value for key, value in vars(finding).items() if value}
    for key in ("problems", "exact", "idle"):
        if len(row.get(key, ())) > 8:
            row[key] = [*row[key][:8], f"... {len(row[key])} in all"]
    return row


def short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."


def sweep(names: Iterable[str], out: Path) -> None:
    """Examine what `out` does not hold yet."""
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    for name in names:
        done = {row["rule"] for row in rows if row["net"] == name}
        for row in examine(name, [rule for rule in RULES if rule not in done]):
            rows.append(row)
            save(out, rows)
            print(f"{name:42} {row['rule']:4} {row['outcome']:9} {row.get('with', '')}"
                  f" {row.get('problems', row.get('refusal', row.get('reason', '')))}",
                  flush=True)  # fmt: skip


def save(out: Path, rows: list[dict[str, Any]]) -> None:
    """Whole file or old file; one row a line."""
    from apical.bench.storage.environment import environment

    lines = ",\n".join(json.dumps(row) for row in rows)
    header = json.dumps(environment(Path(__file__).resolve().parents[1]))
    out.parent.mkdir(parents=True, exist_ok=True)
    fresh = out.with_suffix(".tmp")
    fresh.write_text(f'{{"environment": {header},\n"rows": [\n{lines}\n]}}\n')
    fresh.replace(out)


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table of the sweep: one line for each architecture."""
    rules = sorted({row["rule"] for row in rows})
    lines = [
        "| architecture | pixels | parameters | " + " | ".join(rules) + " |",
        "|---|---:|---:|" + "---|" * len(rules),
    ]
    by_net: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        by_net.setdefault(row["net"], {})[row["rule"]] = row
    for net, cells in sorted(by_net.items()):
        any_row = next(iter(cells.values()))
        size, count = any_row.get("size", "-"), any_row.get("parameters", 0)
        marks = " | ".join(_mark(cells[rule]) if rule in cells else "" for rule in rules)
        lines.append(f"| {net} | {size} | {count:,} | {marks} |")
    outcomes = {o: sum(row["outcome"] == o for row in rows) for o in ("ok", "refused", "failed")}
    listed = ", ".join(f"{count} {outcome}" for outcome, count in outcomes.items())
    return "\n".join([*lines, "", f"{len(by_net)} architectures, {len(rows)} checks: {listed}."])


def _mark(row: Mapping[str, Any]) -> str:
    if row["outcome"] != "ok":
        return row["outcome"]
    layers = f"{row['converted']} layers"
    return f"{layers}, `{row['with']}`" if "with" in row else layers


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/architectures.json"))
    parser.add_argument("--net", nargs="+", help="default: every family")
    parser.add_argument("--show", type=Path, metavar="JSON", help="print a result as Markdown")
    options = parser.parse_args()
    if options.show:
        print(markdown(json.loads(options.show.read_text())["rows"]))
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the nets' own code
    import_torchvision()
    sweep(options.net or NAMES, options.out)


if __name__ == "__main__":
    main()
