"""The robustness of each rule: at a radius, over it, by gradient, against published values; and the
figures of it."""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from apical.bench.report.colours import INK, LOOKS, SOFT, SPARE, line_style
from apical.bench.report.evaluations import Robustness
from apical.bench.report.names import counts, display_name, is_baseline
from apical.bench.report.published import Published
from apical.bench.report.read import Study
from apical.bench.report.render import Group, Panel
from apical.bench.report.sections import Line, Section, Value, of_study
from apical.bench.storage.records import Record
from apical.measure import robustness_verdict, statistics
from apical.measure.robustness_verdict import MASKED, Estimate, RuleVerdict, radius

KINDS = {
    "own": ("own gradient, the papers' protocol", LOOKS["fa"]),
    "averaged": ("own gradient, averaged over redraws", LOOKS["kp"]),
    "exact": ("exact gradient of the same weights", replace(LOOKS["usf"], dash=(4, 2))),
    "transfer": ("transferred from another net", LOOKS["wm"]),
    "black box": ("black box, no gradient at all", replace(LOOKS["frsf"], dash=(1, 1))),
    "noise": ("random noise", SPARE[0]),
    "worst": ("worst case of everything tried", replace(LOOKS["bp"], light=INK)),
}
"""Kinds of attack that are followed over the radius, the protocol of the papers first: in words,
and how they are drawn."""

SHOWN = ("noise", "own", "exact", "worst")
"""Kinds of attack in the table of a radius. Own, exact: worst case per image over the attacks by
that gradient, the same attacks for both; worst: over everything tried."""

READ = 1.0
"""Points to which published values are known: most were read off curves."""

SAME_RADIUS = 1e-3
"""Relative difference up to which a published radius, rounded for print, is taken for ours."""

MOST_RADII = 4
"""Radii that have a table of their own on the page, evenly spaced; all are in the CSV."""

Lines = Mapping[str, Mapping[float, Estimate]]
"""Kind of attack -> radius -> robust accuracy."""


def worst(eps: float) -> Value:
    """The accuracy that everything tried leaves at a radius."""
    return partial(left, kind="worst", eps=eps)


def clean(net: Robustness) -> float:
    return float(net.clean["accuracy"])


def left(net: Robustness, *, kind: str, eps: float) -> float | None:
    """The accuracy that a kind of attack leaves, see `KINDS`; of several transfer sources or black
    boxes the strongest."""
    if kind in ("own", "exact"):
        return net.find("gap", eps=eps).get(kind)
    if kind == "worst":
        return net.find("worst", eps=eps).get("accuracy")
    wanted = {"group": kind, "eps": eps, "on": "all"}.items()
    shares = [row["accuracy"] for row in net.of_kind("attack") if wanted <= row.items()]
    return min(shares, default=None)


def attack_row(
    net: Any, *, group: str, attack: str, eps: float, source: str | None = None
) -> Record:
    """The row of an attack on all images, {} where it was not run."""
    for row in net.of_kind("attack"):
        same = (row["group"], row["attack"], row["on"]) == (group, attack, "all")
        if same and near(row["eps"], eps) and source in (None, row["source"]):
            return row
    return {}


def attack_share(net: Any, **which: Any) -> float | None:
    """Robust accuracy under one attack on all images, None where it was not run."""
    return attack_row(net, **which).get("accuracy")


def near(eps: float, other: float) -> bool:
    return abs(eps - other) <= SAME_RADIUS * other


def headline_radius(section: Section) -> float:
    """The radius at which backprop's nets (else all) keep nearest to half of their accuracy in the
    worst case, the smaller of two: neither floor nor ceiling. Own gradients do not count.
    """
    judged = [section.baseline] if section.baseline else section.rules
    nets = [net for net in section.evaluations if net.rule in judged]
    half = sum(map(clean, nets)) / 2
    distances = {}
    for eps in section.radii:
        shares = [share for net in nets if (share := worst(eps)(net)) is not None]
        if len(shares) == len(nets):
            distances[eps] = abs(sum(shares) - half)
    return min(distances or section.radii, key=lambda eps: distances.get(eps, 0.0))


def headlines(section: Section, eps: float) -> list[Line]:
    """The rules at one radius; those without evaluations at it are left out.

    The values are those of `SHOWN`, clean, gap (own minus exact) and against_bp (worst case minus
    that of backprop on the same seeds).
    """
    rules = [rule for rule in section.rules if section.shares(rule, worst(eps))]
    differing = section.differing(rules, worst(eps))
    lines = []
    for rule in rules:
        values = {
            "clean": section.estimate(rule, clean),
            **{kind: section.estimate(rule, partial(left, kind=kind, eps=eps)) for kind in SHOWN},
            "gap": robustness_verdict.gap(section.rows(rule, "gap", eps=eps)),
            "against_bp": section.minus_baseline(rule, worst(eps)),
        }
        if all(values[name] for name in ("own", "exact", "gap")):
            word = verdict(section, rule).word
            lines.append(Line(section, rule, eps, values, rule in differing, word))
    return lines


def published_at(line: Line) -> Published | None:
    """The lowest published accuracy under attacks by the own gradient at the radius of a line."""
    rows = [row for row in line.section.published if (row.rule, row.group) == (line.rule, "own")]
    same = [row for row in rows if near(row.eps, line.eps)]
    return min(same, key=lambda row: row.value, default=None)


def published_in(rows: Sequence[Line]) -> list[Published]:
    return [row for row in map(published_at, rows) if row]


def verdict(section: Section, rule: str) -> RuleVerdict:
    """The verdict on a rule, from all radii."""
    nets = {seed: net.rows for seed, net in section.of(rule).items()}
    return robustness_verdict.verdict_of(nets)


def lines(section: Section, rule: str) -> Lines:
    """Robust accuracy over the radius, by kind of attack; kinds that were not run are left out."""
    by_kind: dict[str, dict[float, Estimate]] = {}
    for kind in KINDS:
        for eps in section.radii:
            if share := section.estimate(rule, partial(left, kind=kind, eps=eps)):
                by_kind.setdefault(kind, {})[eps] = share
    return by_kind


def pixels(section: Section) -> dict[str, dict[int, Estimate]]:
    """Robust accuracy by rule and number of pixels that may change; rules without are left out."""
    by_rule: dict[str, dict[int, Estimate]] = {}
    for rule in section.rules:
        rows = section.of_kind(rule, "attack")
        rows = [row for row in rows if (row["group"], row["on"]) == ("pixels", "all")]
        for row in sorted(rows, key=lambda row: row["eps"]):
            value = partial(attack_share, group="pixels", attack=row["attack"], eps=row["eps"])
            if share := section.estimate(rule, value, row.get("examples")):
                by_rule.setdefault(rule, {})[round(row["eps"])] = share
    return by_rule


def compared(section: Section, tier: str) -> list[dict[str, Any]]:
    """Published values at radii and under attacks that were run, and ours; judged in tier full
    only.

    Returns: of each: rule, published, ours (under the same attack by the gradient it was published
        for), exact (by the exact gradient of the same weights), difference (ours minus published,
        in points) and verdict.
    """
    both = []
    for row in section.published:
        which: dict[str, Any] = {"attack": row.attack, "eps": row.eps}
        shares = section.shares(row.rule, partial(attack_share, group=row.group, **which))
        rows = (attack_row(e, group=row.group, **which) for e in section.of(row.rule).values())
        # few-pixel attacks take a part of the images
        images = next((r["examples"] for r in rows if "examples" in r), section.clean["examples"])
        ours = robustness_verdict.estimate(shares, images)
        if ours is None:
            continue
        mean = sum(shares.values()) / len(shares)
        judged = statistics.verdict(
            statistics.summarize([100 * share for share in shares.values()]),
            row.value,
            noise=1e4 * statistics.binomial_variance(mean, images),
            others=[
                other.value
                for other in section.published
                if (other.attack, other.eps, other.group) == (row.attack, row.eps, row.group)
            ],
            other_scale=row.scale(tier),
            published_n=row.n,
            least=READ,
        )
        if row.rule in section.trained:
            judged = section.trained[row.rule].fair(judged)
        exact = section.estimate(row.rule, partial(attack_share, group="exact", **which))
        values = {"rule": row.rule, "published": row, "ours": ours, "verdict": judged}
        values["exact"] = exact if row.group == "own" else None
        both.append(values | {"difference": ours.mean - row.value})
    return both


def unused(study: Study) -> int:
    """Published values of attacks or radii that were not run in a setting that was evaluated."""
    sections = of_study(study)
    settings = {section.setting for section in sections}
    used = {row["published"] for section in sections for row in compared(section, study.tier)}
    return sum(row.setting in settings and row not in used for row in study.robust_published)


@dataclass(frozen=True)
class Heat:
    """Robust accuracy in %, nets of one rule of training (row) attacked by the gradient of another
    rule on the same weights (column); where both are one rule, by the very feedback that the net
    was trained with.

    Attributes: cells: by (row, column), absent where it was not run.
    """

    attack: str
    eps: float
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    cells: Mapping[tuple[str, str], Estimate]

    @property
    def has_baseline(self) -> bool:
        """Whether the first row is that of backprop's weights."""
        return is_baseline(self.rows[0])

    @property
    def nets(self) -> str:
        """How many there are of a rule: "5", or "4 to 5"."""
        return counts(cell.n for cell in self.cells.values())

    @property
    def shown(self) -> str:
        """What backprop's weights keep along the backward pass of the rule that leaves most, and
        along the exact gradient; "" where either is missing, or their difference is small or by the
        intervals may be chance."""
        row = self.rows[0]
        cells = {c: self.cells[row, c] for c in self.columns if (row, c) in self.cells}
        exact = cells.pop(self.columns[0], None)
        if not self.has_baseline or exact is None or not cells:
            return ""
        rule, highest = max(cells.items(), key=lambda item: item[1].mean)
        low, high = highest.low, exact.high
        if highest.mean - exact.mean <= MASKED or low is None or high is None or low <= high:
            return ""
        return (
            f"{highest.mean:.1f} % when the attack follows {display_name(rule)}'s backward pass, "
            f"and {exact.mean:.1f} % under the exact gradient"
        )

    @property
    def conclusion(self) -> str:
        """What the row of backprop's weights shows; "" for nothing."""
        return whose([self.shown]) if self.shown else ""

    def title(self, column: str) -> str:
        """A rule as the head of its column."""
        return display_name(column) + " (exact)" * (column == self.columns[0])


def whose(shown: Iterable[str]) -> str:
    """What `Heat.shown` of each setting shows."""
    return (
        f"Weights that backprop trained keep {'; '.join(shown)}: that robustness belongs to the "
        "attacker's gradient, not to the weights."
    )


def heats(section: Section, eps: float) -> list[Heat]:
    """Rule of training by rule of the attack's gradient, one per attack that was run so.

    The exact gradient, which is backprop's, is the first column; then the rules in the order of the
    rows, and those of which no net was trained.
    """
    rows = sorted(section.rules, key=lambda rule: not is_baseline(rule))
    tried: dict[str, dict[str, None]] = {}
    for net in section.evaluations:
        for one in net.of_kind("attack"):
            if (one["group"], one["eps"], one["on"]) == ("rule", eps, "all"):
                tried.setdefault(one["attack"], {})[one["source"].removeprefix("rule:")] = None
    made = []
    for attack, sources in tried.items():
        others = [rule for rule in dict.fromkeys([*rows, *sources]) if rule in sources]
        columns = (section.baseline or "bp", *(rule for rule in others if not is_baseline(rule)))
        cells = {}
        for row, column in itertools.product(rows, columns):
            which = {"group": "rule", "source": f"rule:{column}"}
            if row == column:
                which = {"group": "own"}
            elif is_baseline(column):
                which = {"group": "exact"}
            share = partial(attack_share, attack=attack, eps=eps, **which)
            if cell := section.estimate(row, share):
                cells[row, column] = cell
        made.append(Heat(attack, eps, tuple(rows), columns, cells))
    return made


# Figures


def over_radius(section: Section) -> list[Group]:
    """Small multiples over the radius; none for a single one, which the table shows better."""
    if len(section.radii) < 2:
        return []

    def draw(axes: Any, *, shares: Lines, without: Any) -> None:
        """One line per kind of attack with its interval, from the clean accuracy at radius 0."""
        if classes := section.clean.get("classes"):
            axes.axhline(100 / classes, color=SOFT, linewidth=0.8, dashes=(2, 2))
        for kind in sorted(shares, key=lambda kind: kind != "worst"):  # what matters lies below
            every = {0.0: without, **shares[kind]}
            look, xs = KINDS[kind][1], list(every)
            style = line_style(look) | {"linewidth": 2.4 if kind == "worst" else 1.3}
            axes.plot(xs, [each.mean for each in every.values()], **style)
            low = [each.low for each in every.values()]
            high = [each.high for each in every.values()]
            axes.fill_between(xs, low, high, color=look.light, alpha=0.13, linewidth=0)
        axes.set_ylim(-2, 102)
        axes.set_xlim(0, 1.04 * section.radii[-1])
        axes.set_yticks([0, 25, 50, 75, 100])
        axes.locator_params(axis="x", nbins=5)
        axes.set_xlabel("radius ε", labelpad=2)
        axes.set_ylabel("robust accuracy, %", labelpad=2)

    panels = []
    kinds: set[str] = set()
    for rule in section.rules:
        shares, without = lines(section, rule), section.estimate(rule, clean)
        kinds |= shares.keys()
        title = f"{display_name(rule)}: {verdict(section, rule).word}"
        panels.append(Panel(title, partial(draw, shares=shares, without=without)))
    legend = tuple(KINDS[kind] for kind in KINDS if kind in kinds)
    heading = "Robust accuracy over the radius"
    return [Group("radius", heading, "", tuple(panels), (2.5, 1.9), legend=legend, columns=3)]


def crossed(heat: Heat, number: int) -> Group:
    """The table of rule by gradient, for print. number: from 1 on."""

    def draw(axes: Any) -> None:
        """The numbers on a scale from white (0 %) to full colour (100 %)."""
        from matplotlib.colors import LinearSegmentedColormap

        scale = LinearSegmentedColormap.from_list("heat", ["#ffffff", LOOKS["usf"].dark])
        for (row, column), cell in heat.cells.items():
            x, y = heat.columns.index(column), heat.rows.index(row)
            axes.fill_between([x, x + 1], y, y + 1, color=scale(cell.mean / 100), linewidth=0)
            axes.text(x + 0.5, y + 0.5, f"{cell.mean:.1f}", color=INK, ha="center", va="center",
                      fontweight="bold" if row == column else "normal")  # fmt: skip
        axes.set_xlim(0, len(heat.columns))
        axes.set_ylim(len(heat.rows), 0)
        titles = [heat.title(column) for column in heat.columns]
        axes.set_xticks([i + 0.5 for i in range(len(titles))], titles)
        axes.set_yticks([i + 0.5 for i in range(len(heat.rows))], map(display_name, heat.rows))
        axes.tick_params(length=0)
        axes.grid(visible=False)
        axes.set_xlabel("rule whose gradient the attack follows")
        axes.set_ylabel("rule of training")

    name = f"gradients-{number}" if number > 1 else "gradients"
    size = (1.2 + 0.62 * len(heat.columns), 0.7 + 0.34 * len(heat.rows))
    panels = (Panel(f"Robust accuracy, %, {heat.attack}", draw),)
    return Group(name, f"radius {radius(heat.eps)}", "", panels, size, (0.85, 0.45), columns=1)
