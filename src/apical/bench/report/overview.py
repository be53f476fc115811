"""One line per rule, all settings side by side: what it reaches, what it costs, what it needs.

A study asks for it by the key "overview" of its study.json:
    facts      by rule, heading of a column -> text
    detail     the setting whose alignment and feedback memory are shown
    timed      the net whose step times are shown, a table in `RULE_TIMES`
    timed_as   names of rules there, by rule, where they differ
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from apical.bench.report import gained, names
from apical.bench.report.lines import UPDATE
from apical.bench.report.names import is_baseline
from apical.bench.report.read import Study
from apical.bench.report.table import Column, Table, each, number, plain
from apical.bench.report.table import share as within
from apical.bench.storage import records

RULE_TIMES = "step_time_rules.json"
"""Beside the study's folder: what `COMMAND` wrote."""
COMMAND = "python benchmarks/step_time.py --net {net} --out results/" + RULE_TIMES

FLOAT_BYTES = 4
"""Of a weight; no study trains in another precision."""


class StepTimes(NamedTuple):
    """Steps over backprop's, by the rule's name in the benchmark; `method` describes the timing,
    `command` measures it."""

    ratios: Mapping[str, float]
    method: str
    command: str


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
    """A row for each rule, in the order of the study."""
    assert study.overview is not None
    facts, timed_as = study.overview["facts"], study.overview["timed_as"]
    columns = [
        Column.rule(),
        *(column for setting in study.settings for column in _of_setting(study, setting)),
        Column("angle °", lambda rule: plain(angle(study, rule), "{:.0f}".format)),
        Column("step", lambda rule: plain(times.ratios.get(timed_as.get(rule, rule)), number)),
        Column("memory", lambda rule: plain(memory(study, rule), number)),
        *each(facts[study.rules[0]], lambda name, rule: facts[rule][name], "{}", left=True),
    ]
    return Table(columns, study.rules)


def _of_setting(study: Study, setting: str) -> list[Column]:
    """The accuracy in a setting and, where it has the control, what is gained over it."""
    gains = {rule: gain for (where, rule), gain in gained.gains(study).items() if where == setting}

    def accuracy(rule: str) -> str:
        row = study.row(setting, rule)
        fewer = f"{row.n} of {row.planned} runs" if row.n < row.planned else ""
        share = row.share()
        if share is None:
            return fewer
        half = f" ± {share.high - share.mean:.1f}" if share.high and within(share) else ""
        return f"{share.mean:.1f}{half}" + (f" ({fewer})" if fewer else "")

    head = f"{setting}, gained" if study.several else "gained"
    gain = Column(head, lambda rule: gained.shown(gains.get(rule)))
    return [Column(f"{setting}, %", accuracy), *([gain] if gains else [])]


def counts(study: Study) -> str:
    """Runs of a row: "3", or "2 to 3"."""
    return names.counts(study.row(s, rule).n for s in study.settings for rule in study.rules)


def rates(study: Study) -> str:
    """Where the learning rates come from."""
    if study.search:
        return "chosen on held-out training images"
    given = {run.experiment.get("lr") for run in study.runs if run.experiment}
    return "the same for all" if len(given) == 1 else "those of each row"


def angle(study: Study, rule: str) -> float | None:
    """Between updates and backprop's, in degrees: mean over runs, and over layers at the last
    measurement, the output layer left out; None where one of them says nothing."""
    assert study.overview is not None
    if is_baseline(rule):
        return 0.0
    by_run = []
    for run in study.row(study.overview["detail"], rule).runs:
        rows = [run.of_kind("layer", layer) for layer in run.layers[:-1]]
        last = [max(of_layer, key=lambda row: row["epoch"]) for of_layer in rows]
        by_run.append(_mean([None if run.no_angle(row) else row.get(UPDATE) for row in last]))
    return _mean(by_run)


def memory(study: Study, rule: str) -> float | None:
    """Of stored feedback, over that of the weights."""
    assert study.overview is not None
    finals = [run.final for run in study.row(study.overview["detail"], rule).runs]
    return _mean([f["feedback_bytes"] / (FLOAT_BYTES * f["parameters"]) for f in finals])


def _mean(values: Sequence[float | None]) -> float | None:
    """None where there are none, or one is missing."""
    known = [value for value in values if value is not None]
    return mean(known) if known and len(known) == len(values) else None
