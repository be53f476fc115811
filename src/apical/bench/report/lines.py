"""Lines over epochs or steps: values of the runs of each rule, and figures with a panel each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from apical.bench.report.colours import SOFT, Look, line_style
from apical.bench.report.names import display_name
from apical.bench.report.read import Run
from apical.bench.report.render import Group, Panel

MOST_LAYERS = 12
CLOSE = 100
"""Limits of a logarithmic axis less far apart than this have 1, 2 and 5 of each decade."""

T = TypeVar("T")
Runs = Mapping[str, Sequence[Run]]
"""rule -> its runs."""
Looks = Mapping[str, Look]
Series = Mapping[str, Mapping[int, Sequence[float]]]
"""rule -> epoch or step -> one value per seed."""


def series(runs: Mapping[str, Iterable[Run]], kind: str, key: str, layer: str = "") -> Series:
    """Values per rule and epoch; an epoch counts when every run of the rule has it.

    Runs of a version that did not record the quantity yet are left out where others have it.
    """
    found = {
        rule: shared(
            {row["epoch"]: float(row[key]) for row in run.of_kind(kind, layer) if key in row}
            for run in _recording(of_rule, kind, key, layer)
        )
        for rule, of_rule in runs.items()
    }
    return {rule: values for rule, values in found.items() if values}


def shared(per_run: Iterable[Mapping[int, float]]) -> dict[int, list[float]]:
    """The values of all runs at the epochs that all of them have."""
    rows = list(per_run)
    keys = set.intersection(*map(set, rows)) if rows else set()
    return {key: [values[key] for values in rows] for key in sorted(keys)}


def _recording(runs: Iterable[Run], kind: str, key: str, layer: str) -> list[Run]:
    """The runs that record a quantity from the first on; all, where none does."""
    runs = list(runs)
    first = [run for run in runs if key in next(iter(run.of_kind(kind, layer)), {})]
    return first or runs


def recorded(runs: Runs, kind: str, key: str, layer: str) -> str:
    """ " Recorded in 2 of 3 runs." of the rules that have the quantity; "" for all of them."""
    rules = series(runs, kind, key, layer)
    some = sum(len(_recording(runs[rule], kind, key, layer)) for rule in rules)
    every = sum(len(runs[rule]) for rule in rules)
    return f" Recorded in {some} of {every} runs." if some < every else ""


def switches(runs: Mapping[str, Iterable[Run]]) -> dict[str, list[int]]:
    """Epochs after which the rule of a line of the table gave way to another."""
    found = {
        label: sorted({row["epoch"] for run in of_label for row in run.of_kind("switch")})
        for label, of_label in runs.items()
    }
    return {label: epochs for label, epochs in found.items() if epochs}


def switched(runs: Runs) -> str:
    return " Dotted: another rule takes over." if switches(runs) else ""


def group(
    name: str,
    heading: str,
    caption: str,
    panels: Iterable[Panel],
    rules: Iterable[str],
    looks: Looks,
    **more: Any,
) -> list[Group]:
    """A figure of these rules; none without panels. more: further fields of the group."""
    legend = tuple((display_name(rule), looks[rule]) for rule in rules)
    panels = tuple(panels)
    return [Group(name, heading, caption, panels, legend=legend, **more)] if panels else []


def draw_lines(
    axes: Any,
    *,
    values: Series,
    looks: Looks,
    log: bool = False,
    limits: tuple[float, float] | None = None,
    floor: float | None = None,
    middle: Callable[[Sequence[float]], float] | None = None,
    baseline: float | None = None,
    marks: Mapping[str, Iterable[int]] = MappingProxyType({}),
    xlabel: str = "epoch",
) -> None:
    """A line per rule with the range over seeds.

    Args: floor: where smaller values of a logarithmic axis are drawn. middle: of the seeds, default
        their mean. baseline: a dashed level. marks: as from `switches`.
    """
    if log and floor is None:
        floor = 0.7 * min((v for v in every(values) if v > 0), default=1.0)
    if baseline is not None:
        axes.axhline(baseline, color=SOFT, linewidth=0.8, dashes=(2, 2))
    for rule, of_rule in values.items():
        look, xs = looks[rule], list(of_rule)
        rows = [[max(v, floor) if floor else v for v in vs] for vs in of_rule.values()]
        for epoch in marks.get(rule, ()):
            axes.axvline(epoch, color=look.light, linewidth=0.8, dashes=(1, 2))
        marker = {"marker": look.marker, "markersize": 3.5} if len(xs) == 1 else {}
        line = [middle(vs) if middle else sum(vs) / len(vs) for vs in rows]
        axes.plot(xs, line, **line_style(look), **marker)
        if any(len(vs) > 1 for vs in rows):
            low, high = [min(vs) for vs in rows], [max(vs) for vs in rows]
            axes.fill_between(xs, low, high, color=look.light, alpha=0.16, linewidth=0)
    if log:
        log_axis(axes, limits or (floor, axes.get_ylim()[1]))
    elif limits:
        axes.set_ylim(limits)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.set_xlabel(xlabel, labelpad=2)


def every(values: Series) -> list[float]:
    return [v for of_rule in values.values() for vs in of_rule.values() for v in vs]


def log_axis(axes: Any, limits: tuple[float | None, float]) -> None:
    """A logarithmic axis between limits, with a few numbers written out, short ones."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    axes.set_ylim(limits)
    low, high = axes.get_ylim()
    subs = (1.0, 2.0, 5.0) if high / low < CLOSE else (1.0,)
    axes.yaxis.set_major_locator(LogLocator(subs=subs, numticks=6))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.yaxis.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    """A number as "0.02" or "300"; from 1e4 up and below 1e-3 as "1e-4".

    >>> short(0.001), short(0.0001), short(2e6)
    ('0.001', '1e-4', '2e6')
    """
    if 1e-3 <= value < 1e4 * (1 - 1e-9):
        return f"{value:g}"
    digits, _, exponent = f"{value:.0e}".partition("e")
    return f"{digits}e{int(exponent)}"


def over_time(
    name: str,
    heading: str,
    caption: str,
    panels: Iterable[tuple[str, Series]],
    looks: Looks,
    drawing: Callable[..., None] = draw_lines,
    *,
    log: Sequence[str] = (),
    **more: Any,
) -> list[Group]:
    """One figure, a panel for each series that has values; none without any.

    Args: drawing: draws the values of a panel. log: titles of panels with a logarithmic axis. more:
        further fields of the group.
    """
    shown = [(title, values) for title, values in panels if values]
    rules = dict.fromkeys(rule for _, values in shown for rule in values)
    drawn = []
    for title, values in shown:
        draw = partial(drawing, values=values, looks=looks)
        drawn.append(Panel(title, partial(draw, log=True) if title in log else draw))
    return group(name, heading, caption, drawn, rules, looks, **more)


def by_layer(runs: Runs, key: str) -> dict[str, Series]:
    """The series of a quantity for each layer that has it, from input to output."""
    names = dict.fromkeys(layer for of in runs.values() for run in of for layer in run.layers)
    found = {layer: series(runs, "layer", key, layer) for layer in names}
    return {layer: values for layer, values in found.items() if values}


def of_layers(
    name: str,
    heading: str,
    caption: str,
    key: str,
    layers: Mapping[str, Series],
    runs: Runs,
    looks: Looks,
    drawing: Callable[..., None] = draw_lines,
    options: Callable[[str, Sequence[float]], Mapping[str, Any]] = lambda layer, values: {},
) -> list[Group]:
    """A small panel per layer, of many layers some, evenly spaced; none without any.

    Args: key: the quantity. drawing: draws the values of a panel. options: further ones of
        `drawing`, from the layer and the values of all panels.
    """
    if not layers:
        return []
    picked = spread(list(layers), MOST_LAYERS)
    if len(picked) < len(layers):
        caption += f" {len(picked)} of {len(layers)} panels, evenly spaced."
    caption += recorded(runs, "layer", key, picked[0]) + switched(runs)
    values = [value for layer in picked for value in every(layers[layer])]
    draw = partial(drawing, looks=looks, marks=switches(runs))
    panels = [
        Panel(layer, partial(draw, values=layers[layer], **options(layer, values)))
        for layer in picked
    ]
    rules = [rule for rule in runs if any(rule in values for values in layers.values())]
    small = {"size": (1.9, 1.45), "margin": (0.42, 0.4)}
    return group(name, heading, caption, panels, rules, looks, **small)


def spread(names: list[T], most: int) -> list[T]:
    """At most `most` of them, first and last among them, evenly spaced."""
    if len(names) <= most:
        return names
    return [names[round(index * (len(names) - 1) / (most - 1))] for index in range(most)]


def draw_published(
    axes: Any, xs: Iterable[float], ys: Iterable[float], colour: str, size: float
) -> None:
    """Published values as open diamonds."""
    axes.scatter(list(xs), list(ys), s=size, marker="D", facecolor="none", edgecolor=colour,
                 linewidths=1, zorder=4)  # fmt: skip
