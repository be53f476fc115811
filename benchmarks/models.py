"""Models of a dozen libraries under FA, uSF, KP and DFA, three steps each: does any layer keep its
exact gradient without a message, and does every refusal say what to do?

Tiny configurations with random weights; nothing is downloaded. Results are written after every
model, and models with a result are skipped. Libraries that are not installed are left out.

    python benchmarks/models.py --out results/models.json
    python benchmarks/models.py --again refused remedied    repeat what was refused at first
    python benchmarks/models.py --show results/models.json  as Markdown

Outcomes: "ok": converted without options; "remedied": refused at first, and correct with a remedy
that the error names; "refused": the error names layer, reason and remedy, but the sweep does not
try that remedy; "silent": a layer keeps its exact gradient, or does not learn, and the plan does
not say so; "raw": an error that names no layer or no remedy; "overflow": gradients are not finite,
because feedback is far larger than the weights of this initialisation; "unusable": the plain model
fails.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
sys.path.insert(1, str(Path(__file__).resolve().parent.parent / "tests"))

import recorded
import torch
from model_definitions import SUBJECTS, Subject, loss
from sweep_check import Finding, Trace, check, train

from apical.core.adapters import mixin_for
from apical.rules import DFA, FA, BroadcastRule, KolenPollack, Rule, SignSymmetric, spell
from torchvision_ops import import_torchvision

RULES: dict[str, Rule] = {
    "dfa": DFA(),
    "fa": FA(),
    "kp": KolenPollack(),
    "usf": SignSymmetric("uniform"),
}
STEPS = 3
REMEDIES: tuple[dict[str, Any], ...] = (
    {},
    {"rule": {"positions": "pixels"}},
    {"rule": {"layout": "channel"}},
    {"rule": {"sample_axis": 1}, "output_axis": 1},
    {"rule": {"sample_axis": "folded"}},
    {"rule": {"scale": "norm"}},
    {"on_unsupported": "keep"},
    {"on_unsupported": "keep", "rule": {"sample_axis": 1}, "output_axis": 1},
)
"""Tried in this order; fields that the rule does not have are left out."""

REMEDY = re.compile(
    r"\b(use|give|call|convert|revert|keep|run|remove|register|allow|say|accept)\b", re.IGNORECASE
)


def examine(name: str, rules: Iterable[str]) -> Iterator[dict[str, Any]]:
    """The rows of one model. Raises: ImportError if its library is not installed."""
    torch.manual_seed(0)
    try:
        subject = SUBJECTS[name]()
        plain = train(copy.deepcopy(subject.model), subject.example, loss, STEPS)
        if not plain.with_gradient or not plain.finite:
            raise ValueError("no finite gradient other than zero")
    except ImportError:
        raise
    except Exception as error:  # any: whatever a foreign model does
        reason = short(f"{type(error).__name__}: {error}")
        unusable = {"model": name, "outcome": "unusable", "reason": reason}
        yield from ({**unusable, "rule": rule} for rule in rules)
        return
    for rule in rules:
        start = time.process_time()
        row = {"model": name, "rule": rule, **_under(subject, plain, RULES[rule])}
        yield row | {"cpu_seconds": round(time.process_time() - start, 1)}


def _under(subject: Subject, plain: Trace, rule: Rule) -> dict[str, Any]:
    """Outcome of the first remedy with which the model converts and trains."""
    layers = [name for name, _ in subject.model.named_modules() if name]
    names = [*layers, "(root)", "the model returns", "the model computes", "the model's output"]
    refusal, last = "", ""
    for remedy in REMEDIES:
        options = dict(remedy)
        fields = options.pop("rule", {})
        broadcast = isinstance(rule, BroadcastRule)
        if not all(hasattr(rule, field) for field in fields):
            continue
        if broadcast and subject.language:
            fields = {"positions": "samples", **fields}
        if broadcast and subject.output is not None:
            options["output"] = subject.output
        tried = replace(rule, **fields)
        try:
            finding, excepted = _with_exceptions(subject, plain, tried, options)
        except Exception as error:  # any: an error of torch is what this looks for
            text = f"{type(error).__name__}: {error}"
            if not any(part in text for part in names) or not REMEDY.search(text):
                return {"outcome": "raw", "refusal": short(text)}
            refusal, last = refusal or text, text
            continue
        row: dict[str, Any] = {
            key: value for key, value in vars(finding).items() if value and key != "idle"
        }
        row["exact"] = len(finding.exact)
        if any("not finite" in problem for problem in finding.problems):
            refusal = refusal or "gradients are not finite"
            continue
        if finding.problems:
            return {"outcome": "silent", **row, "problems": finding.problems[:8]}
        given = [spell(tried)] if fields else []
        given += [f"{key}={value!r}" for key, value in options.items()]
        given += [f"{{{layer!r}: 'fa'}}" for layer in excepted[:1]]
        if len(excepted) > 1:
            given.append(f"and {len(excepted) - 1} more")
        if refusal or excepted:
            row["refusal"] = short(refusal) if refusal else f"of {', '.join(excepted[:3])}"
        outcome = "remedied" if refusal or excepted else "ok"
        return {"outcome": outcome, **({"with": ", ".join(given)} if given else {}), **row}
    outcome = "overflow" if "not finite" in refusal else "refused"
    return {"outcome": outcome, "refusal": short(refusal), "last": short(last)}


def _with_exceptions(
    subject: Subject, plain: Trace, rule: Rule, options: Mapping[str, Any]
) -> tuple[Finding, list[str]]:
    """The result of `check`, after giving the rule FA to layers with a tied weight, or whose input
    has other samples or positions than the output, as their error says."""
    excepted: list[str] = []
    convertible = [module for module in subject.model.modules() if mixin_for(module)]
    while True:
        assigned = {**dict.fromkeys(excepted, "fa"), "*": rule} if excepted else rule
        model = copy.deepcopy(subject.model)
        try:
            found = check(
                model, subject.example, assigned, loss=loss, exact=plain, steps=STEPS, **options
            )
        except ValueError as error:
            layer = re.search(
                r"(\S+)(: its input (counts|has the positions)| \(\w+\): shares its weight)",
                str(error),
            )
            if not layer or 2 * len(excepted) > len(convertible):
                raise
            parts = layer[1].rpartition(".")
            whole = dict(subject.model.named_modules())
            named = layer[1] if layer[1] in whole else parts[0]  # a projection of attention
            if named in excepted:
                raise
            excepted.append(named)
            continue
        return found, excepted


def short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= 200 else text[:197] + "..."


def sweep(names: Sequence[str], out: Path, again: Iterable[str]) -> None:
    """Examine models without a result in `out`, and those whose outcome is in `again`."""
    rows = json.loads(out.read_text())["rows"] if out.exists() else []
    rows = [row for row in rows if row["model"] in SUBJECTS]
    rows = [row for row in rows if row["model"] not in names or row["outcome"] not in again]
    missing: Counter[str] = Counter()
    for name in names:
        done = {row["rule"] for row in rows if row["model"] == name}
        wanted = [rule for rule in RULES if rule not in done]
        try:
            found = list(examine(name, wanted)) if wanted else []
        except ImportError as error:
            missing[f"{name.partition(':')[0]} ({short(str(error))})"] += 1
            continue
        rows += found
        if found:
            rows.sort(key=lambda row: (row["model"], row["rule"]))
            recorded.write_rows(out, rows)
        for row in found:
            text = row.get("problems", row.get("refusal", row.get("reason", "")))
            seen = f"{row['rule']:4} {row['outcome']:9} {row.get('with', '')} {text}"
            print(f"{name:55} {seen}", flush=True)
    for library, count in missing.items():
        print(f"left out {count} models of {library}")


def markdown(rows: list[dict[str, Any]]) -> str:
    """A table: for every library and rule, how many models had which outcome."""
    outcomes = ("ok", "remedied", "refused", "overflow", "silent", "raw")
    usable = [row for row in rows if row["outcome"] != "unusable"]
    counts: dict[str, Counter[str]] = {}
    models: dict[str, set[str]] = {}
    for row in usable:
        library = row["model"].partition(":")[0]
        counts.setdefault(library, Counter())[row["outcome"]] += 1
        models.setdefault(library, set()).add(row["model"])
    lines = [
        "| library | models | " + " | ".join(outcomes) + " |",
        "|---|---:|" + "---:|" * len(outcomes),
    ]
    for library in sorted(counts):
        cells = " | ".join(str(counts[library][outcome]) for outcome in outcomes)
        lines.append(f"| {library} | {len(models[library])} | {cells} |")
    total = sum(counts.values(), Counter[str]())
    cells = " | ".join(str(total[outcome]) for outcome in outcomes)
    lines.append(f"| in all | {sum(map(len, models.values()))} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("results/models.json"))
    parser.add_argument("--model", nargs="+", help="names or libraries; default: all")
    parser.add_argument("--again", nargs="+", default=[], metavar="OUTCOME")
    parser.add_argument("--show", type=Path, metavar="JSON", help="print a result as Markdown")
    options = parser.parse_args()
    if options.show:
        print(markdown(json.loads(options.show.read_text())["rows"]))
        return
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of the models' own code
    import_torchvision()
    chosen = [
        name
        for name in SUBJECTS
        if not options.model or name in options.model or name.partition(":")[0] in options.model
    ]
    sweep(chosen, options.out, options.again)


if __name__ == "__main__":
    main()
