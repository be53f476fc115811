"""Retrieval without any attack as figures: precision and recall over the Hamming radius."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from apical.bench.report.looks import Look, line_style
from apical.bench.report.read import Run, Study
from apical.bench.report.render import Group, Panel

Points = Mapping[str, Sequence[tuple[float, float, float]]]
"""Rule -> (radius, precision %, recall %) at each radius, means over seeds."""

MARKED = 2
"""Radius whose precision is usually reported: drawn with a marker."""


def groups(study: Study, setting: str, looks: Mapping[str, Look]) -> list[Group]:
    """One figure of the test split; none for runs that learned no codes."""
    runs = {rule: study.finished(setting, rule) for rule in study.rules}
    points = {rule: found for rule, of_rule in runs.items() if (found := _points(of_rule))}
    if not points:
        return []
    panels = (
        Panel("Precision % over recall %", partial(_draw, points=points, looks=looks, over=2)),
        Panel("Precision % within a radius", partial(_draw, points=points, looks=looks, over=0)),
    )
    caption = (
        "Everything within a Hamming radius of a query, for each radius from 0 to the number of "
        f"bits; means over queries and seeds, without attack. The marker is radius {MARKED}; a "
        "query that finds nothing counts as precision 0."
    )
    name = "precision-recall"
    return [Group(name, "Precision and recall", caption, panels, rules=tuple(points))]


def _points(runs: Sequence[Run]) -> list[tuple[float, float, float]]:
    courses = [[row for row in run.of_kind("course") if row["split"] == "test"] for run in runs]
    if not courses or not all(courses):
        return []
    means = []
    for rows in zip(*courses, strict=True):
        precision, recall = (100 * sum(r[k] for r in rows) / len(rows) for k in _VALUES)
        means.append((float(rows[0]["radius"]), precision, recall))
    return means


_VALUES = ("precision", "recall")


def _draw(axes: Any, *, points: Points, looks: Mapping[str, Look], over: int) -> None:
    for rule, found in points.items():
        xs, ys = [point[over] for point in found], [point[1] for point in found]
        look = looks[rule]
        axes.plot(xs, ys, **line_style(look), marker=look.marker, markersize=4, markevery=[MARKED])
    axes.set_ylim(0, 102)
    axes.locator_params(axis="x", nbins=6, integer=True)
    axes.set_xlabel("radius, bits" if over == 0 else "recall, %", labelpad=2)
