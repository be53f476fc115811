"""The robustness of each rule: at a radius, over it, by gradient, beside published values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from apical.bench.report.evaluations import Robustness
from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.robust_read import FULL_TIER, PublishedRobustness
from apical.bench.report.sections import Section, Value, attack_row, attack_share, near
from apical.measure import robustness_verdict, statistics
from apical.measure.robustness_verdict import MASKED, Estimate, RuleVerdict

LINES = ("own", "averaged", "exact", "transfer", "black box", "noise", "worst")
"""Kinds of attack that are followed over the radius, the protocol of the papers first."""

READ = 1.0
"""Points to which published values are known: most were read off curves."""

Lines = Mapping[str, Mapping[float, Estimate]]
"""Kind of attack -> radius -> robust accuracy."""


@dataclass(frozen=True)
class Headline:
    """A rule at one radius. Accuracies in %, differences in points; None where not measured.

    Attributes: planned: nets that were to be evaluated. own, exact: worst case per image over the
        attacks by that gradient, the same attacks for both; worst: over everything tried.
        against_bp: worst case minus that of backprop on the same seeds; differs: whether they
        differ by a paired t test, Holm-corrected over the rules, 5 %. published: the lowest
        published accuracy under attacks by the own gradient at this radius.
    """

    setting: str
    rule: str
    eps: float
    n: int
    planned: int
    clean: Estimate
    noise: Estimate | None
    own: Estimate
    exact: Estimate
    worst: Estimate
    gap: Estimate
    against_bp: Estimate | None
    verdict: RuleVerdict
    published: PublishedRobustness | None
    differs: bool


def worst(eps: float) -> Value:
    """The accuracy that everything tried leaves at a radius."""
    return lambda net: net.at("worst", eps).get("accuracy")


def clean(net: Robustness) -> float:
    return float(net.clean["accuracy"])


def headline_radius(section: Section) -> float:
    """The radius at which backprop's nets (else all) keep nearest to half of their accuracy in the
    worst case, the smaller of two: neither floor nor ceiling. What own gradients find has no say.
    """
    judged = [section.baseline] if section.baseline else section.rules
    nets = [each for each in section.evaluations if each.rule in judged]
    half = sum(map(clean, nets)) / 2
    distances = {}
    for eps in section.radii:
        known = [share for net in nets if (share := worst(eps)(net)) is not None]
        if len(known) == len(nets):
            distances[eps] = abs(sum(known) - half)
    return min(distances or section.radii, key=lambda eps: distances.get(eps, 0.0))


def headlines(section: Section, eps: float) -> list[Headline]:
    """The rules at one radius; those without evaluations at it are left out."""
    rules = [rule for rule in section.rules if section.shares(rule, worst(eps))]
    differing = section.differing(rules, worst(eps))
    found = [_headline(section, rule, eps, differing=rule in differing) for rule in rules]
    return [line for line in found if line is not None]


def _headline(section: Section, rule: str, eps: float, *, differing: bool) -> Headline | None:
    nets = {seed: each for seed, each in section.of(rule).items() if each.at("worst", eps)}
    own = section.estimate(rule, partial(_line, kind="own", eps=eps))
    exact = section.estimate(rule, partial(_line, kind="exact", eps=eps))
    least = section.estimate(rule, worst(eps))
    before = section.estimate(rule, clean)
    gap = robustness_verdict.gap({seed: each.at("gap", eps) for seed, each in nets.items()})
    if own is None or exact is None or least is None or before is None or gap is None:
        return None
    published = [
        row
        for row in section.published
        if (row.rule, row.group) == (rule, "own") and near(row.eps, eps)
    ]
    return Headline(
        setting=section.heading,
        rule=rule,
        eps=eps,
        n=len(nets),
        planned=section.planned(rule),
        clean=before,
        noise=section.estimate(rule, partial(_line, kind="noise", eps=eps)),
        own=own,
        exact=exact,
        worst=least,
        gap=gap,
        against_bp=section.minus_baseline(rule, worst(eps)),
        verdict=verdict(section, rule),
        published=min(published, key=lambda row: row.accuracy, default=None),
        differs=differing,
    )


def verdict(section: Section, rule: str) -> RuleVerdict:
    """The verdict on a rule, from all radii."""
    nets = section.of(rule)
    gaps = {
        eps: {seed: row for seed, each in nets.items() if (row := each.at("gap", eps))}
        for eps in section.radii
    }
    audits = [row for each in nets.values() for row in each.of_kind("audit")]
    words = [row["verdict"] for each in nets.values() for row in each.of_kind("verdict")]
    return robustness_verdict.verdict(
        {eps: rows for eps, rows in gaps.items() if rows}, audits, words
    )


def lines(section: Section, rule: str) -> Lines:
    """Robust accuracy over the radius, by kind of attack; kinds that were not run are left out.

    Of several transfer sources or black boxes the strongest counts, net by net.
    """
    found = {
        kind: {
            eps: share
            for eps in section.radii
            if (share := section.estimate(rule, partial(_line, kind=kind, eps=eps))) is not None
        }
        for kind in LINES
    }
    return {kind: values for kind, values in found.items() if values}


def _line(net: Robustness, *, kind: str, eps: float) -> float | None:
    if kind in ("own", "exact"):
        return net.at("gap", eps).get(kind)
    if kind == "worst":
        return worst(eps)(net)
    shares = [
        row["accuracy"]
        for row in net.of_kind("attack")
        if (row["group"], row["eps"], row["on"]) == (kind, eps, "all")
    ]
    return min(shares, default=None)


def pixels(section: Section) -> dict[str, dict[int, Estimate]]:
    """Robust accuracy by rule and number of pixels that may change; rules without are left out."""
    found: dict[str, dict[int, Estimate]] = {}
    for rule in section.rules:
        rows = [row for net in section.of(rule).values() for row in net.of_kind("attack")]
        rows = [row for row in rows if (row["group"], row["on"]) == ("pixels", "all")]
        for row in sorted(rows, key=lambda row: row["eps"]):
            value = partial(attack_share, group="pixels", attack=row["attack"], eps=row["eps"])
            share = section.estimate(rule, value, row.get("examples"))
            if share is not None:
                found.setdefault(rule, {})[round(row["eps"])] = share
    return found


# Against published values


@dataclass(frozen=True)
class Compared:
    """A published robust accuracy in % and ours: under the same attack by the gradient it was
    published for, and by the exact gradient of the same weights."""

    published: PublishedRobustness
    ours: Estimate
    exact: Estimate | None
    verdict: statistics.Verdict

    @property
    def rule(self) -> str:
        return self.published.rule

    @property
    def difference(self) -> float:
        """Ours minus published, in points."""
        return self.ours.mean - self.published.accuracy


def compared(section: Section, tier: str) -> list[Compared]:
    """Published values at radii and under attacks that were run; judged in tier full only."""
    found = []
    for row in section.published:
        which: dict[str, Any] = {"attack": row.attack, "eps": row.eps}
        shares = section.shares(row.rule, partial(attack_share, group=row.group, **which))
        rows = (attack_row(e, group=row.group, **which) for e in section.of(row.rule).values())
        # few-pixel attacks take a part of the images
        images = next((r["examples"] for r in rows if "examples" in r), section.clean["examples"])
        ours = robustness_verdict.estimate(shares, images)
        if ours is None:
            continue
        scale = row.other_scale
        if not scale and tier != FULL_TIER:
            scale = f"tier {tier}, not the published protocol"
        judged = statistics.verdict(
            statistics.summarize([100 * share for share in shares.values()]),
            row.accuracy,
            other_scale=scale,
            published_n=row.n,
            least=READ,
        )
        exact = section.estimate(row.rule, partial(attack_share, group="exact", **which))
        found.append(Compared(row, ours, exact if row.group == "own" else None, judged))
    return found


# Rule of training by rule of the attack's gradient


@dataclass(frozen=True)
class Heat:
    """Robust accuracy in %, nets of one rule of training (row) attacked by the gradient of another
    rule on the same weights (column).

    Attributes: cells: by (row, column), None where it was not run. own: cells attacked by the
        gradient that the net was trained with, not resampled feedback.
    """

    attack: str
    eps: float
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Estimate]
    own: frozenset[tuple[str, str]]

    @property
    def has_baseline(self) -> bool:
        """Whether the first row is that of backprop's weights."""
        return is_baseline(self.rows[0])

    @property
    def conclusion(self) -> str:
        """What the row of backprop's weights shows; "" where it shows no gap or is missing."""
        row = self.rows[0]
        cells = {c: self.cells[row, c] for c in self.columns if (row, c) in self.cells}
        exact = cells.pop(self.columns[0], None)
        if not self.has_baseline or exact is None or not cells:
            return ""
        rule, highest = max(cells.items(), key=lambda item: item[1].mean)
        if highest.mean - exact.mean <= MASKED:
            return ""
        return (
            f"Weights that backprop trained keep {highest.mean:.1f} % when the attack follows "
            f"{display_name(rule)}'s backward pass, and {exact.mean:.1f} % under the exact "
            "gradient: that robustness belongs to the attacker's gradient, not to the weights."
        )

    def title(self, column: str) -> str:
        """A rule as the head of its column."""
        name = display_name(column)
        return f"{name} (exact)" if column == self.columns[0] else name


def heats(section: Section, eps: float) -> list[Heat]:
    """Rule of training by rule of the attack's gradient, one per attack that was run so."""
    tried: dict[str, dict[str, None]] = {}
    for net in section.evaluations:
        for row in net.of_kind("attack"):
            if (row["group"], row["eps"], row["on"]) == ("rule", eps, "all"):
                tried.setdefault(row["attack"], {})[row["source"].removeprefix("rule:")] = None
    return [_heat(section, eps, attack, list(sources)) for attack, sources in tried.items()]


def _heat(section: Section, eps: float, attack: str, tried: Sequence[str]) -> Heat:
    rows = sorted(section.rules, key=lambda rule: not is_baseline(rule))
    columns = _columns(rows, tried)
    cells = {}
    for row in rows:
        for column in columns:
            share = partial(_crossed, attack=attack, eps=eps, column=column, own=row == column)
            found = section.estimate(row, share)
            if found is not None:
                cells[row, column] = found
    own = frozenset((row, row) for row in rows if (row, row) in cells)
    return Heat(attack, eps, tuple(rows), columns, cells, own)


def _columns(rules: Iterable[str], tried: Sequence[str]) -> tuple[str, ...]:
    """Backprop's exact gradient first, then the rules in the order of the rows."""
    known = [rule for rule in rules if rule in tried or is_baseline(rule)]
    other = [rule for rule in tried if rule not in known and not is_baseline(rule)]
    first = [] if any(map(is_baseline, known)) else ["bp"]
    return (*first, *known, *other)


def _crossed(net: Any, *, attack: str, eps: float, column: str, own: bool) -> float | None:
    if own:
        return attack_share(net, group="own", attack=attack, eps=eps)
    if is_baseline(column):
        return attack_share(net, group="exact", attack=attack, eps=eps)
    return attack_share(net, group="rule", attack=attack, eps=eps, source=f"rule:{column}")
