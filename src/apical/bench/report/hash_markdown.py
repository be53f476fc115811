"""The table of a study of attacked retrieval for Markdown files."""

from apical.bench.report import hash_table
from apical.bench.report import robust_words as words
from apical.bench.report.escape import for_markdown
from apical.bench.report.hash_table import Line, Section
from apical.bench.report.names import display_name
from apical.bench.report.read import Study
from apical.bench.report.robust_stats import Difference, Estimate

HEAD = ("rule", "radius", "n", "clean", "HAG own", "HAG exact", "SDHA own", "SDHA exact")
LAST = ("**worst case**", "own minus exact", "worst minus BP", "t-MAP own", "t-MAP exact")
COLUMNS = ("HAG own", "HAG exact", "SDHA own", "SDHA exact")


def to_markdown(study: Study) -> str:
    """mAP in %, one line per setting, radius and rule, then what the columns mean."""
    found = hash_table.sections(study.retrieval)
    several = len(found) > 1
    head = [*["setting"] * several, *HEAD, *LAST]
    lines = ["| " + " | ".join(head) + " |"]
    lines.append("|" + "|".join("---" if n in ("setting", "rule") else "---:" for n in head) + "|")
    for section in found:
        lead = [for_markdown(section.heading)] * several
        for eps in section.radii:
            rows = hash_table.lines(section, eps)
            lines += ["| " + " | ".join([*lead, *_row(row)]) + " |" for row in rows]
    return "\n".join(lines) + "\n\n" + " ".join(_closing(study, found)) + "\n"


def _row(line: Line) -> list[str]:
    n = str(line.n) if line.n == line.planned else f"{line.n} of {line.planned}"
    return [
        for_markdown(display_name(line.rule)),
        words.radius(line.eps),
        n,
        _mean(line.clean),
        *(_mean(line.values.get(name)) for name in COLUMNS),
        f"**{_mean(line.values.get('worst'))}** [{words.span(line.values.get('worst'))}]",
        _apart(line.gap),
        _apart(line.worst_minus_bp),
        _mean(line.values.get("targeted own")),
        _mean(line.values.get("targeted exact")),
    ]


def _mean(found: Estimate | None) -> str:
    return words.percent(found.mean) if found else ""


def _apart(found: Difference | None) -> str:
    if found is None:
        return ""
    span = f" [{words.span(found, sign=True)}]" if found.low is not None else ""
    return words.points(found.mean) + span


def _closing(study: Study, found: list[Section]) -> list[str]:
    parts = [
        f"Tier {study.tier}: mAP in %, mean over n nets with a 95 % t interval over seeds. Own: "
        "attacks along the gradient that the net learns from, as in the paper that proposes such "
        "nets; exact: the same along the true gradient of the same weights; worst case: per query "
        "the least that anything left, noise and attacks made on BP's net among it. `own minus "
        "exact` (HAG or SDHA, whichever leaves less) and `worst minus BP` are paired on the seeds, "
        "in points, each interval on its own. t-MAP: of the labels that targeted SDHA aims at, "
        "higher is a stronger attack."
    ]
    missing = sum(each.status != "finished" for each in study.retrieval)
    if missing:
        parts.append(f"{missing} of {len(study.retrieval)} evaluations are missing.")
    sizes = dict.fromkeys(f"{s.described.get('queries')} queries ({s.heading})" for s in found)
    parts.append(f"Measured on {for_markdown(', '.join(sizes))}.")
    parts += [for_markdown(note) for note in study.notes]
    return [*parts, f"Regenerate: `{study.command.replace('`', '')}`."]
