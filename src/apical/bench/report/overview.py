"""One line per rule, all settings side by side: what it reaches, what it costs, what it needs.

A study asks for it by the key "overview" of its study.json:
    facts      by rule, heading of a column -> text
    detail     the setting whose alignment and feedback memory are shown
    timed      the net whose step times are shown, a table in `RULE_TIMES`
    timed_as   names of rules there, by rule, where they differ
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

from apical.bench.report import gained
from apical.bench.report.names import is_baseline
from apical.bench.report.read import Run, Study
from apical.bench.report.table import Column, Table, at, each, number, plain, rule_column
from apical.bench.storage import records
from apical.measure import statistics

RULE_TIMES = "step_time_rules.json"
"""Beside the study's folder: what `COMMAND` wrote."""
COMMAND = "python benchmarks/step_time.py --net {net} --out results/" + RULE_TIMES

FLOAT_BYTES = 4
"""Of a weight; no study trains in another precision."""


@dataclass(frozen=True)
class StepTimes:
    """Steps over backprop's, by the rule's name in the benchmark; `method` describes the timing,
    `command` measures it."""

    ratios: Mapping[str, float]
    method: str
    command: str


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
            0.0 if is_baseline(rule) else _mean(map(_angle, study.finished(detail, rule))),
            times.ratios.get(timed_as.get(rule, rule)),
            _mean(map(_memory, study.finished(detail, rule))),
            study.overview["facts"][rule],
        )
        for rule in study.rules
    ]


def step_times(results: Path, net: str) -> StepTimes:
    """What the speed benchmark has measured of a net, uncompiled, on one thread."""
    path, command = results / RULE_TIMES, COMMAND.format(net=net)
    tables = records.read_json(path)["tables"] if path.exists() else []
    wanted = {"net": net, "small": False, "threads": 1, "compiled": False}
    for table in tables:
        if wanted.items() <= table.items() and not table["rejected"]:
            clock = f"{table['clock']}_ratio"
            ratios = {name: row[clock] for name, row in table["rules"].items()}
            method = (
                f"Step: training step over backprop's, {table['title']}, side by side in one "
                f"process, median of {table['rounds']} rounds; backprop against itself is off by "
                f"{100 * table['control_off']:.1f} %"
            )
            return StepTimes(ratios, method, command)
    return StepTimes({}, "", command)


def table(study: Study, times: StepTimes) -> Table:
    rows = lines(study, times)
    return Table(
        [
            rule_column(),
            *(column for setting in study.settings for column in _of_setting(study, setting)),
            Column("angle °", at("angle", plain, "{:.0f}".format)),
            Column("step", at("step", plain, number)),
            Column("memory", at("memory", plain, number)),
            *each(rows[0].facts, lambda name, row: row.facts[name], "{}", left=True),
        ],
        rows,
    )


def _of_setting(study: Study, setting: str) -> list[Column]:
    """The accuracy in a setting and, where it has the control, what is gained over it."""
    gains = {rule: gain for (where, rule), gain in gained.gains(study).items() if where == setting}
    made = [Column(f"{setting}, %", lambda row: _spelled(row.accuracies[setting]))]
    if gains:
        head = f"{setting}, gained" if study.several else "gained"
        made.append(Column(head, lambda row: gained.shown(gains.get(row.rule))))
    return made


def counts(study: Study) -> str:
    """Runs of a row: "3", or "2 to 3"."""
    found = sorted({len(study.finished(s, r)) for s in study.settings for r in study.rules})
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _spelled(summary: statistics.Summary | None) -> str:
    if summary is None:
        return ""
    half = "" if summary.high is None else f" ± {summary.high - summary.mean:.1f}"
    return f"{summary.mean:.1f}{half}"


def _accuracy(runs: list[Run]) -> statistics.Summary | None:
    return statistics.summarize([100 * run.final["test_acc"] for run in runs]) if runs else None


def _angle(run: Run) -> float | None:
    """Mean over layers at the last measurement, the output layer left out."""
    rows = [run.of_kind("layer", layer) for layer in run.layers[:-1]]
    last = [max(of_layer, key=lambda row: row["epoch"]) for of_layer in rows]
    return _mean(row.get("gradient_angle_deg") for row in last)


def _memory(run: Run) -> float:
    return float(run.final["feedback_bytes"] / (FLOAT_BYTES * run.final["parameters"]))


def _mean(values: Iterable[float | None]) -> float | None:
    """None where there are none, or one is missing."""
    values = list(values)
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None
