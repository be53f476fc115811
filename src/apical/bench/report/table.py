"""The table of a study: rule x setting, from runs to numbers and CSV.

Everything is test error in %, as the published tables are; differences are percentage points.
"""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

from apical.bench.report.escape import for_spreadsheet
from apical.bench.report.names import is_baseline
from apical.bench.report.read import FULL_TIER, Published, Run, Study
from apical.measure import statistics


@dataclass(frozen=True)
class Cell:
    """One row of the table: a rule in a setting. Errors and differences in % and points."""

    setting: str
    rule: str
    planned: int
    failed: int
    runs: tuple[Run, ...]
    summary: statistics.Summary | None = None
    one_net: tuple[float, float] | None = None
    difference: statistics.Summary | None = None
    ties: str = ""
    published: Published | None = None
    verdict: statistics.Verdict | None = None

    @property
    def n(self) -> int:
        return len(self.runs)

    @property
    def published_difference(self) -> float | None:
        """Ours minus published, in points."""
        if self.summary is None or self.published is None:
            return None
        return self.summary.mean - self.published.error

    def mean_of(self, key: str) -> float | None:
        """Mean over seeds of a value of the final rows; None unless every run has it."""
        values = [run.final[key] for run in self.runs if key in run.final]
        if not values or len(values) < self.n:
            return None
        return float(sum(values) / len(values))


def test_error(run: Run) -> float:
    """Test error in % of a finished run."""
    return 100 * (1 - run.final["test_acc"])


def cells(study: Study) -> list[Cell]:
    """All rows of the table, in the order of study.json."""
    return [cell for setting in study.settings for cell in _setting_cells(study, setting)]


def _setting_cells(study: Study, setting: str) -> list[Cell]:
    rules = [
        rule
        for rule in study.rules
        if any((run.setting, run.rule) == (setting, rule) for run in study.runs)
    ]
    samples = {
        rule: {run.seed: test_error(run) for run in study.finished(setting, rule)} for rule in rules
    }
    letters = statistics.tie_groups(samples)
    baseline = next((rule for rule in rules if is_baseline(rule)), None)
    return [
        _cell(study, setting, rule, samples[rule], samples.get(baseline or "", {}), letters[rule])
        for rule in rules
    ]


def _cell(
    study: Study,
    setting: str,
    rule: str,
    sample: dict[int, float],
    baseline: dict[int, float],
    ties: str,
) -> Cell:
    planned = [run for run in study.runs if (run.setting, run.rule) == (setting, rule)]
    runs = tuple(study.finished(setting, rule))
    published = study.find_published(setting, rule)
    summary = statistics.summarize(list(sample.values())) if sample else None
    difference = None if is_baseline(rule) else statistics.paired_difference(sample, baseline)
    verdict = None
    if summary is not None and published is not None:
        scale = published.other_scale
        if not scale and study.tier != FULL_TIER:
            scale = f"tier {study.tier}, not the published protocol"
        verdict = statistics.verdict(
            summary, published.error, other_scale=scale, published_n=published.n
        )
    return Cell(
        setting=setting,
        rule=rule,
        planned=len(planned),
        failed=sum(run.status == "failed" for run in planned),
        runs=runs,
        summary=summary,
        one_net=_one_net(runs),
        difference=difference,
        ties=ties,
        published=published,
        verdict=verdict,
    )


def _one_net(runs: tuple[Run, ...]) -> tuple[float, float] | None:
    """Wilson interval of the error in %, for a single run that says how many images it saw."""
    if len(runs) != 1 or "test_count" not in runs[0].final:
        return None
    count = runs[0].final["test_count"]
    low, high = statistics.wilson(count * test_error(runs[0]) / 100, count)
    return 100 * low, 100 * high


def to_csv(table: Iterable[Cell]) -> str:
    """The table with every number in full precision, for spreadsheets and scripts."""
    out = io.StringIO()
    columns = list(_csv_row(Cell("", "", 0, 0, ())))
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(_csv_row(cell) for cell in table)
    return out.getvalue()


def _csv_row(cell: Cell) -> dict[str, object]:
    ours, gap, published = cell.summary, cell.difference, cell.published
    return {
        "setting": for_spreadsheet(cell.setting),
        "rule": for_spreadsheet(cell.rule),
        "n": cell.n,
        "planned": cell.planned,
        "failed": cell.failed,
        "mean": ours and ours.mean,
        "sd": ours and ours.sd,
        "low": ours and ours.low,
        "high": ours and ours.high,
        "bp_difference": gap and gap.mean,
        "bp_low": gap and gap.low,
        "bp_high": gap and gap.high,
        "ties": cell.ties,
        "published": published and published.error,
        "published_n": published and published.n,
        "published_source": published and for_spreadsheet(published.source),
        "published_difference": cell.published_difference,
        "verdict": cell.verdict and cell.verdict.word,
        "verdict_reason": cell.verdict and cell.verdict.why,
        "step_ms": cell.mean_of("step_ms"),
        "feedback_bytes": cell.mean_of("feedback_bytes"),
        "seconds": cell.mean_of("seconds"),
    }


def count(cell: Cell) -> str:
    """ "3", or "2 of 3" while runs are missing."""
    return str(cell.n) if cell.n == cell.planned else f"{cell.n} of {cell.planned}"


def number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def signed(value: float | None) -> str:
    """With its sign, a real minus included."""
    return "" if value is None else f"{value:+.2f}".replace("-", "\N{MINUS SIGN}")


def share(summary: statistics.Summary | None) -> str:
    """The interval of a percentage, cut off at 0 and 100."""
    return interval(summary and summary.within(0, 100))


def interval(summary: statistics.Summary | None, *, sign: bool = False) -> str:
    """ "0.83 to 0.97"; "" without an interval."""
    if summary is None or summary.low is None:
        return ""
    text = signed if sign else number
    return f"{text(summary.low)} to {text(summary.high)}"
