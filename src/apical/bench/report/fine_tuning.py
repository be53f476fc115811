"""Fine-tuned nets: what moved, along which gradient, and whose robustness shows.

A run that started from trained weights has rows of kind "tuned".
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, median
from typing import Any

from apical.bench.report import gained, robustness, sections
from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.read import ERROR, MAP, Row, Study
from apical.bench.report.sections import Section
from apical.bench.report.table import (
    Column,
    Shown,
    Table,
    each,
    estimate,
    percent,
    plain,
    points,
    ratio,
    share,
)
from apical.bench.storage.records import Record, grouped
from apical.measure import statistics
from apical.measure.robustness_verdict import radius


@dataclass(frozen=True)
class Layer:
    """A layer under a rule, means over seeds; None where it does not learn, or began at zero."""

    name: str
    head: bool
    frozen: bool
    change: float | None
    cosine: float | None

    @property
    def text(self) -> str:
        """ "0.031 (0.98)": how far it moved, and the cosine of its update to the true gradient."""
        if self.frozen:
            return "frozen"
        moved = "–" if self.change is None else f"{self.change:.2g}"
        return moved if self.cosine is None else f"{moved} ({ratio(self.cosine)})"


@dataclass(frozen=True)
class Line:
    """A rule in a setting. The trunk is all layers but the head.

    Attributes: accuracy: in %; of hash nets mAP, see `metric`. attacked: as of `_attacked`.
    """

    setting: str
    rule: str
    planned: int
    metric: str
    accuracy: statistics.Summary
    layers: tuple[Layer, ...]
    attacked: Mapping[str, Any] | None

    @property
    def n(self) -> int:
        return self.accuracy.n

    @property
    def measure(self) -> str:
        return "mAP" if self.metric == MAP else "accuracy"

    @property
    def changes(self) -> list[float]:
        """Relative changes of the layers of the trunk, from input to output."""
        return [e.change for e in self.layers if not e.head and e.change is not None]

    @property
    def head(self) -> float | None:
        return next((e.change for e in self.layers if e.head), None)

    @property
    def cosine(self) -> float | None:
        """Median over the layers of the trunk that learn."""
        cosines = [e.cosine for e in self.layers if not e.head and e.cosine is not None]
        return median(cosines) if cosines else None

    @property
    def moved(self) -> str:
        """ "0.031 (0.002 to 0.2)": median layer of the trunk, least and most moved."""
        if not any(self.changes):
            return "0" if self.changes else ""
        least, most = min(self.changes), max(self.changes)
        return f"{median(self.changes):.2g} ({least:.2g} to {most:.2g})"


def lines(study: Study) -> list[Line]:
    """A line for each rule and setting with fine-tuned runs, in the order of the study."""
    by_setting = {section.setting: section for section in sections.sections(study.robustness)}
    made = []
    for row in (row for setting in study.settings for row in study.rows_of(setting)):
        tuned = [tuned for run in row.runs for tuned in run.of_kind("tuned")]
        layers = grouped(tuned, lambda tuned: tuned["layer"])
        if not layers:
            continue
        metric = MAP if all(MAP in run.final for run in row.runs) else ERROR
        accuracy = row.share(metric)
        assert accuracy is not None  # it has finished runs
        attacked = _attacked(by_setting.get(row.setting), row.rule, _at_rate(study, row))
        each_layer = tuple(_layer(name, rows) for name, rows in layers.items())
        made.append(
            Line(row.setting, row.rule, row.planned, metric, accuracy, each_layer, attacked)
        )
    return made


def _layer(name: str, rows: Sequence[Record]) -> Layer:
    change, cosine = (
        mean(row[key] for row in rows) if all(key in row for row in rows) else None
        for key in ("weight_change", "update_cosine")
    )
    return Layer(name, rows[0]["head"], all(row["frozen"] for row in rows), change, cosine)


def _at_rate(study: Study, row: Row) -> str | None:
    """The row tuned by backprop, all layers, at the learning rate of a row; None of such a row."""

    def described(row: Row) -> tuple[Any, Any, bool]:
        experiment = row.runs[0].experiment
        start = experiment.get("start") or {}
        partly = bool(start.get("train_only") or start.get("freeze"))
        return experiment.get("rule"), experiment.get("lr"), partly

    wanted = ("bp", described(row)[1], False)
    others = (o for o in study.rows_of(row.setting) if o.runs and described(o) == wanted)
    return None if described(row) == wanted else next((other.rule for other in others), None)


def _attacked(section: Section | None, rule: str, base: str | None) -> dict[str, Any] | None:
    """Accuracy in % under one `attack`, the same for all, at one radius `eps`; and in the worst
    case.

    Keys: own, exact: along the net's own gradient, and the true one. crossed: backprop's nets,
    along this rule's backward pass. same_rate: worst case minus that of all layers tuned by
    backprop at the same learning rate, paired on the seeds; None where there are no such nets.
    """
    if section is None:
        return None
    eps = robustness.headline_radius(section)
    line = next((e for e in robustness.headlines(section, eps) if e.rule == rule), None)
    if line is None:
        return None
    values = {"attack": "FGSM and PGD", "eps": eps, "crossed": None}
    values |= {kind: line[kind] for kind in ("own", "exact", "worst")}
    values["same_rate"] = base and section.difference(rule, base, robustness.worst(eps))
    for heat in robustness.heats(section, eps)[:1]:
        values["attack"] = heat.attack
        values["own"] = values["exact"] = heat.cells.get((rule, heat.columns[0]))
        if not is_baseline(rule):
            of_own = {"group": "own", "attack": heat.attack, "eps": eps}
            values["own"] = section.estimate(rule, partial(robustness.attack_share, **of_own))
            values["crossed"] = heat.cells.get((section.baseline or "", rule))
    return values


def table(study: Study, rows: Sequence[Line]) -> Table:
    """What moved and, where the nets were attacked, whose gradient breaks them."""
    measure = rows[0].measure
    attacked = any(line.attacked for line in rows)

    def accuracy(line: Line) -> Shown:
        return plain(line.accuracy.mean, percent, interval=share(line.accuracy, percent))

    def worst(line: Line) -> Shown:
        return estimate(line.attacked and line.attacked["worst"], of=line.n)

    def moved(line: Line) -> Shown:
        return Shown(line.moved, median(line.changes) if line.changes else None)

    columns = [
        Column.setting(len({line.setting for line in rows}) > 1),
        Column.rule(),
        Column.runs("Nets n"),
        Column(measure, accuracy, page=f"{measure[0].upper()}{measure[1:]} %"),
        *gained.columns(gained.gains(study, rows[0].metric)),
        Column("trunk moved", moved),
        Column("head moved", "head", text="{:.2g}".format),
        Column("update cosine", "cosine", text=ratio),
        Column("own gradient", "attacked.own", keep=attacked),
        Column("BP's weights, this backward", "attacked.crossed", keep=attacked),
        Column("exact gradient", "attacked.exact", keep=attacked),
        Column("worst case", worst, keep=attacked, strong=True, deciding=True),
        Column("worst minus BP, same rate", "attacked.same_rate", text=points, keep=attacked),
    ]
    return Table(columns, rows, "Fine-tuned nets")


def layers(rows: Sequence[Line]) -> list[tuple[str, Table]]:
    """By setting every layer, a column for each rule; their CSV file is that of `layers_csv`."""
    by_setting = grouped(rows, lambda line: line.setting)
    return [(setting, _layers(of_setting)) for setting, of_setting in by_setting.items()]


def _layers(rows: Sequence[Line]) -> Table:
    by_rule = {
        display_name(line.rule): {layer.name: layer.text for layer in line.layers} for line in rows
    }
    columns = [
        Column("layer", lambda layer: layer.name + " (head)" * layer.head, left=True),
        *each(by_rule, lambda rule, layer: by_rule[rule][layer.name], page="{}"),
    ]
    return Table(columns, rows[0].layers, f"Layers of {rows[0].setting}", kind="")


def layers_csv(rows: Sequence[Line]) -> Table:
    """Every layer of every rule, in full precision."""
    layers = [
        {"setting": line.setting, "rule": line.rule, **vars(layer)}
        for line in rows
        for layer in line.layers
    ]
    names = "setting rule layer=name head frozen weight_change=change cosine"
    return Table([Column("", raw=names)], layers)


def attacks(rows: Sequence[Line]) -> list[str]:
    """ "digits: PGD-20 ce, radius 0.1", for every setting under attack."""
    return sorted(
        f"{setting}: {attack}, radius {radius(eps)}"
        for setting, attack, eps in {
            (line.setting, line.attacked["attack"], line.attacked["eps"])
            for line in rows
            if line.attacked
        }
    )
