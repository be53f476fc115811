"""Lines over epochs or steps: values of the runs of each rule, and figures with a panel each."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from types import MappingProxyType
from typing import Any, TypeVar

from apical.bench.report.colours import SOFT, Look, line_style
from apical.bench.report.names import display_name
from apical.bench.report.read import Run
from apical.bench.report.render import Group
from apical.bench.storage.records import grouped
from apical.measure.probes import GROWN

MOST_LAYERS = 12
CLOSE = 100
"""Below this ratio of its limits a logarithmic axis is labelled at 1, 2 and 5 of each decade."""

UPDATE = "gradient_angle_deg"
"""The angle of a layer's update to backpropagation's."""

T = TypeVar("T")
Runs = Mapping[str, Sequence[Run]]
"""rule -> its runs."""
Looks = Mapping[str, Look]
Series = Mapping[str, Mapping[int, Sequence[float]]]
"""rule -> epoch or step -> one value per seed."""


def series(
    runs: Mapping[str, Iterable[Run]],
    kind: str,
    key: str,
    layer: str | None = None,
    scale: Callable[[float], float] = float,
) -> Series:
    """Values per rule and epoch; an epoch counts when every run of the rule has it. An angle of an
    update that says nothing (`Run.no_angle`) is none.

    Runs of a version that did not record the quantity yet are left out where others have it. Of
    several rows of an epoch, as of the steps of a sequence, the mean. scale: to the unit shown.
    """

    def by_epoch(run: Run) -> dict[int, float]:
        rows = [row for row in run.of_kind(kind, layer) if key in row]
        if key == UPDATE:
            rows = [row for row in rows if not run.no_angle(row)]
        epochs = grouped(rows, lambda row: row["epoch"])
        return {epoch: fmean(scale(row[key]) for row in same) for epoch, same in epochs.items()}

    values = {
        rule: shared(map(by_epoch, _recording(of_rule, kind, key, layer)))
        for rule, of_rule in runs.items()
    }
    return {rule: epochs for rule, epochs in values.items() if epochs}


def shared(per_run: Iterable[Mapping[int, float]]) -> dict[int, list[float]]:
    """The values of all runs at the epochs that all of them have."""
    rows = list(per_run)
    keys = set.intersection(*map(set, rows)) if rows else set()
    return {key: [values[key] for values in rows] for key in sorted(keys)}


def _recording(runs: Iterable[Run], kind: str, key: str, layer: str | None) -> list[Run]:
    """The runs that record a quantity from the first on; all, where none does."""
    runs = list(runs)
    first = [run for run in runs if key in next(iter(run.of_kind(kind, layer)), {})]
    return first or runs


def recorded(runs: Runs, kind: str, key: str, layer: str) -> str:
    """ " Recorded in 2 of 3 runs." of the rules that have the quantity; "" for all of them."""
    rules = series(runs, kind, key, layer)
    some = sum(len(_recording(runs[rule], kind, key, layer)) for rule in rules)
    total = sum(len(runs[rule]) for rule in rules)
    return f" Recorded in {some} of {total} runs." if some < total else ""


def left_out(runs: Runs) -> str:
    """How many angles of updates say nothing, in a sentence; "" for none."""
    pairs = [(run, row) for of in runs.values() for run in of for row in run.of_kind("layer")]
    angles = [(run, row) for run, row in pairs if UPDATE in row]
    if not (count := sum(bool(run.no_angle(row)) for run, row in angles)):
        return ""
    return (
        f" Not shown are {count} of {len(angles)} angles, whose reference gradient is rounding "
        f"noise, or whose activations grew more than {GROWN:g}-fold."
    )


def switches(runs: Mapping[str, Iterable[Run]]) -> dict[str, list[int]]:
    """Epochs after which the rule of a line of the table gave way to another."""
    epochs = {
        label: sorted({row["epoch"] for run in of_label for row in run.of_kind("switch")})
        for label, of_label in runs.items()
    }
    return {label: of_label for label, of_label in epochs.items() if of_label}


def switched(runs: Runs) -> str:
    return " Dotted: another rule takes over." if switches(runs) else ""


def band(runs: Runs, middle: str = "mean") -> str:
    """What the lines of several seeds show."""
    if all(len(of_rule) < 2 for of_rule in runs.values()):
        return ""
    return f"Line: {middle} over seeds; band: lowest to highest seed. "


def filled(group: Group, panels: Iterable[Any], rules: Iterable[str], looks: Looks) -> list[Group]:
    """A figure with these panels and a legend of these rules; none without panels."""
    legend = tuple((display_name(rule), looks[rule]) for rule in rules)
    group = replace(group, panels=tuple(panels), legend=legend)
    return [group] if group.panels else []


@dataclass(frozen=True)
class Lines:
    """A panel with a line per rule and the range over seeds.

    Attributes: floor: where smaller values of a logarithmic axis are drawn, None for just below the
        least positive one. middle: of the seeds. baseline: a dashed level. marks: as from
        `switches`. further: draws onto the lines.
    """

    title: str
    values: Series
    looks: Looks
    log: bool = False
    limits: tuple[float, float] | None = None
    floor: float | None = None
    middle: Callable[[Sequence[float]], float] = fmean
    baseline: float | None = None
    marks: Mapping[str, Iterable[int]] = field(default_factory=dict)
    xlabel: str = "epoch"
    further: Callable[[Any], None] | None = None

    def draw(self, axes: Any) -> None:
        floor = self.floor
        if self.log and floor is None:
            floor = 0.7 * min((v for v in every(self.values) if v > 0), default=1.0)
        if self.baseline is not None:
            axes.axhline(self.baseline, color=SOFT, linewidth=0.8, dashes=(2, 2))
        for rule, of_rule in self.values.items():
            look = self.looks[rule]
            rows = [[max(v, floor) if floor else v for v in vs] for vs in of_rule.values()]
            for epoch in self.marks.get(rule, ()):
                axes.axvline(epoch, color=look.light, linewidth=0.8, dashes=(1, 2))
            marker = {"marker": look.marker, "markersize": 3.5} if len(rows) == 1 else {}
            draw_line(axes, look, list(of_rule), rows, self.middle, **marker)
        if self.log:
            log_axis(axes, self.limits or (floor, axes.get_ylim()[1]))
        elif self.limits:
            axes.set_ylim(self.limits)
        axes.locator_params(axis="x", nbins=5, integer=True)
        axes.set_xlabel(self.xlabel, labelpad=2)
        if self.further:
            self.further(axes)


def draw_line(
    axes: Any,
    look: Look,
    xs: Sequence[float],
    rows: Sequence[Sequence[float]],
    middle: Callable[[Sequence[float]], float] = fmean,
    **style: Any,
) -> None:
    """A line through the middle of each row, and the range of the rows where one has several
    values."""
    axes.plot(xs, [middle(row) for row in rows], **line_style(look), **style)
    if any(len(row) > 1 for row in rows):
        low, high = [min(row) for row in rows], [max(row) for row in rows]
        axes.fill_between(xs, low, high, color=look.light, alpha=0.16, linewidth=0)


def every(values: Series) -> list[float]:
    return [v for of_rule in values.values() for vs in of_rule.values() for v in vs]


def degrees(values: Sequence[float]) -> dict[str, Any]:
    """The axis of angles that holds these values, with a line at 90 degrees, for `Lines`."""
    return {"limits": (0.0, max(100.0, 1.03 * max(values))), "baseline": 90}


def log_axis(axes: Any, limits: tuple[float | None, float]) -> None:
    """A logarithmic axis between limits, with a few numbers written out."""
    axes.set_yscale("log")
    axes.set_ylim(limits)
    log_ticks(axes.yaxis)


def log_ticks(axis: Any) -> None:
    """A few short numbers on a logarithmic axis, in the place of powers as formulas."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high / low < CLOSE else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs, numticks=6))
    axis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axis.set_minor_formatter(NullFormatter())


def short(value: float) -> str:
    """A number as "0.02" or "300"; from 1e4 up and below 1e-3 as "1e-4".

    >>> short(0.001), short(0.0001), short(2e6)
    ('0.001', '1e-4', '2e6')
    """
    if 1e-3 <= value < 1e4 * (1 - 1e-9):
        return f"{value:g}"
    digits, _, exponent = f"{value:.0e}".partition("e")
    return f"{digits}e{int(exponent)}"


def over_time(group: Group, panels: Iterable[Lines], looks: Looks) -> list[Group]:
    """A figure of the panels that have values; none without any."""
    panels = [panel for panel in panels if panel.values]
    rules = [rule for rule in looks if any(rule in panel.values for panel in panels)]
    return filled(group, panels, rules, looks)


def by_layer(runs: Runs, key: str) -> dict[str, Series]:
    """The series of a quantity for each layer that has it, from input to output."""
    names = dict.fromkeys(layer for of in runs.values() for run in of for layer in run.layers)
    values = {layer: series(runs, "layer", key, layer) for layer in names}
    return {layer: of_layer for layer, of_layer in values.items() if of_layer}


def of_layers(
    group: Group,
    key: str,
    layers: Mapping[str, Series],
    runs: Runs,
    looks: Looks,
    *,
    axis: Callable[[Sequence[float]], Mapping[str, Any]],
    further: Mapping[str, Callable[[Any], None]] = MappingProxyType({}),
) -> list[Group]:
    """A small panel per layer, of many layers some, evenly spaced; none without any.

    Args: key: the quantity. axis: fields of `Lines` from all values that are drawn. further: by
        layer, what draws onto its lines.
    """
    if not layers:
        return []
    picked = spread(list(layers), MOST_LAYERS)
    caption = group.caption
    if len(picked) < len(layers):
        caption += f" {len(picked)} of {len(layers)} panels, evenly spaced."
    caption += recorded(runs, "layer", key, picked[0]) + switched(runs)
    group = replace(group, caption=caption, size=(1.9, 1.45), margin=(0.42, 0.4))
    common = {"marks": switches(runs), **axis([v for name in picked for v in every(layers[name])])}
    panels = [
        Lines(name, layers[name], looks, further=further.get(name), **common) for name in picked
    ]
    return over_time(group, panels, looks)


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
