"""What every table that compares rules shows: the column "gained", what learning in hidden layers
is worth over the control whose hidden layers keep their initial weights; and whether the choice of
the learning rates is stable."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apical.bench.report.evaluations import Record
from apical.bench.report.names import display_name, is_baseline, is_frozen
from apical.bench.report.read import Row, Run, Study, learner_of, percent_of
from apical.bench.report.table import Column, Shown, estimate, signed
from apical.measure import rate_choice, statistics
from apical.measure.robustness_verdict import radius

ERROR, MAP = "test_acc", "test_map"
"""The share that is compared; of hash nets the mean average precision."""


@dataclass(frozen=True)
class Gain:
    """Of a rule in a setting over the control, in points; above 0: better than the control.

    Attributes: summary: with an uncorrected interval. corrected: with one that is
        corrected for the number of rules in the setting (Bonferroni). most: the largest mean among
        the rules of the setting that learn; None where none is shown to.
    """

    summary: statistics.Summary
    corrected: statistics.Summary
    most: float | None = None

    @property
    def learns(self) -> bool | None:
        """Whether hidden layers help.

        True where the corrected interval is above 0. False where the other one is below 0; or,
        from three seeds on, contains 0 and lies below `most`, what learning is worth here. Else
        None: an interval that contains both, or nothing to compare it with, does not decide.
        """
        low, high, corrected = self.summary.low, self.summary.high, self.corrected.low
        if low is None or high is None or corrected is None:
            return None
        few = self.summary.n < statistics.FEWEST
        if corrected > 0 and not few:
            return True
        if high < 0 or (low <= 0 and not few and self.most is not None and high < self.most):
            return False
        return None

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
    """The row of a setting whose hidden layers keep their initial weights, "" without one."""
    runs = [run for run in study.runs if run.setting == setting]
    named = [run.rule for run in runs if is_frozen(run.rule)]
    readout = [run.rule for run in runs if learner_of(run.experiment)["learner"] == "readout"]
    return next(iter([*named, *readout]), "")


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
            if summary is not None and corrected is not None:
                by_rule[rule] = Gain(summary, corrected)
        most = max((g.summary.mean for g in by_rule.values() if g.learns), default=None)
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
    """The gain with its interval; with its mark and the corrected interval, where it has one."""
    if gain is None:
        return Shown("")
    if not gain.mark:
        return estimate(gain.summary, signed)
    text = estimate(gain.corrected, signed)
    return replace(text, text=f"{gain.mark}: {text.text}", style="differs")


def missing(study: Study) -> str:
    """Which settings compare rules without the control, in a sentence; "" for none."""
    without = [
        setting
        for setting in study.settings
        if not control(study, setting)
        and any(run.setting == setting and not is_baseline(run.rule) for run in study.runs)
    ]
    if not without:
        return ""
    where = "" if len(without) == len(study.settings) else f" in {', '.join(without)}"
    return (
        f"No control row{where}: without a row whose hidden layers keep their initial weights this "
        "does not show whether hidden layers learn."
    )


# Learning rates


def stability(choice: Record) -> str:
    """ "unstable: 0.03 or 0.1" where another rate is chosen once one seed of the tries is left out;
    "one seed" where there was one; "" for a stable choice."""
    tries = [row for row in choice["tries"] if "errors" in row]
    if not tries or len(tries[0]["errors"]) < 2:
        return "one seed"
    tried = [rate_choice.Tried(r["lr"], tuple(r["errors"]), r["examples"]) for r in tries]
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
