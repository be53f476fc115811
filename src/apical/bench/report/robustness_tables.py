"""Tables of a robustness study: its headline, published values, whose gradient, checks, audits."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from apical.bench.report import gained, robustness, robustness_words, sections
from apical.bench.report.names import display_name
from apical.bench.report.read import Published
from apical.bench.report.results import published, verdict
from apical.bench.report.robustness import Compared, Heat
from apical.bench.report.sections import Line, Section
from apical.bench.report.table import Column, Shown, Table, each, estimate, percent, plain, points
from apical.measure import robustness_verdict
from apical.measure.robustness_verdict import RuleVerdict, radius

ATTACK = ("eps", "group", "attack", "source", "role")
"""Keys that tell one attack of an evaluation from another."""

COLUMNS = (
    ("own", "own, worst case", "own"),
    ("exact", "exact, worst case", "exact"),
    ("worst", "worst case", None),
    ("gap", "own minus exact", None),
    ("against_bp", "worst case minus BP", None),
)
"""Values of a line in the CSV file: their group there, and source."""

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
    rows: Sequence[Line],
    eps: float | None = None,
    several: bool = False,
    gains: gained.Gains = gained.NONE,
) -> Table:
    """Robust accuracies of each rule. several: whether it names the setting."""
    return Table(
        [
            Column.setting(several),
            Column.rule(),
            Column("radius", "eps", text=radius, page=""),
            Column.runs("Nets n"),
            Column("clean", "values.clean", brief=True),
            *gained.columns(gains),
            Column("noise", "values.noise", page="Random noise", brief=True),
            Column("own gradient", "values.own", page="Own gradient (papers)",
                   brief=True),
            Column("exact gradient", "values.exact", brief=True),
            Column("worst case", "values.worst", strong=True),
            Column("own minus exact", "values.gap", text=points),
            Column("worst minus BP", "values.against_bp", text=points,
                   page="Worst case minus BP"),
            Column("verdict", lambda row: word(robustness.verdict(row.section, row.rule)),
                   left=True),
            Column("", lambda row: published(robustness.published_at(row), percent, attack=True),
                   page="Published, own gradient",
                   keep=any(map(robustness.published_at, rows))),
        ],
        rows,
        f"Robust accuracy at radius {radius(eps)}" if eps is not None else "",
        order=lambda row: -row["worst"].mean,
    )  # fmt: skip


def word(found: RuleVerdict) -> Shown:
    """The verdict on a rule with its reasons."""
    return Shown(found.word, title="; ".join(found.reasons), style=f"verdict {found.word}")


def compared(rows: Sequence[Compared]) -> Table:
    """Published values and ours, under the same attack."""
    return Table(
        [
            Column.rule(),
            Column("attack", "published.attack", page="", left=True),
            Column("", lambda r: f"{r.published.attack}, {r.published.group}", page="Attack",
                   left=True),
            Column("radius", lambda row: Shown(place(row.published), row.published.eps)),
            Column("n", "ours.n", page="Nets n"),
            Column("own gradient", "ours", page="Ours"),
            Column("published", lambda row: published(row.published, percent)),
            Column("", "difference", text=points, page="Ours minus published"),
            Column("", lambda row: verdict(row.verdict), page="Verdict", left=True),
            Column("exact gradient", "exact", page="Ours, exact gradient",
                   brief=True),
        ],
        rows,
        "Published robust accuracies",
    )  # fmt: skip


def place(row: Published) -> str:
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
            Column.rule(head="trained by ↓ gradient of →"),
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
            Column.rule(),
            *each(counts, lambda n, rule: estimate(found[rule].get(n)), "{} px"),
        ],
        list(found),
        "Robust accuracy by changed pixels",
        kind="",
    )


def checks(section: Section) -> Table:
    """Per check what came of it for each rule; the meaning of a flag is shown when pointed at."""
    names = dict.fromkeys(r["name"] for net in section.evaluations for r in net.of_kind("check"))
    meaning = robustness_words.CHECKS

    def outcome(rule: str, name: str) -> Shown:
        rows = [row for row in section.of_kind(rule, "check") if row["name"] == name]
        run = [row for row in rows if row.get("passed") is not None]
        if failed := sum(not row["passed"] for row in run):
            return Shown(f"flagged in {failed} of {len(run)}", style="flag")
        if not run:
            return Shown("not run", style="soft")
        text = "passed" if len(run) == 1 else f"passed, {len(run)} of {len(run)}"
        return Shown(text, style="soft")

    def check(name: str) -> Shown:
        return Shown(name, title=meaning.get(name, ""))

    rules = [
        Column("", partial(outcome, rule), page=display_name(rule), left=True)
        for rule in section.rules
    ]
    first = Column("check", check, left=True, style="wrap")
    return Table([first, *rules], list(names), "Sanity checks", kind="")


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
    rows = {rule: section.of_kind(rule, "audit") for rule in section.rules}
    means = {rule: sections.means(of_rule, MEASURES) for rule, of_rule in rows.items()}

    def measure(key: str, rule: str) -> Shown:
        value = means[rule][key]
        if key in ("rising", "zero", "saturated"):
            return plain(value, lambda share: f"{100 * share:.0f}")
        return plain(value, _cosine)

    def alone(rule: str) -> str:
        return ", ".join(dict.fromkeys(row["verdict"] for row in rows[rule]))

    return Table(
        [
            Column.rule(),
            Column("nets n", lambda rule: plain(len(rows[rule]))),
            *(Column("", partial(measure, key), page=title) for key, title in MEASURES.items()),
            Column("audit alone says", alone, left=True),
            Column("verdict", lambda rule: word(robustness.verdict(section, rule)), left=True),
        ],
        section.rules,
        "Gradient audit",
    )


def _cosine(value: float) -> str:
    text = f"{value:.0f}" if abs(value) >= 100 else f"{value:.2f}"
    return text.replace("-", "\N{MINUS SIGN}")


# CSV files


def numbers_csv(found: Iterable[Section]) -> Table:
    """Accuracies in %, differences in points: one row per rule, attack and radius."""
    names = "setting norm images rule eps group attack source role n mean low high interval_over"
    return Table([Column("", raw=names)], [row for each in found for row in _numbers(each)])


def _numbers(section: Section) -> Iterable[dict[str, Any]]:
    headlines = [line for eps in section.radii for line in robustness.headlines(section, eps)]

    def row(rule: str, found: Any, **names: Any) -> dict[str, Any]:
        head = {"setting": section.heading, "norm": section.clean["norm"], "rule": rule}
        head["images"] = section.clean["examples"]
        return {**head, **vars(found), "interval_over": found.over, **names}

    for rule in section.rules:
        yield row(rule, section.estimate(rule, robustness.clean), eps=0.0, group="clean")
        shares: dict[tuple[Any, ...], dict[int, float]] = {}
        images: dict[tuple[Any, ...], int] = {}
        for seed, net in section.of(rule).items():
            for attack in (one for one in net.of_kind("attack") if one["on"] == "all"):
                names = tuple(attack[key] for key in ATTACK)
                shares.setdefault(names, {})[seed] = attack["accuracy"]
                images[names] = attack.get("examples", net.clean["examples"])
        for names, found in shares.items():
            about = dict(zip(ATTACK, names, strict=True))
            accuracy = robustness_verdict.estimate(found, images[names])
            yield row(rule, accuracy, **about, images=images[names])
        for line in (line for line in headlines if line.rule == rule):
            for name, group, source in COLUMNS:
                if value := line[name]:
                    yield row(rule, value, eps=line.eps, group=group, source=source)


def checks_csv(found: Iterable[Section]) -> Table:
    """One row per net and sanity check; `passed` is empty where a check was not run."""
    names = "setting rule seed name passed detail"
    return Table([Column("", raw=names)], list(_of_nets(found, "check")))


def audits_csv(found: Iterable[Section]) -> Table:
    """One row per net: its audit, and the verdict on its rule."""
    names = (
        "setting rule seed examples rising rising_low rising_high cosine agreement slope_ratio "
        "zero zero_loss saturated largest_score repeat verdict rule_verdict"
    )
    return Table([Column("", raw=names)], list(_of_nets(found, "audit")))


def _of_nets(found: Iterable[Section], kind: str) -> Iterable[dict[str, Any]]:
    for section in found:
        words = {rule: robustness.verdict(section, rule).word for rule in section.rules}
        for net in section.evaluations:
            about = {"setting": section.heading, "rule": net.rule, "seed": net.seed}
            for row in net.of_kind(kind):
                yield {**row, **about, "rule_verdict": words[net.rule]}
