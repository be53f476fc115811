"""How far the signal of each layer is from backprop's at the end of training, with intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from apical.bench.report.read import Run, Study
from apical.bench.report.table import Column, Shown, Table, percent, span
from apical.measure import statistics

KEY = "delta_angle_deg"
MOVES = 0.01
"""Degrees below which a delta is backprop's own: the output layer's always is."""

Angles = Mapping[int, float | None]
"""seed -> degrees; None for a run that has rows of the layer and no angle in the last."""


@dataclass(frozen=True)
class Line:
    """A rule's delta angle in degrees at one layer, or with no layer the mean over all.

    `planned` are its finished runs; those that measured nothing there are not in `angle`, which is
    None where that is all of them. `layers` are the lines of its layers.
    """

    rule: str
    layer: str
    planned: int
    angle: statistics.Summary | None
    ties: str
    setting: str = ""
    layers: tuple["Line", ...] = ()

    @property
    def n(self) -> int:
        return self.angle.n if self.angle else 0

    @property
    def mean(self) -> str:
        return percent(self.angle.mean) if self.angle else ""

    @property
    def interval(self) -> str:
        """ "6.3 to 7.5"; "" without an interval."""
        return span(self.angle and self.angle.within(0, 180), percent)


def lines(runs: Mapping[str, Sequence[Run]], setting: str = "") -> list[Line]:
    """For the runs of one setting by rule: a line per rule, with a line for each of its layers.

    A run that did not measure a layer at the end, as where no signal reached it, does not count
    there; nor does it in the mean over the layers.
    """
    angles: dict[str, dict[str, dict[int, float | None]]] = {}
    for rule, of_rule in runs.items():
        for run in of_rule:
            for layer in run.layers:
                angle = run.of_kind("layer", layer)[-1].get(KEY)
                angles.setdefault(layer, {}).setdefault(rule, {})[run.seed] = angle
    layers = {
        layer: by_rule
        for layer, by_rule in angles.items()
        if any((angle or 0) > MOVES for of_rule in by_rule.values() for angle in of_rule.values())
    }
    of_layers = [line for layer, by_rule in layers.items() for line in _compared(layer, by_rule)]
    means = {
        rule: _mean([by_rule[rule] for by_rule in layers.values() if rule in by_rule])
        for rule in runs
    }
    return [
        replace(line, setting=setting, layers=tuple(o for o in of_layers if o.rule == line.rule))
        for line in _compared("", {rule: mean for rule, mean in means.items() if mean})
    ]


def of_study(study: Study) -> list[Line]:
    """The lines of all settings.

    Raises: ValueError for a study whose finished runs measured none.
    """
    rows = [line for name in study.settings for line in lines(study.by_rule(name), name)]
    if not rows:
        raise ValueError(f"{study.name}: no finished run measured delta angles")
    return rows


def by_layer(rules: Sequence[Line]) -> list[Line]:
    """The lines of all layers of these rules, layer by layer."""
    every = [line for rule in rules for line in rule.layers]
    names = list(dict.fromkeys(line.layer for line in every))
    return sorted(every, key=lambda line: names.index(line.layer))


def table(rows: Sequence[Line], *, several: bool = False) -> Table:
    """The table of these lines; their layers have a column of their own where that is all.

    Args: several: whether it names the setting.
    """

    def layer(place: int) -> Column:
        def show(line: Line) -> Shown:
            return Shown(line.layers[place].mean, interval=line.layers[place].interval)

        return Column("last layer" if place else "first layer", show, page="")

    columns = [
        Column.setting(several),
        Column.rule("rule"),
        Column("", lambda line: line.layer or "(the net)", "layer", page="Layer", left=True,
               keep=any(line.layer for line in rows)),
        Column.runs(),
        Column("delta angle",
               lambda line: Shown(line.mean, line.angle and line.angle.mean, style="strong"),
               "n mean=angle.mean sd=angle.sd low=angle.low high=angle.high"),
        Column("95 % interval",
               lambda line: Shown(line.interval, line.angle and line.angle.low, style="soft")),
        Column("ties", "ties", "ties", left=True),
        layer(0),
        layer(-1),
    ]  # fmt: skip
    return Table(columns, rows, "Table of delta angles")


def _mean(layers: Sequence[Angles]) -> Angles:
    """By seed, over the layers; None for a seed that lacks one of them."""
    means: dict[int, float | None] = {}
    for seed in dict.fromkeys(seed for of in layers for seed in of):
        known = [angle for of in layers if (angle := of.get(seed)) is not None]
        means[seed] = fmean(known) if len(known) == len(layers) else None
    return means


def _compared(layer: str, samples: Mapping[str, Angles]) -> list[Line]:
    known = {
        rule: {seed: angle for seed, angle in sample.items() if angle is not None}
        for rule, sample in samples.items()
    }
    letters = statistics.tie_groups(known)
    means = {rule: statistics.summarize([*s.values()]) if s else None for rule, s in known.items()}
    return [
        Line(rule, layer, len(samples[rule]), mean, letters[rule]) for rule, mean in means.items()
    ]
