"""How many steps each rule took until its task was solved, and how it does at other lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

from apical.bench.report import gained
from apical.bench.report.read import Run, Study
from apical.bench.report.results import rule_column, setting_column
from apical.bench.report.table import Column, Shown, Table, each, share
from apical.measure import statistics


@dataclass(frozen=True)
class Line:
    """A rule in a setting.

    Attributes:
        steps: of every finished run, in the order of the seeds: the step after which the
            validation split was first answered as the study asks; None where it never was.
        limit: steps that runs had.
        others: accuracy in % by length, at lengths the nets were not trained at.
    """

    setting: str
    rule: str
    steps: tuple[int | None, ...]
    limit: int
    others: dict[int, statistics.Summary]

    @property
    def solved(self) -> int:
        return sum(step is not None for step in self.steps)

    @property
    def count(self) -> str:
        """ "2 of 3"."""
        return f"{self.solved} of {len(self.steps)}"

    @property
    def summary(self) -> statistics.Summary | None:
        """Of the steps, where every run solved the task: else a mean would leave out the worst."""
        known = [step for step in self.steps if step is not None]
        return statistics.summarize(known) if known and len(known) == len(self.steps) else None

    @property
    def mean(self) -> str:
        """ "433", or "above 1500" where no run solved the task, or ""."""
        if self.summary is not None:
            return f"{self.summary.mean:.0f}"
        return "" if self.solved else f"above {self.limit}"

    @property
    def each(self) -> str:
        """ "300, 600, never", in the order of the seeds."""
        return ", ".join("never" if step is None else str(step) for step in self.steps)


def lines(study: Study) -> list[Line]:
    """A line for each rule and setting, in the order of study.json; none where nothing is asked."""
    if study.solved is None:
        return []
    found = []
    for setting, rule in dict.fromkeys((run.setting, run.rule) for run in study.runs):
        runs = sorted(study.finished(setting, rule), key=lambda run: run.seed)
        if runs:
            epochs = [run.of_kind("epoch") for run in runs]
            steps = tuple(
                next((row["step"] for row in rows if row.get("val_acc", 0) > study.solved), None)
                for rows in epochs
            )
            limit = max(row["step"] for rows in epochs for row in rows)
            found.append(Line(setting, rule, steps, limit, _others(runs)))
    return found


def _others(runs: Sequence[Run]) -> dict[int, statistics.Summary]:
    found = {}
    for length in runs[0].experiment.get("test_lengths", ()):
        key = f"test_{length}_acc"
        values = [100 * run.final[key] for run in runs if key in run.final]
        if len(values) == len(runs):
            found[length] = statistics.summarize(values)
    return found


def table(study: Study, *, several: bool = True) -> Table | None:
    """The table; None where nothing is asked. several: whether it names the setting."""
    found = lines(study)
    if not found:
        return None
    lengths = sorted({length for line in found for length in line.others})
    return Table(
        [
            setting_column(several),
            rule_column(),
            *gained.columns(gained.gains(study)),
            Column("solved", lambda line: Shown(line.count, line.solved)),
            Column("steps", _mean),
            Column("95 % interval", _interval),
            Column("each seed", lambda line: line.each),
            *each(lengths, _other, "% at {} steps"),
        ],
        found,
        "Table of steps until the task is solved",
    )


def _mean(line: Line) -> Shown:
    return Shown(line.mean, line.summary.mean if line.summary else line.limit + 1, style="strong")


def _interval(line: Line) -> Shown:
    """In whole steps."""
    ours = line.summary
    if ours is None or ours.low is None or ours.high is None:
        return Shown("")
    return Shown(f"{max(ours.low, 0):.0f} to {ours.high:.0f}", ours.low, style="soft")


def _other(length: int, line: Line) -> Shown:
    """ "79.3 (51.2 to 100.0)", accuracy in % at another length; "" where it was not tested."""
    if length not in line.others:
        return Shown("")
    ours = line.others[length]
    between = f" ({share(ours)})" if ours.low is not None else ""
    return Shown(f"{ours.mean:.1f}{between}", ours.mean)


def legend(study: Study) -> str:
    """What the columns mean."""
    others = (
        " Other lengths: share of right answers in % on 10,000 test sequences, mean over seeds and "
        "its interval."
    )
    return (
        f"Steps until {100 * (study.solved or 0):g} % of the answers on validation sequences are "
        "right, measured after every epoch; mean and 95 % t interval over seeds where all runs "
        "solved the task." + others * any(line.others for line in lines(study))
    )
