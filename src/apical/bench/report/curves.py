"""Published courses of training compared with ours: one point per rule, quantity and epoch."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from apical.bench.report import lines
from apical.bench.report.lines import Lines, Looks, Series
from apical.bench.report.names import display_name
from apical.bench.report.published import Curve
from apical.bench.report.read import Study
from apical.bench.report.render import Group
from apical.bench.report.results import judged
from apical.bench.report.table import Column, Shown, Table, each, number, plain, signed, span
from apical.bench.storage.records import grouped
from apical.measure import statistics

QUANTITIES = {
    "test_acc": ("test", "test accuracy, %"),
    "angle_deg": ("layer", "angle of feedback to weights, {layer}"),
    "gradient_angle_deg": ("layer", "angle of the update to backprop's, {layer}"),
}
"""Kind of the rows that hold a metric, and the metric in words."""


@dataclass(frozen=True)
class Point:
    """What we measured where something was published; difference: ours minus published."""

    curve: Curve
    setting: str
    name: str
    quantity: str
    epoch: int
    ours: statistics.Summary
    published: float
    difference: float
    failed: int = 0

    @property
    def word(self) -> str:
        """Agrees: within the allowance, as our interval is too. Compatible, uninformative: within
        the allowance or the interval, but the interval is wider than the allowance, all runs are
        equal, or others failed."""
        if self.ours.n < statistics.FEWEST:
            return "too few runs"
        half, distance = (self.ours.high or 0.0) - self.ours.mean, abs(self.difference)
        if distance > max(self.curve.allowance, half):
            return "differs"
        certain = 0 < half <= self.curve.allowance and not self.failed
        return "agrees" if certain else "compatible, uninformative"


def quantity(curve: Curve) -> str:
    """In words, with the layer where there is one."""
    return QUANTITIES[curve.metric][1].format(layer=curve.layer)


def points(study: Study) -> list[Point]:
    """Every published value at an epoch that all finished runs of its rule have measured."""
    made = []
    for curve in study.curves:
        ours = _ours(study, curve, [curve.rule]).get(curve.rule, {})
        failed = study.row(curve.setting, curve.rule).failed
        about = (curve, curve.setting, display_name(curve.rule), quantity(curve))
        for epoch, value in curve.values.items():
            if epoch in ours:
                mean = statistics.summarize(ours[epoch])
                made.append(Point(*about, epoch, mean, value, mean.mean - value, failed))
    return made


def _ours(study: Study, like: Curve, rules: Iterable[str]) -> Series:
    """Our values of the curve's quantity, by rule and epoch, in its unit."""
    runs = {rule: study.row(like.setting, rule).runs for rule in rules}
    factor = 100 if like.metric.endswith("_acc") else 1
    kind, layer = QUANTITIES[like.metric][0], like.layer or None
    values = lines.series(runs, kind, like.metric, layer, scale=lambda value: factor * float(value))
    return {rule: {at: vs for at, vs in epochs.items() if at} for rule, epochs in values.items()}


def table(study: Study) -> Table:
    """All points."""
    columns = [
        Column.setting(study.several, "setting"),
        Column("rule", "name", "rule=name", left=True, style="rule"),
        Column("quantity", "quantity", "quantity", left=True),
        Column("epoch", "epoch", "epoch"),
        Column("runs n", "ours.n", "n=ours.n"),
        Column("ours", "ours.mean", "mean=ours.mean", text=number, style="strong"),
        Column("95 % interval", lambda p: Shown(span(p.ours), p.ours.low),
               "low=ours.low high=ours.high", style="soft"),
        Column("published", lambda p: plain(p.published, number, title=p.curve.source),
               "published"),
        Column("ours minus published", "difference", text=signed),
        Column("allowance", "curve.allowance", "allowance=curve.allowance", text=number,
               style="soft"),
        Column("verdict", lambda p: judged(p.word), "verdict=word source=curve.source",
               left=True),
    ]  # fmt: skip
    return Table(columns, points(study), "Table of published courses of training")


def allowances(study: Study) -> str:
    """ "0.6 points, 3 degrees"."""
    return ", ".join(
        dict.fromkeys(
            f"{curve.allowance:g} {'points' if curve.metric.endswith('_acc') else 'degrees'}"
            for curve in study.curves
        )
    )


def by_epoch(study: Study) -> Table:
    """One line for each course of training, a column for each epoch, for documents."""
    every = points(study)
    rows = grouped(every, lambda point: (point.setting, point.name, point.quantity))

    def both(epoch: int, row: Sequence[Point]) -> str:
        point = next((point for point in row if point.epoch == epoch), None)
        if point is None:
            return ""
        mark = " †" if point.word == "differs" else ""
        return f"{number(point.ours.mean)} ({number(point.published)}){mark}"

    columns = [
        Column("rule", lambda row: row[0].name, left=True),
        Column("quantity", lambda row: row[0].quantity, left=True),
        *each(sorted({point.epoch for point in every}), both, "epoch {}"),
    ]
    return Table(columns, list(rows.values()))


def groups(study: Study, setting: str, looks: Looks) -> list[Group]:
    """One figure: a panel per quantity, ours as lines and the published values on them."""
    curves = [curve for curve in study.curves if curve.setting == setting]
    panels: list[Lines] = []
    for same in grouped(curves, quantity).values():
        further = partial(draw, published=same, looks=looks)
        values = _ours(study, same[0], study.rules)
        panels.append(Lines(quantity(same[0]), values, looks, further=further))
    caption = (
        f"{lines.band(study.by_rule(setting))}Open diamonds: published values, in the colour of "
        "their rule."
    )
    heading = "Against a published course of training"
    return lines.over_time(Group("published-curves", heading, caption), panels, looks)


def draw(axes: Any, *, published: Iterable[Curve], looks: Looks) -> None:
    """The published points of a quantity."""
    for curve in published:
        lines.draw_published(axes, curve.values, curve.values.values(), looks[curve.rule].light, 30)
