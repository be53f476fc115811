"""Learners on tasks of sequences: accuracy, differences from baselines, steps with a signal.

A difference is paired on the seeds. Every learner is compared with the control, the readout alone,
and one with a regulariser against the same learner without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from apical.bench.report import gained, rates, steps_to_solve
from apical.bench.report.read import Run, Study
from apical.bench.report.results import closing, rule_column, setting_column
from apical.bench.report.table import (
    Column,
    Shown,
    Table,
    count,
    estimate,
    for_markdown,
    mean,
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
    runs: tuple[Run, ...]
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
        run.experiment.get("task") and _learner(run)["learner"] != BACKPROP for run in study.runs
    )


def lines(study: Study) -> list[Line]:
    """A line for each learner of each setting, in the order of the study."""
    made = []
    for setting, rule in dict.fromkeys((run.setting, run.rule) for run in study.runs):
        planned = [run for run in study.runs if (run.setting, run.rule) == (setting, rule)]
        runs = study.finished(setting, rule)
        tests = _tests(runs)
        best = [max(found) for run in runs if (found := _validation(run))]
        plain = _others(study, setting, runs, _plain(runs))
        made.append(
            Line(
                setting,
                rule,
                tuple(runs),
                len(planned),
                statistics.summarize(list(tests.values())) if tests else None,
                statistics.summarize(best) if best else None,
                statistics.paired_difference(tests, _tests(plain)),
                _silent(runs),
                int(runs[0].experiment.get("length") or 0) if runs else 0,
            )
        )
    return made


def missing(study: Study) -> list[str]:
    """Baselines without which the numbers of a setting say nothing, one sentence each."""
    made = []
    for setting in study.settings:
        names = {_learner(r)["learner"] for r in study.runs if r.setting == setting}
        if READOUT not in names:
            made.append(f"{setting}: no readout alone (learner readout) to compare with.")
        if BACKPROP not in names:
            made.append(f"{setting}: no backpropagation through time to compare with.")
    return made


def _tests(runs: Sequence[Run]) -> dict[int, float]:
    return {run.seed: 100 * run.final["test_acc"] for run in runs}


def _validation(run: Run) -> list[float]:
    return [100 * row["val_acc"] for row in run.of_kind("epoch") if "val_acc" in row]


def _others(
    study: Study, setting: str, runs: Sequence[Run], wanted: Mapping[str, Any] | None
) -> list[Run]:
    """The finished runs of the setting with this learner; none if they are these runs."""
    if wanted is None or not runs or _learner(runs[0]) == wanted:
        return []
    same = [r for r in study.runs if (r.setting, r.status) == (setting, "finished")]
    return [run for run in same if _learner(run) == wanted]


def _plain(runs: Sequence[Run]) -> dict[str, Any] | None:
    """The learner without its regulariser; None where it has none."""
    own = _learner(runs[0]) if runs else {}
    plain = {key: value for key, value in own.items() if key not in REGULARISER}
    return plain if plain != own else None


def _learner(run: Run) -> dict[str, Any]:
    learner = run.experiment.get("learner") or BACKPROP
    return dict(learner) if isinstance(learner, Mapping) else {"learner": str(learner)}


def _silent(runs: Sequence[Run]) -> float | None:
    counts = []
    for run in runs:
        rows = [row for row in run.of_kind("step") if "signal" in row]
        last = max((row["epoch"] for row in rows), default=None)
        if last is not None:
            counts.append(sum(row["epoch"] == last and not row["signal"] for row in rows))
    return float(median(counts)) if counts else None


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
            setting_column(len(study.settings) > 1),
            rule_column(head="learner"),
            Column("n", lambda line: count(len(line.runs), line.planned), page="Runs n"),
            Column("test accuracy %", lambda line: mean(line.test), style="strong"),
            Column("95 % interval", lambda line: share(line.test), style="soft"),
            Column("best validation %", lambda line: mean(line.best)),
            *gained.columns(gained.gains(study)),
            Column("minus unregularised", lambda line: estimate(line.over_plain, signed)),
            Column("signal at", _reached, page="Signal at steps"),
            Column("solved", solved, page="", left=True),
            Column("iterations", iterations, page=""),
        ],
        lines(study),
        "Table of learners",
    )


def _reached(line: Line) -> Shown:
    return Shown(line.reached, None if line.silent is None else line.length - line.silent)


def to_markdown(study: Study) -> str:
    """The table of the study, and what its columns mean."""
    notes = [*legend(study), *missing(study), *study.notes]
    if study.solved is not None and steps_to_solve.lines(study):
        notes.insert(1, f"Solved, iterations: {steps_to_solve.legend(study)}")
    return f"{table(study).markdown()}\n{' '.join([*map(for_markdown, notes), closing(study)])}\n"


def legend(study: Study) -> list[str]:
    """What the columns mean, a sentence each."""
    return [
        f"Tier {study.tier}. Test accuracy: mean over seeds after the last iteration, on 10,000 "
        "unseen sequences.",
        "Best validation: mean over seeds of the highest in the run.",
        "Differences: test accuracy in points, paired on the seeds, with a 95 % t interval; not "
        "corrected for their number.",
        "Signal at: steps that a learning signal other than exact zero reached at the end, median "
        "over seeds.",
        *filter(None, [gained.legend(study, gained.gains(study)), *rates.sentences(study)]),
    ]
