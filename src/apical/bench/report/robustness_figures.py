"""Figures of robustness: accuracy over the radius, and whose gradient an attack followed."""

from functools import partial
from typing import Any

from apical.bench.report import robustness, robustness_words
from apical.bench.report.colours import INK, LOOKS, SOFT, SPARE, Look, line_style
from apical.bench.report.names import display_name
from apical.bench.report.render import Group, Panel
from apical.bench.report.robustness import LINES, Heat, Lines
from apical.bench.report.sections import Section
from apical.measure.robustness_verdict import radius


def _like(look: Look, dash: tuple[float, ...], marker: str) -> Look:
    return Look(look.light, look.dark, dash, marker)


LOOK = {
    "own": _like(LOOKS["fa"], (5, 1.5), "s"),
    "averaged": _like(LOOKS["kp"], (3, 1), "X"),
    "exact": _like(LOOKS["usf"], (4, 2), "^"),
    "transfer": _like(LOOKS["wm"], (6, 1, 1, 1), "h"),
    "black box": _like(LOOKS["frsf"], (1, 1), "P"),
    "noise": _like(SPARE[0], (2, 2), "*"),
    "worst": Look(INK, LOOKS["bp"].dark, (), "o"),
}
"""How the kinds of attack are drawn: colours that the page's themes have."""


def over_radius(section: Section) -> tuple[list[Group], list[str]]:
    """Small multiples over the radius, and the kinds of attack in them; none for a single radius,
    which the table tells better."""
    if len(section.radii) < 2:
        return [], []
    found = {rule: robustness.lines(section, rule) for rule in section.rules}
    panels = []
    for rule, of_rule in found.items():
        title = f"{display_name(rule)}: {robustness.verdict(section, rule).word}"
        clean = section.estimate(rule, robustness.clean)
        draw = partial(draw_radius, found=of_rule, section=section, clean=clean)
        panels.append(Panel(title, draw))
    kinds = [kind for kind in LINES if any(kind in of_rule for of_rule in found.values())]
    legend = tuple((robustness_words.KINDS[kind], LOOK[kind]) for kind in kinds)
    heading = "Robust accuracy over the radius"
    group = Group("radius", heading, "", tuple(panels), (2.5, 1.9), legend=legend, columns=3)
    return [group], kinds


def draw_radius(axes: Any, *, found: Lines, section: Section, clean: Any) -> None:
    """One line per kind of attack with its interval, from the clean accuracy at radius 0."""
    classes = section.clean.get("classes")
    if classes:
        axes.axhline(100 / classes, color=SOFT, linewidth=0.8, dashes=(2, 2))
    order = [kind for kind in ("worst", *LINES[:-1]) if kind in found]  # what matters lies below
    for kind in order:
        every = {0.0: clean, **found[kind]}
        look, xs = LOOK[kind], list(every)
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


def crossed(heat: Heat, number: int) -> Group:
    """The table of rule by gradient, for print. number: from 1 on."""
    name = f"gradients-{number}" if number > 1 else "gradients"
    size = (1.2 + 0.62 * len(heat.columns), 0.7 + 0.34 * len(heat.rows))
    panel = Panel(f"Robust accuracy, %, {heat.attack}", partial(draw_heat, heat=heat))
    return Group(name, f"radius {radius(heat.eps)}", "", (panel,), size, (0.85, 0.45), columns=1)


def draw_heat(axes: Any, *, heat: Heat) -> None:
    """The numbers on a scale from white (0 %) to full colour (100 %)."""
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
