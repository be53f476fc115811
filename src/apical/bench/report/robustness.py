"""The robustness of each rule: at a radius, over it, by gradient, beside published values."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from apical.bench.report.evaluations import Robustness
from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.read import Published, Study
from apical.bench.report.sections import (
    Line,
    Section,
    Value,
    attack_row,
    attack_share,
    near,
    of_study,
)
from apical.measure import robustness_verdict, statistics
from apical.measure.robustness_verdict import MASKED, Estimate, RuleVerdict

LINES = ("own", "averaged", "exact", "transfer", "black box", "noise", "worst")
"""Kinds of attack that are followed over the radius, the protocol of the papers first."""

READ = 1.0
"""Points to which published values are known: most were read off curves."""

Lines = Mapping[str, Mapping[float, Estimate]]
"""Kind of attack -> radius -> robust accuracy."""

SHOWN = ("noise", "own", "exact", "worst")
"""Kinds of attack in the table of a radius. Own, exact: worst case per image over the attacks by
that gradient, the same attacks for both; worst: over everything tried."""


def worst(eps: float) -> Value:
    """The accuracy that everything tried leaves at a radius."""
    return partial(left, kind="worst", eps=eps)


def clean(net: Robustness) -> float:
    return float(net.clean["accuracy"])


def left(net: Robustness, *, kind: str, eps: float) -> float | None:
    """The accuracy that a kind of attack leaves, see `LINES`; of several transfer sources or black
    boxes the strongest."""
    if kind in ("own", "exact"):
        return net.find("gap", eps=eps).get(kind)
    if kind == "worst":
        return net.find("worst", eps=eps).get("accuracy")
    wanted = {"group": kind, "eps": eps, "on": "all"}.items()
    rows = [row["accuracy"] for row in net.of_kind("attack") if wanted <= row.items()]
    return min(rows, default=None)


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


def headlines(section: Section, eps: float) -> list[Line]:
    """The rules at one radius; those without evaluations at it are left out.

    The values are those of `SHOWN`, clean, gap (own minus exact) and against_bp (worst case minus
    that of backprop on the same seeds).
    """
    rules = [rule for rule in section.rules if section.shares(rule, worst(eps))]
    differing = section.differing(rules, worst(eps))
    made = []
    for rule in rules:
        gaps = {
            seed: row for seed, net in section.of(rule).items() if (row := net.find("gap", eps=eps))
        }
        values = {
            "clean": section.estimate(rule, clean),
            **{kind: section.estimate(rule, partial(left, kind=kind, eps=eps)) for kind in SHOWN},
            "gap": robustness_verdict.gap(gaps),
            "against_bp": section.minus_baseline(rule, worst(eps)),
        }
        if all(values[name] for name in ("own", "exact", "gap")):
            word = verdict(section, rule).word
            made.append(Line(section, rule, eps, values, rule in differing, word))
    return made


def published_at(line: Line) -> Published | None:
    """The lowest published accuracy under attacks by the own gradient at the radius of a line."""
    rows = [row for row in line.section.published if (row.rule, row.group) == (line.rule, "own")]
    same = [row for row in rows if near(row.eps, line.eps)]
    return min(same, key=lambda row: row.value, default=None)


def verdict(section: Section, rule: str) -> RuleVerdict:
    """The verdict on a rule, from all radii."""
    gaps: dict[float, dict[int, Any]] = {}
    for eps in section.radii:
        for seed, net in section.of(rule).items():
            if row := net.find("gap", eps=eps):
                gaps.setdefault(eps, {})[seed] = row
    words = [row["verdict"] for row in section.of_kind(rule, "verdict")]
    return robustness_verdict.verdict(gaps, section.of_kind(rule, "audit"), words)


def lines(section: Section, rule: str) -> Lines:
    """Robust accuracy over the radius, by kind of attack; kinds that were not run are left out."""
    found: dict[str, dict[float, Estimate]] = {}
    for kind in LINES:
        for eps in section.radii:
            share = section.estimate(rule, partial(left, kind=kind, eps=eps))
            if share is not None:
                found.setdefault(kind, {})[eps] = share
    return found


def pixels(section: Section) -> dict[str, dict[int, Estimate]]:
    """Robust accuracy by rule and number of pixels that may change; rules without are left out."""
    found: dict[str, dict[int, Estimate]] = {}
    for rule in section.rules:
        rows = section.of_kind(rule, "attack")
        rows = [row for row in rows if (row["group"], row["on"]) == ("pixels", "all")]
        for row in sorted(rows, key=lambda row: row["eps"]):
            value = partial(attack_share, group="pixels", attack=row["attack"], eps=row["eps"])
            share = section.estimate(rule, value, row.get("examples"))
            if share is not None:
                found.setdefault(rule, {})[round(row["eps"])] = share
    return found


def published_in(rows: Sequence[Line]) -> list[Published]:
    return [row for row in map(published_at, rows) if row]


@dataclass(frozen=True)
class Compared:
    """A published robust accuracy in % and ours: under the same attack by the gradient it was
    published for, and by the exact gradient of the same weights."""

    published: Published
    ours: Estimate
    exact: Estimate | None
    verdict: statistics.Verdict

    @property
    def rule(self) -> str:
        return self.published.rule

    @property
    def difference(self) -> float:
        """Ours minus published, in points."""
        return self.ours.mean - self.published.value


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
        judged = statistics.verdict(
            statistics.summarize([100 * share for share in shares.values()]),
            row.value,
            other_scale=row.scale(tier),
            published_n=row.n,
            least=READ,
        )
        exact = section.estimate(row.rule, partial(attack_share, group="exact", **which))
        found.append(Compared(row, ours, exact if row.group == "own" else None, judged))
    return found


def unused(study: Study) -> int:
    """Published values of attacks or radii that were not run in a setting that was evaluated."""
    found = of_study(study)
    settings = {section.setting for section in found}
    published = sum(row.setting in settings for row in study.robust_published)
    return published - sum(len(compared(section, study.tier)) for section in found)


def sources(found: Iterable[Section]) -> list[str]:
    """Where the published values come from."""
    return list(dict.fromkeys(row.source for section in found for row in section.published))


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
            share = partial(attack_share, attack=attack, eps=eps, **_source(row, column))
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


def _source(row: str, column: str) -> dict[str, str]:
    """The attacks of a cell: by the gradient a net was trained with, by the exact one, or by that
    of another rule."""
    if row == column:
        return {"group": "own"}
    return (
        {"group": "exact"} if is_baseline(column) else {"group": "rule", "source": f"rule:{column}"}
    )
