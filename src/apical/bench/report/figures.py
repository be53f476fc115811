"""The figures of a setting or a run: what each shows of the table and the runs' rows."""

from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean, median
from typing import Any

from apical.bench.report import curves, lines
from apical.bench.report.colours import INK, LINE, SOFT, line_style
from apical.bench.report.lines import Lines, Looks, Runs, Series
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
    (lines.UPDATE, "Gradient angle", "between the layer's update and backprop's, degrees"),
    ("norm_ratio", "Norm ratio", "of feedback to forward weights, ‖B‖ / ‖W‖"),
    ("gradient_norm_ratio", "Gradient norm ratio", "of the layer's update to backprop's"),
)
MEMORY = {
    "beta": "Rate of writing, β",
    "meta_loss": "Squared error of recalling what was just written",
    "memory_norm": "Norm of the memory's weights",
}
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
    groups = [*_errors(shown, looks), *learning(runs, looks), *_costs(shown, looks)]
    groups += rates(study, setting, looks)
    groups += [*over_steps(runs, looks), *memory(runs, looks), *retrieval(runs, looks)]
    return groups + curves.groups(study, setting, looks)


def of_run(run: Run, looks: Looks) -> list[Group]:
    """The figures of a run alone, finished or not."""
    runs = {run.rule: [run]}
    return [*learning(runs, looks), *over_steps(runs, looks), *memory(runs, looks)]


def learning(runs: Runs, looks: Looks) -> list[Group]:
    """Learning curves and alignment over time, of runs by rule, finished or not."""

    def error(share: float) -> float:
        return 100 * (1 - share)

    panels = []
    for key, title in CURVES:
        values = lines.series(runs, "epoch", key, scale=error if key.endswith("_acc") else float)
        panels.append(Lines(title, values, looks, log=True, marks=lines.switches(runs)))
    caption = f"{lines.band(runs)}Logarithmic; a value of 0 is drawn at the lower edge."
    caption += lines.switched(runs)
    groups = lines.over_time(Group("curves", "Learning curves", caption), panels, looks)
    for key, heading, meaning in ALIGNMENT:
        angle = key.endswith("angle_deg")
        reference = "Dashed: 90°, unrelated." if angle else "Dashed: 1, equal length."
        caption = f"{heading} {meaning}; one panel per layer, from input to output. {reference}"
        caption += lines.left_out(runs) if key == lines.UPDATE else ""
        group = Group(key.removesuffix("_deg").replace("_", "-"), heading, caption)
        axis = lines.degrees if angle else _ratios
        groups += lines.of_layers(group, key, lines.by_layer(runs, key), runs, looks, axis=axis)
    return groups


def _ratios(values: Sequence[float]) -> dict[str, Any]:
    log = min(values) > 0
    low, high = min([*values, 1.0]), max([*values, 1.0])
    limits = (low / 1.3, high * 1.3) if log else (0.0, 1.08 * high)
    return {"limits": limits, "baseline": 1, "log": log}


def rates(study: Study, setting: str, looks: Looks) -> list[Group]:
    """Validation error over the learning rate of every rule whose rate was searched."""
    choices = [row for row in study.search if row["setting"] == setting and row["rule"] in looks]
    caption = (
        "Of every rate that was tried and did not diverge; band: lowest to highest seed, where "
        "there are several. The marker is the rate that was chosen."
    )
    panel = Panel("Validation error, %", partial(draw_rates, choices=choices, looks=looks))
    group = Group("learning-rates", "Choice of learning rates", caption)
    return lines.filled(group, [panel] * bool(choices), [row["rule"] for row in choices], looks)


def draw_rates(axes: Any, *, choices: Sequence[Mapping[str, Any]], looks: Looks) -> None:
    """A line per rule over the rates, the rates logarithmic."""
    for choice in choices:
        look = looks[choice["rule"]]
        errors = {
            tried["lr"]: [100 * each for each in tried.get("errors") or ()]
            or [100 - 100 * tried.get("val_map", tried["val_acc"])]
            for tried in sorted(choice["tries"], key=lambda tried: tried["lr"])
            if "val_acc" in tried
        }
        lines.draw_line(axes, look, list(errors), list(errors.values()))
        if choice["lr"] in errors:
            marker = {"marker": look.marker, "markersize": 5, "color": look.light}
            axes.plot([choice["lr"]], [fmean(errors[choice["lr"]])], **marker)
    axes.set_xscale("log")
    lines.log_ticks(axes.xaxis)
    axes.set_xlabel("learning rate", labelpad=2)


def over_steps(runs: Runs, looks: Looks) -> list[Group]:
    """The learning signal of each step of a sequence, before training and at its end."""
    panels = []
    for key, name in STEPS:
        for when, last in (("before training", False), ("at the end", True)):
            values = {rule: steps(of_rule, key, last) for rule, of_rule in runs.items()}
            values = {rule: of_steps for rule, of_steps in values.items() if of_steps}
            panels.append(_of_steps(f"{name}, {when}", values, looks))
    caption = (
        "Norm of the learning signal at each step of the sequence, and of the step's share in the "
        "gradient of the recurrent weight; the first step is on the left. "
        f"{lines.band(runs, 'median')}Logarithmic; exact zeros, and what is more than {DECADES} "
        "decades below the largest, lie on the lower edge."
    )
    group = Group("gradient-flow", "Gradient over time steps", caption, size=(2.5, 1.9))
    return lines.over_time(group, panels, looks)


def _of_steps(title: str, values: Series, looks: Looks) -> Lines:
    """One line per rule over the steps."""
    positive = [v for v in lines.every(values) if v > 0]
    floor = max(0.5 * min(positive, default=1.0), 10.0**-DECADES * max(positive, default=1.0))
    return Lines(
        title,
        values,
        looks,
        log=True,
        floor=floor,
        middle=median,
        xlabel="step of the sequence",
        further=lambda axes: axes.axhline(floor, color=SOFT, linewidth=0.8),
    )


def steps(runs: Sequence[Run], quantity: str, last: bool) -> dict[int, list[float]]:
    """Values of the first measurement, or of the last; a step counts when every run has it."""
    values = lines.shared(
        {row["t"]: float(row[quantity]) for row in run.measured("step", quantity, last=last)}
        for run in runs
    )
    if quantity == "norm" and values:
        del values[min(values)]  # the weight has no state to act on before the first step
    return values


def memory(runs: Runs, looks: Looks) -> list[Group]:
    """What a memory did while its net learned: how much was written, and how well recalled."""
    caption = (
        f"Means over the steps of the measured sequences. {lines.band(runs)}An error near 0 on a "
        "task that is not solved is a collapsed memory."
    )
    panels = [
        Lines(title, lines.series(runs, "step", key), looks, log=key == "meta_loss")
        for key, title in MEMORY.items()
    ]
    return lines.over_time(Group("memory", "The memory", caption), panels, looks)


def _errors(shown: Sequence[Cell], looks: Looks) -> list[Group]:
    def draw(axes: Any) -> None:
        for place, cell in enumerate(shown):
            assert cell.summary is not None
            ours, colour = cell.summary.within(0, 100), looks[cell.rule].light
            if ours.low is not None:
                axes.plot([ours.low, ours.high], [place, place], color=colour, linewidth=1.6)
            seeds = [test_error(run) for run in cell.row.runs]
            below = [place + 0.27] * len(seeds)
            axes.scatter(seeds, below, s=7, color=colour, alpha=0.7, linewidths=0)
            axes.scatter([ours.mean], [place], s=34, color=colour, zorder=3, linewidths=0)
            if cell.published:
                lines.draw_published(axes, [cell.published.value], [place], INK, 46)
        axes.set_yticks(range(len(shown)), [display_name(cell.rule) for cell in shown])
        axes.tick_params(axis="y", length=0, labelcolor=INK)
        axes.grid(axis="y", visible=False)
        axes.set_ylim(len(shown) - 0.5, -0.5)
        axes.set_xlabel("test error, %")

    widest = max((len(display_name(cell.rule)) for cell in shown), default=0)
    caption = "Dot and line: mean and 95 % interval. Small dots below: single seeds."
    caption += " Open diamond: published value." * any(cell.published for cell in shown)
    size = (4.4, 0.6 + 0.27 * len(shown))
    margin = (min(1.6, 0.24 + 0.075 * widest), 0.42)
    panels = (Panel("Test error, %", draw),)
    return [Group("error", "Test error", caption, panels, size, margin)] * bool(shown)


def _costs(shown: Sequence[Cell], looks: Looks) -> list[Group]:
    """Test error with its interval against each cost that was measured, a marker per rule."""

    def draw(axes: Any, *, points: Sequence[tuple[Cell, float]], label: str) -> None:
        for cell, x in points:
            assert cell.summary is not None
            ours, look = cell.summary.within(0, 100), looks[cell.rule]
            if ours.low is not None:
                axes.plot([x, x], [ours.low, ours.high], color=look.light, linewidth=1, alpha=0.6)
            marker = {"marker": look.marker, "markersize": 6, "color": look.light}
            axes.plot([x], [ours.mean], **marker, clip_on=False)
        axes.set_xlabel(label, labelpad=2)
        axes.set_ylabel("test error, %")
        axes.grid(color=LINE)
        axes.margins(x=0.12, y=0.12)
        axes.locator_params(axis="x", nbins=4)

    panels = []
    for key, scale, title, label in (
        ("step_ms", 1.0, "Test error against step time", "median training step, ms"),
        ("feedback_bytes", 1e-6, "Test error against feedback memory", "stored feedback, MB"),
    ):
        points = [(cell, scale * x) for cell in shown if (x := cell.costs.get(key)) is not None]
        if any(x for _, x in points):  # nothing to compare where no rule stores feedback
            panels.append(Panel(title, partial(draw, points=points, label=label)))
    caption = (
        "Step times are those of the training runs themselves, whatever else the machine did; "
        "the speed benchmark measures rules side by side."
    )
    rules = [cell.rule for cell in shown]
    return lines.filled(Group("cost", "What a rule costs", caption), panels, rules, looks)


def retrieval(runs: Runs, looks: Looks) -> list[Group]:
    """Precision and recall over the Hamming radius, without any attack; none without codes."""
    courses = {rule: rows for rule, of_rule in runs.items() if (rows := _precision(of_rule))}

    def draw(axes: Any, *, x: str, label: str) -> None:
        for rule, rows in courses.items():
            style = line_style(looks[rule]) | {"marker": looks[rule].marker, "markersize": 4}
            xs, ys = ([row[key] for row in rows] for key in (x, "precision"))
            axes.plot(xs, ys, **style, markevery=[MARKED_RADIUS])
        axes.set_ylim(0, 102)
        axes.locator_params(axis="x", nbins=6, integer=True)
        axes.set_xlabel(label, labelpad=2)

    panels = [
        Panel("Precision % over recall %", partial(draw, x="recall", label="recall, %")),
        Panel("Precision % within a radius", partial(draw, x="radius", label="radius, bits")),
    ]
    caption = (
        "Everything within a Hamming radius of a query, for each radius from 0 to the number of "
        f"bits; means over queries and seeds, without attack. The marker is radius {MARKED_RADIUS};"
        " a query that finds nothing counts as precision 0."
    )
    group = Group("precision-recall", "Precision and recall", caption)
    return lines.filled(group, panels if courses else [], courses, looks)


def _precision(runs: Sequence[Run]) -> list[dict[str, float]]:
    """Radius, precision and recall in %, means over seeds; [] unless every run has them."""
    courses = [[row for row in run.of_kind("course") if row["split"] == "test"] for run in runs]
    return [
        {"radius": rows[0]["radius"]}
        | {key: 100 * fmean(row[key] for row in rows) for key in ("precision", "recall")}
        for rows in (zip(*courses, strict=True) if all(courses) else ())
    ]
