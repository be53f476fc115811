"""Tables and sentences of a robustness study: its headline, published values, whose gradient,
checks, audits."""

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from apical.attacks.sanity import MEANINGS
from apical.bench.report import gained, robustness, sections
from apical.bench.report.names import counts, display_name, is_baseline, is_control, joined
from apical.bench.report.results import published, verdict
from apical.bench.report.robustness import Heat
from apical.bench.report.sections import Line, Section
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
    span,
)
from apical.bench.storage.records import grouped
from apical.measure import robustness_verdict
from apical.measure.robustness_verdict import RuleVerdict, radius

ATTACK = ("eps", "group", "attack", "source", "role")
"""Keys by which attacks of an evaluation differ."""

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
    rows: Sequence[Line], *, several: bool = False, gains: gained.Gains = gained.NONE
) -> Table:
    """Robust accuracies of each rule. several: whether it names the setting."""
    label = f"Robust accuracy at radius {radius(rows[0].eps)}" if rows else ""
    columns = [
        *gained.opening(several, gains),
        Column("noise", "values.noise", page="Random noise", brief=True),
        Column("own gradient", "values.own", page="Own gradient (papers)", brief=True),
        Column("exact gradient", "values.exact", brief=True),
        Column("worst case", "values.worst", strong=True, deciding=True),
        Column("own minus exact", "values.gap", text=points),
        Column("worst minus BP", "values.against_bp", text=points, page="Worst case minus BP"),
        Column("verdict", lambda row: word(robustness.verdict(row.section, row.rule)), left=True,
               deciding=True),
        Column("", lambda row: published(robustness.published_at(row), percent, attack=True),
               page="Published, own gradient", keep=any(map(robustness.published_at, rows))),
    ]  # fmt: skip
    return Table(columns, rows, label, order=lambda row: -row["worst"].mean)


def word(judged: RuleVerdict) -> Shown:
    """The verdict on a rule with its reasons."""
    return Shown(judged.word, title="; ".join(judged.reasons), style=f"verdict {judged.word}")


def compared(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Published values and ours, under the same attack."""

    def place(row: Mapping[str, Any]) -> Shown:
        """The radius, or how many pixels may change."""
        eps = row["published"].eps
        return Shown(f"{eps:g} px" if row["published"].group == "pixels" else radius(eps), eps)

    columns = [
        Column.rule(),
        Column("attack", "published.attack", page="", left=True),
        Column("", lambda row: ", ".join([row["published"].attack, row["published"].group]),
               page="Attack", left=True),
        Column("radius", place),
        Column("n", "ours.n", page="Nets n"),
        Column("own gradient", "ours", page="Ours"),
        Column("published", lambda row: published(row["published"], percent)),
        Column("", "difference", text=points, page="Ours minus published"),
        Column("", lambda row: verdict(row["verdict"]), page="Verdict", left=True),
        Column("exact gradient", "exact", page="Ours, exact gradient", brief=True),
    ]  # fmt: skip
    return Table(columns, rows, "Published robust accuracies")


def heat(table: Heat) -> Table:
    """Rule of training by rule of the attack's gradient."""

    def show(column: str, row: str) -> Shown:
        cell = table.cells.get((row, column))
        if cell is None:
            return Shown("")
        own = row == column
        title = f"95 % interval {estimate(cell).interval}, over {cell.over}, n = {cell.n}"
        style = "own" * own
        return Shown(
            f"{cell.mean:.1f}", cell.mean, "", own, title=title, style=style, share=cell.mean
        )

    head = Column.rule(head="trained by ↓ gradient of →")
    titles = {rule: table.title(rule) for rule in table.columns}
    columns = [Column(name, partial(show, rule), page=name) for rule, name in titles.items()]
    label = "Rule of training by rule of the attack's gradient"
    return Table([head, *columns], table.rows, label, kind="heat")


def pixels(shares: Mapping[str, Mapping[int, Any]]) -> Table:
    """Robust accuracy by the number of pixels that may change."""
    counts = sorted({count for of_rule in shares.values() for count in of_rule})
    columns = each(counts, lambda count, rule: estimate(shares[rule].get(count)), "{} px")
    label = "Robust accuracy by changed pixels"
    return Table([Column.rule(), *columns], list(shares), label, kind="")


def checks(section: Section) -> Table:
    """Per check what came of it for each rule; the meaning of a flag is shown when pointed at."""
    names = dict.fromkeys(r["name"] for net in section.evaluations for r in net.of_kind("check"))

    def outcome(rule: str, name: str) -> Shown:
        rows = [row for row in section.of_kind(rule, "check") if row["name"] == name]
        run = [row for row in rows if row.get("passed") is not None]
        if failed := sum(not row["passed"] for row in run):
            return Shown(f"flagged in {failed} of {len(run)}", style="flag")
        text = "passed" if len(rows) == 1 else f"passed, {len(run)} of {len(rows)}"
        return Shown(text if run else "not run", style="soft")

    def check(name: str) -> Shown:
        return Shown(name, title=MEANINGS.get(name, ""))

    rules = [
        Column("", partial(outcome, rule), page=display_name(rule), left=True)
        for rule in section.rules
    ]
    first = Column("check", check, left=True, style="wrap")
    return Table([first, *rules], list(names), "Sanity checks", kind="")


def flags(section: Section) -> dict[str, list[str]]:
    """Every check that does not hold, with the nets and reasons."""
    failed: dict[str, list[str]] = {}
    for net in section.evaluations:
        for row in net.of_kind("check"):
            if row.get("passed") is False:
                reason = f"{display_name(net.rule)}, seed {net.seed}: {row['detail']}"
                failed.setdefault(row["name"], []).append(reason)
    return failed


def audits(section: Section) -> Table:
    """What the audit measured of each rule, means over its nets; and the verdict."""
    rows = {rule: section.of_kind(rule, "audit") for rule in section.rules}
    means = {rule: sections.means(of_rule, MEASURES) for rule, of_rule in rows.items()}

    def measure(key: str, rule: str) -> Shown:
        percents = key in ("rising", "zero", "saturated")
        return plain(means[rule][key], lambda v: f"{100 * v:.0f}" if percents else ratio(v))

    def alone(rule: str) -> str:
        return ", ".join(dict.fromkeys(row["verdict"] for row in rows[rule]))

    columns = [
        Column.rule(),
        Column("nets n", lambda rule: plain(len(rows[rule]))),
        *(Column("", partial(measure, key), page=title) for key, title in MEASURES.items()),
        Column("audit alone says", alone, left=True),
        Column("verdict", lambda rule: word(robustness.verdict(section, rule)), left=True),
    ]
    return Table(columns, section.rules, "Gradient audit")


# CSV files


def numbers_csv(parts: Iterable[Section]) -> Table:
    """Accuracies in %, differences in points: one row per rule, attack and radius."""
    names = "setting norm images rule eps group attack source role n mean low high interval_over"
    return Table([Column("", raw=names)], [row for each in parts for row in _numbers(each)])


def _numbers(section: Section) -> Iterable[dict[str, Any]]:
    headlines = [line for eps in section.radii for line in robustness.headlines(section, eps)]

    def row(rule: str, share: Any, **names: Any) -> dict[str, Any]:
        head = {"setting": section.heading, "norm": section.clean["norm"], "rule": rule}
        head["images"] = section.clean["examples"]
        return {**head, **vars(share), "interval_over": share.over, **names}

    for rule in section.rules:
        yield row(rule, section.estimate(rule, robustness.clean), eps=0.0, group="clean")
        every = [one for one in section.of_kind(rule, "attack") if one["on"] == "all"]
        for names in dict.fromkeys(tuple(one[key] for key in ATTACK) for one in every):
            about = dict(zip(ATTACK, names, strict=True))
            rows = section.rows(rule, "attack", on="all", **about)
            shares = {seed: one["accuracy"] for seed, one in rows.items()}
            images = next(iter(rows.values())).get("examples", section.clean["examples"])
            accuracy = robustness_verdict.estimate(shares, images)
            yield row(rule, accuracy, **about, images=images)
        for line in (line for line in headlines if line.rule == rule):
            for name, group, source in COLUMNS:
                if value := line[name]:
                    yield row(rule, value, eps=line.eps, group=group, source=source)


NETS = {
    "check": "setting rule seed name passed detail",
    "audit": "setting rule seed examples rising rising_low rising_high cosine agreement "
             "slope_ratio zero zero_loss saturated largest_score repeat verdict rule_verdict",
}  # fmt: skip
"""Columns of the CSV file of each kind of rows of single nets."""


def nets_csv(parts: Iterable[Section], kind: str) -> Table:
    """One row per net: and sanity check, of which `passed` is empty where it was not run; or its
    audit, and the verdict on its rule."""
    rows = []
    for section in parts:
        words = {rule: robustness.verdict(section, rule).word for rule in section.rules}
        for net in section.evaluations:
            about = {"setting": section.heading, "rule": net.rule, "seed": net.seed}
            about["rule_verdict"] = words[net.rule]
            rows += [{**row, **about} for row in net.of_kind(kind)]
    return Table([Column("", raw=NETS[kind])], rows)


# Words


def behind(section: Section, kind: str) -> str:
    """Which attacks make a line, and which of the kind saw only what others had left."""
    rows = [row for rule in section.rules for row in section.of_kind(rule, "attack")]
    rows = [row for row in rows if row["group"] == kind]
    everywhere = sorted({row["attack"] for row in rows if row["on"] == "all"})
    later = sorted({row["attack"] for row in rows if row["on"] != "all"})
    also = f" ({', '.join(later)} saw what was left, and counts in the worst case)" if later else ""
    return f"{robustness.KINDS[kind][0].capitalize()}: {', '.join(everywhere)}{also}."


def conclusion(rows: Sequence[Line]) -> list[str]:
    """What a reader should take home, from the rows of the headline radius."""
    return [text for text in (_masking(rows), _worst(rows)) if text]


def _masking(rows: Sequence[Line]) -> str:
    by_word = grouped((r for r in rows if not is_control(r.rule)), lambda row: row.word)
    parts = [_masked(by_word["masked"])] if "masked" in by_word else []
    if useless := [*by_word.get("vanishing", ()), *by_word.get("random", ())]:
        shown = ", ".join(f"{display_name(row.rule)} ({row.word})" for row in useless)
        parts.append(f"The own gradient is of no use to an attacker: {shown}.")
    if suspect := by_word.get("suspect"):
        parts.append(
            "Attacks by gradient are suspect, and the worst case is an upper bound only: "
            f"{_names(suspect)}."
        )
    if undecided := by_word.get("undecided"):
        parts.append(f"Not decided by these nets: {_names(undecided)}.")
    if not parts and any(not is_baseline(row.rule) for row in by_word.get("faithful", ())):
        return "No rule is masked: attacks by the own gradient tell how robust these nets are."
    return " ".join(parts)


def _masked(rows: Sequence[Line]) -> str:
    most = max(rows, key=lambda row: row["gap"].mean)
    be, own, looks, they_are = "is", "its", "it looks", "it is"
    if len(rows) > 1:
        be, own, looks, they_are = "are", "their", "they look", "they are"
    text = f"{_names(rows)} {be} masked: attacked by {own} own gradient, as in earlier papers, "
    text += f"{looks} more robust than {they_are}"
    if not most["gap"].masked:
        return f"{text}, at other radii than the {radius(most.eps)} shown here."
    noise = most["noise"]
    mere = f" ({percent(noise.mean)} % under mere noise)" if noise else ""
    return (
        f"{text}. At radius {radius(most.eps)}, {display_name(most.rule)} keeps "
        f"{percent(most['own'].mean)} % under its own gradient{mere} and "
        f"{percent(most['exact'].mean)} % under the exact gradient of the same weights."
    )


def _worst(rows: Sequence[Line]) -> str:
    baseline = next((row for row in rows if is_baseline(row.rule)), None)
    others = [row for row in rows if not is_baseline(row.rule)]
    if baseline is None or not others:
        return ""
    left = percent(baseline["worst"].mean)
    start = f"In the worst case over everything tried, backprop keeps {left} %"
    if all(row.n < 2 for row in rows):
        best = max(others, key=lambda row: row["worst"].mean)
        return (
            f"{start}, {display_name(best.rule)} {percent(best['worst'].mean)} %, the most of the "
            "other rules; one net each says nothing about the rules."
        )
    end = sections.uncompared(others, "against_bp")
    shared = [gap.n for row in others if (gap := row["against_bp"]) and gap.n > 1]
    if not shared:
        return f"{start}.{end}"
    tested = f"({counts(shared)} seeds, paired, Holm-corrected)"
    each = "; ".join(
        f"{display_name(row.rule)} {points(gap.mean)} points ({span(gap, points)})"
        for row in others
        if row.differs and (gap := row["against_bp"])
    )
    if not each:
        return f"{start}; no rule differs significantly from it {tested}.{end}"
    return f"{start}. Significantly different from it {tested}: {each}.{end}"


def _names(rows: Sequence[Line]) -> str:
    """ "FA", "FA and DFA", "FA, DFA and uSF"."""
    words = [display_name(row.rule) for row in rows]
    return words[0] if len(words) == 1 else f"{joined(words[:-1])} and {words[-1]}"
