"""What every table that compares rules shows: the column "gained", what learning in hidden layers
is worth over the control whose hidden layers keep their initial weights; and whether the choice of
the learning rates is stable."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apical.bench.report.evaluations import Record
from apical.bench.report.names import display_name, is_baseline, is_frozen, rule_name
from apical.bench.report.read import Row, Run, Study, percent_of
from apical.bench.report.table import Column, Shown, estimate, signed
from apical.measure import rate_choice, statistics
from apical.measure.robustness_verdict import radius

ERROR, MAP = "test_acc", "test_map"
"""The share that is compared; of hash nets the mean average precision."""


@dataclass(frozen=True)
class Gain:
    """Of a rule in a setting over the control, in points; above 0: better than the control.

    Attributes: summary: with an uncorrected interval; None where the rule shares no seed with the
        control. corrected: with one that is corrected for the number of rules in the setting
        (Bonferroni). most: the largest mean among the rules of the setting that learn; None where
        none is shown to. runs: of the rule, of which those count whose seed the control has.
    """

    summary: statistics.Summary | None
    corrected: statistics.Summary | None
    most: float | None = None
    runs: int = 0

    @property
    def learns(self) -> bool | None:
        """Whether hidden layers help.

        True where the corrected interval is above 0. False where the other one is below 0, or
        contains 0 and lies below half of `most`: nearer to nothing than to what learning is worth
        here. Else None: below three seeds, with equal gains and a test set of unknown size, and
        where an interval contains both.
        """
        if self.summary is None or self.corrected is None or self.summary.n < statistics.FEWEST:
            return None
        low, high, corrected = self.summary.low, self.summary.high, self.corrected.low
        if low is None or high is None or corrected is None or math.isclose(low, high):
            return None
        if corrected > 0:
            return True
        little = low <= 0 and self.most is not None and high < self.most / 2
        return False if high < 0 or little else None

    @property
    def mark(self) -> str:
        """The word in the table for a rule that is not shown to learn."""
        if self.learns is False:
            return "does not learn"
        return "" if self.learns else "undecided"


Gains = Mapping[tuple[str, str], Gain]
"""By setting and rule."""

NONE: Gains = {}


def control(study: Study, setting: str) -> str:
    """The row of a setting whose hidden layers keep their initial weights, "" without one: by its
    label, else by the rule or learner of its runs."""
    runs = [run for run in study.runs if run.setting == setting]
    labelled = [run.rule for run in runs if is_frozen(run.rule)]
    named = [run.rule for run in runs if rule_name(run.experiment) in ("frozen", "readout")]
    return next(iter([*labelled, *named]), "")


def gains(study: Study, metric: str = ERROR) -> Gains:
    """Every rule over the control, where a setting has one."""
    found: dict[tuple[str, str], Gain] = {}
    value = percent_of(metric)
    for setting in study.settings:
        by_rule: dict[str, Gain] = {}
        rows = {row.rule: row for row in study.rows_of(setting) if row.sample(value)}
        frozen = rows.pop(control(study, setting), Row(setting, ""))
        for rule, row in rows.items():
            noise = share_noise(row.runs, metric) + share_noise(frozen.runs, metric)
            corrected_level = 1 - (1 - statistics.LEVEL) / len(rows)
            summary, corrected = (
                statistics.paired_difference(
                    row.sample(value), frozen.sample(value), level=level, noise=noise
                )
                for level in (statistics.LEVEL, corrected_level)
            )
            if frozen.runs:
                by_rule[rule] = Gain(summary, corrected, runs=row.n)
        learning = [g.summary for g in by_rule.values() if g.summary and g.learns]
        most = max((summary.mean for summary in learning), default=None)
        found |= {(setting, rule): replace(gain, most=most) for rule, gain in by_rule.items()}
    return found


def share_noise(runs: Sequence[Run], metric: str = ERROR) -> float:
    """Variance, in %^2, that the share of one run has for its test set alone; 0 if unknown. Of a
    mean of average precisions, which lie in [0, 1] too, it is an upper bound."""
    runs = [run for run in runs if metric in run.final]
    if not runs or any("test_count" not in run.final for run in runs):
        return 0.0
    mean = sum(run.final[metric] for run in runs) / len(runs)
    return 1e4 * statistics.binomial_variance(mean, runs[0].final["test_count"])


def columns(gains: Gains) -> list[Column]:
    """The column for rows with a `setting` and a `rule`; none where no setting has a control.

    The setting of a row may be followed by the protocol of an evaluation ("digits · eps 0.1").
    """

    def show(row: Any) -> Shown:
        gain = gains.get((row.setting, row.rule))
        return shown(gain or gains.get((row.setting.partition(" · ")[0], row.rule)))

    return [Column("gained", show)] if gains else []


def opening(several: bool, gains: Gains) -> list[Column]:
    """The first columns of a table of attacked nets, for lines of a rule at a radius.

    several: whether it names the setting.
    """
    return [
        Column.setting(several),
        Column.rule(),
        Column("radius", "eps", text=radius, page=""),
        Column.runs("Nets n"),
        Column("clean", "values.clean", brief=True),
        *columns(gains),
    ]


def shown(gain: Gain | None) -> Shown:
    """The gain with its interval, its mark and, where not all runs count, how many do; undecided
    ones with the corrected interval."""
    if gain is None:
        return Shown("")
    if gain.summary is None:
        return Shown(f"{gain.mark}: no seed in common with the control", style="differs")
    text = estimate(gain.corrected if gain.learns is None else gain.summary, signed)
    seeds = "seed" if gain.summary.n == 1 else "seeds"
    shared = f" ({gain.summary.n} shared {seeds})" * (gain.summary.n < gain.runs)
    if not gain.mark:
        return replace(text, text=text.text + shared)
    return replace(text, text=f"{gain.mark}: {text.text}{shared}", style="differs")


def missing(study: Study) -> str:
    """Which settings compare rules without the control, without a finished run of it, or with rows
    that were not trained alike, in sentences; "" for none."""
    absent, unfinished = [], []
    for setting in study.settings:
        name = control(study, setting)
        if name and not study.row(setting, name).runs:
            unfinished.append(setting)
        elif not name and any(not is_baseline(row.rule) for row in study.rows_of(setting)):
            absent.append(setting)

    def where(settings: list[str]) -> str:
        return "" if len(settings) == len(study.settings) else f" in {', '.join(settings)}"

    sentences = []
    if absent:
        sentences.append(
            f"No control row{where(absent)}: without a row whose hidden layers keep their initial "
            "weights this does not show whether hidden layers learn."
        )
    if unfinished:
        sentences.append(
            f"No finished run of the control{where(unfinished)}: this does not show whether hidden "
            "layers learn."
        )
    if unlike := _unlike(study):
        sentences.append(
            f"Not trained alike: {'; '.join(unlike)}. Differences and gains are not those of the "
            "rules alone."
        )
    return " ".join(sentences)


BUDGET = ("data", "size", "train_images", "task", "length", "batches", "batch_size", "epochs")
"""Fields of an experiment in which the rows of a setting are alike."""


def _unlike(study: Study) -> list[str]:
    """Rows with the fields in which their runs differ, but for the seed and what they start from,
    or in which their `BUDGET` is not that of most rows; a control of a net that no other row has.
    """
    found = []
    for setting in study.settings:
        rows = {
            row.rule: [run.experiment for run in row.every if run.experiment]
            for row in study.rows_of(setting)
        }
        usual = _usual([runs[0] for runs in rows.values() if runs])
        for rule, runs in rows.items():
            fields = {key for run in runs for key in _differing(run, runs[0], run)}
            fields -= {"seed", "start"}
            fields |= {key for run in runs for key in _differing(run, usual, BUDGET)}
            others = [run for other, of_other in rows.items() if other != rule for run in of_other]
            if runs and others and rule == control(study, setting):
                if all(_differing(run, runs[0], ("net", "net_options")) for run in others):
                    fields |= {"net"}
            if fields:
                name = f"{setting} " * study.several + display_name(rule)
                found.append(f"{name} ({', '.join(sorted(fields))})")
    return found


def _usual(runs: Sequence[Record]) -> Record:
    """One of those whose `BUDGET` most runs have."""
    return max(
        runs,
        key=lambda run: sum(not _differing(run, other, BUDGET) for other in runs),
        default={},
    )


def _differing(run: Record, other: Record, keys: Iterable[str]) -> set[str]:
    """Fields of two experiments that differ; one that came with a later version is in neither."""
    return {key for key in keys if key in run and key in other and run[key] != other[key]}


# Learning rates


def stability(choice: Record) -> str:
    """ "unstable: 0.03 or 0.1" where another rate is chosen once one seed of the tries is left out;
    "one seed" where there was one; "" for a stable choice."""
    tries = [row for row in choice["tries"] if "errors" in row]
    if not tries or len(tries[0]["errors"]) < 2:
        return "one seed"
    tried = list(map(rate_choice.Tried.of_row, tries))
    rates = sorted([choice["lr"], *rate_choice.others(tried)])
    return f"unstable: {' or '.join(f'{rate:g}' for rate in rates)}" if len(rates) > 1 else ""


def rates(study: Study) -> dict[str, list[str]]:
    """Rows whose choice is unstable, was made by one seed, or lies at the edge of the grid."""
    several = len({choice["setting"] for choice in study.search}) > 1
    rows: dict[str, list[str]] = {"unstable": [], "one seed": [], "edge": []}
    for choice in study.search:
        name = f"{choice['setting']} " * several + display_name(choice["rule"])
        word, _, other = stability(choice).partition(": ")
        if word:
            rows[word].append(f"{name} ({other})" if other else name)
        if choice.get("at_edge"):
            rows["edge"].append(f"{name} ({choice['lr']:g})")
    return rows
