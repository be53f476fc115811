"""Tables of a robustness study: its headline, published values, whose gradient, checks, audits."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from apical.bench.report import gained, robustness, robustness_words, sections
from apical.bench.report.evaluations import Robustness, Row
from apical.bench.report.names import display_name
from apical.bench.report.read import Study
from apical.bench.report.results import rule_column, setting_column, verdict
from apical.bench.report.robust_read import PublishedRobustness
from apical.bench.report.robustness import Compared, Headline, Heat
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
)
from apical.measure.robustness_verdict import RuleVerdict, radius

ATTACK = ("eps", "group", "attack", "source", "role")
"""Keys that tell one attack of an evaluation from another."""

MEASURES = {
    "rising": "Step raises the loss, % of images",
    "cosine": "Cosine to the exact gradient",
    "agreement": "Cosine to finite differences",
    "slope_ratio": "Slope over length",
    "zero": "Zero gradients %",
    "saturated": "Saturated %",
    "repeat": "Repeatable",
}
"""Measures of the audit that the page shows."""


def headline(
    rows: Sequence[Headline],
    eps: float | None = None,
    several: bool = False,
    gains: gained.Gains = gained.NONE,
) -> Table:
    """Robust accuracies of each rule. several: whether it names the setting."""

    def of(name: str, text: Any = percent) -> Callable[[Headline], Shown]:
        return lambda row: estimate(getattr(row, name), text, strong=name == "worst")

    def published(row: Headline) -> Shown:
        found = row.published
        if found is None:
            return Shown("")
        title = f"{found.attack}, n = {found.n}, {found.source}"
        return Shown(percent(found.accuracy), found.accuracy, title=title)

    return Table(
        [
            setting_column(several),
            rule_column(),
            Column("radius", lambda row: Shown(radius(row.eps), row.eps), page=""),
            Column("n", lambda row: count(row.n, row.planned), page="Nets n"),
            Column("clean", of("clean"), brief=True),
            *gained.columns(gains),
            Column("noise", of("noise"), page="Random noise", brief=True),
            Column("own gradient", of("own"), page="Own gradient (papers)", brief=True),
            Column("exact gradient", of("exact"), brief=True),
            Column("worst case", of("worst"), strong=True),
            Column("own minus exact", of("gap", points)),
            Column("worst minus BP", of("against_bp", points), page="Worst case minus BP"),
            Column("verdict", lambda row: word(row.verdict), left=True),
            Column(
                "",
                published,
                page="Published, own gradient",
                keep=any(row.published for row in rows),
            ),
        ],
        rows,
        f"Robust accuracy at radius {radius(eps)}" if eps is not None else "",
        order=lambda row: -row.worst.mean if row.worst else math.inf,
    )


def word(found: RuleVerdict) -> Shown:
    """The verdict on a rule with its reasons."""
    return Shown(found.word, title="; ".join(found.reasons), style=f"verdict {found.word}")


def published(rows: Sequence[Compared]) -> Table:
    """Published values and ours, under the same attack."""

    def ours(row: Compared) -> Shown:
        return estimate(row.ours)

    def theirs(row: Compared) -> Shown:
        about = f"n = {row.published.n}, {row.published.source}"
        return Shown(percent(row.published.accuracy), row.published.accuracy, title=about)

    return Table(
        [
            rule_column(),
            Column("attack", lambda row: row.published.attack, page="", left=True),
            Column("", lambda r: f"{r.published.attack}, {r.published.group}", page="Attack",
                   left=True),
            Column("radius", lambda row: Shown(place(row.published), row.published.eps)),
            Column("n", lambda row: Shown(str(row.ours.n), row.ours.n), page="Nets n"),
            Column("own gradient", ours, page="Ours"),
            Column("published", theirs),
            Column("", lambda row: Shown(points(row.difference), row.difference),
                   page="Ours minus published"),
            Column("", lambda row: verdict(row.verdict), page="Verdict", left=True),
            Column("exact gradient", lambda row: estimate(row.exact), page="Ours, exact gradient",
                   brief=True),
        ],
        rows,
        "Published robust accuracies",
    )  # fmt: skip


def place(row: PublishedRobustness) -> str:
    """Its radius, or how many pixels may change."""
    return f"{row.eps:g} px" if row.group == "pixels" else radius(row.eps)


def heat(found: Heat) -> Table:
    """Rule of training by rule of the attack's gradient."""

    def cell(row: str, column: str) -> Shown:
        each = found.cells.get((row, column))
        if each is None:
            return Shown("")
        own = (row, column) in found.own
        title = f"95 % interval {estimate(each).interval}, over {each.over}, n = {each.n}"
        return Shown(
            f"{each.mean:.1f}", each.mean, strong=own, title=title, share=each.mean,
            style="own" * own,
        )  # fmt: skip

    return Table(
        [
            Column("trained by ↓ gradient of →", display_name, left=True, style="rule"),
            *(Column(found.title(each), partial(cell, column=each)) for each in found.columns),
        ],
        found.rows,
        "Rule of training by rule of the attack's gradient",
        kind="heat",
    )


def pixels(found: Mapping[str, Mapping[int, Any]]) -> Table:
    """Robust accuracy by the number of pixels that may change."""
    counts = sorted({count for of_rule in found.values() for count in of_rule})
    return Table(
        [
            Column("rule", display_name, left=True, style="rule"),
            *each(counts, lambda n, rule: estimate(found[rule].get(n)), "{} px"),
        ],
        list(found),
        "Robust accuracy by changed pixels",
        kind="",
    )


def checks(section: Section) -> Table:
    """Per check what came of it for each rule; the meaning of a flag is shown when pointed at."""
    names = dict.fromkeys(r["name"] for net in section.evaluations for r in net.of_kind("check"))

    def outcome(name: str, rule: str) -> Shown:
        rows = [r for net in section.of(rule).values() for r in net.of_kind("check")]
        run = [r for r in rows if r["name"] == name and r.get("passed") is not None]
        failed = sum(not row["passed"] for row in run)
        if failed:
            return Shown(f"flagged in {failed} of {len(run)}", style="flag")
        if not run:
            return Shown("not run", style="soft")
        text = "passed" if len(run) == 1 else f"passed, {len(run)} of {len(run)}"
        return Shown(text, style="soft")

    meaning = robustness_words.CHECKS
    return Table(
        [
            Column("check", lambda name: Shown(name, title=meaning.get(name, "")), left=True,
                   style="wrap"),
            *(
                Column("", partial(outcome, rule=rule), page=display_name(rule), left=True)
                for rule in section.rules
            ),
        ],
        list(names),
        "Sanity checks",
        kind="",
    )  # fmt: skip


def flags(section: Section) -> dict[str, list[str]]:
    """Every check that does not hold, with the nets and reasons."""
    found: dict[str, list[str]] = {}
    for net in section.evaluations:
        for row in net.of_kind("check"):
            if row.get("passed") is False:
                about = f"{display_name(net.rule)}, seed {net.seed}: {row['detail']}"
                found.setdefault(row["name"], []).append(about)
    return found


def audits(section: Section) -> Table:
    """What the audit measured of each rule, means over its nets; the verdict beside it."""
    rows: dict[str, list[Row]] = {
        rule: [row for net in section.of(rule).values() for row in net.of_kind("audit")]
        for rule in section.rules
    }
    means = {rule: sections.means(of_rule, MEASURES) for rule, of_rule in rows.items()}

    def measure(rule: str, key: str) -> Shown:
        value = means[rule][key]
        if value is None:
            return Shown("")
        if key in ("rising", "zero", "saturated"):
            return Shown(f"{100 * value:.0f}", value)
        text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"
        return Shown(text.replace("-", "\N{MINUS SIGN}"), value)

    def alone(rule: str) -> str:
        return ", ".join(dict.fromkeys(row["verdict"] for row in rows[rule]))

    return Table(
        [
            Column("rule", display_name, left=True, style="rule"),
            Column("nets n", lambda rule: Shown(str(len(rows[rule])), len(rows[rule]))),
            *(Column("", partial(measure, key=key), page=title) for key, title in MEASURES.items()),
            Column("audit alone says", alone, left=True),
            Column("verdict", lambda rule: word(robustness.verdict(section, rule)), left=True),
        ],
        section.rules,
        "Gradient audit",
    )


# Documents


def to_markdown(study: Study) -> str:
    """Robust accuracies in %, one line per setting and rule, then what the columns mean.

    Where the gradients of other rules were tried, it is rule of training by rule of gradient
    instead: such evaluations are about the attacker.
    """
    found = sections.sections(study.robustness, study.robust_published)
    crossed = [_heats(section) for section in found]
    if any(crossed):
        ending = [*robustness_words.ending(study, found), *gained.missing(study)]
        return f"{''.join(crossed)}{' '.join(ending)}\n"
    rows = [
        row
        for section in found
        for row in robustness.headlines(section, robustness.headline_radius(section))
    ]
    text = headline(rows, several=len(found) > 1, gains=gained.gains(study)).markdown()
    compared = [row for section in found for row in robustness.compared(section, study.tier)]
    if compared:
        text += f"\n{published(compared).markdown()}"
    return f"{text}\n{' '.join(robustness_words.legend(study, found))}\n"


def _heats(section: Section) -> str:
    text = ""
    for one in robustness.heats(section, robustness.headline_radius(section)):
        where = f"{section.heading}, {one.attack}, radius {radius(one.eps)}"
        note = (
            f"Robust accuracy in %, mean over seeds ({for_markdown(where)}). Bold: the feedback "
            "the net was trained with; elsewhere the feedback is resampled. "
            f"{one.conclusion}"
        )
        text += f"{heat(one).markdown()}\n{note.rstrip()}\n\n"
    return text


# CSV files


def numbers_csv(found: Iterable[Section]) -> str:
    """Accuracies in %, differences in points: one row per rule, attack and radius."""
    names = "setting norm images rule eps group attack source role n mean low high interval_over"
    rows = [row for section in found for row in _numbers(section)]
    return Table([Column("", raw=names)], rows).csv()


def _numbers(section: Section) -> list[dict[str, Any]]:
    head = {"setting": section.heading, "norm": section.clean["norm"]}
    head["images"] = section.clean["examples"]
    headlines = [line for eps in section.radii for line in robustness.headlines(section, eps)]
    made: list[dict[str, Any]] = []

    def add(rule: str, found: Any, **names: Any) -> None:
        values = {"n": found.n, "mean": found.mean, "low": found.low, "high": found.high}
        made.append({**head, "rule": rule, **names, **values, "interval_over": found.over})

    for rule in section.rules:
        add(rule, section.estimate(rule, robustness.clean), eps=0.0, group="clean")
        attacks: dict[tuple[Any, ...], int] = {}
        for net in section.of(rule).values():
            attacks |= {names: images for names, (_, images) in _attacks(net).items()}
        for names, images in attacks.items():
            accuracy = section.estimate(rule, partial(_accuracy, names=names), images)
            add(rule, accuracy, **dict(zip(ATTACK, names, strict=True)), images=images)
        for line in (line for line in headlines if line.rule == rule):
            add(rule, line.own, eps=line.eps, group="own, worst case", source="own")
            add(rule, line.exact, eps=line.eps, group="exact, worst case", source="exact")
            add(rule, line.worst, eps=line.eps, group="worst case")
            add(rule, line.gap, eps=line.eps, group="own minus exact")
            if line.against_bp:
                add(rule, line.against_bp, eps=line.eps, group="worst case minus BP")
    return made


def _attacks(net: Robustness) -> dict[tuple[Any, ...], tuple[float, int]]:
    """Robust accuracy under each attack that ran on all images, and how many these were."""
    rows = [row for row in net.of_kind("attack") if row["on"] == "all"]
    return {
        tuple(row[key] for key in ATTACK): (row["accuracy"], row.get("examples", net.images))
        for row in rows
    }


def _accuracy(net: Robustness, *, names: tuple[Any, ...]) -> float | None:
    return _attacks(net).get(names, (None,))[0]


def checks_csv(found: Iterable[Section]) -> str:
    """One row per net and sanity check; `passed` is empty where a check was not run."""
    rows = list(_of_nets(found, "check"))
    return Table([Column("", raw="setting rule seed name passed detail")], rows).csv()


def audits_csv(found: Iterable[Section]) -> str:
    """One row per net: its audit, and the verdict on its rule."""
    rows = [
        {**row, "rule_verdict": robustness.verdict(section, row["rule"]).word}
        for section in found
        for row in _of_nets([section], "audit")
    ]
    names = (
        "setting rule seed examples rising rising_low rising_high cosine agreement slope_ratio "
        "zero zero_loss saturated largest_score repeat verdict rule_verdict"
    )
    return Table([Column("", raw=names)], rows).csv()


def _of_nets(found: Iterable[Section], kind: str) -> Iterable[dict[str, Any]]:
    for section in found:
        for net in section.evaluations:
            for row in net.of_kind(kind):
                yield {**row, "setting": section.heading, "rule": net.rule, "seed": net.seed}
