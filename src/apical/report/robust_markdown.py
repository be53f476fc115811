"""The table of a robustness study for Markdown files."""

from apical.report import robust_published, robust_section, robust_table
from apical.report import robust_words as words
from apical.report.escape import for_markdown
from apical.report.names import display_name
from apical.report.read import Study
from apical.report.robust_section import Section
from apical.report.robust_stats import Difference, Estimate
from apical.report.robust_table import Headline

HEAD = ("rule", "n", "clean", "noise", "own gradient", "exact gradient", "**worst case**")
APART = ("own minus exact", "worst minus BP", "verdict")


def to_markdown(study: Study) -> str:
    """Robust accuracies in %, one line per setting and rule, then what the columns mean."""
    found = robust_section.sections(study.robustness, study.robust_published)
    head = [*["setting"] * (len(found) > 1), *HEAD, *APART]
    head.insert(head.index("rule") + 1, "radius")
    lines = _table(head, [row for section in found for row in _rows(section, len(found) > 1)])
    published = [row for section in found for row in _beside(section, study.tier)]
    if published:
        titles = ["rule", "attack", "radius", "n", "own gradient", "published", "exact gradient"]
        lines += ["", *_table(titles, published)]
    return "\n".join(lines) + "\n\n" + _legend(study, found) + "\n"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    left = ("setting", "rule", "attack", "verdict")
    rulers = ["---" if name in left else "---:" for name in head]
    lines = ["| " + " | ".join(head) + " |", "|" + "|".join(rulers) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


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
    parts = [
        f"Tier {study.tier}: share of test images that are right, in %, mean over n nets with a "
        "95 % t interval over seeds (‡ one net: over images). Own gradient: attacks along the "
        "net's own feedback, as in earlier papers; exact: the same attacks along the true "
        "gradient of the same weights; worst case: per image, over everything tried. `own minus "
        "exact` and `worst minus BP` are paired on the seeds, in points, each interval on its own. "
        "Masked: own minus exact "
        "is above 5 points with an interval above 0, or a step along the own gradient does not "
        "raise the loss."
    ]
    missing = sum(each.status != "finished" for each in study.robustness)
    if missing:
        parts.append(f"{missing} of {len(study.robustness)} evaluations are missing.")
    images = dict.fromkeys(f"{each.images} images ({each.heading})" for each in found)
    parts.append(f"Measured on {for_markdown(', '.join(images))}." if images else "")
    sources = dict.fromkeys(row.source for each in found for row in each.published)
    parts.append(f"Published: {for_markdown('; '.join(sources))}." if sources else "")
    parts += [for_markdown(note) for note in study.notes]
    parts.append(f"Regenerate: `{study.command.replace('`', '')}`.")
    return " ".join(filter(None, parts))
