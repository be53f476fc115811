"""Evaluations under attack that may be compared: those of one setting and protocol."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from apical.bench.report.evaluations import Evaluated
from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.published import Published
from apical.bench.report.read import Row, Study
from apical.bench.report.table import flatten, text
from apical.bench.storage.records import Record, grouped
from apical.measure import robustness_verdict, statistics
from apical.measure.robustness_verdict import Estimate

NORMS = {
    "linf": "every input value may change by at most the radius",
    "flips": "as many binary events as the radius says may be added or removed",
    "l1": "the changes of all input values, in sum, are at most the radius",
    "l2": "the change of all input values together, as a Euclidean length, is at most the radius",
}

Value = Callable[[Any], float | None]
"""A share that one evaluated net keeps, None where it was not measured."""


@dataclass(frozen=True)
class Section:
    """Finished evaluations of one setting and protocol, in the order of study.json; `listed` are
    those that are not finished too, `trained` the rows of the setting by rule, of a study."""

    setting: str
    heading: str
    evaluations: tuple[Any, ...]
    listed: tuple[Evaluated, ...]
    published: tuple[Published, ...] = ()
    trained: Mapping[str, Row] = field(default_factory=dict)

    @property
    def rules(self) -> list[str]:
        return list(dict.fromkeys(net.rule for net in self.evaluations))

    @property
    def baseline(self) -> str | None:
        return next(filter(is_baseline, self.rules), None)

    @property
    def radii(self) -> list[float]:
        return sorted({eps for net in self.evaluations for eps in net.radii})

    @property
    def described(self) -> Record:
        return self.evaluations[0].described

    @property
    def clean(self) -> Record:
        """The row of the first net without attack: how many images, classes, bits."""
        return self.evaluations[0].clean

    @property
    def norm(self) -> str:
        """What an attack may do."""
        name = self.clean.get("norm", self.described.get("norm"))
        return NORMS.get(str(name), f"norm {name}")

    def of(self, rule: str) -> dict[int, Any]:
        """The nets of a rule by seed."""
        return {net.seed: net for net in self.evaluations if net.rule == rule}

    def of_kind(self, rule: str, kind: str) -> list[Record]:
        """The rows of a kind of all nets of a rule."""
        return [row for net in self.of(rule).values() for row in net.of_kind(kind)]

    def rows(self, rule: str, kind: str, **fields: Any) -> dict[int, Record]:
        """The row with these fields of each net of a rule, by seed; nets without it are left
        out."""
        rows = {seed: net.find(kind, **fields) for seed, net in self.of(rule).items()}
        return {seed: row for seed, row in rows.items() if row}

    def shares(self, rule: str, value: Value) -> dict[int, float]:
        """A value of each net of a rule, by seed; nets without it are left out."""
        shares = {seed: value(net) for seed, net in self.of(rule).items()}
        return {seed: share for seed, share in shares.items() if share is not None}

    def estimate(
        self,
        rule: str,
        value: Value,
        images: int | None = None,
        bounds: tuple[float, float] | None = None,
    ) -> Estimate | None:
        """Mean over the nets of a rule of a value of each, those without it left out.

        Args: images: how many the values are over, None for all. bounds: the interval of a single
            net where it is known.
        """
        examples = images or self.clean.get("examples", self.clean.get("queries", 0))
        return robustness_verdict.estimate(self.shares(rule, value), examples, bounds)

    def difference(
        self, rule: str, other: str, value: Value, others: Value | None = None
    ) -> Estimate | None:
        """Of two rules on the same seeds, in points.     Args: others: value of the other one."""
        ours, theirs = self.shares(rule, value), self.shares(other, others or value)
        runs, others_runs = (
            {net.place.partition("/")[0] for net in self.of(each).values()}
            for each in (rule, other)
        )
        noise = self.noise(ours) + self.noise(theirs)
        if runs == others_runs and ours == theirs:  # of the same nets there is no chance
            noise = 0.0
        return robustness_verdict.difference(ours, theirs, noise)

    def minus_baseline(self, rule: str, value: Value) -> Estimate | None:
        """Minus backprop on the same seeds; None for backprop and where it is missing."""
        if self.baseline is None or is_baseline(rule):
            return None
        return self.difference(rule, self.baseline, value)

    def differing(self, rules: Iterable[str], value: Value) -> set[str]:
        """The rules that differ from backprop by a paired t test, Holm-corrected, 5 %; those that
        share fewer than two seeds with it are not tested."""
        if self.baseline is None:
            return set()
        samples = {rule: self.shares(rule, value) for rule in {*rules, self.baseline}}
        seeds = samples[self.baseline].keys()
        samples = {rule: own for rule, own in samples.items() if len(own.keys() & seeds) > 1}
        if self.baseline not in samples:
            return set()
        noise = {rule: self.noise(shares) for rule, shares in samples.items()}
        return statistics.differing_from(self.baseline, samples, noise=noise)

    def noise(self, shares: Mapping[int, float]) -> float:
        """Variance of one net's share over the examples measured; of a mean of average precisions,
        which lie in [0, 1] too, an upper bound."""
        examples = self.clean.get("examples", self.clean.get("queries", 0))
        if not shares or not examples:
            return 0.0
        return statistics.binomial_variance(sum(shares.values()) / len(shares), examples)

    def settings(self) -> dict[str, str]:
        """The fields of all nets, with every value there is; the list of runs has their names."""
        fields = [flatten(net.described) for net in self.evaluations]
        keys = dict.fromkeys(key for of_net in fields for key in of_net if key != "net")
        return {k: ", ".join(dict.fromkeys(text(each.get(k)) for each in fields)) for k in keys}


@dataclass(frozen=True)
class Line:
    """A rule of a section at one radius: what is left there by column, and differences.

    Attributes: values: estimates in % or points; None, or absent, where not measured. differs:
        whether the worst case differs from backprop's on the same seeds by a paired t test,
        Holm-corrected over the rules, 5 %. word: the verdict on the own gradient.
    """

    section: Section
    rule: str
    eps: float
    values: Mapping[str, Any]
    differs: bool = False
    word: str = ""

    def __getitem__(self, name: str) -> Any:
        return self.values[name]

    @property
    def setting(self) -> str:
        return self.section.heading

    @property
    def n(self) -> int:
        """Nets evaluated at this radius."""
        return sum(self.eps in net.radii for net in self.section.of(self.rule).values())

    @property
    def planned(self) -> int:
        return len({net.seed for net in self.section.listed if net.rule == self.rule})


def sections(
    evaluations: Sequence[Evaluated], published: Sequence[Published] = ()
) -> list[Section]:
    """Finished evaluations by setting and protocol. Of two of the same net the last one counts."""
    groups: dict[tuple[str, ...], dict[tuple[str, int], Evaluated]] = {}
    for net in evaluations:
        if net.status == "finished":
            groups.setdefault((net.setting, *net.protocol), {})[net.rule, net.seed] = net
    made = []
    for (setting, *protocol), group in groups.items():
        others = [other for other in groups if other[0] == setting]
        names = next(iter(group.values())).compared
        differing = [
            f"{name} {value}"
            for place, (name, value) in enumerate(zip(names, protocol, strict=True), 1)
            if len({other[place] for other in others}) > 1
        ]
        heading = setting if len(others) == 1 else f"{setting} · {', '.join(differing)}"
        # those without a setting.json may be of this protocol
        listed = [
            net
            for net in evaluations
            if net.setting == setting and (not net.described or [*net.protocol] == protocol)
        ]
        values = tuple(row for row in published if row.setting == setting)
        made.append(Section(setting, heading, tuple(group.values()), tuple(listed), values))
    return made


def of_study(study: Study) -> list[Section]:
    """The sections of robustness, with the published values."""
    return [
        replace(each, trained={row.rule: row for row in study.rows_of(each.setting)})
        for each in sections(study.robustness, study.robust_published)
    ]


def superseded(evaluations: Sequence[Evaluated]) -> list[Evaluated]:
    """Finished evaluations in whose place the tables show another of the same net and protocol."""
    shown = {id(net) for section in sections(evaluations) for net in section.evaluations}
    return [net for net in evaluations if net.status == "finished" and id(net) not in shown]


def unfinished(evaluations: Sequence[Evaluated]) -> list[Evaluated]:
    return [net for net in evaluations if net.status != "finished"]


def missing(evaluations: Sequence[Evaluated]) -> list[str]:
    """What has not finished, a line for each rule, status and reason: "digits, FA, seeds 1, 2:
    unfinished · 3 attacks done"."""
    groups = grouped(
        unfinished(evaluations), lambda net: (net.setting, net.rule, net.status, net.reason)
    )
    return [
        f"{setting}, {display_name(rule)}, seed{'s' * (len(nets) > 1)} "
        f"{', '.join(str(net.seed) for net in nets)}: {status}{' · ' * bool(reason)}{reason}"
        for (setting, rule, status, reason), nets in groups.items()
    ]


def uncompared(rows: Iterable[Line], difference: str) -> str:
    """Rules that share fewer than two seeds with backprop, in a sentence; "" for none.

    Args: difference: to backprop, as the rows call it.
    """
    rules = [
        display_name(row.rule)
        for row in rows
        if not is_baseline(row.rule) and (row[difference] is None or row[difference].n < 2)
    ]
    start = " Not compared, fewer than two seeds in common with BP: "
    return f"{start}{', '.join(rules)}." * bool(rules)


def means(rows: Sequence[Mapping[str, Any]], keys: Iterable[str]) -> dict[str, float | None]:
    """Means over nets; None for what not every net has."""
    return {
        key: sum(row[key] for row in rows) / len(rows) if all(key in row for row in rows) else None
        for key in keys
    }
