"""The retrieval of each rule under attack: mAP by gradient, differences, verdict; as tables."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from apical.bench.report import gained, sections
from apical.bench.report.evaluations import Retrieval
from apical.bench.report.names import display_name
from apical.bench.report.sections import Line, Section
from apical.bench.report.table import Column, Shown, Table, in_percent, percent, plain, points
from apical.bench.storage.records import Record
from apical.measure import robustness_verdict
from apical.measure.robustness_verdict import MASKED, Estimate, radius

ATTACKS = {
    f"{attack} {source}": ("map", {"attack": attack, "source": source})
    for attack in ("HAG", "SDHA", "Anchor")
    for source in ("own", "exact")
}
COLUMNS: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "noise": ("attack", {"attack": "noise"}),
    **ATTACKS,
    "transfer": ("map", {"attack": "any", "source": "transfer"}),
    "worst": ("map", {"attack": "any", "source": "worst"}),
    "targeted own": ("targeted", {"source": "own"}),
    "targeted exact": ("targeted", {"source": "exact"}),
    "targeted transfer": ("targeted", {"source": "transfer"}),
}
"""What is shown at a radius: kind of its row, and fields that the row has."""

MEASURES = ("flipped", "linf", "l2", "mse")
CLEAN = ("precision2", "inverted_map", "target_map", "constant_bits")


def lines(section: Section, eps: float) -> list[Line]:
    """The rules at one radius; those without evaluations at it are left out.

    The values are those of `COLUMNS`, clean, gap (own minus exact, whichever attack is the
    strongest, query by query; "masked" after Holm's correction over radii), clean_minus_bp and
    worst_minus_bp (on the same seeds).
    """
    worst = partial(_map, name="worst", eps=eps)
    rules = [r for r in section.rules if any(eps in net.radii for net in section.of(r).values())]
    differing = section.differing(rules, worst)
    made = []
    for rule in rules:
        at_radii = {e: section.rows(rule, "gap", attack="any", eps=e) for e in section.radii}
        gaps = {e: rows for e, rows in at_radii.items() if rows}
        gap = robustness_verdict.gap(at_radii[eps])
        values = {name: _estimate(section, rule, name, eps) for name in ("clean", *COLUMNS)}
        if gap is None or values["clean"] is None:
            continue
        values |= {
            "gap": gap,
            "clean_minus_bp": section.minus_baseline(rule, partial(_map, name="clean", eps=eps)),
            "worst_minus_bp": section.minus_baseline(rule, worst),
        }
        masked = gap.masked and eps in robustness_verdict.certain(gaps)
        word = "masked" if masked else "faithful" if gap.inside else "undecided"
        made.append(Line(section, rule, eps, values, rule in differing, word))
    return made


def of_sections(parts: Iterable[Section]) -> list[Line]:
    return [line for section in parts for eps in section.radii for line in lines(section, eps)]


def _row(net: Retrieval, name: str, eps: float) -> Record:
    """The row that holds a column at a radius, {} where it was not measured."""
    if name == "clean":
        return net.clean
    kind, fields = COLUMNS[name]
    return net.find(kind, eps=eps, **fields)


def _map(net: Retrieval, *, name: str, eps: float) -> float | None:
    return _row(net, name, eps).get("map")


def _estimate(section: Section, rule: str, name: str, eps: float) -> Estimate | None:
    """Mean over the nets of a rule of the mAP in a row of each; those without it are left out."""
    rows = (row for net in section.of(rule).values() if (row := _row(net, name, eps)))
    row = next(rows, {"map": 0.0})
    bounds = row.get("low", row["map"]), row.get("high", row["map"])
    share = section.estimate(rule, partial(_map, name=name, eps=eps), bounds=bounds)
    return share and replace(share, low=float(share.low or 0), high=float(share.high or 0))


def attacks(section: Section) -> list[dict[str, Any]]:
    """By rule, radius, attack, tanh and source: mAP left, and how much turned and was changed;
    means over nets, for those attacks that every net of the rule has."""
    made = []
    for rule in section.rules:
        nets = list(section.of(rule).values())
        for row in sorted(nets[0].of_kind("attack"), key=lambda row: row["eps"]):
            which = {key: row[key] for key in ("attack", "tanh", "source", "eps")}
            rows = section.rows(rule, "attack", **which)
            if row["eps"] in section.radii and len(rows) == len(nets):
                head = {"setting": section.heading, "rule": rule, "n": len(nets), **which}
                made.append(head | sections.means([*rows.values()], ("map", *MEASURES)))
    return made


# Tables


def table(
    rows: Sequence[Line], *, several: bool = False, gains: gained.Gains = gained.NONE
) -> Table:
    """mAP under attack; several: whether it names the setting."""
    columns = [
        *gained.opening(several, gains),
        *(
            Column(name, f"values.{name}", brief=True, page=f"{name.replace(' ', ', ')} gradient",
                   keep=not name.startswith("Anchor") or anchored(rows))
            for name in ATTACKS
        ),
        Column("", "values.transfer", page="Made on BP's net"),
        Column("worst case", "values.worst", strong=True, deciding=True),
        Column("own minus exact", "values.gap", text=points),
        Column("worst minus BP", "values.worst_minus_bp", text=points, page="Worst case minus BP"),
        Column("t-MAP own", "values.targeted own", page="", brief=True),
        Column("t-MAP exact", "values.targeted exact", page="", brief=True),
        Column("", lambda line: Shown(line.word, style=f"verdict {line.word}"), page="Verdict",
               left=True, deciding=True),
    ]  # fmt: skip
    label = f"mAP at radius {radius(rows[0].eps)}" if rows else ""

    def order(line: Line) -> float:
        return -line["worst"].mean if line["worst"] else math.inf

    return Table(columns, rows, label, order=order)


def anchored(rows: Sequence[Line]) -> bool:
    """Whether the anchor attack was run, as it is from version 3 on."""
    return any(row["Anchor exact"] for row in rows)


def targeted(rows: Sequence[Line]) -> Table:
    """Attacks that choose what is found."""
    names = {"own": "own gradient", "exact": "exact gradient", "transfer": "made on BP's net"}
    columns = [Column(names[source], f"values.targeted {source}") for source in names]
    head = [Column.rule(), Column("radius", "eps", text=radius), Column("nets n", "n")]
    return Table([*head, *columns], rows, "t-MAP")


def without_attack(section: Section, rows: Sequence[Line]) -> Table:
    means = {line.rule: sections.means(section.of_kind(line.rule, "clean"), CLEAN) for line in rows}

    def share(key: str, text: Any = in_percent) -> Any:
        return lambda line: plain(means[line.rule][key], text)

    columns = [
        Column.rule(),
        Column("nets n", "n"),
        Column("mAP %", "values.clean", page="mAP %"),
        Column("minus BP", "values.clean_minus_bp", text=points),
        Column("", "values.noise", page="mAP, random noise, %"),
        Column("precision within radius 2, %", share("precision2")),
        Column("", share("inverted_map"), page="mAP, all bits turned, %"),
        Column("", share("target_map"), page="t-MAP %"),
        Column("bits that never change", share("constant_bits", percent)),
    ]
    return Table(columns, rows, "Retrieval without attack")


def attack_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Every attack by itself."""
    columns = [
        Column.rule(),
        Column("radius", "eps", text=radius),
        Column("attack", "attack", left=True),
        Column("tanh", "tanh", left=True),
        Column("gradient", "source", left=True),
        Column("", "map", text=in_percent, page="mAP left %"),
        Column("bits turned %", "flipped", text=in_percent),
        Column("largest change", "linf", text="{:.3f}".format),
        Column("length of the change", "l2", text="{:.3f}".format),
        Column("mean square", "mse", text="{:.2e}".format),
    ]
    return Table(columns, rows, "Attacks")


def numbers_csv(parts: Iterable[Section]) -> Table:
    """mAP in %, differences in points: one row per rule, radius and column."""
    names = {name: name for name in ("clean", *COLUMNS)} | {
        "gap": "own minus exact",
        "clean_minus_bp": "clean minus BP",
        "worst_minus_bp": "worst minus BP",
    }
    rows = [
        {"setting": line.setting, "rule": line.rule, "eps": line.eps, "value": value}
        | vars(line[name])
        for line in of_sections(parts)
        for name, value in names.items()
        if line[name]
    ]
    return Table(
        [Column("", raw="setting rule eps value n mean low high interval_over=over")], rows
    )


def attacks_csv(parts: Iterable[Section]) -> Table:
    """One row per rule and attack, means over nets: mAP in [0, 1], share of turned bits, and how
    large the change is, in units of pixels in [0, 1]."""
    names = "setting rule eps attack tanh source n map flipped linf l2 mse"
    return Table([Column("", raw=names)], [row for section in parts for row in attacks(section)])


# Words


def conclusion(rows: Sequence[Line]) -> str:
    """What a reader should take home, from the rules at one radius."""
    if not rows:
        return ""
    at_radius = f"At radius {radius(rows[0].eps)}"
    masked = ", ".join(
        f"{display_name(line.rule)} by {points(line['gap'].mean)}"
        for line in rows
        if line.word == "masked"
    )
    perhaps = ", ".join(display_name(line.rule) for line in rows if line.word == "undecided")
    if masked:
        text = (
            f"{at_radius} an attacker who follows a net's own gradient leaves more mAP than one "
            f"who follows the exact gradient of the same weights: {masked} points."
        )
    elif perhaps:
        text = (
            f"{at_radius} it is undecided for {perhaps} whether the own gradient leaves over "
            f"{MASKED:g} points more than the exact one: the interval over nets reaches beyond."
        )
    else:
        text = (
            f"{at_radius} no rule's own gradient leaves over {MASKED:g} points more than the exact "
            "one."
        )
    if not any((gap := line["worst_minus_bp"]) and gap.n > 1 for line in rows):
        return text
    untested = sections.uncompared(rows, "worst_minus_bp")
    differing = ", ".join(
        f"{display_name(line.rule)} {points(line['worst_minus_bp'].mean)}"
        for line in rows
        if line.differs and line["worst_minus_bp"]
    )
    if not differing:
        end = "In the worst case no rule differs significantly from BP (paired, Holm-corrected)."
        return f"{text} {end}{untested}"
    end = f"In the worst case, against BP (paired, Holm-corrected): {differing} points."
    return f"{text} {end}{untested}"
