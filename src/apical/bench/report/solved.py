"""How many steps each rule took until its task was solved, and how it does at other lengths."""

from collections.abc import Sequence
from dataclasses import dataclass

from apical.bench.report.escape import for_markdown
from apical.bench.report.names import display_name
from apical.bench.report.read import Run, Study
from apical.bench.report.table import share
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
        """ "433", or "above 1500" where the slower half of the runs never got there, or ""."""
        if self.summary is not None:
            return f"{self.summary.mean:.0f}"
        return "" if self.solved else f"above {self.limit}"

    @property
    def interval(self) -> str:
        """ "350 to 516", in whole steps; "" without one."""
        ours = self.summary
        if ours is None or ours.low is None or ours.high is None:
            return ""
        return f"{max(ours.low, 0):.0f} to {ours.high:.0f}"

    @property
    def each(self) -> str:
        """ "300, 600, never", in the order of the seeds."""
        return ", ".join("never" if step is None else str(step) for step in self.steps)

    def other(self, length: int) -> str:
        """ "79.3 (51.2 to 100.0)", accuracy in % at another length; "" where it was not tested."""
        if length not in self.others:
            return ""
        ours = self.others[length]
        between = share(ours)
        return f"{ours.mean:.1f}" + (f" ({between})" if between else "")


def lines(study: Study) -> list[Line]:
    """A line for each rule and setting, in the order of study.json; none where nothing is asked."""
    if study.solved is None:
        return []
    cells = dict.fromkeys((run.setting, run.rule) for run in study.runs)
    found = []
    for setting, rule in cells:
        runs = sorted(study.finished(setting, rule), key=lambda run: run.seed)
        if runs:
            steps = tuple(_steps(run, study.solved) for run in runs)
            found.append(Line(setting, rule, steps, _limit(runs), _others(runs)))
    return found


def lengths(found: Sequence[Line]) -> list[int]:
    """The other lengths that any line was tested at."""
    return sorted({length for line in found for length in line.others})


def told(study: Study) -> str:
    """What the columns mean."""
    others = (
        " Other lengths: share of right answers in % on 10,000 test sequences, mean over seeds and "
        "its interval."
    )
    return (
        f"Steps until {100 * (study.solved or 0):g} % of the answers on validation sequences are "
        "right, looked at after every epoch; mean and 95 % t interval over seeds where all got "
        "there." + others * bool(lengths(lines(study)))
    )


def to_markdown(study: Study) -> str:
    """The table for a document; "" where nothing is asked."""
    found = lines(study)
    if not found:
        return ""
    others = lengths(found)
    head = ["setting", "rule", "solved", "steps", "95 % interval", "each seed"]
    head += [f"% at {length} steps" for length in others]
    rulers = ["---", "---", *("---:" for _ in head[2:])]
    rows = [
        [line.setting, display_name(line.rule), line.count, line.mean, line.interval, line.each]
        + [line.other(length) for length in others]
        for line in found
    ]
    text = ["| " + " | ".join(map(for_markdown, row)) + " |" for row in [head, *rows]]
    text.insert(1, "|" + "|".join(rulers) + "|")
    return "\n".join(text) + f"\n\n{told(study)}\n\n"


def _steps(run: Run, solved: float) -> int | None:
    there = (row["step"] for row in run.of_kind("epoch") if row.get("val_acc", 0) > solved)
    return next(there, None)


def _limit(runs: Sequence[Run]) -> int:
    return max(row["step"] for run in runs for row in run.of_kind("epoch"))


def _others(runs: Sequence[Run]) -> dict[int, statistics.Summary]:
    found = {}
    for length in runs[0].experiment.get("test_lengths", ()):
        key = f"test_{length}_acc"
        values = [100 * run.final[key] for run in runs if key in run.final]
        if len(values) == len(runs):
            found[length] = statistics.summarize(values)
    return found
