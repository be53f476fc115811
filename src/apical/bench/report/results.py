"""Test error of each rule in each setting, in %, and published values; differences in points."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from apical.bench.report import gained
from apical.bench.report.names import display_name, is_baseline, joined
from apical.bench.report.published import Published
from apical.bench.report.read import Row, Study, test_error
from apical.bench.report.table import (
    Column,
    Shown,
    Table,
    count,
    mean,
    number,
    plain,
    share,
    signed,
)
from apical.bench.storage.records import grouped
from apical.measure import statistics

MOST_NAMES = 6
"""Rules that a finding names; of more it says how many there are."""

FEWEST = 3
"""Rules of a setting with published values, below which their order is not printed."""


@dataclass(frozen=True)
class Cell:
    """One row of the table: a rule in a setting. Errors and differences in % and points.

    Attributes: difference: minus backprop, on the same seeds. gain: over the control whose
        hidden layers keep their initial weights. differs: from backprop, in tests of the rules
        against backprop alone, corrected for their number. contradicts: whether the interval of
        the difference leaves out 0 although the rule shares a letter with backprop: alone they
        differ, corrected for all pairs they do not.
    """

    row: Row
    summary: statistics.Summary | None = None
    difference: statistics.Summary | None = None
    gain: gained.Gain | None = None
    ties: str = ""
    differs: bool = False
    contradicts: bool = False
    published: Published | None = None
    verdict: statistics.Verdict | None = None

    @property
    def setting(self) -> str:
        return self.row.setting

    @property
    def rule(self) -> str:
        return self.row.rule

    @property
    def n(self) -> int:
        return self.row.n

    @property
    def one_net(self) -> tuple[float, float] | None:
        """Wilson interval of the error, for a single run that says how many images it saw."""
        if self.row.n != 1 or "test_count" not in self.row.runs[0].final:
            return None
        images = self.row.runs[0].final["test_count"]
        low, high = statistics.wilson(images * test_error(self.row.runs[0]) / 100, images)
        return 100 * low, 100 * high

    @property
    def published_difference(self) -> float | None:
        """Ours minus published, in points."""
        if self.summary is None or self.published is None:
            return None
        return self.summary.mean - self.published.value

    @property
    def costs(self) -> dict[str, float]:
        """Means over seeds of what every run has measured."""
        finals = [run.final for run in self.row.runs]
        return {
            key: float(sum(final[key] for final in finals) / len(finals))
            for key in ("step_ms", "feedback_bytes", "seconds")
            if finals and all(key in final for final in finals)
        }


def cells(study: Study) -> list[Cell]:
    """All rows of the table, in the order of study.json."""
    gains = gained.gains(study)
    return [cell for setting in study.settings for cell in _of_setting(study, setting, gains)]


def _of_setting(study: Study, setting: str, gains: gained.Gains) -> list[Cell]:
    rows = {row.rule: row for row in study.rows_of(setting)}
    errors = {rule: row.sample(test_error) for rule, row in rows.items()}
    noise = {rule: row.noise() for rule, row in rows.items()}
    letters = statistics.tie_groups(errors, noise=noise)
    bp = next(filter(is_baseline, rows), "")
    differing = statistics.differing_from(bp, errors, noise=noise) if bp else set()
    published = {each.rule: each for each in reversed(study.published) if each.setting == setting}
    values = [published[rule].value for rule in rows if rule in published]
    table = []
    for rule, row in rows.items():
        summary, theirs = row.summary(test_error, noise[rule]), published.get(rule)
        verdict = None
        if summary and theirs:
            verdict = row.fair(
                statistics.verdict(
                    summary,
                    theirs.value,
                    others=values,
                    other_scale=theirs.scale(study.tier),
                    published_n=theirs.n,
                    noise=noise[rule],
                )
            )
        gap = row.minus(rows[bp], test_error) if bp and not is_baseline(rule) else None
        leaves_out_0 = gap and gap.low and gap.high and gap.low * gap.high > 0
        contradicts = bool(leaves_out_0 and {*letters[rule]} & {*letters[bp]})
        gain, ties, differs = gains.get((setting, rule)), letters[rule], rule in differing
        table.append(Cell(row, summary, gap, gain, ties, differs, contradicts, theirs, verdict))
    return table


def table(study: Study, rows: Sequence[Cell]) -> Table:
    """The table of results, its CSV file with every number."""
    error = "First found is wrong %" if study.retrieval else "Test error %"
    settings, compared = study.settings, bool(study.published)
    return Table(
        [
            Column.setting(study.several, "setting"),
            Column.rule("rule"),
            Column("n", _runs, "n=row.n planned=row.planned failed=row.failed", page="Runs n"),
            Column("test error %", _error, "mean=summary.mean sd=summary.sd", page=error),
            Column("95 % interval", lambda c: share(c.summary), page=""),
            Column("", _interval, "low=summary.low high=summary.high", page="95 % interval"),
            Column("minus BP", "difference",
                   "bp_difference=difference.mean bp_low=difference.low bp_high=difference.high",
                   text=signed, keep=any(cell.difference for cell in rows)),
            *[
                Column("gained", lambda c: gained.shown(c.gain),
                       "gained=gain.summary.mean gained_low=gain.summary.low "
                       "gained_high=gain.summary.high learns=gain.learns")
            ] * any(cell.gain for cell in rows),
            Column("ties", _ties, "ties", left=True),
            Column("published %", lambda c: published(c.published),
                   "published=published.value published_n=published.n "
                   "published_source=published.source", keep=compared),
            Column("", "published_difference", "published_difference", text=signed,
                   page="Ours minus published", keep=compared),
            Column("band", _band, "band_low=verdict.low band_high=verdict.high",
                   keep=any(_band(cell).text for cell in rows)),
            Column("verdict", lambda c: verdict(c.verdict),
                   "verdict=verdict.word verdict_reason=verdict.why", left=True, keep=compared),
            Column("", raw="step_ms=costs.step_ms feedback_bytes=costs.feedback_bytes "
                           "seconds=costs.seconds"),
        ],
        rows,
        "Table of results",
        order=lambda c: (settings.index(c.setting), c.summary is None,
                         c.summary.mean if c.summary else 0.0),
    )  # fmt: skip


def published(
    row: Published | None, text: Callable[[float | None], str] = number, *, attack: bool = False
) -> Shown:
    """A published value with its source, and the attack where it is not in a column of its own."""
    if row is None:
        return Shown("")
    title = f"{row.attack}, " * attack + f"n = {row.n}, {row.source}"
    return plain(row.value, text, title=title)


def verdict(result: statistics.Verdict | None) -> Shown:
    """A verdict on a published value with its reason."""
    return judged(result.word, result.why) if result else Shown("")


def judged(word: str, why: str = "") -> Shown:
    """The word of a verdict, in its colour."""
    return Shown(word, title=why, style=word.partition(",")[0].replace(" ", "-"))


def _band(cell: Cell) -> Shown:
    """Where the published value would have to lie."""
    result = cell.verdict
    if result is None or result.low is None or result.high is None:
        return Shown("")
    low, high = max(0.0, result.low), min(100.0, result.high)
    return Shown(f"{number(low)} to {number(high)}", low)


def _ties(cell: Cell) -> Shown:
    if not cell.contradicts:
        return Shown(cell.ties)
    why = "its interval leaves out 0, but not once corrected for all pairs"
    return Shown(cell.ties, title=why, mark=" *")


def _runs(cell: Cell) -> Shown:
    row = cell.row
    failed = f"{row.failed} failed" if row.failed else ""
    return replace(count(row.n, row.planned), title=failed, mark="†" if failed else "")


def _error(cell: Cell) -> Shown:
    ours = cell.summary
    spread = f"standard deviation {number(ours.sd)}" if ours and ours.sd is not None else ""
    return replace(mean(ours), title=spread)


def _interval(cell: Cell) -> Shown:
    if cell.one_net:
        low, high = cell.one_net
        return Shown(f"{number(low)} to {number(high)}", low, mark=" ‡")
    return Shown(share(cell.summary), getattr(cell.summary, "low", None), style="soft")


# Words


def finding(rows: Sequence[Cell]) -> str:
    """What the table shows, in a line for each setting: the best rule, which rules it does not
    differ from, which differ from backprop where the letters of all pairs do not show it, which are
    not shown to learn, which have a single run, and which lack runs; "" without two rules to
    compare."""

    def error(row: Cell) -> float:
        return row.summary.mean if row.summary else 0.0

    settings = grouped(rows, lambda row: row.setting)
    sentences = []
    for setting, of_setting in settings.items():
        ranked = sorted((row for row in of_setting if row.summary), key=error)
        if len(ranked) < 2:
            continue
        best, *others = ranked
        among = f"the {len(others)} other rows"
        every = f"{sum(row.gain is not None for row in ranked)} rows"
        name, lowest = display_name(best.rule), f"{number(error(best))} %"
        bp = next((row for row in ranked if is_baseline(row.rule)), best)
        only_alone = [row for row in ranked if row.differs and {*row.ties} & {*bp.ties}]
        same = [row for row in others if {*row.ties} & {*best.ties}]
        if best is bp:
            same = [row for row in same if row not in only_alone]
        alone = [row for row in others if best.ties and not row.ties]
        where = f"{setting}: " if len(settings) > 1 else ""
        if best.ties and same == others:
            text = "no" if where else "No"
            text += f" test error differs significantly from the lowest, {name}'s {lowest}"
        else:
            text = f"{name} has the lowest test error, {lowest}"
            text += "" if best.ties else ", in a single run"
            text += f", not significantly different from {_names(same, among)}" if same else ""
        text += f"; not compared, a single run each: {_names(alone, among)}" if alone else ""
        if only_alone:
            lower = [row for row in only_alone if error(row) < error(bp)]
            higher = [row for row in only_alone if error(row) > error(bp)]
            sides = {"lower": lower, "higher": higher}.items()
            words = " and ".join(
                f"{word} under {_names(rules, among)}" for word, rules in sides if rules
            )
            start = "corrected for the comparisons with BP alone (Holm) the error is significantly"
            text += f"; {start} {words}" + " too" * (same != others)
        if max(row.summary.n for row in ranked if row.summary) == 2:
            text += "; two seeds are too few to judge by"
        if idle := [row for row in ranked if row.gain and row.gain.mark]:
            text += f"; no gain over frozen hidden layers is shown under {_names(idle, every)}"
        for word in ("failed", "unfinished"):
            lost = {row.rule: (getattr(row.row, word), row.row.planned) for row in of_setting}
            counts = [f"{display_name(rule)} {n} of {of}" for rule, (n, of) in lost.items() if n]
            text += f"; {word} runs, which are not counted: {joined(counts)}" * bool(counts)
        sentences.append(f"{where}{text}.")
    return "\n".join(sentences)


def _names(rows: Sequence[Cell], among: str) -> str:
    """A few names, or how many they are among the rows of the table."""
    if len(rows) > MOST_NAMES:
        return f"{len(rows)} of {among}"
    return joined([display_name(row.rule) for row in rows])


def widest(study: Study, rows: Sequence[Cell]) -> str:
    """`seeds_sentence` of these rows."""
    return seeds_sentence({study.named(cell): cell.summary for cell in rows if cell.summary})


def seeds_sentence(summaries: Mapping[str, statistics.Summary]) -> str:
    """The widest interval of a table by its row, and how many seeds would halve it."""
    half = {
        row: summary.high - summary.mean
        for row, summary in summaries.items()
        if summary.sd and summary.high is not None
    }
    if not half:
        return ""
    row = max(half, key=lambda name: half[name])
    width, of_row = half[row], summaries[row]
    needed = statistics.seeds_needed(of_row.sd or 0.0, width / 2)
    return (
        f"The widest interval is that of {row}: {of_row.n} seeds give ±{number(width)}, "
        f"about {needed} would give ±{number(width / 2)}."
    )


def orders(rows: Sequence[Cell]) -> list[str]:
    """A sentence for each setting: rules from the best on by their means, in our order and the
    published one, and Kendall's tau-b. The ties of the table show which neighbours differ.
    """
    from scipy.stats import kendalltau

    compared = [row for row in rows if row.summary and row.published]
    settings = grouped(compared, lambda row: row.setting)
    sentences = []
    for setting, here in settings.items():
        if len(here) < FEWEST:
            continue
        ours = {row.rule: row.summary.mean for row in here if row.summary}
        theirs = {row.rule: row.published.value for row in here if row.published}
        tau = float(kendalltau(list(ours.values()), list(theirs.values())).statistic)
        agreement = "" if math.isnan(tau) else f" (Kendall's tau {tau:.2f})"
        where = f"{setting}, means" if len(settings) > 1 else "Means"
        orders = f"{_order(ours)}. In the source: {_order(theirs)}{agreement}."
        sentences.append(f"{where}, best first: {orders}")
    return sentences


def _order(errors: Mapping[str, float]) -> str:
    """Names by their errors, "=" between those that are printed alike."""
    ranked = sorted(errors, key=lambda rule: errors[rule])
    alike = itertools.groupby(ranked, lambda rule: number(errors[rule]))
    return joined([" = ".join(map(display_name, rules)) for _, rules in alike])
