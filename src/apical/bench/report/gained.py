"""What learning in hidden layers is worth: each rule against the control whose hidden layers keep
their initial weights. A column for every table that compares rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apical.bench.report.names import is_baseline, is_frozen
from apical.bench.report.read import Run, Study
from apical.bench.report.table import Column, Shown, estimate, signed
from apical.measure import statistics

LEGEND = (
    "Gained: the {measure} of {what}, paired on the seeds, in points. A rule does not learn where "
    "its 95 % interval is not above 0, and is undecided where only the one corrected for the "
    "number of rules is not; with either mark the corrected interval is shown"
)
"""What the column says."""

ERROR, MAP = "test_acc", "test_map"
"""The share that is compared; of hash nets the mean average precision."""


@dataclass(frozen=True)
class Gain:
    """Of a rule in a setting over the control, in points; above 0: better than the control.

    Attributes: summary: with an interval that stands for itself. corrected: with one that is
        corrected for the number of rules in the setting (Bonferroni).
    """

    summary: statistics.Summary
    corrected: statistics.Summary

    @property
    def learns(self) -> bool | None:
        """Whether hidden layers help: True where the corrected interval is above 0, False where
        not even the other one is; None where they disagree, and for fewer than three seeds."""
        if self.summary.low is None or self.corrected.low is None:
            return None
        if self.summary.n < statistics.FEWEST:
            return None
        if self.corrected.low > 0:
            return True
        return None if self.summary.low > 0 else False

    @property
    def mark(self) -> str:
        """What the table says of a rule that is not shown to learn."""
        if self.learns is False:
            return "does not learn"
        return "" if self.learns or self.summary.n < statistics.FEWEST else "undecided"


Gains = Mapping[tuple[str, str], Gain]
"""By setting and rule."""


NONE: Gains = {}


def control(study: Study, setting: str) -> str:
    """The row of a setting whose hidden layers keep their initial weights, "" without one."""
    rules = dict.fromkeys(run.rule for run in study.runs if run.setting == setting)
    named = next(filter(is_frozen, rules), "")
    return named or next(
        (r.rule for r in study.runs if r.setting == setting and _learner(r) == "readout"), ""
    )


def _learner(run: Run) -> str:
    learner = run.experiment.get("learner") or ""
    return str(learner["learner"] if isinstance(learner, Mapping) else learner)


def gains(study: Study, metric: str = ERROR) -> Gains:
    """Every rule over the control, where a setting has one."""
    made: dict[tuple[str, str], Gain] = {}
    for setting in study.settings:
        measured = {rule: _measured(study, setting, rule, metric) for rule in study.rules}
        frozen = control(study, setting)
        rules = [rule for rule in study.rules if rule != frozen and measured[rule]]
        if not (frozen and measured[frozen]):
            continue
        least, other_noise = _shares(measured[frozen], metric)
        for rule in rules:
            shares, noise = _shares(measured[rule], metric)
            level = 1 - (1 - statistics.LEVEL) / len(rules)
            summary, corrected = (
                statistics.paired_difference(shares, least, level=each, noise=noise + other_noise)
                for each in (statistics.LEVEL, level)
            )
            if summary is not None and corrected is not None:
                made[setting, rule] = Gain(summary, corrected)
    return made


def _measured(study: Study, setting: str, rule: str, metric: str) -> list[Run]:
    return [run for run in study.finished(setting, rule) if metric in run.final]


def _shares(runs: Sequence[Run], metric: str) -> tuple[dict[int, float], float]:
    """In % by seed, and the variance of one for its test set alone."""
    shares = {run.seed: 100 * run.final[metric] for run in runs}
    return shares, share_noise(runs, metric)


def share_noise(runs: Sequence[Run], metric: str = ERROR) -> float:
    """Variance, in %^2, that the share of one run has for its test set alone; 0 if unknown. Of a
    mean of average precisions, which lie in [0, 1] too, it is an upper bound."""
    if not runs or any("test_count" not in run.final for run in runs):
        return 0.0
    mean = sum(run.final[metric] for run in runs) / len(runs)
    return 1e4 * statistics.binomial_variance(mean, runs[0].final["test_count"])


def columns(found: Gains, page: str | None = None) -> list[Column]:
    """The column for rows with a `setting` and a `rule`; none where no setting has a control."""
    if not found:
        return []
    return [Column("gained", lambda row: shown(of(found, row.setting, row.rule)), page=page)]


def of(found: Gains, heading: str, rule: str) -> Gain | None:
    """Args: heading: a setting, or it and what tells its protocols from one another."""
    return found.get((heading, rule)) or found.get((heading.partition(" · ")[0], rule))


def shown(gain: Gain | None) -> Shown:
    """The gain with its interval; with its mark and the corrected interval, where it has one."""
    if gain is None:
        return Shown("")
    if not gain.mark:
        return estimate(gain.summary, signed)
    text = estimate(gain.corrected, signed)
    return replace(text, text=f"{gain.mark}: {text.text}", style="differs")


def legend(study: Study, found: Gains, metric: str = ERROR) -> str:
    """What the column says, and which settings have no control; "" where rules are not compared."""
    parts = []
    if found:
        error = "the rule's minus that of the control with frozen hidden layers"
        if metric == ERROR:
            error = "the control with frozen hidden layers minus the rule's"
        parts.append(f"{LEGEND.format(measure='mAP' if metric == MAP else 'error', what=error)}.")
    return " ".join([*parts, *missing(study)])


def missing(study: Study) -> list[str]:
    """Which settings compare rules without the control, in a sentence."""
    without = [s for s in study.settings if not control(study, s) and _compares(study, s)]
    if not without:
        return []
    where = "" if len(without) == len(study.settings) else f" in {', '.join(without)}"
    return [
        f"No control row{where}: without a row whose hidden layers keep their initial weights this "
        "does not show whether hidden layers learn."
    ]


def _compares(study: Study, setting: str) -> bool:
    rules: dict[str, Any] = dict.fromkeys(r.rule for r in study.runs if r.setting == setting)
    return any(not is_baseline(rule) for rule in rules)
