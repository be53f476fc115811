"""What every table that compares rules shows: the column "gained", what learning in hidden layers
is worth over the control whose hidden layers keep their initial weights; and whether the choice of
the learning rates is stable."""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apical.bench.report.names import (
    FROZEN,
    display_name,
    is_baseline,
    is_frozen,
    joined,
    rule_name,
    trained_by,
)
from apical.bench.report.read import ERROR, Run, Study, percent_of
from apical.bench.report.table import Column, Shown, estimate, signed
from apical.bench.storage.records import Record
from apical.measure import rate_choice, statistics
from apical.measure.robustness_verdict import radius


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
    label, if its runs are of that kind, else by the rule or learner of its runs."""
    rows = [row for row in study.rows_of(setting) if not row.mislabelled]
    labelled = [row.rule for row in rows if is_frozen(row.rule)]
    trained = [row.rule for row in rows if trained_by(row.every[0].experiment) == {FROZEN[0]}]
    return next(iter([*labelled, *trained]), "")


def gains(study: Study, metric: str = ERROR) -> Gains:
    """Every rule over the control, where a setting has one."""
    found: dict[tuple[str, str], Gain] = {}
    value = percent_of(metric)
    for setting in study.settings:
        rows = {row.rule: row for row in study.rows_of(setting) if row.sample(value)}
        frozen = rows.pop(control(study, setting), None)
        if frozen is None:
            continue
        by_rule: dict[str, Gain] = {}
        for rule, row in rows.items():
            level = 1 - (1 - statistics.LEVEL) / len(rows)
            corrected = row.minus(frozen, value, metric, level=level)
            by_rule[rule] = Gain(row.minus(frozen, value, metric), corrected, runs=row.n)
        learning = [g.summary for g in by_rule.values() if g.summary and g.learns]
        most = max((summary.mean for summary in learning), default=None)
        found |= {(setting, rule): replace(gain, most=most) for rule, gain in by_rule.items()}
    return found


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
    """Which settings compare rules without the control, or without a finished run of it, which
    labels name another rule than trained the runs, and which rows were not trained alike, in
    sentences; "" for none."""
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
    if wrong := [row for row in study.rows if row.mislabelled]:
        names = {study.named(row): row.every[0].experiment for row in wrong}
        rules = joined([f"{name} (trained by {rule_name(each)})" for name, each in names.items()])
        sentences.append(f"Rows that are not what their label says: {rules}.")
    if unlike := _unlike(study):
        sentences.append(
            f"Not trained alike: {'; '.join(unlike)}. Differences and gains are not those of the "
            "rules alone."
        )
    return " ".join(sentences)


def lost(study: Study) -> str:
    """Runs that no number counts, in a sentence, for tables without rows for them; "" for none."""
    counts = [
        f"{study.named(row)} {row.planned - row.n} of {row.planned}"
        for row in study.rows
        if row.n < row.planned
    ]
    return f"Runs that have not finished, and are not counted: {joined(counts)}." * bool(counts)


OF_A_ROW = {
    *("rule", "learner", "switch", "lr", "optimizer", "optimizer_options", "clip_norm"),
    *("net", "net_options", "init", "start", "seed", "compile", "channels_last", "test_at"),
}
"""Fields of an experiment in which the rows of a setting may differ; in all others, but those of
probes, they are alike."""


def _unlike(study: Study) -> list[str]:
    """Rows with the fields in which their runs differ, but for the seed and what they start from,
    or in which they are not like most rows; a control of a net that no other row has.

    Beside the fields: the versions of what computes the runs, how many images they are tested on,
    the digest of all their images and labels, and how their learning rate was searched.
    """
    searches = {
        (choice["setting"], choice["rule"]): [
            sorted({tried["lr"] for tried in choice["tries"]} - {*choice.get("extended", ())}),
            len(choice["tries"][0].get("errors", [0])),
            choice["tries"][0].get("examples"),
        ]
        for choice in study.search
    }
    found = []
    for setting in study.settings:
        rows: dict[str, list[Record]] = {}
        for row in study.rows_of(setting):
            search = searches.get((setting, row.rule))
            more = {"search": search} if search else {}
            rows[row.rule] = [_described(run) | more for run in row.every if run.experiment]
        usual = _usual([runs[0] for runs in rows.values() if runs])
        for rule, runs in rows.items():
            fields = {key for run in runs for key in _differing(run, runs[0], run)}
            fields -= {"seed", "start"}
            fields |= {key for run in runs for key in _differing(run, usual, _budget(run))}
            others = [run for other, of_other in rows.items() if other != rule for run in of_other]
            if runs and others and rule == control(study, setting):
                if all(_differing(run, runs[0], ("net", "net_options")) for run in others):
                    fields |= {"net"}
            if fields:
                names = ", ".join(sorted(fields))
                found.append(f"{study.named(study.row(setting, rule))} ({names})")
    return found


def _described(run: Run) -> dict[str, Any]:
    images = {k: run.final[k] for k in ("test_count", "data_sha256") if k in run.final}
    return {**run.experiment, "versions": run.versions, **images}


def _budget(run: Record) -> list[str]:
    return [key for key in run if key not in OF_A_ROW and not key.startswith("probe")]


def _usual(runs: Sequence[Record]) -> Record:
    """Of every field in which rows are alike the value that most runs have."""
    by_key = defaultdict[str, list[Any]](list)
    for run in runs:
        for key in _budget(run):
            by_key[key].append(run[key])
    return {key: max(values, key=values.count) for key, values in by_key.items()}


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
    """Rows whose choice is unstable, was made by one seed, or lies at the edge of the grid; and
    those trained at a rate that the search did not choose, for them or a row of their rule, unless
    their label says so."""
    settings = {choice["setting"] for choice in study.search}

    def named(setting: str, rule: str) -> str:
        return f"{setting} " * (len(settings) > 1) + display_name(rule)

    rows: dict[str, list[str]] = {"unstable": [], "one seed": [], "edge": [], "not chosen": []}
    for choice in study.search:
        name = named(choice["setting"], choice["rule"])
        word, _, other = stability(choice).partition(": ")
        if word:
            rows[word].append(f"{name} ({other})" if other else name)
        if choice.get("at_edge"):
            rows["edge"].append(f"{name} ({choice['lr']:g})")
    chosen = defaultdict[tuple[str, str], set[float]](set)  # by setting, and by label or rule
    for choice in study.search:
        trained = study.row(choice["setting"], choice["rule"]).every
        for key in [choice["rule"], *map(trained_as, trained)]:
            chosen[choice["setting"], key].add(choice["lr"])
    for row in study.rows:
        given = {run.experiment["lr"] for run in row.every if _learns(run)}
        for run in row.every:
            given -= chosen[row.setting, row.rule] or chosen[row.setting, trained_as(run)]
        if given and row.setting in settings and not row.rule.endswith("rate"):
            shown = ", ".join(f"{rate:g}" for rate in sorted(given))
            rows["not chosen"].append(f"{named(row.setting, row.rule)} ({shown})")
    return rows


def trained_as(run: Run) -> str:
    """What chooses of rates are made for: rule and learner with their options."""
    return repr([run.experiment.get("rule"), run.experiment.get("learner")])


def _learns(run: Run) -> bool:
    """Whether it has a learning rate, and any parameter learns."""
    factors = (run.experiment.get("start") or {}).get("rates") or {"*": 1.0}
    return "lr" in run.experiment and any(factors.values())
