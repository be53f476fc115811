"""Fine-tuned nets: what moved, along which gradient, and whose robustness shows.

Rows of kind "tuned" are how a run tells that it started from trained weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, median
from typing import Any

from apical.bench.report import gained, robustness, sections
from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.read import Row, Run, Study, percent_of
from apical.bench.report.sections import Section
from apical.bench.report.table import Column, Shown, Table, each, estimate, percent, points, share
from apical.measure import statistics
from apical.measure.robustness_verdict import Estimate, radius


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
        return moved if self.cosine is None else f"{moved} ({_cosine(self.cosine)})"


@dataclass(frozen=True)
class Attacked:
    """Accuracy in % under one attack, the same for all, at one radius; and in the worst case.

    Attributes: own, exact: along the net's own gradient, and the true one. crossed: backprop's
        nets, along this rule's backward pass. same_rate: worst case minus that of all layers tuned
        by backprop at the same learning rate, paired on the seeds; None where there are no such
        nets.
    """

    attack: str
    eps: float
    own: Estimate | None
    crossed: Estimate | None
    exact: Estimate | None
    worst: Estimate
    same_rate: Estimate | None

    @property
    def text(self) -> str:
        return f"{self.attack}, radius {radius(self.eps)}"


@dataclass(frozen=True)
class Line:
    """A rule in a setting. The trunk is all layers but the head.

    Attributes: accuracy: in %; of hash nets mAP, see `metric`.
    """

    setting: str
    rule: str
    planned: int
    metric: str
    accuracy: statistics.Summary
    layers: tuple[Layer, ...]
    attacked: Attacked | None

    @property
    def n(self) -> int:
        return self.accuracy.n

    @property
    def measure(self) -> str:
        return "mAP" if self.metric == gained.MAP else "accuracy"

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
        found = [e.cosine for e in self.layers if not e.head and e.cosine is not None]
        return median(found) if found else None

    @property
    def moved(self) -> str:
        """ "0.031 (0.002 to 0.2)": median layer of the trunk, least and most moved."""
        if not any(self.changes):
            return "0" if self.changes else ""
        least, most = min(self.changes), max(self.changes)
        return f"{median(self.changes):.2g} ({least:.2g} to {most:.2g})"


def lines(study: Study) -> list[Line]:
    """A line for each rule and setting with fine-tuned runs, in the order of the study."""
    found = {section.setting: section for section in sections.sections(study.robustness)}
    rows = [row for setting in study.settings for row in study.rows_of(setting)]
    return [
        _line(study, row, found.get(row.setting)) for row in rows if any(map(_by_layer, row.runs))
    ]


def _line(study: Study, row: Row, section: Section | None) -> Line:
    layers = [_by_layer(run) for run in row.runs]
    metric = gained.MAP if all(gained.MAP in run.final for run in row.runs) else gained.ERROR
    accuracy = row.summary(percent_of(metric))
    assert accuracy is not None  # it has finished runs
    return Line(
        row.setting,
        row.rule,
        row.planned,
        metric,
        accuracy,
        tuple(_layer(name, [of_run[name] for of_run in layers]) for name in layers[0]),
        _attacked(section, row.rule, _at_rate(study, row.setting, row.rule)),
    )


def _by_layer(run: Run) -> dict[str, Mapping[str, Any]]:
    return {row["layer"]: row for row in run.rows if row.get("kind") == "tuned"}


def _layer(name: str, rows: Sequence[Mapping[str, Any]]) -> Layer:
    def averaged(key: str) -> float | None:
        return mean(row[key] for row in rows) if all(key in row for row in rows) else None

    frozen = all(row["frozen"] for row in rows)
    return Layer(
        name, rows[0]["head"], frozen, averaged("weight_change"), averaged("update_cosine")
    )


def _at_rate(study: Study, setting: str, rule: str) -> str | None:
    """The row tuned by backprop, all layers, at the learning rate of a rule."""

    def described(name: str) -> tuple[Any, Any, Any]:
        found = study.finished(setting, name)[0].experiment
        start = found.get("start") or {}
        limits = [start.get(key) for key in ("train_only", "freeze") if start.get(key)]
        return found.get("rule"), found.get("lr"), limits

    wanted: tuple[Any, Any, Any] = ("bp", described(rule)[1], [])
    others = (name for name in study.by_rule(setting) if name != rule)
    return next((name for name in others if described(name) == wanted), None)


def _attacked(section: Section | None, rule: str, base: str | None) -> Attacked | None:
    if section is None:
        return None
    eps = robustness.headline_radius(section)
    line = next((e for e in robustness.headlines(section, eps) if e.rule == rule), None)
    if line is None:
        return None
    same_rate = section.difference(rule, base, robustness.worst(eps)) if base else None
    attack, own, crossed, exact = "FGSM and PGD", line["own"], None, line["exact"]
    for heat in robustness.heats(section, eps)[:1]:
        attack = heat.attack
        own = exact = heat.cells.get((rule, heat.columns[0]))
        if not is_baseline(rule):
            of_own = {"group": "own", "attack": attack, "eps": eps}
            own = section.estimate(rule, partial(sections.attack_share, **of_own))
            crossed = heat.cells.get((section.baseline or "", rule))
    return Attacked(attack, eps, own, crossed, exact, line["worst"], same_rate)


def table(study: Study, found: Sequence[Line]) -> Table:
    """What moved and, where the nets were attacked, whose gradient breaks them."""
    measure = found[0].measure
    attacked = any(line.attacked for line in found)

    def accuracy(line: Line) -> Shown:
        between = share(line.accuracy, percent)
        return Shown(f"{line.accuracy.mean:.1f}", line.accuracy.mean, between)

    def worst(line: Line) -> Shown:
        return estimate(line.attacked and line.attacked.worst)

    def moved(line: Line) -> Shown:
        return Shown(line.moved, median(line.changes) if line.changes else None)

    return Table(
        [
            Column.setting(len({line.setting for line in found}) > 1),
            Column.rule(),
            Column.runs("Nets n"),
            Column(measure, accuracy, page=f"{measure} %"),
            *gained.columns(gained.gains(study, found[0].metric)),
            Column("trunk moved", moved),
            Column("head moved", "head", text="{:.2g}".format),
            Column("update cosine", "cosine", text=_cosine),
            Column("own gradient", "attacked.own", keep=attacked),
            Column("BP's weights, this backward", "attacked.crossed", keep=attacked),
            Column("exact gradient", "attacked.exact", keep=attacked),
            Column("worst case", worst, keep=attacked, strong=True),
            Column("worst minus BP, same rate", "attacked.same_rate", text=points, keep=attacked),
        ],
        found,
        "Fine-tuned nets",
    )


def _cosine(value: float) -> str:
    return f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def layers(found: Sequence[Line]) -> list[tuple[str, Table]]:
    """By setting every layer, a column for each rule; their CSV file is that of `layers_csv`."""
    made = []
    for setting in dict.fromkeys(line.setting for line in found):
        here = [line for line in found if line.setting == setting]
        by_rule = {
            display_name(line.rule): {layer.name: layer.text for layer in line.layers}
            for line in here
        }
        columns = [
            Column("layer", lambda layer: layer.name + " (head)" * layer.head, left=True),
            *each(by_rule, partial(_text, by_rule), page="{}"),
        ]
        made.append((setting, Table(columns, here[0].layers, f"Layers of {setting}", kind="")))
    return made


def _text(by_rule: Mapping[str, Mapping[str, str]], rule: str, layer: Layer) -> str:
    return by_rule[rule][layer.name]


def layers_csv(found: Sequence[Line]) -> Table:
    """Every layer of every rule, in full precision."""
    rows = [
        {"setting": line.setting, "rule": line.rule, **vars(layer)}
        for line in found
        for layer in line.layers
    ]
    names = "setting rule layer=name head frozen weight_change=change cosine"
    return Table([Column("", raw=names)], rows)


def attacks(found: Sequence[Line]) -> list[str]:
    """ "digits: PGD-20 ce, radius 0.1", for every setting under attack."""
    return sorted({f"{line.setting}: {line.attacked.text}" for line in found if line.attacked})
