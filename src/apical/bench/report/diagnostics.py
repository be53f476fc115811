"""Whether the layers of a study learned: when they aligned, what reached them, what went wrong."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from apical.bench.report import angles, linear_probes
from apical.bench.report.lines import (
    Looks,
    Runs,
    Series,
    by_layer,
    draw_lines,
    every,
    of_layers,
    series,
)
from apical.bench.report.read import Row, Run, Study
from apical.bench.report.render import Group
from apical.bench.report.table import Column, Shown, Table, plain
from apical.measure.alignment_phases import Phase, phases

NAMED_LAYERS = 3
"""Layers of a warning that are named; more are counted."""


@dataclass(frozen=True)
class Aligned:
    """How the layers of a rule, or one of them, aligned: a phase for each layer and seed, or the
    reason why there is none."""

    rule: str
    layer: str
    found: tuple[Phase | str, ...]

    @property
    def phases(self) -> list[Phase]:
        return [each for each in self.found if isinstance(each, Phase)]

    @property
    def reasons(self) -> list[str]:
        return [each for each in self.found if isinstance(each, str)]

    def median(self, name: str) -> float | None:
        """Of a field of the phases that have it."""
        found = [value for phase in self.phases if (value := getattr(phase, name)) is not None]
        return median(found) if found else None

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


@dataclass(frozen=True)
class Diagnosis:
    """What the page shows of one setting.

    Attributes: watched: whether the runs looked out for what a warning tells of; older ones did
        not.
    """

    setting: str
    groups: tuple[Group, ...]
    rules: tuple[Aligned, ...]
    layers: tuple[Aligned, ...]
    last: tuple[angles.Line, ...]
    readouts: tuple[linear_probes.Line, ...]
    alarms: tuple[Alarm, ...]
    watched: bool


def diagnose(study: Study, setting: str, looks: Looks) -> Diagnosis | None:
    """What the records of one setting say; None where they say nothing.

    Figures and phases are of finished runs; warnings are of all, since those that failed are the
    ones to learn from.
    """
    finished = study.by_rule(setting)
    by_rule = {row.rule: layers for row in study.rows_of(setting) if (layers := _by_layer(row))}
    layers = [each for of_rule in by_rule.values() for each in of_rule]
    rules = [
        Aligned(rule, "", tuple(phase for each in of_rule for phase in each.found))
        for rule, of_rule in by_rule.items()
    ]
    groups = [*_deltas(finished, layers, looks), *_ranks(finished, looks)]
    alarms = [alarm for row in study.rows_of(setting) for alarm in _alarms(row.rule, row.every)]
    readouts = linear_probes.lines(finished)
    if not (groups or rules or alarms or readouts):
        return None
    return Diagnosis(
        setting,
        tuple(groups),
        tuple(rules),
        tuple(layers),
        tuple(angles.lines(finished)),
        tuple(readouts),
        tuple(alarms),
        any(run.of_kind("probe") for run in study.runs if run.setting == setting),
    )


def _by_layer(row: Row) -> list[Aligned]:
    """Each layer but those whose update was backprop's from the start."""
    found: dict[str, list[Phase | str]] = {}
    for run in row.runs:
        for layer, phase in phases(run.rows).items():
            found.setdefault(layer, []).append(phase)
    layers = [Aligned(row.rule, layer, tuple(each)) for layer, each in found.items()]
    start = "aligned from the start"
    return [e for e in layers if e.phases or not all(why.startswith(start) for why in e.reasons)]


def _alarms(rule: str, runs: Sequence[Run]) -> list[Alarm]:
    by_kind: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for run in runs:
        for row in (row for row in run.rows if row["kind"] == "warning"):
            by_kind.setdefault(row["finding"], []).append((run.folder, row))
    return [
        Alarm(
            rule,
            kind,
            layers=tuple(dict.fromkeys(row["layer"] for _, row in rows)),
            runs=len({folder for folder, _ in rows}),
            of=len(runs),
            epoch=min(row["epoch"] for _, row in rows),
            message=max((row for _, row in rows), key=_severity)["message"],
        )
        for kind, rows in by_kind.items()
    ]


def _severity(row: Mapping[str, Any]) -> float:
    """How far beyond its threshold, in either direction."""
    value, threshold = row["value"], row["threshold"]
    if value >= threshold:
        return float(value / threshold)
    return float(threshold / value) if value else float("inf")


def table(rows: Sequence[Aligned]) -> Table:
    """When the layers had aligned, and the loss at that moment."""
    layered = any(row.layer for row in rows)

    def middle(name: str, text: str) -> Any:
        return lambda row: plain(row.median(name), text.format)

    def aligned(row: Aligned) -> Shown:
        return Shown(f"{len(row.phases)} of {len(row.found)}", len(row.phases))

    def epoch(row: Aligned) -> Shown:
        of = f"{row.moving} of {len(row.phases)}"
        title = f"{of} had not come to rest at the last measurement"
        more = {"title": title, "mark": " →"} if row.moving else {}
        return plain(row.median("epoch"), "{:.1f}".format, **more)

    def epochs(row: Aligned) -> Shown:
        found = [phase.epoch for phase in row.phases]
        if not found:
            return Shown("")
        return Shown(f"{min(found):.1f} to {max(found):.1f}", min(found))

    return Table(
        [
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
        ],
        rows,
        "Table of alignment",
    )  # fmt: skip


def _deltas(runs: Runs, rows: Sequence[Aligned], looks: Looks) -> list[Group]:
    """The delta angle of every layer over time, with the end of each alignment phase."""
    found = {k: v for k, v in by_layer(runs, angles.KEY).items() if max(every(v)) > angles.MOVES}
    ends: dict[str, dict[str, float]] = {}
    for row in rows:
        if (epoch := row.median("epoch")) is not None:
            ends.setdefault(row.layer, {})[row.rule] = epoch

    def options(layer: str, values: Sequence[float]) -> dict[str, Any]:
        limits = (0.0, max(100.0, 1.03 * max(values)))
        return {"limits": limits, "baseline": 90, "ends": ends.get(layer, {})}

    caption = (
        "Angle between the learning signal of a layer and backprop's at the same place, mean over"
        " the measured images; one panel per layer, from input to output. Dashed: 90°, unrelated."
        " Circle: nine tenths of the layer's alignment are done (median over seeds)."
    )
    name, heading = "delta-angle", "Delta angle"
    return of_layers(
        name, heading, caption, angles.KEY, found, runs, looks, draw_marked, options=options
    )


def draw_marked(
    axes: Any, *, values: Series, looks: Looks, ends: Mapping[str, float], **options: Any
) -> None:
    """Mean and range over seeds, and a circle on each line where its alignment phase ends."""
    draw_lines(axes, values=values, looks=looks, **options)
    for rule, epoch in ends.items():
        if rule not in values:
            continue
        means = [(at, sum(seeds) / len(seeds)) for at, seeds in values[rule].items()]
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
    key = "delta_rank"
    found = by_layer(runs, key)
    if error := series(runs, "probe", "error_rank"):
        found["error at the output"] = error
    found = {layer: values for layer, values in found.items() if max(every(values)) > 0}

    def options(layer: str, values: Sequence[float]) -> dict[str, Any]:
        return {"limits": (0.0, 1.08 * max(values))}

    caption = (
        "Directions over which each layer's signal spreads, as the participation ratio of its"
        " covariance (1: a line). Feedback of a lower rank loses something; when few images are"
        " still wrong, these few directions are all there is."
    )
    name, heading = "effective-rank", "Effective rank"
    return of_layers(name, heading, caption, key, found, runs, looks, options=options)
