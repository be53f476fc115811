"""Figures of robustness: accuracy over the radius, and whose gradient an attack followed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from apical.bench.report.looks import INK, LOOKS, SOFT, SPARE, Look, line_style
from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.render import Group, Panel
from apical.bench.report.robust_section import Section, attack_share
from apical.bench.report.robust_stats import MASKED, Estimate
from apical.bench.report.robust_table import LINES, Lines, lines, verdict

LOOK = {
    "own": Look(LOOKS["fa"].light, LOOKS["fa"].dark, (5, 1.5), "s"),
    "averaged": Look(LOOKS["kp"].light, LOOKS["kp"].dark, (3, 1), "X"),
    "exact": Look(LOOKS["usf"].light, LOOKS["usf"].dark, (4, 2), "^"),
    "transfer": Look(LOOKS["wm"].light, LOOKS["wm"].dark, (6, 1, 1, 1), "h"),
    "black box": Look(LOOKS["frsf"].light, LOOKS["frsf"].dark, (1, 1), "P"),
    "noise": Look(SPARE[0].light, SPARE[0].dark, (2, 2), "*"),
    "worst": Look(INK, LOOKS["bp"].dark, (), "o"),
}
"""How the kinds of attack are drawn: colours that the page's themes know."""


@dataclass(frozen=True)
class Heat:
    """Robust accuracy in %, nets of one rule of training (row) attacked by the gradient of another
    rule on the same weights (column).

    Attributes: cells: by (row, column), None where it was not run. own: cells attacked by the
        gradient that the net was trained with, not one drawn anew.
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


def radius_group(section: Section, name: str) -> tuple[Group, list[str]] | None:
    """Small multiples over the radius, and the kinds of attack in them; None for a single radius,
    which the table tells better."""
    if len(section.radii) < 2:
        return None
    found = {rule: lines(section, rule) for rule in section.rules}
    panels = tuple(
        Panel(
            f"{display_name(rule)}: {verdict(section, rule).word}",
            partial(draw_radius, found=of_rule, section=section, clean=_clean(section, rule)),
        )
        for rule, of_rule in found.items()
    )
    kinds = [kind for kind in LINES if any(kind in of_rule for of_rule in found.values())]
    heading = "Robust accuracy over the radius"
    return Group(name, heading, "", panels, size=(2.5, 1.9), margin=(0.5, 0.42)), kinds


def draw_radius(axes: Any, *, found: Lines, section: Section, clean: Estimate) -> None:
    """One line per kind of attack with its interval, from the clean accuracy at radius 0."""
    if section.chance is not None:
        axes.axhline(section.chance, color=SOFT, linewidth=0.8, dashes=(2, 2))
    order = [kind for kind in ("worst", *LINES[:-1]) if kind in found]  # what matters lies below
    for kind in order:
        every = {0.0: clean, **found[kind]}
        look, xs = LOOK[kind], list(every)
        style = line_style(look) | {"linewidth": 2.4 if kind == "worst" else 1.3}
        axes.plot(xs, [each.mean for each in every.values()], **style)
        axes.fill_between(
            xs,
            [each.low for each in every.values()],
            [each.high for each in every.values()],
            color=look.light,
            alpha=0.13,
            linewidth=0,
        )
    axes.set_ylim(-2, 102)
    axes.set_xlim(0, 1.04 * section.radii[-1])
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel("radius ε", labelpad=2)
    axes.set_ylabel("robust accuracy, %", labelpad=2)


def heats(section: Section, eps: float) -> list[Heat]:
    """Rule of training by rule of the attack's gradient, one per attack that was run so."""
    labels = dict.fromkeys(
        (row["attack"], row["source"].removeprefix("rule:"))
        for net in section.evaluations
        for row in net.of_kind("attack")
        if (row["group"], row["eps"], row["on"]) == ("rule", eps, "all")
    )
    return [
        _heat(section, eps, attack, [column for label, column in labels if label == attack])
        for attack in dict.fromkeys(attack for attack, _ in labels)
    ]


def draw_heat(axes: Any, *, heat: Heat) -> None:
    """For print: the numbers on a scale from white (0 %) to full colour (100 %)."""
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("heat", ["#ffffff", LOOKS["usf"].dark])
    for place, row in enumerate(heat.rows):
        for across, column in enumerate(heat.columns):
            cell = heat.cells.get((row, column))
            if cell is None:
                continue
            colour = scale(cell.mean / 100)
            axes.fill_between([across, across + 1], place, place + 1, color=colour, linewidth=0)
            weight = "bold" if (row, column) in heat.own else "normal"
            axes.text(across + 0.5, place + 0.5, f"{cell.mean:.1f}", color=INK, ha="center",
                      va="center", fontweight=weight)  # fmt: skip
    axes.set_xlim(0, len(heat.columns))
    axes.set_ylim(len(heat.rows), 0)
    titles = [heat.title(column) for column in heat.columns]
    axes.set_xticks([i + 0.5 for i in range(len(heat.columns))], titles)
    axes.set_yticks([i + 0.5 for i in range(len(heat.rows))], map(display_name, heat.rows))
    axes.tick_params(length=0)
    axes.grid(visible=False)
    axes.set_xlabel("rule whose gradient the attack follows")
    axes.set_ylabel("rule of training")


def heat_group(heat: Heat, name: str) -> Group:
    size = (1.2 + 0.62 * len(heat.columns), 0.7 + 0.34 * len(heat.rows))
    panel = Panel(f"Robust accuracy, %, {heat.attack}", partial(draw_heat, heat=heat))
    return Group(name, "Whose robustness is it?", "", (panel,), size=size, margin=(0.85, 0.45))


def _clean(section: Section, rule: str) -> Estimate:
    found = section.estimate(rule, lambda each: each.clean["accuracy"])
    assert found is not None  # a rule of a section has a finished evaluation
    return found


def _heat(section: Section, eps: float, attack: str, tried: Sequence[str]) -> Heat:
    rows = sorted(section.rules, key=lambda rule: not is_baseline(rule))
    columns = _columns(rows, tried)
    cells: dict[tuple[str, str], Estimate] = {}
    own = set()
    for row in rows:
        for column in columns:
            share = partial(_share, attack=attack, eps=eps, column=column, own=row == column)
            found = section.estimate(row, share)
            if found is not None:
                cells[row, column] = found
        if (row, row) in cells:
            own.add((row, row))
    return Heat(attack, eps, tuple(rows), columns, cells, frozenset(own))


def _columns(rules: Iterable[str], tried: Sequence[str]) -> tuple[str, ...]:
    """Backprop's exact gradient first, then the rules in the order of the rows."""
    known = [rule for rule in rules if rule in tried or is_baseline(rule)]
    other = [rule for rule in tried if rule not in known and not is_baseline(rule)]
    first = [] if any(map(is_baseline, known)) else ["bp"]
    return (*first, *known, *other)


def _share(net: Any, *, attack: str, eps: float, column: str, own: bool) -> float | None:
    if own:
        return attack_share(net, group="own", attack=attack, eps=eps)
    if is_baseline(column):
        return attack_share(net, group="exact", attack=attack, eps=eps)
    for row in net.of_kind("attack"):
        same = (row["group"], row["attack"], row["eps"]) == ("rule", attack, eps)
        if same and row["on"] == "all" and row["source"] == f"rule:{column}":
            return float(row["accuracy"])
    return None
