"""Fine-tuned nets: what moved, along which gradient, and whose robustness shows.

Rows of kind "tuned" are how a run tells that it started from trained weights.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import mean, median
from typing import Any

from apical.bench.report import gained, rates, robustness, sections
from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.read import Run, Study
from apical.bench.report.results import closing, rule_column, setting_column
from apical.bench.report.sections import Section
from apical.bench.report.table import (
    Column,
    Shown,
    Table,
    count,
    each,
    estimate,
    for_markdown,
    percent,
    points,
    share,
)
from apical.measure import statistics
from apical.measure.robustness_verdict import Estimate, radius

Row = Mapping[str, Any]


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


@dataclass(frozen=True)
class Line:
    """A rule in a setting. The trunk is all layers but the head.

    Attributes: accuracy: in %; of hash nets mAP, see `measure`.
    """

    setting: str
    rule: str
    planned: int
    measure: str
    accuracy: statistics.Summary
    layers: tuple[Layer, ...]
    attacked: Attacked | None

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
    return [
        _line(study, setting, rule, found.get(setting))
        for setting in study.settings
        for rule in study.rules
        if any(map(_by_layer, study.finished(setting, rule)))
    ]


def _line(study: Study, setting: str, rule: str, section: Section | None) -> Line:
    runs = study.finished(setting, rule)
    planned = [run for run in study.runs if (run.setting, run.rule) == (setting, rule)]
    rows = [_by_layer(run) for run in runs]
    key = "test_map" if all("test_map" in run.final for run in runs) else "test_acc"
    return Line(
        setting,
        rule,
        len(planned),
        "mAP" if key == "test_map" else "accuracy",
        statistics.summarize([100 * run.final[key] for run in runs]),
        tuple(_layer(name, [each[name] for each in rows]) for name in rows[0]),
        None if section is None else _attacked(section, rule, _at_rate(study, setting, rule)),
    )


def _by_layer(run: Run) -> dict[str, Row]:
    return {row["layer"]: row for row in run.rows if row.get("kind") == "tuned"}


def _layer(name: str, rows: Sequence[Row]) -> Layer:
    def averaged(key: str) -> float | None:
        values = [row[key] for row in rows if key in row]
        return mean(values) if len(values) == len(rows) else None

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
    others = (name for name in study.rules if name != rule and study.finished(setting, name))
    return next((name for name in others if described(name) == wanted), None)


def _attacked(section: Section, rule: str, base: str | None) -> Attacked | None:
    eps = robustness.headline_radius(section)
    line = next((e for e in robustness.headlines(section, eps) if e.rule == rule), None)
    if line is None:
        return None
    same_rate = base and section.difference(rule, base, robustness.worst(eps))
    heats = robustness.heats(section, eps)
    if not heats:
        return Attacked(
            "FGSM and PGD", eps, line.own, None, line.exact, line.worst, same_rate or None
        )
    heat = heats[0]
    exact = heat.cells.get((rule, heat.columns[0]))
    own, crossed = exact, None
    if not is_baseline(rule):
        own = section.estimate(
            rule, lambda net: sections.attack_share(net, group="own", attack=heat.attack, eps=eps)
        )
        crossed = heat.cells.get((section.baseline or "", rule))
    return Attacked(heat.attack, eps, own, crossed, exact, line.worst, same_rate or None)


def table(found: Sequence[Line], gains: gained.Gains = gained.NONE) -> Table:
    """What moved and, where the nets were attacked, whose gradient breaks them."""
    measure = found[0].measure
    attacked = any(line.attacked for line in found)

    def under_attack(name: str, text: Any = percent) -> Any:
        return lambda line: estimate(getattr(line.attacked, name, None), text)

    return Table(
        [
            setting_column(len({line.setting for line in found}) > 1),
            rule_column(),
            Column("n", lambda line: count(line.accuracy.n, line.planned), page="Nets n"),
            Column(measure, _accuracy, page=f"{measure} %"),
            *gained.columns(gains),
            Column("trunk moved", _moved),
            Column("head moved", lambda line: _amount(line.head)),
            Column("update cosine", lambda line: Shown(_cosine(line.cosine), line.cosine)),
            Column("own gradient", under_attack("own"), keep=attacked),
            Column("BP's weights, this backward", under_attack("crossed"), keep=attacked),
            Column("exact gradient", under_attack("exact"), keep=attacked),
            Column("worst case", under_attack("worst"), keep=attacked, strong=True),
            Column("worst minus BP, same rate", under_attack("same_rate", points), keep=attacked),
        ],
        found,
        "Fine-tuned nets",
    )


def _accuracy(line: Line) -> Shown:
    found = line.accuracy
    return Shown(f"{found.mean:.1f}", found.mean, share(found, percent))


def _moved(line: Line) -> Shown:
    return Shown(line.moved, median(line.changes) if line.changes else None)


def _amount(value: float | None) -> Shown:
    return Shown("" if value is None else f"{value:.2g}", value)


def _cosine(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}".replace("-", "\N{MINUS SIGN}")


def layers(found: Sequence[Line]) -> list[tuple[str, Table]]:
    """By setting every layer, a column for each rule; their CSV file is that of `layers_csv`."""
    made = []
    for setting in dict.fromkeys(line.setting for line in found):
        here = [line for line in found if line.setting == setting]
        names = [layer.name for layer in here[0].layers]
        by_rule = {
            display_name(line.rule): {each.name: each for each in line.layers} for line in here
        }
        heads = {layer.name: " (head)" * layer.head for layer in here[0].layers}
        columns = [
            Column("layer", partial(_named, heads), left=True),
            *each(by_rule, partial(_layer_text, by_rule), page="{}"),
        ]
        made.append((setting, Table(columns, names, f"Layers of {setting}", kind="")))
    return made


def _named(heads: Mapping[str, str], name: str) -> str:
    return f"{name}{heads[name]}"


def _layer_text(by_rule: Mapping[str, Mapping[str, Layer]], rule: str, name: str) -> str:
    return by_rule[rule][name].text


def layers_csv(found: Sequence[Line]) -> str:
    """Every layer of every rule, in full precision."""
    rows = [
        {"setting": line.setting, "rule": line.rule, **vars(layer)}
        for line in found
        for layer in line.layers
    ]
    names = "setting rule layer=name head frozen weight_change=change cosine"
    return Table([Column("", raw=names)], rows).csv()


def to_markdown(study: Study, found: Sequence[Line]) -> str:
    """The table for a document, and what its columns mean."""
    notes = [legend(study, found), *map(for_markdown, study.notes), closing(study)]
    return f"{table(found, gains_of(study, found)).markdown()}\n{' '.join(notes)}\n"


def gains_of(study: Study, found: Sequence[Line]) -> gained.Gains:
    """Over the control whose trunk keeps the weights of the start."""
    return gained.gains(study, _metric(found))


def _metric(found: Sequence[Line]) -> str:
    return gained.MAP if found[0].measure == "mAP" else gained.ERROR


def legend(study: Study, found: Sequence[Line]) -> str:
    """What the columns mean."""
    where = {
        f"{line.setting}: {line.attacked.attack}, radius {radius(line.attacked.eps)}"
        for line in found
        if line.attacked
    }
    text = (
        f"Tier {study.tier}. The {found[0].measure} is that on the test split, in %, mean over n "
        "seeds with a 95 % t interval. Moved: |W - W of the start| / |W of the start|, of the "
        "median layer of the trunk (least to most moved layer), and of the head. Update cosine: "
        "between the "
        "gradient the optimizer is given, before its momentum, and the true one, at the end of "
        "training, median layer of the trunk; 1 is backprop, nothing where the trunk is frozen."
    )
    if where:
        text += (
            f" Under attack ({'; '.join(sorted(where))}), in %: along the net's own gradient; "
            "backprop's nets along this rule's backward pass; along the exact gradient; worst "
            "case: per image, over everything tried, and minus that of all layers tuned by "
            "backprop at the same learning rate, paired on the seeds. Where backprop's weights "
            "look as robust under the rule's backward pass as the rule's own, the robustness is "
            "the attacker's gradient's."
        )
    more = [gained.legend(study, gains_of(study, found), _metric(found)), *rates.sentences(study)]
    return " ".join(filter(None, [text, *more]))
