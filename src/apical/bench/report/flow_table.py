"""Learners on tasks of sequences: what they reach, against what, and how far back they teach.

A difference is paired on the seeds. Every learner is held against the read-out alone, and one with
a regulariser against the same learner without.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from apical.bench.report import solved
from apical.bench.report.escape import for_markdown
from apical.bench.report.names import display_name
from apical.bench.report.read import Run, Study
from apical.bench.report.table import interval, number, share, signed
from apical.measure import statistics

READOUT, BACKPROP = "readout", "backprop"
REGULARISER = ("alpha_weights", "alpha_targets", "omega_per")


@dataclass(frozen=True)
class Line:
    """A learner in a setting. Accuracies in %, differences in points.

    Attributes: test: at the end.     best: on validation sequences, at the epoch where it is
        highest.     over_readout, over_plain: minus the read-out alone, and minus the same learner
        without a regulariser.     silent: of `length` steps those that no signal reached at the
        end, median over seeds; None where the learner sends none.
    """

    setting: str
    rule: str
    runs: tuple[Run, ...]
    planned: int
    test: statistics.Summary | None
    best: statistics.Summary | None
    over_readout: statistics.Summary | None
    over_plain: statistics.Summary | None
    silent: float | None
    length: int

    @property
    def n(self) -> str:
        done = len(self.runs)
        return str(done) if done == self.planned else f"{done} of {self.planned}"

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
    cells = dict.fromkeys((run.setting, run.rule) for run in study.runs)
    return [_line(study, setting, rule) for setting, rule in cells]


def missing(study: Study) -> list[str]:
    """Baselines without which the numbers of a setting say nothing, one sentence each."""
    told = []
    for setting in study.settings:
        names = {_learner(r)["learner"] for r in study.runs if r.setting == setting}
        if READOUT not in names:
            told.append(f"{setting}: no read-out alone (learner readout) to compare with.")
        if BACKPROP not in names:
            told.append(f"{setting}: no backpropagation through time to compare with.")
    return told


def _line(study: Study, setting: str, rule: str) -> Line:
    planned = [run for run in study.runs if (run.setting, run.rule) == (setting, rule)]
    runs = study.finished(setting, rule)
    experiment = next((run.experiment for run in runs), {})
    return Line(
        setting,
        rule,
        tuple(runs),
        len(planned),
        _summary(list(_tests(runs).values())),
        _summary([best for run in runs if (best := _best(run)) is not None]),
        _over(runs, _others(study, setting, runs, {"learner": READOUT})),
        _over(runs, _others(study, setting, runs, _plain(runs))),
        _silent(runs),
        int(experiment.get("length") or 0),
    )


def _tests(runs: Sequence[Run]) -> dict[int, float]:
    return {run.seed: 100 * run.final["test_acc"] for run in runs}


def _best(run: Run) -> float | None:
    found = [100 * row["val_acc"] for row in run.of_kind("epoch") if "val_acc" in row]
    return max(found, default=None)


def _summary(values: Sequence[float]) -> statistics.Summary | None:
    return statistics.summarize(values) if values else None


def _over(runs: Sequence[Run], others: Sequence[Run]) -> statistics.Summary | None:
    return statistics.paired_difference(_tests(runs), _tests(others))


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


HEAD = (
    "learner", "n", "test accuracy %", "95 % interval", "best validation %", "minus read-out",
    "minus unregularised", "signal at", "solved", "iterations",
)  # fmt: skip


def to_markdown(study: Study) -> str:
    """The table of the study, and what its columns mean."""
    rows, times = lines(study), {(t.setting, t.rule): t for t in solved.lines(study)}
    several = len(study.settings) > 1
    head = ["setting"] * several + list(HEAD)
    rulers = ["---" if name in ("setting", "learner", "solved") else "---:" for name in head]
    text = ["| " + " | ".join(head) + " |", "|" + "|".join(rulers) + "|"]
    for row in rows:
        took = times.get((row.setting, row.rule))
        cells = [row.setting] * several + cells_of(row)
        cells += [took.count, took.mean or took.each] if took else ["", ""]
        text.append("| " + " | ".join(map(for_markdown, cells)) + " |")
    told = [*legend(study), *missing(study), *study.notes]
    if times:
        told.insert(1, f"Solved, iterations: {solved.told(study)}")
    told.append(f"Regenerate: `{study.command.replace('`', '')}`.")
    return "\n".join(text) + "\n\n" + " ".join(map(for_markdown, told[:-1])) + f" {told[-1]}\n"


def cells_of(row: Line) -> list[str]:
    """The line as texts, in the order of `HEAD`, but for when the task was solved."""
    return [
        display_name(row.rule),
        row.n,
        number(row.test.mean if row.test else None),
        share(row.test),
        number(row.best.mean if row.best else None),
        paired(row.over_readout),
        paired(row.over_plain),
        row.reached,
    ]


def paired(gap: statistics.Summary | None) -> str:
    """ "+3.10 [+1.02 to +5.18]"."""
    if gap is None:
        return ""
    text = signed(gap.mean)
    return text if gap.low is None else f"{text} [{interval(gap, sign=True)}]"


def legend(study: Study) -> list[str]:
    """What the columns mean, a sentence each."""
    return [
        f"Tier {study.tier}. Test accuracy: mean over seeds after the last iteration, on 10,000 "
        "unseen sequences.",
        "Best validation: mean over seeds of the highest in the run.",
        "Differences: test accuracy in points, paired on the seeds, with a 95 % t interval; not "
        "corrected for their number.",
        "Signal at: steps that a teaching signal other than exact zero reached at the end, median "
        "over seeds.",
    ]
