"""The figures of a setting or a run: what each shows of the table and the runs' rows."""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import median
from typing import Any

from apical.bench.report.colours import INK, LINE, SOFT, line_style
from apical.bench.report.lines import (
    Looks,
    Runs,
    Series,
    by_layer,
    draw_lines,
    draw_published,
    every,
    group,
    of_layers,
    over_time,
    series,
    shared,
    switched,
    switches,
)
from apical.bench.report.names import display_name
from apical.bench.report.read import Run, Study, test_error
from apical.bench.report.render import Group, Panel
from apical.bench.report.results import Cell

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
MEMORY = (
    ("beta", "Rate of writing, β"),
    ("meta_loss", "Squared error of recalling what was just written"),
    ("memory_norm", "Norm of the memory's weights"),
)
STEPS = (("signal", "Signal"), ("norm", "Weight gradient"))
"""Norms at each step of a sequence, by their names in the records."""
DECADES = 12
"""Below the largest value over the steps that are drawn; what is smaller lies on the lower edge."""
MARKED_RADIUS = 2
"""Hamming radius whose precision is usually reported: drawn with a marker."""


def of_setting(study: Study, rows: Sequence[Cell], setting: str, looks: Looks) -> list[Group]:
    """The figures of one setting; those without data are left out."""
    shown = [cell for cell in rows if cell.setting == setting and cell.summary]
    runs = study.by_rule(setting)
    made = [*_errors(shown, looks), *learning(runs, looks), *_costs(shown, looks)]
    made += rates(study, setting, looks)
    return [*made, *over_steps(runs, looks), *memory(runs, looks), *retrieval(runs, looks)]


def of_run(run: Run, looks: Looks) -> list[Group]:
    """The figures of a run alone, finished or not."""
    runs = {run.rule: [run]}
    return [*learning(runs, looks), *over_steps(runs, looks), *memory(runs, looks)]


def learning(runs: Runs, looks: Looks) -> list[Group]:
    """Learning curves and alignment over time, of runs by rule, finished or not."""
    panels = []
    for key, title in CURVES:
        values = series(runs, "epoch", key)
        if key.endswith("_acc"):
            values = {
                rule: {epoch: [100 * (1 - v) for v in vs] for epoch, vs in epochs.items()}
                for rule, epochs in values.items()
            }
        panels.append((title, values))
    single = all(len(of_rule) == 1 for of_rule in runs.values())
    seeds = "" if single else "Line: mean over seeds; band: lowest to highest seed. "
    caption = f"{seeds}Logarithmic; a value of 0 is drawn at the lower edge.{switched(runs)}"
    drawing = partial(draw_lines, marks=switches(runs), log=True)
    made = over_time("curves", "Learning curves", caption, panels, looks, drawing)
    return [*made, *(each for names in ALIGNMENT for each in _alignment(runs, looks, *names))]


def _alignment(runs: Runs, looks: Looks, key: str, heading: str, meaning: str) -> list[Group]:
    angle = key.endswith("angle_deg")

    def options(layer: str, values: Sequence[float]) -> dict[str, Any]:
        if angle:
            return {"limits": (0.0, max(100.0, 1.03 * max(values))), "baseline": 90}
        log = min(values) > 0
        low, high = min([*values, 1.0]), max([*values, 1.0])
        limits = (low / 1.3, high * 1.3) if log else (0.0, 1.08 * high)
        return {"limits": limits, "baseline": 1, "log": log}

    reference = "Dashed: 90°, unrelated." if angle else "Dashed: 1, equal length."
    return of_layers(
        key.removesuffix("_deg").replace("_", "-"),
        heading,
        f"{heading} {meaning}; one panel per layer, from input to output. {reference}",
        key,
        by_layer(runs, key),
        runs,
        looks,
        options=options,
    )


def rates(study: Study, setting: str, looks: Looks) -> list[Group]:
    """Validation error over the learning rate of every rule whose rate was searched."""
    cells = [cell for cell in study.search if cell["setting"] == setting and cell["rule"] in looks]
    caption = (
        "Of every rate that was tried and did not diverge; band: lowest to highest seed, where "
        "there are several. The marker is the rate that was chosen."
    )
    panel = Panel("Validation error, %", partial(draw_rates, cells=cells, looks=looks))
    rules = [cell["rule"] for cell in cells]
    heading = "Choice of learning rates"
    return group("learning-rates", heading, caption, [panel] * bool(cells), rules, looks)


def draw_rates(axes: Any, *, cells: Sequence[Mapping[str, Any]], looks: Looks) -> None:
    """A line per rule over the rates, both axes logarithmic."""
    for cell in cells:
        look = looks[cell["rule"]]
        tries = sorted((t for t in cell["tries"] if "val_acc" in t), key=lambda t: t["lr"])
        xs = [tried["lr"] for tried in tries]
        values = [100 - 100 * tried.get("val_map", tried["val_acc"]) for tried in tries]
        axes.plot(xs, values, **line_style(look))
        seeds = [[100 * e for e in tried.get("errors") or ()] for tried in tries]
        if seeds and all(len(found) > 1 for found in seeds):
            low, high = [min(found) for found in seeds], [max(found) for found in seeds]
            axes.fill_between(xs, low, high, color=look.light, alpha=0.16, linewidth=0)
        chosen = [(x, y) for x, y in zip(xs, values, strict=True) if x == cell["lr"]]
        for x, y in chosen:
            axes.plot([x], [y], marker=look.marker, markersize=5, color=look.light)
    axes.set_xscale("log")
    axes.set_xlabel("learning rate", labelpad=2)


def over_steps(runs: Runs, looks: Looks) -> list[Group]:
    """The learning signal of each step of a sequence, before training and at its end."""
    panels = []
    for key, name in STEPS:
        for when, last in (("before training", False), ("at the end", True)):
            found = {rule: steps(of_rule, key, last) for rule, of_rule in runs.items()}
            panels.append((f"{name}, {when}", {rule: each for rule, each in found.items() if each}))
    single = all(len(of_rule) < 2 for of_rule in runs.values())
    seeds = "" if single else "Line: median over seeds; band: lowest to highest. "
    caption = (
        "Norm of the learning signal at each step of the sequence, and of the step's share in the "
        f"gradient of the recurrent weight; the first step is on the left. {seeds}Logarithmic; "
        f"exact zeros, and what is more than {DECADES} decades below the largest, lie on the lower "
        "edge."
    )
    heading = "Gradient over time steps"
    return over_time("gradient-flow", heading, caption, panels, looks, draw_steps, size=(2.5, 1.9))


def draw_steps(axes: Any, *, values: Series, looks: Looks) -> None:
    """One line per rule over the steps."""
    positive = [v for v in every(values) if v > 0]
    floor = max(0.5 * min(positive, default=1.0), 10.0**-DECADES * max(positive, default=1.0))
    label = "step of the sequence"
    draw_lines(axes, values=values, looks=looks, log=True, floor=floor, middle=median, xlabel=label)
    axes.axhline(floor, color=SOFT, linewidth=0.8)


def steps(runs: Sequence[Run], quantity: str, last: bool) -> dict[int, list[float]]:
    """Values of the first measurement, or of the last; a step counts when every run has it."""
    per_run = []
    for run in runs:
        rows = [row for row in run.of_kind("step") if quantity in row]
        if not rows:
            return {}
        epoch = (max if last else min)(row["epoch"] for row in rows)
        per_run.append({row["t"]: float(row[quantity]) for row in rows if row["epoch"] == epoch})
    found = shared(per_run)
    if quantity == "norm" and found:
        del found[min(found)]  # the weight has no state to act on before the first step
    return found


def memory(runs: Runs, looks: Looks) -> list[Group]:
    """What a memory did while its net learned: how much was written, and how well recalled."""
    caption = (
        "Means over the steps of the measured sequences. Line: mean over seeds; band: lowest to "
        "highest seed. An error near 0 on a task that is not solved is a collapsed memory."
    )
    panels = [(title, memory_series(runs, key)) for key, title in MEMORY]
    log = (dict(MEMORY)["meta_loss"],)
    return over_time("memory", "The memory", caption, panels, looks, log=log)


def memory_series(runs: Runs, key: str) -> Series:
    """Means over the steps of a sequence, by rule and epoch, one for each seed."""

    def means(run: Run) -> dict[int, float]:
        found: dict[int, list[float]] = {}
        for row in run.of_kind("step"):
            if key in row:
                found.setdefault(row["epoch"], []).append(row[key])
        return {epoch: sum(values) / len(values) for epoch, values in found.items()}

    found = {rule: shared(map(means, of_rule)) for rule, of_rule in runs.items()}
    return {rule: values for rule, values in found.items() if values}


def _errors(shown: Sequence[Cell], looks: Looks) -> list[Group]:
    widest = max((len(display_name(cell.rule)) for cell in shown), default=0)
    caption = "Dot and line: mean and 95 % interval. Small dots below: single seeds."
    caption += " Open diamond: published value." * any(cell.published for cell in shown)
    panel = Panel("Test error, %", partial(draw_errors, shown=shown, looks=looks))
    size = (4.4, 0.6 + 0.27 * len(shown))
    margin = (min(1.6, 0.24 + 0.075 * widest), 0.42)
    return [Group("error", "Test error", caption, (panel,), size, margin)] * bool(shown)


def draw_errors(axes: Any, *, shown: Sequence[Cell], looks: Looks) -> None:
    """One line per rule: interval, mean, seeds, published value."""
    for place, cell in enumerate(shown):
        ours, colour = cell.summary, looks[cell.rule].light
        if ours is None:
            continue
        if ours.low is not None:
            bounds = ours.within(0, 100)
            axes.plot([bounds.low, bounds.high], [place, place], color=colour, linewidth=1.6)
        seeds = [test_error(run) for run in cell.row.runs]
        below = [place + 0.27] * len(seeds)
        axes.scatter(seeds, below, s=7, color=colour, alpha=0.7, linewidths=0)
        axes.scatter([ours.mean], [place], s=34, color=colour, zorder=3, linewidths=0)
        if cell.published:
            draw_published(axes, [cell.published.value], [place], INK, 46)
    axes.set_yticks(range(len(shown)), [display_name(cell.rule) for cell in shown])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.grid(axis="y", visible=False)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_xlabel("test error, %")


def _costs(shown: Sequence[Cell], looks: Looks) -> list[Group]:
    panels = []
    for key, scale, title, label in (
        ("step_ms", 1.0, "Test error against step time", "median training step, ms"),
        ("feedback_bytes", 1e-6, "Test error against feedback memory", "stored feedback, MB"),
    ):
        points = [(cell, scale * x) for cell in shown if (x := cell.costs.get(key)) is not None]
        if points:
            draw = partial(draw_costs, points=points, looks=looks, label=label)
            panels.append(Panel(title, draw))
    caption = (
        "Step times are those of the training runs themselves, whatever else the machine did; "
        "the speed benchmark measures rules side by side."
    )
    rules = [cell.rule for cell in shown]
    return group("cost", "What a rule costs", caption, panels, rules, looks)


def draw_costs(
    axes: Any, *, points: Sequence[tuple[Cell, float]], looks: Looks, label: str
) -> None:
    """Test error with its interval against one cost, one marker per rule."""
    for cell, x in points:
        ours, look = cell.summary, looks[cell.rule]
        if ours is None:
            continue
        if ours.low is not None:
            bounds = ours.within(0, 100)
            axes.plot([x, x], [bounds.low, bounds.high], color=look.light, linewidth=1, alpha=0.6)
        marker = {"marker": look.marker, "markersize": 6, "color": look.light}
        axes.plot([x], [ours.mean], **marker, clip_on=False)
    axes.set_xlabel(label, labelpad=2)
    axes.set_ylabel("test error, %")
    axes.grid(color=LINE)
    axes.margins(x=0.12, y=0.12)


def retrieval(runs: Runs, looks: Looks) -> list[Group]:
    """Precision and recall over the Hamming radius, without any attack; none without codes."""
    points = {rule: found for rule, of_rule in runs.items() if (found := _precision(of_rule))}
    titles = {False: "Precision % over recall %", True: "Precision % within a radius"}
    panels = [
        Panel(title, partial(_draw_precision, points=points, looks=looks, radius=radius))
        for radius, title in titles.items()
    ] * bool(points)
    caption = (
        "Everything within a Hamming radius of a query, for each radius from 0 to the number of "
        f"bits; means over queries and seeds, without attack. The marker is radius {MARKED_RADIUS};"
        " a query that finds nothing counts as precision 0."
    )
    return group("precision-recall", "Precision and recall", caption, panels, points, looks)


def _precision(runs: Sequence[Run]) -> list[tuple[float, float, float]]:
    """Radius, precision and recall in %, means over seeds; [] unless every run has them."""
    courses = [[row for row in run.of_kind("course") if row["split"] == "test"] for run in runs]
    if not courses or not all(courses):
        return []
    means = []
    for rows in zip(*courses, strict=True):
        precision, recall = (
            100 * sum(row[key] for row in rows) / len(rows) for key in ("precision", "recall")
        )
        means.append((float(rows[0]["radius"]), precision, recall))
    return means


def _draw_precision(axes: Any, *, points: Mapping[str, Any], looks: Looks, radius: bool) -> None:
    for rule, found in points.items():
        xs = [point[0 if radius else 2] for point in found]
        style = line_style(looks[rule]) | {"marker": looks[rule].marker, "markersize": 4}
        axes.plot(xs, [point[1] for point in found], **style, markevery=[MARKED_RADIUS])
    axes.set_ylim(0, 102)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.set_xlabel("radius, bits" if radius else "recall, %", labelpad=2)
