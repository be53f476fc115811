"""What each layer added: accuracy of a linear readout of what it reads, trained and untrained.

Rows of kind "linear" hold it before training and at its end; the layer "" is the net's output.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apical.bench.report.read import Run
from apical.bench.report.table import Column, Table, percent, points
from apical.measure import statistics

OUTPUT = "(the output)"


@dataclass(frozen=True)
class Line:
    """A layer under a rule, in % and points over the seeds that measured it.

    Attributes: untrained, trained: of what the layer reads. change: trained minus untrained. added:
        by the layer itself, in the trained net: what the next layer reads minus what it reads; None
        for the output.
    """

    rule: str
    layer: str
    untrained: statistics.Summary
    trained: statistics.Summary
    change: statistics.Summary
    added: statistics.Summary | None


def lines(runs: Mapping[str, Sequence[Run]]) -> list[Line]:
    """A line for each rule and layer, from input to output; none for runs without probes."""
    made = []
    for rule, of_rule in runs.items():
        start, end = _accuracies(of_rule, last=False), _accuracies(of_rule, last=True)
        layers = [layer for layer in start if set(start[layer]) & set(end.get(layer, {}))]
        for layer, above in zip(layers, [*layers[1:], ""], strict=False):
            change = statistics.paired_difference(end[layer], start[layer])
            assert change is not None
            seeds = set(start[layer]) & set(end[layer])
            made.append(
                Line(
                    rule,
                    layer or OUTPUT,
                    statistics.summarize([start[layer][seed] for seed in seeds]),
                    statistics.summarize([end[layer][seed] for seed in seeds]),
                    change,
                    statistics.paired_difference(end.get(above, {}), end[layer]) if layer else None,
                )
            )
    return made


def _accuracies(runs: Sequence[Run], *, last: bool) -> dict[str, dict[int, float]]:
    """By layer and seed in %, at the first measurement or, of runs with a second one, the last."""
    found: dict[str, dict[int, float]] = {}
    for run in runs:
        rows = [row for row in run.rows if row.get("kind") == "linear"]
        epochs = sorted({row["epoch"] for row in rows})
        for row in rows if len(epochs) > 1 else ():
            if row["epoch"] == epochs[-1 if last else 0]:
                found.setdefault(row["layer"], {})[run.seed] = 100 * row["accuracy"]
    return found


def table(rows: Sequence[Line]) -> Table:
    return Table(
        [
            Column.rule("rule"),
            Column("layer", "layer", "layer", left=True),
            Column("n", "change.n", "n=change.n", page="Runs n"),
            Column("untrained", "untrained.mean", "untrained=untrained.mean", text=percent),
            Column("trained", "trained.mean", "trained=trained.mean", text=percent),
            Column("change", "change",
                   "change=change.mean change_low=change.low change_high=change.high", text=points),
            Column("added", "added", "added=added.mean added_low=added.low added_high=added.high",
                   text=points),
        ],
        rows,
        "Table of linear readouts",
    )  # fmt: skip
