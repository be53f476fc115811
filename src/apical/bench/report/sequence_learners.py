"""Learners on tasks of sequences: accuracy, differences from baselines, steps with a signal.

A difference is paired on the seeds. Every learner is compared with the control, the readout alone,
and one with a regulariser against the same learner without.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from apical.bench.report import gained, steps_to_solve
from apical.bench.report.read import Run, Study, learner_of
from apical.bench.report.table import (
    Column,
    Shown,
    Table,
    at,
    count,
    estimate,
    mean,
    rule_column,
    setting_column,
    share,
    signed,
)
from apical.measure import statistics

READOUT, BACKPROP = "readout", "backprop"
REGULARISER = ("alpha_weights", "alpha_targets", "omega_per")


@dataclass(frozen=True)
class Line:
    """A learner in a setting. Accuracies in %, differences in points.

    Attributes: test: at the end.     best: on validation sequences, at the epoch where it is
        highest.     over_plain: minus the same learner without a regulariser.     silent: of
        `length` steps those that no signal reached at the end, median over seeds; None where the
        learner sends none.
    """

    setting: str
    rule: str
    n: int
    planned: int
    test: statistics.Summary | None
    best: statistics.Summary | None
    over_plain: statistics.Summary | None
    silent: float | None
    length: int

    @property
    def reached(self) -> str:
        """Steps that a signal reached, of all."""
        return "" if self.silent is None else f"{self.length - self.silent:g} of {self.length}"


def concerns(study: Study) -> bool:
    """Whether the study holds learners, beside backpropagation, on tasks of sequences."""
    return any(
        run.experiment.get("task") and learner_of(run.experiment)["learner"] != BACKPROP
        for run in study.runs
    )


def lines(study: Study) -> list[Line]:
    """A line for each learner of each setting, in the order of the study."""
    return [_line(study, setting, rule) for setting, rule in study.rows]


def _line(study: Study, setting: str, rule: str) -> Line:
    runs = study.finished(setting, rule)
    tests = _tests(runs)
    validation = (
        [100 * r["val_acc"] for r in run.of_kind("epoch") if "val_acc" in r] for run in runs
    )
    best = [max(found) for found in validation if found]
    experiment = runs[0].experiment if runs else {}
    own = learner_of(experiment)
    plain = {key: value for key, value in own.items() if key not in REGULARISER}
    others = [
        run
        for run in study.runs
        if (run.setting, run.status) == (setting, "finished")
        and learner_of(run.experiment) == plain != own
    ]
    return Line(
        setting,
        rule,
        len(runs),
        len(study.planned(setting, rule)),
        statistics.summarize(list(tests.values())) if tests else None,
        statistics.summarize(best) if best else None,
        statistics.paired_difference(tests, _tests(others)),
        _silent(runs),
        int(experiment.get("length") or 0),
    )


def _tests(runs: Sequence[Run]) -> dict[int, float]:
    return {run.seed: 100 * run.final["test_acc"] for run in runs}


def _validation(run: Run) -> list[float]:
    return [100 * row["val_acc"] for row in run.of_kind("epoch") if "val_acc" in row]


def _silent(runs: Sequence[Run]) -> float | None:
    counts = []
    for run in runs:
        rows = [row for row in run.of_kind("step") if "signal" in row]
        last = max((row["epoch"] for row in rows), default=None)
        if last is not None:
            counts.append(sum(row["epoch"] == last and not row["signal"] for row in rows))
    return float(median(counts)) if counts else None


def missing(study: Study) -> list[str]:
    """Baselines without which the numbers of a setting say nothing, one sentence each."""
    made = []
    for setting in study.settings:
        here = [run for run in study.runs if run.setting == setting]
        names = {learner_of(run.experiment)["learner"] for run in here}
        if READOUT not in names:
            made.append(f"{setting}: no readout alone (learner readout) to compare with.")
        if BACKPROP not in names:
            made.append(f"{setting}: no backpropagation through time to compare with.")
    return made


def table(study: Study) -> Table:
    """The table of the study; pages show in a table of its own when tasks were solved."""
    times = {(line.setting, line.rule): line for line in steps_to_solve.lines(study)}

    def solved(line: Line) -> str:
        took = times.get((line.setting, line.rule))
        return took.count if took else ""

    def iterations(line: Line) -> str:
        took = times.get((line.setting, line.rule))
        return took.mean or took.each if took else ""

    return Table(
        [
            setting_column(study.several),
            rule_column(head="learner"),
            Column("n", lambda line: count(line.n, line.planned), page="Runs n"),
            Column("test accuracy %", at("test", mean), style="strong"),
            Column("95 % interval", lambda line: share(line.test), style="soft"),
            Column("best validation %", at("best", mean)),
            *gained.columns(gained.gains(study)),
            Column("minus unregularised", at("over_plain", estimate, signed)),
            Column("signal at", _reached, page="Signal at steps"),
            Column("solved", solved, page="", left=True),
            Column("iterations", iterations, page=""),
        ],
        lines(study),
        "Table of learners",
    )


def _reached(line: Line) -> Shown:
    return Shown(line.reached, None if line.silent is None else line.length - line.silent)
