"""The robustness of each rule: headline at a radius, course over the radius, verdict."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from apical.bench.report import robust_stats
from apical.bench.report.names import is_baseline
from apical.bench.report.robust_read import Evaluation, PublishedRobustness
from apical.bench.report.robust_section import Section, Value, attack_share, near
from apical.bench.report.robust_stats import Difference, Estimate, RuleVerdict
from apical.measure import statistics

LINES = ("own", "averaged", "exact", "transfer", "black box", "noise", "worst")
"""Kinds of attack that are followed over the radius, the protocol of the papers first."""

Lines = Mapping[str, Mapping[float, Estimate]]
"""Kind of attack -> radius -> robust accuracy."""


@dataclass(frozen=True)
class Headline:
    """A rule at one radius. Accuracies in %, differences in points; None where not measured.

    Attributes: planned: nets that were to be evaluated. own, exact: worst case per image over the
        attacks by that gradient, the same attacks for both; worst: over everything tried.
        against_bp: worst case minus that of backprop on the same seeds; told_apart: whether they
        differ by a paired t test, Holm-corrected over the rules, 5 %. published: the lowest
        published accuracy under attacks by the own gradient at this radius.
    """

    rule: str
    eps: float
    n: int
    planned: int
    clean: Estimate
    noise: Estimate | None
    own: Estimate
    exact: Estimate
    worst: Estimate
    gap: Difference
    against_bp: Difference | None
    verdict: RuleVerdict
    published: PublishedRobustness | None
    told_apart: bool = False


def headline_radius(section: Section) -> float:
    """The radius at which backprop's nets (else all) keep nearest to half of their accuracy in the
    worst case, the smaller of two: neither floor nor ceiling. What own gradients find has no say.
    """
    judged = [r for r in section.rules if is_baseline(r)] or section.rules
    nets = [each for each in section.evaluations if each.rule in judged]
    half = sum(each.clean["accuracy"] for each in nets) / 2
    distances = {}
    for eps in section.radii:
        worst = [each.at("worst", eps).get("accuracy") for each in nets]
        known = [share for share in worst if share is not None]
        if len(known) == len(nets):
            distances[eps] = abs(sum(known) - half)
    return min(distances or section.radii, key=lambda eps: distances.get(eps, 0.0))


def headlines(section: Section, eps: float) -> list[Headline]:
    """The rules at one radius; those without evaluations at it are left out."""
    rows = [_headline(section, rule, eps) for rule in section.rules]
    return _compared(section, [row for row in rows if row is not None])


def headlines_of_rule(section: Section, rule: str) -> list[Headline]:
    """A rule at every radius it was evaluated at."""
    found = [_headline(section, rule, eps) for eps in section.radii]
    return [line for line in found if line is not None]


def verdict(section: Section, rule: str) -> RuleVerdict:
    """The verdict on a rule, from all radii."""
    nets = section.of(rule)
    gaps = {
        eps: {seed: row for seed, each in nets.items() if (row := each.at("gap", eps))}
        for eps in section.radii
    }
    audits = [row for each in nets.values() for row in each.of_kind("audit")]
    words = [row["verdict"] for each in nets.values() for row in each.of_kind("verdict")]
    return robust_stats.verdict({eps: rows for eps, rows in gaps.items() if rows}, audits, words)


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


def pixels(section: Section) -> dict[str, dict[int, Estimate]]:
    """Robust accuracy by rule and number of pixels that may change; rules without are left out."""
    found: dict[str, dict[int, Estimate]] = {}
    for rule in section.rules:
        rows = [
            row
            for net in section.of(rule).values()
            for row in net.of_kind("attack")
            if (row["group"], row["on"]) == ("pixels", "all")
        ]
        for row in sorted(rows, key=lambda row: row["eps"]):
            value = partial(attack_share, group="pixels", attack=row["attack"], eps=row["eps"])
            share = section.estimate(rule, value, row.get("examples"))
            if share is not None:
                found.setdefault(rule, {})[round(row["eps"])] = share
    return found


def _headline(section: Section, rule: str, eps: float) -> Headline | None:
    def share(kind: str, key: str) -> Value:
        return lambda each: each.at(kind, eps).get(key)

    nets = {seed: each for seed, each in section.of(rule).items() if each.at("worst", eps)}
    own, exact, worst = (
        section.estimate(rule, share(*which))
        for which in (("gap", "own"), ("gap", "exact"), ("worst", "accuracy"))
    )
    clean = section.estimate(rule, lambda each: each.clean["accuracy"])
    apart = robust_stats.gap({seed: each.at("gap", eps) for seed, each in nets.items()})
    if own is None or exact is None or worst is None or clean is None or apart is None:
        return None
    return Headline(
        rule=rule,
        eps=eps,
        n=len(nets),
        planned=len({each.seed for each in section.listed if each.rule == rule}),
        clean=clean,
        noise=section.estimate(rule, partial(_line, kind="noise", eps=eps)),
        own=own,
        exact=exact,
        worst=worst,
        gap=apart,
        against_bp=_against_bp(section, rule, share("worst", "accuracy")),
        verdict=verdict(section, rule),
        published=_published(section, rule, eps),
    )


def _compared(section: Section, rows: Sequence[Headline]) -> list[Headline]:
    """The rows with `told_apart` filled in, for which all of them are needed."""
    baseline = next((row for row in rows if is_baseline(row.rule)), None)
    if baseline is None:
        return list(rows)

    def worst(row: Headline) -> dict[int, float]:
        return section.shares(row.rule, lambda each: each.at("worst", row.eps).get("accuracy"))

    others = [row for row in rows if row is not baseline]
    found = [statistics.difference_p(worst(row), worst(baseline)) for row in others]
    corrected = statistics.holm([1.0 if p is None else p for p in found])
    apart = {row.rule for row, p in zip(others, corrected, strict=True) if p < 0.05}
    return [replace(row, told_apart=row.rule in apart) for row in rows]


def _against_bp(section: Section, rule: str, value: Value) -> Difference | None:
    baseline = next((other for other in section.rules if is_baseline(other)), None)
    if baseline is None or is_baseline(rule):
        return None
    return robust_stats.difference(section.shares(rule, value), section.shares(baseline, value))


def _published(section: Section, rule: str, eps: float) -> PublishedRobustness | None:
    rows = [
        row
        for row in section.published
        if (row.rule, row.group) == (rule, "own") and near(row.eps, eps)
    ]
    return min(rows, key=lambda row: row.accuracy, default=None)


def _line(evaluation: Evaluation, *, kind: str, eps: float) -> float | None:
    if kind in ("own", "exact"):
        return evaluation.at("gap", eps).get(kind)
    if kind == "worst":
        return evaluation.at("worst", eps).get("accuracy")
    shares = [
        row["accuracy"]
        for row in evaluation.of_kind("attack")
        if (row["group"], row["eps"], row["on"]) == (kind, eps, "all")
    ]
    return min(shares, default=None)
