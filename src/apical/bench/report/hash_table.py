"""The retrieval of each rule under attack: mAP by gradient, differences, verdict."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from apical.bench.report import robust_stats
from apical.bench.report.evaluations import Row
from apical.bench.report.hash_read import Evaluation
from apical.bench.report.names import is_baseline
from apical.bench.report.robust_stats import Difference, Estimate
from apical.measure import statistics

COLUMNS = {
    "noise": ("attack", {"attack": "noise"}),
    "HAG own": ("map", {"attack": "HAG", "source": "own"}),
    "HAG exact": ("map", {"attack": "HAG", "source": "exact"}),
    "SDHA own": ("map", {"attack": "SDHA", "source": "own"}),
    "SDHA exact": ("map", {"attack": "SDHA", "source": "exact"}),
    "transfer": ("map", {"attack": "both", "source": "transfer"}),
    "worst": ("map", {"attack": "both", "source": "worst"}),
    "targeted own": ("targeted", {"source": "own"}),
    "targeted exact": ("targeted", {"source": "exact"}),
    "targeted transfer": ("targeted", {"source": "transfer"}),
}
"""What is shown at a radius: kind of row, and what it tells."""

MEASURES = ("flipped", "linf", "l2", "mse")


@dataclass(frozen=True)
class Line:
    """A rule at one radius. mAP in %, differences in points.

    Attributes: values: by the keys of `COLUMNS`, those that were measured. gap: own minus exact,
        whichever of HAG and SDHA is the stronger, query by query. clean_minus_bp, worst_minus_bp:
        on the same seeds. told_apart: whether the worst case differs from BP's by a paired t test,
        Holm-corrected over the rules, 5 %. word: what the gap says of the own gradient.
    """

    rule: str
    eps: float
    n: int
    planned: int
    clean: Estimate
    values: Mapping[str, Estimate]
    gap: Difference
    clean_minus_bp: Difference | None
    worst_minus_bp: Difference | None
    told_apart: bool = False

    @property
    def word(self) -> str:
        if self.gap.masked:
            return "masked"
        return "undecided" if self.gap.mean > robust_stats.MASKED else "faithful"


@dataclass(frozen=True)
class Section:
    """Finished evaluations of one setting and protocol; `listed` those not finished too."""

    heading: str
    evaluations: tuple[Evaluation, ...]
    listed: tuple[Evaluation, ...]

    @property
    def rules(self) -> list[str]:
        return list(dict.fromkeys(each.rule for each in self.evaluations))

    @property
    def radii(self) -> list[float]:
        return sorted({eps for each in self.evaluations for eps in each.radii})

    @property
    def described(self) -> Mapping[str, Any]:
        return self.evaluations[0].described

    @property
    def baseline(self) -> str | None:
        return next((rule for rule in self.rules if is_baseline(rule)), None)

    def of(self, rule: str) -> dict[int, Evaluation]:
        return {each.seed: each for each in self.evaluations if each.rule == rule}

    def estimate(self, rule: str, find: Callable[[Evaluation], Row]) -> Estimate | None:
        """Mean over the nets of a rule of the mAP in a row of each, in %; those without it are
        left out."""
        rows = [row for each in self.of(rule).values() if (row := find(each))]
        if not rows:
            return None
        found = statistics.summarize([100 * row["map"] for row in rows])
        if found.low is None or found.high is None:
            low, high = (100 * rows[0].get(key, rows[0]["map"]) for key in ("low", "high"))
            return Estimate(1, found.mean, low, high, "images")
        return Estimate(found.n, found.mean, max(found.low, 0.0), min(found.high, 100.0), "nets")

    def shares(self, rule: str, find: Callable[[Evaluation], Row]) -> dict[int, float]:
        found = {seed: find(each).get("map") for seed, each in self.of(rule).items()}
        return {seed: share for seed, share in found.items() if share is not None}


def sections(evaluations: Sequence[Evaluation]) -> list[Section]:
    """Finished evaluations by setting and protocol. Of two of the same net the last one counts."""
    found: dict[tuple[str, ...], dict[tuple[str, int], Evaluation]] = {}
    for each in evaluations:
        if each.status == "finished":
            found.setdefault((each.setting, *each.protocol), {})[each.rule, each.seed] = each
    names = [key[0] for key in found]
    made = []
    for key, group in found.items():
        several = names.count(key[0]) > 1
        nets = tuple(group.values())
        of_setting = [e for e in evaluations if e.setting == key[0]]
        listed = tuple(e for e in of_setting if not e.described or e.protocol == key[1:])
        told = f" · {nets[0].described.get('queries')} queries, radii {key[5]}"
        made.append(Section(key[0] + told * several, nets, listed))
    return made


def lines(section: Section, eps: float) -> list[Line]:
    """The rules at one radius; those without evaluations at it are left out."""
    made = [_line(section, rule, eps) for rule in section.rules]
    return _told_apart(section, [line for line in made if line is not None])


def measures(section: Section, rule: str, eps: float) -> list[dict[str, Any]]:
    """By attack, tanh and source: mAP left in %, and how much turned and was changed; means over
    nets, for those attacks that every net of the rule has."""
    nets = list(section.of(rule).values())
    found = []
    for row in nets[0].of_kind("attack"):
        if row["eps"] != eps:
            continue
        told = {key: row[key] for key in ("attack", "tanh", "source", "eps")}
        rows = [each.find("attack", **told) for each in nets]
        if all(rows):
            means = {key: sum(r[key] for r in rows) / len(rows) for key in ("map", *MEASURES)}
            found.append({"rule": rule, "n": len(rows), **told, **means})
    return found


def _line(section: Section, rule: str, eps: float) -> Line | None:
    nets = {seed: each for seed, each in section.of(rule).items() if eps in each.radii}
    gap = robust_stats.gap(
        {seed: each.find("gap", attack="both", eps=eps) for seed, each in nets.items()}
    )
    clean = section.estimate(rule, _clean)
    if gap is None or clean is None:
        return None
    values = {
        name: estimate
        for name in COLUMNS
        if (estimate := section.estimate(rule, _finder(name, eps))) is not None
    }
    return Line(
        rule=rule,
        eps=eps,
        n=len(nets),
        planned=len({each.seed for each in section.listed if each.rule == rule}),
        clean=clean,
        values=values,
        gap=gap,
        clean_minus_bp=_minus_bp(section, rule, _clean),
        worst_minus_bp=_minus_bp(section, rule, _finder("worst", eps)),
    )


def _clean(net: Evaluation) -> Row:
    return net.clean


def _finder(name: str, eps: float) -> Callable[[Evaluation], Row]:
    kind, told = COLUMNS[name]
    return lambda net: net.find(kind, eps=eps, **told)


def _minus_bp(section: Section, rule: str, find: Callable[[Evaluation], Row]) -> Difference | None:
    if section.baseline is None or is_baseline(rule):
        return None
    return robust_stats.difference(
        section.shares(rule, find), section.shares(section.baseline, find)
    )


def _told_apart(section: Section, found: Sequence[Line]) -> list[Line]:
    """The lines with `told_apart` filled in, for which all of them are needed."""
    if section.baseline is None:
        return list(found)
    others = [line for line in found if not is_baseline(line.rule)]

    def worst(rule: str, eps: float) -> dict[int, float]:
        return section.shares(rule, _finder("worst", eps))

    p_values = [
        statistics.difference_p(worst(line.rule, line.eps), worst(section.baseline, line.eps))
        for line in others
    ]
    corrected = statistics.holm([1.0 if p is None else p for p in p_values])
    apart = {line.rule for line, p in zip(others, corrected, strict=True) if p < 0.05}
    return [replace(line, told_apart=line.rule in apart) for line in found]
