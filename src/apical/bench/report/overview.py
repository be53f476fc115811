"""One line per rule, all settings side by side: what it reaches, what it costs, what it needs.

A study asks for it by the key "overview" of its study.json:
    facts      by rule, heading of a column -> text
    detail     the setting whose alignment and feedback memory are shown
    timed      the net whose step times are shown, a table in `RULE_TIMES`
    timed_as   names of rules there, by rule, where they differ
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from apical.bench.report import gained, rates
from apical.bench.report.names import is_baseline
from apical.bench.report.read import Run, Study
from apical.bench.report.results import closing, rule_column
from apical.bench.report.table import Column, Table, each, for_markdown
from apical.bench.storage import records
from apical.measure import statistics

RULE_TIMES = "step_time_rules.json"
"""Beside the study's folder: what `COMMAND` wrote."""
COMMAND = "python benchmarks/step_time.py --net {net} --out results/" + RULE_TIMES

FLOAT_BYTES = 4
"""Of a weight; no study trains in another precision."""


@dataclass(frozen=True)
class StepTimes:
    """Steps over backprop's, by the rule's name in the benchmark; `method` describes the timing."""

    ratios: Mapping[str, float]
    method: str


@dataclass(frozen=True)
class Line:
    """A rule. Accuracies in % by setting, the angle in degrees, memory over that of the weights."""

    rule: str
    accuracies: Mapping[str, statistics.Summary | None]
    angle: float | None
    step: float | None
    memory: float | None
    facts: Mapping[str, str]


def lines(study: Study, times: StepTimes) -> list[Line]:
    """A line for each rule, in the order of the study."""
    assert study.overview is not None
    detail, timed_as = study.overview["detail"], study.overview["timed_as"]
    return [
        Line(
            rule,
            {setting: _accuracy(study.finished(setting, rule)) for setting in study.settings},
            0.0 if is_baseline(rule) else _mean(list(map(_angle, study.finished(detail, rule)))),
            times.ratios.get(timed_as.get(rule, rule)),
            _mean(list(map(_memory, study.finished(detail, rule)))),
            study.overview["facts"][rule],
        )
        for rule in study.rules
    ]


def step_times(results: Path, net: str) -> StepTimes:
    """What the speed benchmark has measured of a net, uncompiled, on one thread."""
    path, how = results / RULE_TIMES, COMMAND.format(net=net)
    tables = records.read_json(path)["tables"] if path.exists() else []
    wanted = {"net": net, "small": False, "threads": 1, "compiled": False}
    for table in tables:
        if wanted.items() <= table.items() and not table["rejected"]:
            clock = f"{table['clock']}_ratio"
            ratios = {name: row[clock] for name, row in table["rules"].items()}
            method = (
                f"Step: training step over backprop's, {table['title']}, side by side in one "
                f"process, median of {table['rounds']} rounds; backprop against itself is off by "
                f"{100 * table['control_off']:.1f} % (`{how}`)."
            )
            return StepTimes(ratios, method)
    return StepTimes({}, f"Step times are not measured yet: `{how}`.")


def to_markdown(study: Study, folder: Path) -> str:
    """The table of the study in this folder, and what its columns mean."""
    assert study.overview is not None
    times = step_times(folder.parent, study.overview["timed"])
    rows = lines(study, times)

    def ratio(value: float | None) -> str:
        return "" if value is None else f"{value:.2f}"

    table = Table(
        [
            rule_column(),
            *itertools.chain.from_iterable(_of_setting(study, each) for each in study.settings),
            Column("angle °", lambda row: "" if row.angle is None else f"{row.angle:.0f}"),
            Column("step", lambda row: ratio(row.step)),
            Column("memory", lambda row: ratio(row.memory)),
            *each(rows[0].facts, lambda name, row: row.facts[name], "{}", left=True),
        ],
        rows,
    )
    return f"{table.markdown()}\n" + "\n".join(_legend(study, times, folder.name)) + "\n"


def _of_setting(study: Study, setting: str) -> list[Column]:
    """The accuracy in a setting and, where it has the control, what is gained over it."""
    gains = {cell: each for cell, each in gained.gains(study).items() if cell[0] == setting}
    made = [Column(f"{setting}, %", lambda row: _spelled(row.accuracies[setting]))]
    if gains:
        head = f"{setting}, gained" if len(study.settings) > 1 else "gained"
        made.append(Column(head, lambda row: gained.shown(gains.get((setting, row.rule)))))
    return made


def _legend(study: Study, times: StepTimes, name: str) -> list[str]:
    assert study.overview is not None
    counts = sorted({len(study.finished(s, r)) for s in study.settings for r in study.rules})
    n = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    chosen = "chosen on held-out training images" if study.search else "the same for all"
    legend = [
        f"Accuracy: on the test split, mean and half of a 95 % t interval over n = {n} seeds;"
        f" learning rates {chosen}.",
        "Angle: between a layer's update and backprop's at the end of training, mean over layers"
        f" but the output layer, whose update is exact ({study.overview['detail']}).",
        times.method,
        f"Memory: stored feedback over weights ({study.overview['detail']}).",
        "Reads of the weights: what the way back takes from the forward weights (values: weight"
        " transport). Waits for: what a hidden layer needs before it can learn. Labels: whether"
        " hidden layers receive them. Own phase: whether feedback learns between the passes.",
        for_markdown(gained.legend(study, gained.gains(study))),
        for_markdown(" ".join(rates.sentences(study))),
        f"Tier {study.tier}. " + " ".join(map(for_markdown, study.notes)),
        f"{closing(study)[:-1]}, then `make keep STUDY={name}`.",
    ]
    return [f"- {text}" for text in legend if text]


def _spelled(summary: statistics.Summary | None) -> str:
    if summary is None:
        return ""
    half = "" if summary.high is None else f" ± {summary.high - summary.mean:.1f}"
    return f"{summary.mean:.1f}{half}"


def _accuracy(runs: list[Run]) -> statistics.Summary | None:
    return statistics.summarize([100 * run.final["test_acc"] for run in runs]) if runs else None


def _angle(run: Run) -> float | None:
    """Mean over layers at the last measurement, the output layer left out."""
    found: list[float | None] = []
    for layer in run.layers[:-1]:
        rows: list[Mapping[str, Any]] = run.of_kind("layer", layer)
        found.append(max(rows, key=lambda row: row["epoch"]).get("gradient_angle_deg"))
    return _mean(found)


def _memory(run: Run) -> float:
    final = run.final
    return float(final["feedback_bytes"] / (FLOAT_BYTES * final["parameters"]))


def _mean(values: Sequence[float | None]) -> float | None:
    """None where there are none, or one is missing."""
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None
