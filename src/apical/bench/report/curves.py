"""Published courses of training beside ours: one point per rule, quantity and epoch."""

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from apical.bench.report.figures import Series, draw_curves, series
from apical.bench.report.looks import Look
from apical.bench.report.names import display_name
from apical.bench.report.read import Curve, Study
from apical.bench.report.render import Group, Panel
from apical.measure import statistics

KINDS = {"test_acc": "test", "angle_deg": "layer", "gradient_angle_deg": "layer"}
"""Kind of the rows that hold a metric."""

QUANTITIES = {
    "test_acc": "test accuracy, %",
    "angle_deg": "angle of feedback to weights, {layer}",
    "gradient_angle_deg": "angle of the update to backprop's, {layer}",
}


@dataclass(frozen=True)
class Point:
    """What we measured where something was published."""

    curve: Curve
    epoch: int
    ours: statistics.Summary

    @property
    def published(self) -> float:
        return self.curve.values[self.epoch]

    @property
    def difference(self) -> float:
        """Ours minus published."""
        return self.ours.mean - self.published

    @property
    def quantity(self) -> str:
        return quantity(self.curve)

    @property
    def word(self) -> str:
        """Agrees: within the allowance, or within our interval where that is wider."""
        if self.ours.n < statistics.FEWEST:
            return "too few runs"
        half = (self.ours.high or 0.0) - self.ours.mean
        return "agrees" if abs(self.difference) <= max(self.curve.allowance, half) else "differs"


def quantity(curve: Curve) -> str:
    """In words, with the layer where there is one."""
    return QUANTITIES[curve.metric].format(layer=curve.layer)


def points(study: Study) -> list[Point]:
    """Every published value at an epoch that all finished runs of its rule have measured."""
    found = []
    for curve in study.curves:
        ours = _ours(study, curve, [curve.rule]).get(curve.rule, {})
        found += [
            Point(curve, epoch, statistics.summarize(ours[epoch]))
            for epoch in curve.values
            if epoch in ours
        ]
    return found


def groups(study: Study, setting: str, looks: Mapping[str, Look]) -> list[Group]:
    """One figure: a panel per quantity, ours as lines and the published values on them."""
    curves = [curve for curve in study.curves if curve.setting == setting]
    panels: list[Panel] = []
    shown: dict[str, None] = {}
    for key in dict.fromkeys((curve.metric, curve.layer) for curve in curves):
        same = [curve for curve in curves if (curve.metric, curve.layer) == key]
        values = _ours(study, same[0], study.rules)
        if values:
            shown |= dict.fromkeys(values)
            drawing = partial(draw, values=values, published=same, looks=looks)
            panels.append(Panel(quantity(same[0]), drawing))
    if not panels:
        return []
    caption = (
        "Line: mean over seeds; band: lowest to highest seed. Open diamonds: published values, in "
        "the colour of their rule."
    )
    heading = "Against a published course of training"
    return [Group("published-curves", heading, caption, tuple(panels), rules=tuple(shown))]


def draw(
    axes: Any, *, values: Series, published: Iterable[Curve], looks: Mapping[str, Look]
) -> None:
    """Our curves and the published points."""
    draw_curves(axes, values=values, looks=looks, log=False)
    for curve in published:
        axes.scatter(
            list(curve.values),
            list(curve.values.values()),
            s=30,
            marker="D",
            facecolors="none",
            edgecolors=looks[curve.rule].light,
            linewidths=1.0,
            zorder=4,
        )


def to_csv(rows: Iterable[Point]) -> str:
    """All points with every number in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(
        "setting rule quantity epoch n mean low high published allowance verdict source".split()
    )
    for row in rows:
        ours, curve = row.ours, row.curve
        names = curve.setting, display_name(curve.rule), row.quantity, row.epoch
        numbers = ours.n, ours.mean, ours.low, ours.high, row.published, curve.allowance
        writer.writerow([*names, *numbers, row.word, curve.source])
    return out.getvalue()


def _ours(study: Study, like: Curve, rules: Iterable[str]) -> Series:
    """Our values of the curve's quantity, by rule and epoch, in its unit."""
    runs = {rule: study.finished(like.setting, rule) for rule in rules}
    found = series(runs, KINDS[like.metric], like.metric, like.layer)
    factor = 100 if like.metric.endswith("_acc") else 1
    return {
        rule: {epoch: [factor * v for v in vs] for epoch, vs in epochs.items() if epoch}
        for rule, epochs in found.items()
    }
