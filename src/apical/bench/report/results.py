"""Test error of each rule in each setting, in %, and published values; differences in points."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apical.bench.report import gained, rates
from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.read import FULL_TIER, Published, Run, Study
from apical.bench.report.table import (
    Column,
    Shown,
    Table,
    count,
    estimate,
    for_markdown,
    mean,
    number,
    share,
    signed,
)
from apical.measure import statistics

FEWEST = 3
"""Rules of a setting with published values, below which an order says nothing."""


@dataclass(frozen=True)
class Cell:
    """One row of the table: a rule in a setting. Errors and differences in % and points.

    Attributes: difference: minus backprop, on the same seeds. gain: over the control whose
        hidden layers keep their initial weights.
    """

    setting: str
    rule: str
    planned: int
    failed: int
    runs: tuple[Run, ...]
    summary: statistics.Summary | None = None
    one_net: tuple[float, float] | None = None
    difference: statistics.Summary | None = None
    gain: gained.Gain | None = None
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

    @property
    def costs(self) -> dict[str, float]:
        """Means over seeds of what every run has measured."""
        finals = [run.final for run in self.runs]
        return {
            key: float(sum(final[key] for final in finals) / self.n)
            for key in ("step_ms", "feedback_bytes", "seconds")
            if finals and all(key in final for final in finals)
        }


def test_error(run: Run) -> float:
    """Test error in % of a finished run."""
    return 100 * (1 - run.final["test_acc"])


def cells(study: Study) -> list[Cell]:
    """All rows of the table, in the order of study.json."""
    found = gained.gains(study)
    return [cell for setting in study.settings for cell in _setting_cells(study, setting, found)]


def _setting_cells(study: Study, setting: str, over_control: gained.Gains) -> list[Cell]:
    rules = list(dict.fromkeys(run.rule for run in study.runs if run.setting == setting))
    rules.sort(key=study.rules.index)
    errors = {
        rule: {run.seed: test_error(run) for run in study.finished(setting, rule)} for rule in rules
    }
    noise = {rule: gained.share_noise(study.finished(setting, rule)) for rule in rules}
    letters = statistics.tie_groups(errors, noise=noise)
    bp = next(filter(is_baseline, rules), "")
    baseline = errors.get(bp, {})
    values = [row.error for rule in rules if (row := study.find_published(setting, rule))]
    made: list[Cell] = []
    for rule in rules:
        gain = over_control.get((setting, rule))
        planned = [run for run in study.runs if (run.setting, run.rule) == (setting, rule)]
        runs = tuple(study.finished(setting, rule))
        published = study.find_published(setting, rule)
        summary = statistics.summarize(list(errors[rule].values())) if runs else None
        difference = statistics.paired_difference(
            errors[rule],
            {} if is_baseline(rule) else baseline,
            noise=noise[rule] + noise.get(bp, 0.0),
        )
        made.append(
            Cell(
                setting,
                rule,
                planned=len(planned),
                failed=sum(run.status == "failed" for run in planned),
                runs=runs,
                summary=summary,
                one_net=_one_net(runs),
                difference=difference,
                gain=gain,
                ties=letters[rule],
                published=published,
                verdict=_verdict(study, summary, published, values, noise[rule]),
            )
        )
    return made


def _verdict(
    study: Study,
    summary: statistics.Summary | None,
    published: Published | None,
    values: Sequence[float],
    noise: float,
) -> statistics.Verdict | None:
    if summary is None or published is None:
        return None
    scale = published.other_scale
    if not scale and study.tier != FULL_TIER:
        scale = f"tier {study.tier}, not the published protocol"
    return statistics.verdict(
        summary,
        published.error,
        others=values,
        other_scale=scale,
        published_n=published.n,
        noise=noise,
    )


def _one_net(runs: Sequence[Run]) -> tuple[float, float] | None:
    """Wilson interval of the error in %, for a single run that says how many images it saw."""
    if len(runs) != 1 or "test_count" not in runs[0].final:
        return None
    images = runs[0].final["test_count"]
    low, high = statistics.wilson(images * test_error(runs[0]) / 100, images)
    return 100 * low, 100 * high


def table(study: Study, rows: Sequence[Cell]) -> Table:
    """The table of results, its CSV file with every number."""
    error = "First found is wrong %" if study.retrieval else "Test error %"
    settings, compared = list(study.settings), bool(study.published)
    several = len(settings) > 1

    return Table(
        [
            setting_column(several, "setting"),
            rule_column("rule"),
            Column("n", _runs, "n planned failed", page="Runs n"),
            Column("test error %", _error, "mean=summary.mean sd=summary.sd", page=error),
            Column("95 % interval", lambda c: share(c.summary), page=""),
            Column("", _interval, "low=summary.low high=summary.high", page="95 % interval"),
            Column(
                "minus BP",
                lambda c: estimate(c.difference, signed),
                "bp_difference=difference.mean bp_low=difference.low bp_high=difference.high",
                keep=any(cell.difference for cell in rows),
            ),
            *[
                Column(
                    "gained",
                    lambda c: gained.shown(c.gain),
                    "gained=gain.summary.mean gained_low=gain.summary.low "
                    "gained_high=gain.summary.high learns=gain.learns",
                )
            ]
            * any(cell.gain for cell in rows),
            Column("ties", lambda c: _ties(c, rows), "ties", left=True),
            Column(
                "published %",
                _published,
                "published=published.error published_n=published.n "
                "published_source=published.source",
                keep=compared,
            ),
            Column(
                "",
                lambda c: Shown(signed(c.published_difference), c.published_difference),
                "published_difference",
                page="Ours minus published",
                keep=compared,
            ),
            Column(
                "band",
                _band,
                "band_low=verdict.low band_high=verdict.high",
                keep=any(_band(cell).text for cell in rows),
            ),
            Column(
                "verdict",
                lambda c: verdict(c.verdict),
                "verdict=verdict.word verdict_reason=verdict.why",
                left=True,
                keep=compared,
            ),
            Column("", raw="step_ms=costs.step_ms feedback_bytes=costs.feedback_bytes "
                           "seconds=costs.seconds"),
        ],
        rows,
        "Table of results",
        order=lambda c: (settings.index(c.setting), c.summary is None,
                         c.summary.mean if c.summary else 0.0),
    )  # fmt: skip


def setting_column(keep: bool, raw: str = "") -> Column:
    """The setting of a row, where there are several."""
    return Column("setting", lambda r: r.setting, raw, left=True, keep=keep, style="wrap")


def rule_column(raw: str = "", head: str = "rule") -> Column:
    """The rule of a row, as its paper writes it."""
    return Column(head, lambda r: display_name(r.rule), raw, left=True, style="rule")


def verdict(found: statistics.Verdict | None) -> Shown:
    """A verdict on a published value with its reason."""
    if found is None:
        return Shown("")
    return Shown(found.word, title=found.why, style=found.word.partition(",")[0].replace(" ", "-"))


def _band(cell: Cell) -> Shown:
    """Where the published value would have to lie."""
    found = cell.verdict
    if found is None or found.low is None or found.high is None:
        return Shown("")
    low = max(0.0, found.low)
    return Shown(f"{number(low)} to {number(found.high)}", low)


def contradicts(cell: Cell, rows: Sequence[Cell]) -> bool:
    """Whether the interval of a rule minus BP leaves out 0 although the two share a letter: alone
    they differ, corrected for all pairs they do not."""
    found = cell.difference
    if found is None or found.low is None or found.high is None:
        return False
    others = [c for c in rows if c.setting == cell.setting and is_baseline(c.rule)]
    same = any({*c.ties} & {*cell.ties} for c in others)
    return same and (found.low > 0 or found.high < 0)


def _ties(cell: Cell, rows: Sequence[Cell]) -> Shown:
    if not contradicts(cell, rows):
        return Shown(cell.ties)
    why = "its interval leaves out 0, but not once corrected for all pairs"
    return Shown(cell.ties, title=why, mark=" *")


def _runs(cell: Cell) -> Shown:
    shown = count(cell.n, cell.planned)
    failed = f"{cell.failed} failed" if cell.failed else ""
    return Shown(shown.text, shown.sort, title=failed, mark="†" if failed else "")


def _error(cell: Cell) -> Shown:
    ours = cell.summary
    spread = f"standard deviation {number(ours.sd)}" if ours and ours.sd is not None else ""
    return Shown(mean(ours).text, mean(ours).sort, title=spread)


def _interval(cell: Cell) -> Shown:
    if cell.one_net:
        low, high = cell.one_net
        return Shown(f"{number(low)} to {number(high)}", low, mark=" ‡")
    return Shown(share(cell.summary), getattr(cell.summary, "low", None), style="soft")


def _published(cell: Cell) -> Shown:
    row = cell.published
    return (
        Shown(number(row.error), row.error, title=f"n = {row.n}, {row.source}")
        if row
        else Shown("")
    )


def closing(study: Study) -> str:
    """The command that makes the numbers again, as documents print it."""
    return f"Regenerate: `{study.command.replace('`', '')}`."


def legend(study: Study, rows: Sequence[Cell]) -> str:
    """What the columns mean, in documents."""
    sources = dict.fromkeys(cell.published.source for cell in rows if cell.published)
    baseline = any(cell.difference for cell in rows)
    parts = [
        f"Tier {study.tier}: mean over n seeds with a 95 % t interval, cut off at 0 and 100; "
        + "`minus BP` is paired on the seeds, in points; " * baseline
        + "rules that share a letter do not differ significantly, corrected for all pairs of the "
        + "setting (Holm), which an interval is not.",
        for_markdown(gained.legend(study, gained.gains(study))),
        *map(for_markdown, notes(study, rows)),
    ]
    if sources:
        parts.append(f"Published: {for_markdown('; '.join(sources))}.")
    parts += [for_markdown(sentence) for sentence in (*orders(rows), *study.notes)]
    return " ".join([*filter(None, parts), closing(study)])


def notes(study: Study, rows: Sequence[Cell]) -> list[str]:
    """What must stand beside the numbers: how many seeds, and how rates were chosen."""
    several = len(study.settings) > 1
    widest = {
        f"{cell.setting} {display_name(cell.rule)}" if several else display_name(cell.rule): found
        for cell in rows
        if (found := cell.summary)
    }
    return list(filter(None, [seeds_sentence(widest), *rates.sentences(study)]))


def seeds_sentence(found: Mapping[str, statistics.Summary]) -> str:
    """The widest interval of a table by its row, and how many seeds would halve it."""
    known = {row: s for row, s in found.items() if s.sd and s.high is not None and s.n > 1}
    if not known:
        return ""

    def half(row: str) -> float:
        return (known[row].high or 0.0) - known[row].mean

    row = max(known, key=half)
    sd = known[row].sd or 0.0
    needed = statistics.seeds_needed(sd, half(row) / 2)
    return (
        f"The widest interval is that of {row}: {known[row].n} seeds give ±{number(half(row))}, "
        f"about {needed} would give ±{number(half(row) / 2)}."
    )


def orders(rows: Sequence[Cell]) -> list[str]:
    """A sentence for each setting: rules from the best on, in our order and the published one, and
    Kendall's tau-b. Orders of means: which neighbours differ is for the ties of the table to say.
    """
    from scipy.stats import kendalltau

    compared = [row for row in rows if row.summary and row.published]
    settings = dict.fromkeys(row.setting for row in compared)
    made = []
    for setting in settings:
        found = [row for row in compared if row.setting == setting]
        if len(found) < FEWEST:
            continue
        ours = {row.rule: row.summary.mean for row in found if row.summary}
        published = {row.rule: row.published.error for row in found if row.published}
        tau = float(kendalltau(list(ours.values()), list(published.values())).statistic)
        agreement = "" if math.isnan(tau) else f" (Kendall's tau {tau:.2f})"
        where = f"{setting}, best" if len(settings) > 1 else "Best"
        made.append(f"{where} first: {_order(ours)}; published: {_order(published)}{agreement}.")
    return made


def _order(errors: dict[str, float]) -> str:
    """Names by their errors, "=" between those that are printed alike."""
    ranked = sorted(errors, key=lambda rule: errors[rule])
    text = display_name(ranked[0])
    for before, rule in itertools.pairwise(ranked):
        same = number(errors[before]) == number(errors[rule])
        text += f" = {display_name(rule)}" if same else f", {display_name(rule)}"
    return text
