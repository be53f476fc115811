"""Whether the layers of a study learned: when they aligned, what reached them, what went wrong."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

from apical.bench.report import angles, figures
from apical.bench.report.looks import Look
from apical.bench.report.read import Run, Study
from apical.bench.report.render import Group, Panel
from apical.measure.alignment_phases import Phase, phases

NAMED_LAYERS = 3
"""Layers of a warning that are named; more are counted."""

SIZE, MARGIN = (1.9, 1.45), (0.42, 0.4)


@dataclass(frozen=True)
class Aligned:
    """How the layers of a rule, or one of them, aligned: medians over layers and seeds.

    `phases` are those that were found, out of `possible`; `epochs` their earliest and latest.
    """

    rule: str
    layer: str
    possible: int
    phases: tuple[Phase, ...]
    reasons: tuple[str, ...]

    @property
    def epoch(self) -> float | None:
        return self._median([phase.epoch for phase in self.phases])

    @property
    def epochs(self) -> tuple[float, float]:
        every = [phase.epoch for phase in self.phases]
        return min(every), max(every)

    @property
    def before(self) -> float | None:
        return self._median([phase.before for phase in self.phases])

    @property
    def after(self) -> float | None:
        return self._median([phase.after for phase in self.phases])

    @property
    def loss(self) -> float | None:
        return self._median([phase.loss for phase in self.phases if phase.loss is not None])

    @property
    def last_loss(self) -> float | None:
        every = [phase.last_loss for phase in self.phases]
        return self._median([loss for loss in every if loss is not None])

    @property
    def moving(self) -> int:
        """How many had not come to rest at the last measurement."""
        return sum(not phase.saturated for phase in self.phases)

    @staticmethod
    def _median(values: Sequence[float]) -> float | None:
        return median(values) if values else None


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
    """What the page shows of one setting."""

    setting: str
    groups: tuple[Group, ...]
    rules: tuple[Aligned, ...]
    layers: tuple[Aligned, ...]
    last: tuple[angles.Line, ...]
    last_by_layer: tuple[angles.Line, ...]
    alarms: tuple[Alarm, ...]
    watched: bool
    """Whether the runs looked out for what a warning tells of; older ones did not."""

    @property
    def drawn(self) -> list[str]:
        """Rules in the figures."""
        return list(dict.fromkeys(rule for group in self.groups for rule in group.rules))


def diagnose(study: Study, setting: str, looks: Mapping[str, Look]) -> Diagnosis | None:
    """What the records of one setting say; None where they say nothing.

    Figures and phases are of finished runs; warnings are of all, since those that failed are the
    ones to learn from.
    """
    every = {
        rule: [run for run in study.runs if (run.setting, run.rule) == (setting, rule)]
        for rule in study.rules
    }
    return of_runs(setting, every, looks)


def of_runs(
    setting: str, every: Mapping[str, Sequence[Run]], looks: Mapping[str, Look]
) -> Diagnosis | None:
    """The same for runs by rule."""
    finished = {
        rule: [run for run in runs if run.status == "finished"] for rule, runs in every.items()
    }
    finished = {rule: runs for rule, runs in finished.items() if runs}
    layers = [row for rule, runs in finished.items() for row in _by_layer(rule, runs)]
    rules = [_together(rule, layers) for rule in dict.fromkeys(row.rule for row in layers)]
    last, last_by_layer = angles.lines(finished)
    groups = [_deltas(finished, layers, looks), _ranks(finished, looks)]
    alarms = [alarm for rule, runs in every.items() for alarm in _alarms(rule, runs)]
    shown = tuple(group for group in groups if group is not None)
    if not (shown or rules or alarms):
        return None
    watched = any(run.of_kind("probe") for runs in every.values() for run in runs)
    return Diagnosis(
        setting,
        shown,
        tuple(rules),
        tuple(layers),
        tuple(last),
        tuple(last_by_layer),
        tuple(alarms),
        watched,
    )


def _by_layer(rule: str, runs: Sequence[Run]) -> list[Aligned]:
    """One row for each layer but those whose update was backprop's from the start."""
    found: dict[str, list[Phase | str]] = {}
    for run in runs:
        for layer, phase in phases(run.rows).items():
            found.setdefault(layer, []).append(phase)
    rows = [
        Aligned(
            rule,
            layer,
            len(given),
            tuple(each for each in given if isinstance(each, Phase)),
            tuple(each for each in given if isinstance(each, str)),
        )
        for layer, given in found.items()
    ]
    return [row for row in rows if row.phases or not all(map(_from_the_start, row.reasons))]


def _from_the_start(reason: str) -> bool:
    return reason.startswith("aligned from the start")


def _together(rule: str, layers: Iterable[Aligned]) -> Aligned:
    own = [row for row in layers if row.rule == rule]
    met = tuple(phase for row in own for phase in row.phases)
    reasons = tuple(reason for row in own for reason in row.reasons)
    return Aligned(rule, "", sum(row.possible for row in own), met, reasons)


def _alarms(rule: str, runs: Sequence[Run]) -> list[Alarm]:
    rows = [(run.folder, row) for run in runs for row in run.rows if row["kind"] == "warning"]
    return [
        _alarm(rule, kind, [(folder, row) for folder, row in rows if row["finding"] == kind], runs)
        for kind in dict.fromkeys(row["finding"] for _, row in rows)
    ]


def _alarm(
    rule: str, kind: str, rows: Sequence[tuple[str, Mapping[str, Any]]], runs: Sequence[Run]
) -> Alarm:
    worst = max((row for _, row in rows), key=_severity)
    return Alarm(
        rule=rule,
        finding=kind,
        layers=tuple(dict.fromkeys(row["layer"] for _, row in rows)),
        runs=len({folder for folder, _ in rows}),
        of=len(runs),
        epoch=min(row["epoch"] for _, row in rows),
        message=worst["message"],
    )


def _severity(row: Mapping[str, Any]) -> float:
    """How far beyond its threshold, in either direction."""
    value, threshold = row["value"], row["threshold"]
    if value >= threshold:
        return float(value / threshold)
    return float(threshold / value) if value else float("inf")


def _deltas(
    runs: Mapping[str, Sequence[Run]], layers: Sequence[Aligned], looks: Mapping[str, Look]
) -> Group | None:
    """The delta angle of every layer over time, with the end of each alignment phase."""
    found = _series(runs, angles.KEY)
    found = {layer: values for layer, values in found.items() if _largest(values) > angles.MOVES}
    if not found:
        return None
    picked = figures.spread(list(found), figures.MOST_LAYERS)
    limits = (0.0, max(100.0, 1.03 * max(_largest(found[layer]) for layer in picked)))
    marks = {(row.rule, row.layer): row.epoch for row in layers if row.epoch is not None}
    panels = tuple(
        Panel(
            layer,
            partial(
                draw_marked,
                values=found[layer],
                looks=looks,
                limits=limits,
                ends={rule: marks[rule, layer] for rule in found[layer] if (rule, layer) in marks},
            ),
        )
        for layer in picked
    )
    caption = (
        "Angle between the signal that teaches a layer and backprop's at the same place, mean over"
        " the measured images; one panel per layer, from input to output. Dashed: 90°, unrelated."
        " Circle: nine tenths of the layer's alignment are done (median over seeds)."
    )
    caption += figures.recorded(runs, "layer", angles.KEY, picked[0])
    return _group("delta-angle", "Delta angle", caption, panels, found, picked, runs)


def draw_marked(
    axes: Any,
    *,
    values: figures.Series,
    looks: Mapping[str, Look],
    limits: tuple[float, float],
    ends: Mapping[str, float],
) -> None:
    """Mean and range over seeds, and a circle on each line where its alignment phase ends."""
    figures.draw_curves(axes, values=values, looks=looks, log=False, limits=limits, baseline=90)
    for rule, epoch in ends.items():
        means = [(at, sum(seeds) / len(seeds)) for at, seeds in values[rule].items()]
        later = next(i for i, (at, _) in enumerate(means) if at >= epoch)
        (x0, y0), (x1, y1) = means[max(0, later - 1)], means[later]
        height = y1 if x1 == x0 else y0 + (y1 - y0) * (epoch - x0) / (x1 - x0)
        axes.plot(
            [epoch],
            [height],
            marker="o",
            markersize=5,
            markerfacecolor="none",
            color=looks[rule].light,
        )


def _ranks(runs: Mapping[str, Sequence[Run]], looks: Mapping[str, Look]) -> Group | None:
    """Over how many directions the error at the output, and each layer's signal, spread."""
    found = _series(runs, "delta_rank")
    error = figures.series(runs, "probe", "error_rank")
    if error:
        found = {**found, "error at the output": error}
    found = {layer: values for layer, values in found.items() if _largest(values) > 0}
    if not found:  # as where one image is measured, which has no spread
        return None
    picked = figures.spread(list(found), figures.MOST_LAYERS)
    highest = max(_largest(found[layer]) for layer in picked)
    draw = partial(figures.draw_curves, looks=looks, log=False, limits=(0.0, 1.08 * highest))
    panels = tuple(Panel(layer, partial(draw, values=found[layer])) for layer in picked)
    caption = (
        "Directions over which each layer's signal spreads, as the participation ratio of its"
        " covariance (1: a line). Feedback of a lower rank loses something; when few images are"
        " still wrong, these few directions are all there is."
    )
    caption += figures.recorded(runs, "layer", "delta_rank", picked[0])
    return _group("effective-rank", "Effective rank", caption, panels, found, picked, runs)


def _series(runs: Mapping[str, Sequence[Run]], key: str) -> dict[str, figures.Series]:
    names = dict.fromkeys(layer for of in runs.values() for run in of for layer in run.layers)
    found = {layer: figures.series(runs, "layer", key, layer) for layer in names}
    return {layer: values for layer, values in found.items() if values}


def _largest(values: figures.Series) -> float:
    return max(v for epochs in values.values() for seeds in epochs.values() for v in seeds)


def _group(
    name: str,
    heading: str,
    caption: str,
    panels: tuple[Panel, ...],
    found: Mapping[str, figures.Series],
    picked: Sequence[str],
    runs: Mapping[str, Sequence[Run]],
) -> Group:
    if len(picked) < len(found):
        caption += f" {len(picked)} of {len(found)} panels, evenly spaced."
    drawn = tuple(rule for rule in runs if any(rule in values for values in found.values()))
    return Group(name, heading, caption, panels, size=SIZE, margin=MARGIN, rules=drawn)
