"""Whether the layers of a study learned: when they aligned, which signals reached them, what each
added for a linear readout, which warnings there were."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean, median
from typing import Any

from apical.bench.report import angles
from apical.bench.report.lines import (
    Looks,
    Runs,
    Series,
    by_layer,
    degrees,
    every,
    of_layers,
    series,
)
from apical.bench.report.read import Row, Run, Study
from apical.bench.report.render import Group
from apical.bench.report.table import Column, Shown, Table, percent, plain, points
from apical.bench.storage.records import Record, grouped
from apical.measure import statistics
from apical.measure.alignment_phases import Phase, phases
from apical.measure.findings import Thresholds

PATIENCE = Thresholds.patience

NAMED_LAYERS = 3
"""Layers of a warning that are named; more are counted."""


@dataclass(frozen=True)
class Aligned:
    """How the layers of a rule, or one of them, aligned: a phase for each layer and seed, or the
    reason why there is none."""

    rule: str
    layer: str
    outcomes: tuple[Phase | str, ...]

    @property
    def phases(self) -> list[Phase]:
        return [each for each in self.outcomes if isinstance(each, Phase)]

    @property
    def reasons(self) -> list[str]:
        return [each for each in self.outcomes if isinstance(each, str)]

    def median(self, name: str) -> float | None:
        """Of a field of the phases that have it."""
        values = [value for phase in self.phases if (value := getattr(phase, name)) is not None]
        return median(values) if values else None

    @property
    def moving(self) -> int:
        """How many had not come to rest at the last measurement."""
        return sum(not phase.saturated for phase in self.phases)


@dataclass(frozen=True)
class Alarm:
    """One kind of warning under one rule, over layers and seeds; `message` is of the worst."""

    rule: str
    finding: str
    layers: tuple[str, ...]
    runs: int
    of: int
    epoch: float
    message: str

    @property
    def named(self) -> str:
        rest = len(self.layers) - NAMED_LAYERS
        shown = ", ".join(layer or "(the net)" for layer in self.layers[:NAMED_LAYERS])
        return f"{shown} and {rest} more" if rest > 0 else shown


def diagnose(study: Study, setting: str, looks: Looks) -> dict[str, Any] | None:
    """What the page shows of one setting; None where its records hold nothing.

    Figures and phases are of finished runs; warnings are of all, since those that failed are the
    ones to learn from.
    Returns: setting, groups of figures, rules and layers as `Aligned`, last as `angles.Line`,
        readouts, alarms; watched: whether the runs checked for the causes of warnings, as older
        ones did not; judged: how many measurements of a run may have led to one.
    """
    finished, rows = study.by_rule(setting), study.rows_of(setting)
    layers = [aligned for row in rows for aligned in _by_layer(row)]
    value: dict[str, Any] = {
        "groups": [*_deltas(finished, layers, looks), *_ranks(finished, looks)],
        "rules": [
            Aligned(rule, "", tuple(outcome for layer in of_rule for outcome in layer.outcomes))
            for rule, of_rule in grouped(layers, lambda layer: layer.rule).items()
        ],
        "alarms": [alarm for row in rows for alarm in _alarms(row.rule, row.every)],
        "readouts": readouts(finished),
    }
    if not any(value.values()):
        return None
    measured = [run.of_kind("probe") for row in rows for run in row.every]
    judged = max(sum(r["epoch"] >= 1 and "step" not in r for r in run) for run in measured)
    value |= {"setting": setting, "layers": layers, "watched": any(measured), "judged": judged}
    return value | {"last": angles.lines(finished)}


def _by_layer(row: Row) -> list[Aligned]:
    """Each layer but those whose update was backprop's from the start."""
    every = [
        each
        for run in row.runs
        for each in phases(e for e in run.rows if not run.no_angle(e)).items()
    ]
    by_name = grouped(every, lambda each: each[0])
    layers = [Aligned(row.rule, n, tuple(e for _, e in each)) for n, each in by_name.items()]
    start = "aligned from the start"
    return [e for e in layers if e.phases or not all(why.startswith(start) for why in e.reasons)]


def _alarms(rule: str, runs: Sequence[Run]) -> list[Alarm]:
    def severity(row: Record) -> float:
        """How far beyond its threshold, in either direction."""
        value, threshold = row["value"], row["threshold"]
        if not (value and threshold):
            return float("inf")
        return float(max(value / threshold, threshold / value))

    warnings = [row for run in runs for row in run.of_kind("warning")]
    return [
        Alarm(
            rule,
            kind,
            layers=tuple(dict.fromkeys(row["layer"] for row in rows)),
            runs=sum(any(r["finding"] == kind for r in run.of_kind("warning")) for run in runs),
            of=len(runs),
            epoch=min(row["epoch"] for row in rows),
            message=max(rows, key=severity)["message"],
        )
        for kind, rows in grouped(warnings, lambda row: row["finding"]).items()
    ]


def table(rows: Sequence[Aligned]) -> Table:
    """When the layers had aligned, and the loss at that moment."""
    layered = any(row.layer for row in rows)

    def middle(name: str, text: str) -> Any:
        return lambda row: plain(row.median(name), text.format)

    def aligned(row: Aligned) -> Shown:
        return Shown(f"{len(row.phases)} of {len(row.outcomes)}", len(row.phases))

    def epoch(row: Aligned) -> Shown:
        of = f"{row.moving} of {len(row.phases)}"
        title = f"{of} had not come to rest at the last measurement"
        more = {"title": title, "mark": " →"} if row.moving else {}
        return plain(row.median("epoch"), "{:.1f}".format, **more)

    def epochs(row: Aligned) -> Shown:
        ends = [phase.epoch for phase in row.phases]
        return Shown(f"{min(ends):.1f} to {max(ends):.1f}", min(ends)) if ends else Shown("")

    columns = [
        Column.rule(),
        Column("layer", lambda row: row.layer or "(the net)", left=True, keep=layered),
        Column("aligned", aligned),
        Column("after epoch", epoch, style="strong"),
        Column("earliest to latest", epochs, style="soft"),
        Column("angle before", middle("before", "{:.0f}°")),
        Column("angle at rest", middle("after", "{:.0f}°")),
        Column("loss then", middle("loss", "{:.3g}")),
        Column("loss at the end", middle("last_loss", "{:.3g}"), style="soft"),
        Column("why not", lambda row: "; ".join(dict.fromkeys(row.reasons)), left=True,
               keep=layered, style="wrap soft"),
    ]  # fmt: skip
    return Table(columns, rows, "Table of alignment")


def _deltas(runs: Runs, rows: Sequence[Aligned], looks: Looks) -> list[Group]:
    """The delta angle of every layer over time, with the end of each alignment phase."""
    moving = {k: v for k, v in by_layer(runs, angles.KEY).items() if max(every(v)) > angles.MOVES}
    ends: dict[str, dict[str, float]] = {}
    for row in rows:
        if (epoch := row.median("epoch")) is not None:
            ends.setdefault(row.layer, {})[row.rule] = epoch
    caption = (
        "Angle between the learning signal of a layer and backprop's at the same place, mean over"
        " the measured images; one panel per layer, from input to output. Dashed: 90°, unrelated."
        " Circle: nine tenths of the layer's alignment are done (median over seeds)."
    )
    group = Group("delta-angle", "Delta angle", caption)
    further = {
        layer: partial(draw_ends, values=moving.get(layer, {}), looks=looks, ends=by_rule)
        for layer, by_rule in ends.items()
    }
    return of_layers(group, angles.KEY, moving, runs, looks, axis=degrees, further=further)


def draw_ends(axes: Any, *, values: Series, looks: Looks, ends: Mapping[str, float]) -> None:
    """A circle on each line where its alignment phase ends."""
    for rule, epoch in ends.items():
        means = [(at, fmean(seeds)) for at, seeds in values.get(rule, {}).items()]
        later = next((i for i, (at, _) in enumerate(means) if at >= epoch), None)
        if later is None:
            continue  # the line ends before, with the first run that broke off
        (x0, y0), (x1, y1) = means[max(0, later - 1)], means[later]
        height = y1 if x1 == x0 else y0 + (y1 - y0) * (epoch - x0) / (x1 - x0)
        circle = {"marker": "o", "markersize": 5, "markerfacecolor": "none"}
        axes.plot([epoch], [height], **circle, color=looks[rule].light)


def _ranks(runs: Runs, looks: Looks) -> list[Group]:
    """Over how many directions the error at the output, and each layer's signal, spread; none as
    where one image is measured, which has no spread."""
    ranks = by_layer(runs, "delta_rank")
    ranks["error at the output"] = series(runs, "probe", "error_rank")
    ranks = {layer: values for layer, values in ranks.items() if max(every(values), default=0) > 0}
    caption = (
        "Directions over which each layer's signal spreads, as the participation ratio of its"
        " covariance (1: a line). Feedback of a lower rank loses something; when few images are"
        " still wrong, these few directions are all there is."
    )

    def axis(values: Sequence[float]) -> dict[str, Any]:
        return {"limits": (0.0, 1.08 * max(values))}

    group = Group("effective-rank", "Effective rank", caption)
    return of_layers(group, "delta_rank", ranks, runs, looks, axis=axis)


# Linear readouts


OUTPUT = "(the output)"


@dataclass(frozen=True)
class Readout:
    """Accuracy of a linear readout of a layer under a rule, in % and points over the seeds that
    measured it.

    Attributes: untrained, trained: of what the layer reads. change: trained minus untrained. added:
        by the layer itself, in the trained net: what the next layer reads minus what it reads; None
        for the output. images: held out, on which each is measured.
    """

    rule: str
    layer: str
    images: int
    untrained: statistics.Summary
    trained: statistics.Summary
    change: statistics.Summary
    added: statistics.Summary | None


def readouts(runs: Runs) -> list[Readout]:
    """A line for each rule and layer, from input to output; none for runs without probes.

    Rows of kind "linear" hold it before training and at its end; the layer "" is the output.
    """
    lines = []
    for rule, of_rule in runs.items():
        start, end = (_accuracies(of_rule, last=last) for last in (False, True))
        layers = [layer for layer in start if set(start[layer]) & set(end.get(layer, {}))]
        for layer, above in zip(layers, [*layers[1:], ""], strict=False):
            seeds = set(start[layer]) & set(end[layer])
            untrained, trained = (
                statistics.summarize([at[layer][seed] for seed in seeds]) for at in (start, end)
            )
            change = statistics.paired_difference(end[layer], start[layer])
            assert change is not None
            added = statistics.paired_difference(end.get(above, {}), end[layer]) if layer else None
            images = min(row["images"] for run in of_rule for row in run.of_kind("linear", layer))
            lines.append(Readout(rule, layer or OUTPUT, images, untrained, trained, change, added))
    return lines


def _accuracies(runs: Sequence[Run], *, last: bool) -> dict[str, dict[int, float]]:
    """By layer and seed in %, at the first measurement or, of runs with a second one, the last."""
    by_layer: dict[str, dict[int, float]] = {}
    for run in runs:
        rows = run.measured("linear", "accuracy", last=last)
        if rows != run.measured("linear", "accuracy", last=not last):
            for row in rows:
                by_layer.setdefault(row["layer"], {})[run.seed] = 100 * row["accuracy"]
    return by_layer


def readout_table(rows: Sequence[Readout]) -> Table:
    columns = [
        Column.rule("rule"),
        Column("layer", "layer", "layer", left=True),
        Column("n", "change.n", "n=change.n", page="Runs n"),
        Column("images", "images", "images", page="Images held out"),
        Column("untrained", "untrained.mean", "untrained=untrained.mean", text=percent),
        Column("trained", "trained.mean", "trained=trained.mean", text=percent),
        Column("change", "change",
               "change=change.mean change_low=change.low change_high=change.high", text=points),
        Column("added", "added", "added=added.mean added_low=added.low added_high=added.high",
               text=points),
    ]  # fmt: skip
    return Table(columns, rows, "Table of linear readouts")
