"""The table of a robustness study for Markdown files."""

from apical.bench.report import robust_figures, robust_published, robust_section, robust_table
from apical.bench.report import robust_words as words
from apical.bench.report.escape import for_markdown
from apical.bench.report.names import display_name
from apical.bench.report.read import Study
from apical.bench.report.robust_figures import Heat
from apical.bench.report.robust_section import Section
from apical.bench.report.robust_stats import Difference, Estimate
from apical.bench.report.robust_table import Headline

HEAD = ("rule", "n", "clean", "noise", "own gradient", "exact gradient", "**worst case**")
APART = ("own minus exact", "worst minus BP", "verdict")


def to_markdown(study: Study) -> str:
    """Robust accuracies in %, one line per setting and rule, then what the columns mean.

    Where the gradients of other rules were tried, it is rule of training by rule of gradient
    instead: such evaluations are about the attacker.
    """
    found = robust_section.sections(study.robustness, study.robust_published)
    crossed = [line for section in found for line in _heats(section)]
    if crossed:
        return "\n".join([*crossed, " ".join(_closing(study, found))]) + "\n"
    head = [*["setting"] * (len(found) > 1), *HEAD, *APART]
    head.insert(head.index("rule") + 1, "radius")
    lines = _table(head, [row for section in found for row in _rows(section, len(found) > 1)])
    published = [row for section in found for row in _beside(section, study.tier)]
    if published:
        titles = ["rule", "attack", "radius", "n", "own gradient", "published", "exact gradient"]
        lines += ["", *_table(titles, published)]
    legend = [_legend(study, found), *_closing(study, found)]
    return "\n".join(lines) + "\n\n" + " ".join(legend) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    left = ("setting", "rule", "attack", "verdict", head[0])
    rulers = ["---" if name in left else "---:" for name in head]
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(rulers) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def _heats(section: Section) -> list[str]:
    """Rule of training by rule of the attack's gradient, where that was tried."""
    lines = []
    for heat in robust_figures.heats(section, robust_table.headline_radius(section)):
        rows = [
            [
                for_markdown(display_name(row)),
                *(_cell(heat, row, column) for column in heat.columns),
            ]
            for row in heat.rows
        ]
        titles = [for_markdown(heat.title(column)) for column in heat.columns]
        lines += _table(["trained by ↓ gradient of →", *titles], rows)
        where = f"{section.heading}, {heat.attack}, radius {words.radius(heat.eps)}"
        told = (
            f"Robust accuracy in %, mean over seeds ({for_markdown(where)}). Bold: the feedback "
            f"the net was trained with; elsewhere it is drawn anew. {heat.conclusion}"
        )
        lines += ["", told.rstrip(), ""]
    return lines


def _cell(heat: Heat, row: str, column: str) -> str:
    found = heat.cells.get((row, column))
    if found is None:
        return ""
    return f"**{found.mean:.1f}**" if (row, column) in heat.own else f"{found.mean:.1f}"


def _rows(section: Section, several: bool) -> list[list[str]]:
    eps = robust_table.headline_radius(section)
    lead = [for_markdown(section.heading)] * several
    return [[*lead, *_row(row)] for row in robust_table.headlines(section, eps)]


def _row(row: Headline) -> list[str]:
    n = str(row.n) if row.n == row.planned else f"{row.n} of {row.planned}"
    found = (row.clean, row.noise, row.own, row.exact)
    numbers = [words.percent(each.mean) if each else "" for each in found]
    return [
        for_markdown(display_name(row.rule)),
        words.radius(row.eps),
        n,
        *numbers,
        f"**{words.percent(row.worst.mean)}** [{_span(row.worst)}]",
        _apart(row.gap),
        _apart(row.against_bp),
        row.verdict.word,
    ]


def _span(found: Estimate | Difference, *, sign: bool = False) -> str:
    return words.span(found, sign=sign) + " ‡" * (found.over == "images")


def _apart(found: Difference | None) -> str:
    if found is None:
        return ""
    interval = f" [{_span(found, sign=True)}]" if found.low is not None else ""
    return words.points(found.mean) + interval


def _beside(section: Section, tier: str) -> list[list[str]]:
    return [
        [
            for_markdown(display_name(row.published.rule)),
            for_markdown(row.published.attack),
            words.place(row.published),
            str(row.ours.n),
            f"{words.percent(row.ours.mean)} [{_span(row.ours)}]",
            words.percent(row.published.accuracy),
            words.percent(row.exact.mean) if row.exact else "",
        ]
        for row in robust_published.beside(section, tier)
    ]


def _legend(study: Study, found: list[Section]) -> str:
    sources = dict.fromkeys(row.source for each in found for row in each.published)
    published = f" Published: {for_markdown('; '.join(sources))}." if sources else ""
    return (
        f"Tier {study.tier}: share of test images that are right, in %, mean over n nets with a "
        "95 % t interval over seeds (‡ one net: over images). Own gradient: attacks along the "
        "net's own feedback, as in earlier papers; exact: the same attacks along the true "
        "gradient of the same weights; worst case: per image, over everything tried. `own minus "
        "exact` and `worst minus BP` are paired on the seeds, in points, each interval on its own. "
        "Masked: own minus exact is above 5 points with an interval above 0, Holm-corrected over "
        "radii, or a step along the "
        f"own gradient does not raise the loss.{published}"
    )


def _closing(study: Study, found: list[Section]) -> list[str]:
    parts = []
    missing = sum(each.status != "finished" for each in study.robustness)
    if missing:
        parts.append(f"{missing} of {len(study.robustness)} evaluations are missing.")
    images = dict.fromkeys(f"{each.images} images ({each.heading})" for each in found)
    if images:
        parts.append(f"Measured on {for_markdown(', '.join(images))}.")
    parts += [for_markdown(note) for note in study.notes]
    return [*parts, f"Regenerate: `{study.command.replace('`', '')}`."]
