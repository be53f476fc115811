"""How far the signal of each layer is from backprop's at the end of training, with intervals."""

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from apical.bench.report.escape import for_markdown, for_spreadsheet
from apical.bench.report.names import display_name
from apical.bench.report.read import Run, Study
from apical.measure import statistics

KEY = "delta_angle_deg"
MOVES = 0.01
"""Degrees below which a delta is backprop's own: the output layer's always is."""

Angles = dict[str, dict[int, float | None]]
"""layer -> seed -> degrees."""

TOLD = (
    "Angle between the signal that teaches a layer and backprop's at the same place, in degrees,"
    " at the last measurement: mean over the measured images and over n seeds, with a 95 % t"
    " interval. 90 is unrelated. Layers whose signal is backprop's under every rule, as the output"
    " layer's is, are left out. A run that did not measure all layers, because no signal reached"
    " one or because its records are older, does not count."
)
TIES = "Rules that share a letter are not told apart (Holm-corrected)."


@dataclass(frozen=True)
class Line:
    """A rule's delta angle in degrees at one layer, or with no layer the mean over all.

    `finished` are its runs; those that measured nothing there are not in `angle`, which is None
    where that is all of them.
    """

    rule: str
    layer: str
    finished: int
    angle: statistics.Summary | None
    ties: str

    @property
    def n(self) -> str:
        """ "3", or "1 of 3" where a run measured nothing."""
        n = self.angle.n if self.angle else 0
        return str(n) if n == self.finished else f"{n} of {self.finished}"

    @property
    def mean(self) -> str:
        return f"{self.angle.mean:.1f}" if self.angle else ""

    @property
    def interval(self) -> str:
        """ "6.3 to 7.5"; "" without an interval."""
        cut = self.angle and self.angle.within(0, 180)
        return f"{cut.low:.1f} to {cut.high:.1f}" if cut and cut.low is not None else ""


def lines(runs: Mapping[str, Sequence[Run]]) -> tuple[list[Line], list[Line]]:
    """For the runs of one setting by rule: a line per rule, and a line per layer and rule.

    A run that did not measure a layer at the end, as where no signal reached it, does not count
    there; nor does it in the mean over the layers.
    """
    found = {rule: _at_the_end(of_rule) for rule, of_rule in runs.items()}
    known = [layer for angles in found.values() for layer in angles]
    layers = [
        layer
        for layer in dict.fromkeys(known)
        if any(angle > MOVES for of in found.values() for angle in _known(of.get(layer, {})))
    ]
    means = {
        rule: _mean([angles[layer] for layer in layers if layer in angles])
        for rule, angles in found.items()
    }
    each = [
        line
        for layer in layers
        for line in _compared(layer, {r: of[layer] for r, of in found.items() if layer in of})
    ]
    return _compared("", {rule: mean for rule, mean in means.items() if mean}), each


def to_markdown(study: Study) -> str:
    """A line per setting and rule: the mean over its layers, the first and the last of them.

    Raises: ValueError for a study whose finished runs measured none.
    """
    several = len(study.settings) > 1
    head = ["setting"] * several + ["rule", "n", "delta angle", "95 % interval", "ties"]
    head += ["first layer", "last layer"]
    text = ["| " + " | ".join(head) + " |"]
    rulers = ["---" if name in ("setting", "rule", "ties") else "---:" for name in head]
    text.append("|" + "|".join(rulers) + "|")
    for setting in study.settings:
        rules, layers = lines({rule: study.finished(setting, rule) for rule in study.rules})
        for line in rules:
            own = [layer for layer in layers if layer.rule == line.rule]
            cells = [setting] * several + [display_name(line.rule), line.n]
            cells += [line.mean, line.interval, line.ties, _beside(own[0]), _beside(own[-1])]
            text.append("| " + " | ".join(map(for_markdown, cells)) + " |")
    if len(text) == 2:
        raise ValueError(f"{study.name}: no finished run measured delta angles")
    told = f"{TOLD} {TIES} First and last: of these layers, from the input, with their intervals."
    return "\n".join(text) + f"\n\n{told}\n"


def to_csv(found: Iterable[Line]) -> str:
    """The lines with every number in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    numbers = ("n", "mean", "sd", "low", "high")
    writer.writerow(["rule", "layer", *numbers, "ties"])
    for line in found:
        names = for_spreadsheet(line.rule), for_spreadsheet(line.layer)
        writer.writerow([*names, *(getattr(line.angle, key, "") for key in numbers), line.ties])
    return out.getvalue()


def _at_the_end(runs: Iterable[Run]) -> Angles:
    """None for a run that has rows of the layer and no angle in the last."""
    found: Angles = {}
    for run in runs:
        for layer in run.layers:
            found.setdefault(layer, {})[run.seed] = run.of_kind("layer", layer)[-1].get(KEY)
    return found


def _known(angles: Mapping[int, float | None]) -> list[float]:
    return [angle for angle in angles.values() if angle is not None]


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


def _beside(line: Line) -> str:
    return f"{line.mean} [{line.interval}]" if line.interval else line.mean
