"""How far the signal of each layer is from backprop's at the end of training, with intervals."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from apical.bench.report.read import Run, Study
from apical.bench.report.results import rule_column, setting_column
from apical.bench.report.table import Column, Shown, Table, count
from apical.measure import statistics

KEY = "delta_angle_deg"
MOVES = 0.01
"""Degrees below which a delta is backprop's own: the output layer's always is."""

Angles = dict[str, dict[int, float | None]]
"""layer -> seed -> degrees."""

LEGEND = (
    "Angle between the learning signal of a layer and backprop's at the same place, in degrees,"
    " at the last measurement: mean over the measured images and over n seeds, with a 95 % t"
    " interval. 90 is unrelated. Layers whose signal is backprop's under every rule, as the output"
    " layer's is, are left out. A run that did not measure all layers, because no signal reached"
    " one or because its records are older, does not count."
    " Rules that share a letter do not differ significantly (Holm-corrected)."
)


@dataclass(frozen=True)
class Line:
    """A rule's delta angle in degrees at one layer, or with no layer the mean over all.

    `finished` are its runs; those that measured nothing there are not in `angle`, which is None
    where that is all of them. `layers` are the lines of its layers.
    """

    rule: str
    layer: str
    finished: int
    angle: statistics.Summary | None
    ties: str
    setting: str = ""
    layers: tuple["Line", ...] = ()

    @property
    def n(self) -> int:
        return self.angle.n if self.angle else 0

    @property
    def mean(self) -> str:
        return f"{self.angle.mean:.1f}" if self.angle else ""

    @property
    def interval(self) -> str:
        """ "6.3 to 7.5"; "" without an interval."""
        cut = self.angle and self.angle.within(0, 180)
        return f"{cut.low:.1f} to {cut.high:.1f}" if cut and cut.low is not None else ""


def lines(runs: Mapping[str, Sequence[Run]], setting: str = "") -> list[Line]:
    """For the runs of one setting by rule: a line per rule, with a line for each of its layers.

    A run that did not measure a layer at the end, as where no signal reached it, does not count
    there; nor does it in the mean over the layers.
    """
    found = {rule: _at_the_end(of_rule) for rule, of_rule in runs.items()}
    names = dict.fromkeys(layer for angles in found.values() for layer in angles)
    layers = [
        name
        for name in names
        if any((angle or 0) > MOVES for of in found.values() for angle in of.get(name, {}).values())
    ]
    each = [
        line
        for layer in layers
        for line in _compared(layer, {r: of[layer] for r, of in found.items() if layer in of})
    ]
    means = {
        rule: _mean([angles[layer] for layer in layers if layer in angles])
        for rule, angles in found.items()
    }
    return [
        Line(
            line.rule,
            "",
            line.finished,
            line.angle,
            line.ties,
            setting,
            tuple(other for other in each if other.rule == line.rule),
        )
        for line in _compared("", {rule: mean for rule, mean in means.items() if mean})
    ]


def by_layer(rules: Sequence[Line]) -> list[Line]:
    """The lines of all layers of these rules, layer by layer."""
    names = dict.fromkeys(line.layer for rule in rules for line in rule.layers)
    every = [line for rule in rules for line in rule.layers]
    return [line for name in names for line in every if line.layer == name]


def table(rows: Sequence[Line], *, several: bool = False) -> Table:
    """The table of these lines; their layers have a column of their own where that is all.

    Args: several: whether it names the setting.
    """
    return Table(
        [
            setting_column(several),
            rule_column("rule"),
            Column(
                "",
                lambda line: line.layer or "(the net)",
                "layer",
                page="Layer",
                left=True,
                keep=any(line.layer for line in rows),
            ),
            Column("n", lambda line: count(line.n, line.finished), page="Runs n"),
            Column(
                "delta angle",
                lambda line: Shown(line.mean, line.angle and line.angle.mean, style="strong"),
                "n mean=angle.mean sd=angle.sd low=angle.low high=angle.high",
            ),
            Column(
                "95 % interval",
                lambda line: Shown(line.interval, line.angle and line.angle.low, style="soft"),
            ),
            Column("ties", lambda line: line.ties, "ties", left=True),
            Column("first layer", lambda line: _with_interval(line.layers[0]), page=""),
            Column("last layer", lambda line: _with_interval(line.layers[-1]), page=""),
        ],
        rows,
        "Table of delta angles",
    )


def to_markdown(study: Study) -> str:
    """A line per setting and rule: the mean over its layers, the first and the last of them.

    Raises: ValueError for a study whose finished runs measured none.
    """
    rows = [
        line
        for setting in study.settings
        for line in lines({rule: study.finished(setting, rule) for rule in study.rules}, setting)
    ]
    if not rows:
        raise ValueError(f"{study.name}: no finished run measured delta angles")
    text = table(rows, several=len(study.settings) > 1).markdown()
    ends = "First and last: of these layers, from the input, with their intervals."
    return f"{text}\n{LEGEND} {ends}\n"


def _at_the_end(runs: Iterable[Run]) -> Angles:
    """None for a run that has rows of the layer and no angle in the last."""
    found: Angles = {}
    for run in runs:
        for layer in run.layers:
            found.setdefault(layer, {})[run.seed] = run.of_kind("layer", layer)[-1].get(KEY)
    return found


def _mean(layers: Sequence[Mapping[int, float | None]]) -> dict[int, float | None]:
    """By seed, over the layers; None for a seed that lacks one of them."""
    means: dict[int, float | None] = {}
    for seed in dict.fromkeys(seed for of in layers for seed in of):
        known = [angle for of in layers if (angle := of.get(seed)) is not None]
        means[seed] = fmean(known) if len(known) == len(layers) else None
    return means


def _compared(layer: str, samples: Mapping[str, Mapping[int, float | None]]) -> list[Line]:
    known = {
        rule: {seed: angle for seed, angle in sample.items() if angle is not None}
        for rule, sample in samples.items()
    }
    letters = statistics.tie_groups(known)
    return [
        Line(
            rule,
            layer,
            len(samples[rule]),
            statistics.summarize(list(sample.values())) if sample else None,
            letters[rule],
        )
        for rule, sample in known.items()
    ]


def _with_interval(line: Line) -> Shown:
    return Shown(line.mean, interval=line.interval)
