"""The retrieval of each rule under attack: mAP by gradient, differences, verdict; as tables."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from apical.bench.report import gained, rates, sections
from apical.bench.report.evaluations import Retrieval, Row
from apical.bench.report.names import display_name
from apical.bench.report.read import Study
from apical.bench.report.results import closing, rule_column, setting_column
from apical.bench.report.robustness_words import NORMS
from apical.bench.report.sections import Section, Value
from apical.bench.report.table import (
    Column,
    Shown,
    Table,
    count,
    estimate,
    for_markdown,
    percent,
    points,
)
from apical.measure import robustness_verdict
from apical.measure.robustness_verdict import MASKED, Estimate, radius

COLUMNS = {
    "noise": ("attack", {"attack": "noise"}),
    "HAG own": ("map", {"attack": "HAG", "source": "own"}),
    "HAG exact": ("map", {"attack": "HAG", "source": "exact"}),
    "SDHA own": ("map", {"attack": "SDHA", "source": "own"}),
    "SDHA exact": ("map", {"attack": "SDHA", "source": "exact"}),
    "Anchor own": ("map", {"attack": "Anchor", "source": "own"}),
    "Anchor exact": ("map", {"attack": "Anchor", "source": "exact"}),
    "transfer": ("map", {"attack": "any", "source": "transfer"}),
    "worst": ("map", {"attack": "any", "source": "worst"}),
    "targeted own": ("targeted", {"source": "own"}),
    "targeted exact": ("targeted", {"source": "exact"}),
    "targeted transfer": ("targeted", {"source": "transfer"}),
}
"""What is shown at a radius: kind of row, and what it tells."""

MEASURES = ("flipped", "linf", "l2", "mse")
CLEAN = ("precision2", "inverted_map", "target_map", "constant_bits")

Find = Callable[[Retrieval], Row]


@dataclass(frozen=True)
class Line:
    """A rule at one radius. mAP in %, differences in points.

    Attributes: values: by the keys of `COLUMNS`, those that were measured. gap: own minus exact,
        whichever attack is the strongest, query by query. clean_minus_bp, worst_minus_bp:
        on the same seeds. differs: whether the worst case differs from BP's by a paired t test,
        Holm-corrected over the rules, 5 %. word: what the gap says of the own gradient.
    """

    setting: str
    rule: str
    eps: float
    n: int
    planned: int
    clean: Estimate
    values: Mapping[str, Estimate]
    gap: Estimate
    clean_minus_bp: Estimate | None
    worst_minus_bp: Estimate | None
    differs: bool

    @property
    def word(self) -> str:
        if self.gap.masked:
            return "masked"
        return "undecided" if self.gap.mean > MASKED else "faithful"


def lines(section: Section, eps: float) -> list[Line]:
    """The rules at one radius; those without evaluations at it are left out."""
    worst = _map(_finder("worst", eps))
    rules = [r for r in section.rules if any(eps in net.radii for net in section.of(r).values())]
    differing = section.differing(rules, worst)
    made = []
    for rule in rules:
        nets = {seed: each for seed, each in section.of(rule).items() if eps in each.radii}
        gap = robustness_verdict.gap(
            {seed: each.find("gap", attack="any", eps=eps) for seed, each in nets.items()}
        )
        clean = _estimate(section, rule, _clean)
        if gap is None or clean is None:
            continue
        found = {name: _estimate(section, rule, _finder(name, eps)) for name in COLUMNS}
        made.append(
            Line(
                section.heading,
                rule,
                eps,
                len(nets),
                section.planned(rule),
                clean,
                {name: each for name, each in found.items() if each is not None},
                gap,
                section.minus_baseline(rule, _map(_clean)),
                section.minus_baseline(rule, worst),
                rule in differing,
            )
        )
    return made


def _clean(net: Retrieval) -> Row:
    return net.clean


def _finder(name: str, eps: float) -> Find:
    kind, which = COLUMNS[name]
    return lambda net: net.find(kind, eps=eps, **which)


def _map(find: Find) -> Value:
    return lambda net: find(net).get("map")


def _estimate(section: Section, rule: str, find: Find) -> Estimate | None:
    """Mean over the nets of a rule of the mAP in a row of each; those without it are left out."""
    shares = section.shares(rule, _map(find))
    row = next((row for net in section.of(rule).values() if (row := find(net))), {})
    bounds = row.get("low", row.get("map", 0.0)), row.get("high", row.get("map", 0.0))
    found = robustness_verdict.estimate(shares, bounds=bounds)
    return found and replace(found, low=float(found.low or 0), high=float(found.high or 0))


def attacks(section: Section) -> list[dict[str, Any]]:
    """By rule, radius, attack, tanh and source: mAP left, and how much turned and was changed;
    means over nets, for those attacks that every net of the rule has."""
    made = []
    for rule in section.rules:
        nets = list(section.of(rule).values())
        rows = sorted(nets[0].of_kind("attack"), key=lambda row: row["eps"])
        for row in (row for row in rows if row["eps"] in section.radii):
            which = {key: row[key] for key in ("attack", "tanh", "source", "eps")}
            found = [each.find("attack", **which) for each in nets]
            if all(found):
                head = {"setting": section.heading, "rule": rule, "n": len(found), **which}
                made.append(head | sections.means(found, ("map", *MEASURES)))
    return made


# Tables


def table(
    rows: Sequence[Line], *, several: bool = False, gains: gained.Gains = gained.NONE
) -> Table:
    """mAP under attack; several: whether it names the setting."""

    def value(name: str) -> Callable[[Line], Shown]:
        return partial(_value, name)

    return Table(
        [
            setting_column(several),
            rule_column(),
            Column("radius", lambda line: Shown(radius(line.eps), line.eps), page=""),
            Column("n", lambda line: count(line.n, line.planned), page="Nets n"),
            Column("clean", lambda line: estimate(line.clean), brief=True),
            *gained.columns(gains),
            Column("HAG own", value("HAG own"), page="HAG, own gradient", brief=True),
            Column("HAG exact", value("HAG exact"), page="HAG, exact gradient", brief=True),
            Column("SDHA own", value("SDHA own"), page="SDHA, own gradient", brief=True),
            Column("SDHA exact", value("SDHA exact"), page="SDHA, exact gradient", brief=True),
            *(
                Column(
                    f"Anchor {source}",
                    value(f"Anchor {source}"),
                    page=f"Anchor, {source} gradient",
                    keep=anchored(rows),
                    brief=True,
                )
                for source in ("own", "exact")
            ),
            Column("", value("transfer"), page="Made on BP's net"),
            Column("worst case", value("worst"), strong=True),
            Column("own minus exact", lambda line: estimate(line.gap, points)),
            Column(
                "worst minus BP",
                lambda line: estimate(line.worst_minus_bp, points),
                page="Worst case minus BP",
            ),
            Column("t-MAP own", value("targeted own"), page="", brief=True),
            Column("t-MAP exact", value("targeted exact"), page="", brief=True),
            Column("", _word, page="Verdict", left=True),
        ],
        rows,
        f"mAP at radius {radius(rows[0].eps)}" if rows else "",
        order=lambda line: -line.values["worst"].mean if "worst" in line.values else math.inf,
    )


def anchored(rows: Sequence[Line]) -> bool:
    """Whether the anchor attack was run, as it is from version 3 on."""
    return any("Anchor exact" in row.values for row in rows)


def _value(name: str, line: Line) -> Shown:
    return estimate(line.values.get(name), strong=name == "worst")


def _word(line: Line) -> Shown:
    return Shown(line.word, style=f"verdict {line.word}")


def targeted(rows: Sequence[Line]) -> Table:
    """Attacks that choose what is found."""
    names = {"own": "own gradient", "exact": "exact gradient", "transfer": "made on BP's net"}
    return Table(
        [
            rule_column(),
            Column("radius", lambda line: Shown(radius(line.eps), line.eps)),
            Column("nets n", lambda line: Shown(str(line.n), line.n)),
            *(Column(head, partial(_value, f"targeted {key}")) for key, head in names.items()),
        ],
        rows,
        "t-MAP",
    )


def without_attack(section: Section, rows: Sequence[Line]) -> Table:
    """What is measured of a rule without any attack, means over nets; noise at this radius."""
    means = {
        line.rule: sections.means([net.clean for net in section.of(line.rule).values()], CLEAN)
        for line in rows
    }

    def share(key: str) -> Callable[[Line], Shown]:
        def show(line: Line) -> Shown:
            value = means[line.rule][key]
            return Shown("" if value is None else percent(100 * value), value)

        return show

    def bits(line: Line) -> Shown:
        value = means[line.rule]["constant_bits"]
        return Shown(percent(value), value)

    return Table(
        [
            rule_column(),
            Column("nets n", lambda line: Shown(str(line.n), line.n)),
            Column("mAP %", lambda line: estimate(line.clean), page="mAP %"),
            Column("minus BP", lambda line: estimate(line.clean_minus_bp, points)),
            Column("", lambda line: estimate(line.values.get("noise")),
                   page="mAP, random noise, %"),
            Column("precision within radius 2, %", share("precision2")),
            Column("", share("inverted_map"), page="mAP, all bits turned, %"),
            Column("", share("target_map"), page="t-MAP %"),
            Column("bits that never change", bits),
        ],
        rows,
        "Retrieval without attack",
    )  # fmt: skip


def attack_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Every attack by itself."""

    def number(key: str, text: str, factor: float = 1) -> Callable[[Mapping[str, Any]], Shown]:
        return lambda row: Shown(text.format(factor * row[key]), row[key])

    return Table(
        [
            Column("rule", lambda row: display_name(row["rule"]), left=True, style="rule"),
            Column("radius", lambda row: Shown(radius(row["eps"]), row["eps"])),
            Column("attack", lambda row: row["attack"], left=True),
            Column("tanh", lambda row: row["tanh"], left=True),
            Column("gradient", lambda row: row["source"], left=True),
            Column("", number("map", "{:.1f}", 100), page="mAP left %"),
            Column("bits turned %", number("flipped", "{:.1f}", 100)),
            Column("largest change", number("linf", "{:.3f}")),
            Column("length of the change", number("l2", "{:.3f}")),
            Column("mean square", number("mse", "{:.2e}")),
        ],
        rows,
        "Attacks",
    )


def numbers_csv(found: Sequence[Section]) -> str:
    """mAP in %, differences in points: one row per rule, radius and column."""
    rows = []
    every = [line for section in found for eps in section.radii for line in lines(section, eps)]
    for line in every:
        values: dict[str, Estimate | None] = {
            "clean": line.clean,
            **line.values,
            "own minus exact": line.gap,
        }
        values |= {"clean minus BP": line.clean_minus_bp, "worst minus BP": line.worst_minus_bp}
        head = {"setting": line.setting, "rule": line.rule, "eps": line.eps}
        rows += [
            {**head, "value": name, **vars(each), "interval_over": each.over}
            for name, each in values.items()
            if each is not None
        ]
    return Table(
        [Column("", raw="setting rule eps value n mean low high interval_over")], rows
    ).csv()


def attacks_csv(found: Sequence[Section]) -> str:
    """One row per rule and attack, means over nets: mAP in [0, 1], share of turned bits, and how
    large the change is, in units of pixels in [0, 1]."""
    rows = [row for section in found for row in attacks(section)]
    names = "setting rule eps attack tanh source n map flipped linf l2 mse"
    return Table([Column("", raw=names)], rows).csv()


# Words


def to_markdown(study: Study) -> str:
    """mAP in %, one line per setting, radius and rule, then what the columns mean."""
    found = sections.sections(study.retrieval)
    rows = [line for section in found for eps in section.radii for line in lines(section, eps)]
    attacks, targeted = "HAG or SDHA", "SDHA"
    if anchored(rows):
        attacks, targeted = "HAG, SDHA or Anchor", "SDHA or Anchor"
    parts = [
        f"Tier {study.tier}: mAP in %, mean over n nets with a 95 % t interval over seeds. Own: "
        "attacks along the gradient that the net learns from, as in the paper that proposes such "
        "nets; exact: the same along the true gradient of the same weights; worst case: per query "
        "the least that anything left, noise and attacks made on BP's net among it. `own minus "
        f"exact` ({attacks}, whichever leaves less) and `worst minus BP` are paired on the seeds, "
        "in points, each interval on its own. t-MAP: of the labels that targeted "
        f"{targeted} aims at, higher is a stronger attack.",
        *sections.missing_sentence(study.retrieval),
    ]
    sizes = dict.fromkeys(f"{s.described.get('queries')} queries ({s.heading})" for s in found)
    parts.append(f"Measured on {for_markdown(', '.join(sizes))}.")
    gains = gained.gains(study, gained.MAP)
    more = [gained.legend(study, gains, gained.MAP), *rates.sentences(study), *study.notes]
    parts += [*map(for_markdown, more), closing(study)]
    text = table(rows, several=len(found) > 1, gains=gains).markdown()
    return f"{text}\n{' '.join(filter(None, parts))}\n"


def measured(section: Section) -> str:
    """On what, and what the attacker may do and knows."""
    described, clean = section.described, section.clean
    norm = NORMS.get(str(described.get("norm")), f"norm {described.get('norm')}")
    within = "the whole database" if clean.get("k") is None else f"the {clean['k']} nearest"
    users = "SDHA and Anchor use" if section.evaluations[0].anchored else "SDHA uses"
    return (
        f"mAP over {within} ({clean['database']} codes of {clean['bits']} bits, ties at their "
        f"mean) of the same {clean['queries']} queries of {described.get('data')} for every net. "
        f"What an attack may do: {norm}, in {described.get('steps')} steps; {users} "
        f"{described.get('known')} codes of the database."
    )


def conclusion(rows: Sequence[Line]) -> str:
    """What a reader should take home, from the rules at one radius."""
    if not rows:
        return ""
    at = f"At radius {radius(rows[0].eps)}"
    masked = [line for line in rows if line.word == "masked"]
    perhaps = [display_name(line.rule) for line in rows if line.word == "undecided"]
    text = f"{at} no rule's own gradient leaves over {MASKED:g} points more than the exact one."
    if masked:
        each = ", ".join(f"{display_name(line.rule)} by {points(line.gap.mean)}" for line in masked)
        text = (
            f"{at} an attacker who follows a net's own gradient leaves more mAP than one who "
            f"follows the exact gradient of the same weights: {each} points."
        )
    elif perhaps:
        text = (
            f"{at} own gradients leave more than {MASKED:g} points more than exact ones on average "
            f"for {', '.join(perhaps)}, but so few nets leave 0 possible."
        )
    if all(line.worst_minus_bp is None for line in rows):
        return text
    differing = ", ".join(
        f"{display_name(line.rule)} {points(line.worst_minus_bp.mean)}"
        for line in rows
        if line.differs and line.worst_minus_bp is not None
    )
    if not differing:
        end = "In the worst case no rule differs significantly from BP (paired, Holm-corrected)."
        return f"{text} {end}"
    return f"{text} In the worst case, against BP (paired, Holm-corrected): {differing} points."
