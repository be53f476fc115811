"""Fine-tuned nets: what moved, along which gradient, and whose robustness shows.

Rows of kind "tuned" are how a run tells that it started from trained weights.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from apical.bench.report import robust_figures, robust_section, robust_stats, robust_table
from apical.bench.report.escape import for_markdown, for_spreadsheet
from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.read import Run, Study
from apical.bench.report.robust_section import Section
from apical.bench.report.robust_stats import Difference, Estimate
from apical.bench.report.robust_words import percent, points, radius, span
from apical.measure import statistics

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Layer:
    """A layer under a rule, means over seeds; None where it does not learn, or began at zero."""

    name: str
    head: bool
    frozen: bool
    change: float | None
    cosine: float | None


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
    same_rate: Difference | None


@dataclass(frozen=True)
class Line:
    """A rule in a setting. The trunk is all layers but the head.

    Attributes: accuracy: in %; of hash nets mAP, see `measure`.
    """

    setting: str
    rule: str
    planned: int
    measure: str
    accuracy: statistics.Summary | None
    layers: tuple[Layer, ...]
    attacked: Attacked | None

    @property
    def n(self) -> str:
        done = self.accuracy.n if self.accuracy else 0
        return str(done) if done == self.planned else f"{done} of {self.planned}"

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
    def middle(self) -> float | None:
        """Relative change of the median layer of the trunk."""
        return median(self.changes) if self.changes else None

    @property
    def spread(self) -> str:
        """ "0.002 to 0.2": the layers of the trunk that moved least and most; "" where none did."""
        return f"{min(self.changes):.2g} to {max(self.changes):.2g}" if any(self.changes) else ""

    @property
    def moved(self) -> str:
        """ "0.031 (0.002 to 0.2)": median layer of the trunk, least and most moved."""
        if self.middle is None:
            return ""
        return f"{self.middle:.2g} ({self.spread})" if self.spread else "0"

    @property
    def head_moved(self) -> str:
        return "" if self.head is None else f"{self.head:.2g}"

    @property
    def along(self) -> str:
        return "" if self.cosine is None else f"{self.cosine:.2f}".replace("-", "\N{MINUS SIGN}")


def lines(study: Study) -> list[Line]:
    """A line for each rule and setting with fine-tuned runs, in the order of the study."""
    found = {section.setting: section for section in robust_section.sections(study.robustness)}
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
    change, cosine = averaged("weight_change"), averaged("update_cosine")
    return Layer(name, rows[0]["head"], frozen, change, cosine)


def _at_rate(study: Study, setting: str, rule: str) -> str | None:
    """The row tuned by backprop, all layers, at the learning rate of a rule."""

    def told(name: str) -> tuple[Any, Any, Any]:
        found = study.finished(setting, name)[0].experiment
        start = found.get("start") or {}
        limits = [start.get(key) for key in ("train_only", "freeze") if start.get(key)]
        return found.get("rule"), found.get("lr"), limits

    others = [name for name in study.rules if study.finished(setting, name)]
    wanted: tuple[Any, Any, Any] = ("bp", told(rule)[1], [])
    return next((name for name in others if name != rule and told(name) == wanted), None)


def _attacked(section: Section, rule: str, base: str | None) -> Attacked | None:
    eps = robust_table.headline_radius(section)
    lines = {line.rule: line for line in robust_table.headlines(section, eps)}
    if rule not in lines:
        return None
    heats, found = robust_figures.heats(section, eps), lines[rule]
    apart = _apart(section, rule, base, eps)
    if not heats:
        return Attacked("FGSM and PGD", eps, found.own, None, found.exact, found.worst, apart)
    heat, baseline = heats[0], next(filter(is_baseline, section.rules), "")
    exact = heat.cells.get((rule, heat.columns[0]))
    own = exact if is_baseline(rule) else _own(section, rule, heat.attack, eps)
    crossed = None if is_baseline(rule) else heat.cells.get((baseline, rule))
    return Attacked(heat.attack, eps, own, crossed, exact, found.worst, apart)


def _apart(section: Section, rule: str, base: str | None, eps: float) -> Difference | None:
    def worst(name: str) -> dict[int, float]:
        return section.shares(name, lambda net: net.at("worst", eps).get("accuracy"))

    return None if base is None else robust_stats.difference(worst(rule), worst(base))


def _own(section: Section, rule: str, attack: str, eps: float) -> Estimate | None:
    return section.estimate(
        rule, lambda net: robust_section.attack_share(net, group="own", attack=attack, eps=eps)
    )


HEAD = ("trunk moved", "head moved", "update cosine")
ATTACKED = ("own gradient", "BP's weights, this backward", "exact gradient", "**worst case**")
APART = "worst minus BP, same rate"


def to_markdown(study: Study, found: Sequence[Line]) -> str:
    """The table for a Markdown file, and what its columns mean."""
    several = len({line.setting for line in found}) > 1
    attacked = any(line.attacked for line in found)
    lead = [*["setting"] * several, "rule", "n", found[0].measure]
    head = [*lead, *HEAD, *((*ATTACKED, APART) if attacked else ())]
    rulers = ["---" if name in ("setting", "rule") else "---:" for name in head]
    table = [head, *([*[line.setting] * several, *_cells(line, attacked)] for line in found)]
    text = ["| " + " | ".join(map(for_markdown, row)) + " |" for row in table[1:]]
    top = ["| " + " | ".join(head) + " |", "|" + "|".join(rulers) + "|"]
    notes = [told(study, found), *map(for_markdown, study.notes)]
    notes.append(f"Regenerate: `{study.command.replace('`', '')}`.")
    return "\n".join([*top, *text]) + "\n\n" + " ".join(notes) + "\n"


def told(study: Study, found: Sequence[Line]) -> str:
    """What the columns mean."""
    where = {
        f"{line.setting}: {line.attacked.attack}, radius {radius(line.attacked.eps)}"
        for line in found
        if line.attacked
    }
    parts = [
        f"Tier {study.tier}. The {found[0].measure} is that on the test split, in %, mean over n "
        "seeds with a 95 % t interval. Moved: |W - W of the start| / |W of the start|, of the "
        "median layer of the trunk (least to most moved layer), and of the head. Update cosine: "
        "between the "
        "gradient the optimizer is given, before its momentum, and the true one, at the end of "
        "training, median layer of the trunk; 1 is backprop, nothing where the trunk is frozen."
    ]
    if where:
        parts.append(
            f"Under attack ({'; '.join(sorted(where))}), in %: along the net's own gradient; "
            "backprop's nets along this rule's backward pass; along the exact gradient; worst "
            "case: per image, over everything tried, and minus that of all layers tuned by "
            "backprop at the same learning rate, paired on the seeds. Where backprop's weights "
            "look as robust under the rule's backward pass as the rule's own, the robustness is "
            "the attacker's gradient's."
        )
    return " ".join(parts)


def _cells(line: Line, attacked: bool) -> list[str]:
    row = [display_name(line.rule), line.n, accuracy(line.accuracy), line.moved, line.head_moved]
    row.append(line.along)
    if not attacked:
        return row
    a = line.attacked
    found = [a.own, a.crossed, a.exact, a.worst] if a else [None] * 4
    return [*row, *map(robust, found), difference(a.same_rate if a else None)]


def accuracy(found: statistics.Summary | None) -> str:
    """ "98.1 [97.0 to 99.2]"; "" for none."""
    if found is None:
        return ""
    return f"{found.mean:.1f} [{between(found)}]" if between(found) else f"{found.mean:.1f}"


def between(found: statistics.Summary | None) -> str:
    """ "97.0 to 99.2", cut off at 0 and 100; "" without an interval."""
    if found is None or found.low is None:
        return ""
    cut = found.within(0, 100)
    return f"{cut.low:.1f} to {cut.high:.1f}"


def robust(found: Estimate | None) -> str:
    """ "31.2 [25.0 to 37.4]"; of one net, over images, with ‡."""
    if found is None:
        return ""
    return f"{percent(found.mean)} [{span(found)}{' ‡' if found.over == 'images' else ''}]"


def difference(found: Difference | None) -> str:
    """ "+3.1 [-1.0 to +7.2]" with a real minus; "" for none."""
    if found is None:
        return ""
    return points(found.mean) + (f" [{span(found, sign=True)}]" if found.low is not None else "")


def to_csv(found: Sequence[Line]) -> str:
    """Every layer of every rule, in full precision."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["setting", "rule", "layer", "head", "frozen", "weight_change", "cosine"])
    for line in found:
        for each in line.layers:
            names = [for_spreadsheet(text) for text in (line.setting, line.rule, each.name)]
            writer.writerow([*names, each.head, each.frozen, each.change, each.cosine])
    return out.getvalue()
