"""What each figure shows: groups of panels drawn from the table and the runs' rows."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, TypeVar

from apical.bench.report.looks import INK, LINE, SOFT, Look, line_style
from apical.bench.report.names import display_name
from apical.bench.report.read import Run, Study
from apical.bench.report.render import Group, Panel
from apical.bench.report.table import Cell, test_error

CURVES = (
    ("train_acc", "Training error, %"),
    ("val_acc", "Validation error, %"),
    ("train_loss", "Training loss"),
)
ALIGNMENT = (
    ("angle_deg", "Weight angle", "between feedback B and forward weights W, degrees"),
    ("gradient_angle_deg", "Gradient angle", "between the layer's update and backprop's, degrees"),
    ("norm_ratio", "Norm ratio", "of feedback to forward weights, ‖B‖ / ‖W‖"),
    ("gradient_norm_ratio", "Gradient norm ratio", "of the layer's update to backprop's"),
)
MOST_LAYERS = 12
SWITCH_NOTE = " Dotted: another rule takes over."

T = TypeVar("T")

Series = Mapping[str, Mapping[int, Sequence[float]]]
"""rule -> epoch -> one value per seed."""


CLOSE = 100
"""Limits of a logarithmic axis less far apart than this have 1, 2 and 5 of each decade."""


def groups(
    study: Study, table: Sequence[Cell], setting: str, looks: Mapping[str, Look]
) -> list[Group]:
    """The figures of one setting; those without data are left out."""
    shown = [cell for cell in table if cell.setting == setting and cell.summary]
    runs = {cell.rule: cell.runs for cell in shown}
    made = [_errors(shown, looks), *of_runs(runs, looks), _costs(shown, looks)]
    return [group for group in made if group is not None]


def of_runs(runs: Mapping[str, Sequence[Run]], looks: Mapping[str, Look]) -> list[Group]:
    """Learning curves and alignment over time, of runs by rule, finished or not."""
    made = [_curves(runs, looks)]
    made += [_alignment(runs, looks, *measure) for measure in ALIGNMENT]
    return [group for group in made if group is not None]


def series(runs: Mapping[str, Iterable[Run]], kind: str, key: str, layer: str = "") -> Series:
    """Values per rule and epoch; an epoch counts when every run of the rule has it.

    Runs of a version that did not record the quantity yet are left out where others have it.
    """
    return {
        rule: values
        for rule, of_rule in runs.items()
        if (values := _epochs(of_rule, kind, key, layer))
    }


def _epochs(runs: Iterable[Run], kind: str, key: str, layer: str) -> dict[int, list[float]]:
    per_run = [
        {row["epoch"]: float(row[key]) for row in run.of_kind(kind, layer) if key in row}
        for run in _recording(runs, kind, key, layer)
    ]
    shared = set.intersection(*map(set, per_run)) if per_run else set()
    return {epoch: [values[epoch] for values in per_run] for epoch in sorted(shared)}


def _recording(runs: Iterable[Run], kind: str, key: str, layer: str) -> list[Run]:
    """The runs that record a quantity from the first on; all, where none does."""
    runs = list(runs)
    first = [run for run in runs if key in next(iter(run.of_kind(kind, layer)), {})]
    return first or runs


def recorded(runs: Mapping[str, Sequence[Run]], kind: str, key: str, layer: str) -> str:
    """ " Recorded in 2 of 3 runs." of the rules that have the quantity; "" for all of them."""
    counts = [
        (len(_recording(of_rule, kind, key, layer)), len(of_rule))
        for of_rule in runs.values()
        if _epochs(of_rule, kind, key, layer)
    ]
    some, every = (sum(column) for column in zip(*counts, strict=True)) if counts else (0, 0)
    return f" Recorded in {some} of {every} runs." if some < every else ""


def switches(runs: Mapping[str, Iterable[Run]]) -> dict[str, list[int]]:
    """Epochs after which the rule of a line of the table gave way to another."""
    found = {
        label: sorted({row["epoch"] for run in of_label for row in run.of_kind("switch")})
        for label, of_label in runs.items()
    }
    return {label: epochs for label, epochs in found.items() if epochs}


def _errors(shown: Sequence[Cell], looks: Mapping[str, Look]) -> Group | None:
    if not shown:
        return None
    widest = max(len(display_name(cell.rule)) for cell in shown)
    published = any(cell.published for cell in shown)
    return Group(
        "error",
        "Test error",
        "Dot and line: mean and 95 % interval. Small dots below: single seeds."
        + " Open diamond: published value." * published,
        (Panel("Test error, %", partial(draw_errors, shown=shown, looks=looks)),),
        size=(4.4, 0.6 + 0.27 * len(shown)),
        margin=(min(1.6, 0.24 + 0.075 * widest), 0.42),
    )


def draw_errors(axes: Any, *, shown: Sequence[Cell], looks: Mapping[str, Look]) -> None:
    """One line per rule: interval, mean, seeds, published value."""
    for place, cell in enumerate(shown):
        ours, look = cell.summary, looks[cell.rule]
        if ours is None:
            continue
        if ours.low is not None:
            bounds = ours.within(0, 100)
            axes.plot([bounds.low, bounds.high], [place, place], color=look.light, linewidth=1.6)
        seeds = [test_error(run) for run in cell.runs]
        below = [place + 0.27] * len(seeds)
        axes.scatter(seeds, below, s=7, color=look.light, alpha=0.7, linewidths=0)
        axes.scatter([ours.mean], [place], s=34, color=look.light, zorder=3, linewidths=0)
        if cell.published:
            axes.scatter(
                [cell.published.error],
                [place],
                s=46,
                marker="D",
                facecolor="none",
                edgecolor=INK,
                linewidths=1,
                zorder=4,
            )
    axes.set_yticks(range(len(shown)), [display_name(cell.rule) for cell in shown])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("test error, %")


def _curves(runs: Mapping[str, Sequence[Run]], looks: Mapping[str, Look]) -> Group | None:
    panels = []
    marks = switches(runs)
    for key, title in CURVES:
        values = series(runs, "epoch", key)
        if key.endswith("_acc"):
            values = {
                rule: {epoch: [100 * (1 - v) for v in vs] for epoch, vs in epochs.items()}
                for rule, epochs in values.items()
            }
        if values:
            draw = partial(draw_curves, values=values, looks=looks, log=True, marks=marks)
            panels.append(Panel(title, draw))
    single = all(len(of_rule) == 1 for of_rule in runs.values())
    seeds = "" if single else "Line: mean over seeds; band: lowest to highest seed. "
    caption = f"{seeds}Logarithmic; a value of 0 is drawn at the lower edge."
    caption += SWITCH_NOTE * bool(marks)
    if not panels:
        return None
    return Group("curves", "Learning curves", caption, tuple(panels), rules=tuple(runs))


def draw_curves(
    axes: Any,
    *,
    values: Series,
    looks: Mapping[str, Look],
    log: bool,
    limits: tuple[float, float] | None = None,
    baseline: float | None = None,
    marks: Mapping[str, Iterable[int]] = MappingProxyType({}),
) -> None:
    """Mean and range over seeds against epochs, one line per rule; `marks` as from `switches`."""
    positive = [v for epochs in values.values() for vs in epochs.values() for v in vs if v > 0]
    floor = 0.7 * min(positive, default=1.0) if log else None
    if baseline is not None:
        axes.axhline(baseline, color=SOFT, linewidth=0.8, dashes=(2, 2))
    for rule, epochs in values.items():
        xs = list(epochs)
        rows = [[max(v, floor) if floor else v for v in vs] for vs in epochs.values()]
        look = looks[rule]
        for epoch in marks.get(rule, ()):
            axes.axvline(epoch, color=look.light, linewidth=0.8, dashes=(1, 2))
        marker = {"marker": look.marker, "markersize": 3.5} if len(xs) == 1 else {}
        axes.plot(xs, [sum(vs) / len(vs) for vs in rows], **line_style(look), **marker)
        if any(len(vs) > 1 for vs in rows):
            low, high = [min(vs) for vs in rows], [max(vs) for vs in rows]
            axes.fill_between(xs, low, high, color=look.light, alpha=0.16, linewidth=0)
    if log:
        log_axis(axes, limits or (floor, axes.get_ylim()[1]))
    elif limits:
        axes.set_ylim(limits)
    axes.locator_params(axis="x", nbins=5, integer=True)
    axes.set_xlabel("epoch", labelpad=2)


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


def _alignment(
    runs: Mapping[str, Sequence[Run]],
    looks: Mapping[str, Look],
    key: str,
    heading: str,
    meaning: str,
) -> Group | None:
    names = dict.fromkeys(
        layer for of_rule in runs.values() for run in of_rule for layer in run.layers
    )
    layers = {layer: series(runs, "layer", key, layer) for layer in names}
    layers = {layer: values for layer, values in layers.items() if values}
    if not layers:
        return None
    picked = spread(list(layers), MOST_LAYERS)
    every = [
        v
        for layer in picked
        for epochs in layers[layer].values()
        for vs in epochs.values()
        for v in vs
    ]
    angle = key.endswith("angle_deg")
    log = not angle and min(every) > 0
    limits = (0.0, max(100.0, 1.03 * max(every))) if angle else _ratio_limits(every, log)
    marks, baseline = switches(runs), 90 if angle else 1
    draw = partial(draw_curves, looks=looks, log=log, limits=limits, baseline=baseline, marks=marks)
    panels = tuple(Panel(layer, partial(draw, values=layers[layer])) for layer in picked)
    some = (
        f" {len(picked)} of {len(layers)} layers, evenly spaced."
        if len(picked) < len(layers)
        else ""
    )
    reference = "Dashed: 90°, unrelated." if angle else "Dashed: 1, equal length."
    return Group(
        key.removesuffix("_deg").replace("_", "-"),
        heading,
        f"{heading} {meaning}; one panel per layer, from input to output. {reference}{some}"
        + recorded(runs, "layer", key, picked[0])
        + SWITCH_NOTE * bool(marks),
        panels,
        size=(1.9, 1.45),
        margin=(0.42, 0.4),
        rules=tuple(rule for rule in runs if any(rule in values for values in layers.values())),
    )


def _ratio_limits(values: Sequence[float], log: bool) -> tuple[float, float]:
    low, high = min([*values, 1.0]), max([*values, 1.0])
    return (low / 1.3, high * 1.3) if log else (0.0, 1.08 * high)


def spread(names: list[T], most: int) -> list[T]:
    """At most `most` of them, first and last among them, evenly spaced."""
    if len(names) <= most:
        return names
    return [names[round(index * (len(names) - 1) / (most - 1))] for index in range(most)]


def _costs(shown: Sequence[Cell], looks: Mapping[str, Look]) -> Group | None:
    panels = []
    for key, scale, title, label in (
        ("step_ms", 1.0, "Test error against step time", "median training step, ms"),
        ("feedback_bytes", 1e-6, "Test error against feedback memory", "stored feedback, MB"),
    ):
        points = [(cell, scale * x) for cell in shown if (x := cell.mean_of(key)) is not None]
        if points:
            draw = partial(draw_costs, points=points, looks=looks, label=label)
            panels.append(Panel(title, draw))
    caption = (
        "Step times are those of the training runs themselves, whatever else the machine did; "
        "the speed benchmark measures rules side by side."
    )
    if not panels:
        return None
    rules = tuple(cell.rule for cell in shown)
    return Group("cost", "What a rule costs", caption, tuple(panels), rules=rules)


def draw_costs(
    axes: Any, *, points: Sequence[tuple[Cell, float]], looks: Mapping[str, Look], label: str
) -> None:
    """Test error with its interval against one cost, one marker per rule."""
    for cell, x in points:
        ours, look = cell.summary, looks[cell.rule]
        if ours is None:
            continue
        if ours.low is not None:
            bounds = ours.within(0, 100)
            axes.plot([x, x], [bounds.low, bounds.high], color=look.light, linewidth=1, alpha=0.6)
        axes.plot(
            [x], [ours.mean], marker=look.marker, markersize=6, color=look.light, clip_on=False
        )
    axes.set_xlabel(label, labelpad=2)
    axes.set_ylabel("test error, %")
    axes.grid(color=LINE)
    axes.margins(x=0.12, y=0.12)
