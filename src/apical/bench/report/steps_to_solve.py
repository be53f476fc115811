"""How many steps each rule took until its task was solved, and how it does at other lengths."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apical.bench.report import gained
from apical.bench.report.read import Run, Study
from apical.bench.report.table import (
    Column,
    Shown,
    Table,
    each,
    plain,
    rule_column,
    setting_column,
    share,
)
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
    others: Mapping[int, statistics.Summary]

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
    for setting, rule in study.rows:
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
    """Of the lengths at which all runs were tested."""
    keys = {n: f"test_{n}_acc" for n in runs[0].experiment.get("test_lengths", ())}
    return {
        length: statistics.summarize([100 * run.final[key] for run in runs])
        for length, key in keys.items()
        if all(key in run.final for run in runs)
    }


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
    if ours is None or ours.low is None:
        return Shown("")
    return Shown(f"{max(ours.low, 0):.0f} to {ours.high:.0f}", ours.low, style="soft")


def _other(length: int, line: Line) -> Shown:
    """ "79.3 (51.2 to 100.0)", accuracy in % at another length; "" where it was not tested."""
    ours = line.others.get(length)
    between = f" ({share(ours)})" if ours and ours.low is not None else ""
    return plain(ours and ours.mean, lambda value: f"{value:.1f}{between}")
