"""The sentence that a page and a table open with: what the study has found."""

from collections.abc import Sequence

from apical.bench.report import (
    credit,
    results,
    retrieval,
    robustness,
    robustness_words,
    sections,
    spikes,
)
from apical.bench.report.names import display_name, joined
from apical.bench.report.read import Study
from apical.bench.report.table import mean


def finding(study: Study) -> str:
    """What the study shows, from its numbers alone; "" where there is nothing to compare yet."""
    if credit.concerns(study):
        return credit.finding(study)
    if spikes.concerns(study):
        return spikes.seen(
            line for each in spikes.sections_of(study) for line in spikes.lines(each)
        )
    if study.robustness:
        return _joined(
            {each.heading: _robust(each) for each in sections.sections(study.robustness)}
        )
    if study.retrieval:
        return _joined({each.heading: _hashed(each) for each in sections.sections(study.retrieval)})
    return of_errors(results.cells(study))


def of_errors(rows: Sequence[results.Cell]) -> str:
    """What the table shows, in a sentence for each setting: the best rule, which rules it does not
    differ from, and which are not shown to learn; "" without two rules to compare."""
    made = []
    settings = dict.fromkeys(row.setting for row in rows)
    for setting in settings:
        found = [row for row in rows if row.setting == setting and row.summary]
        ranked = sorted(found, key=lambda row: row.summary.mean if row.summary else 0.0)
        if len(ranked) < 2:
            continue
        best = ranked[0]
        error = f"{mean(best.summary).text} %"
        same = [row for row in ranked[1:] if {*row.ties} & {*best.ties}]
        if not best.ties:
            text = f"{display_name(best.rule)} has the lowest test error, {error}, in a single run"
        elif len(same) == len(ranked) - 1:
            text = (
                f"no test error differs significantly from the lowest, {display_name(best.rule)}'s "
                f"{error}"
            )
        else:
            text = f"{display_name(best.rule)} has the lowest test error, {error}"
            text += f", not significantly different from {_names(same)}" if same else ""
        if idle := [row for row in ranked if row.gain and row.gain.mark]:
            text += f"; no gain over frozen hidden layers is shown under {_names(idle)}"
        where = f"{setting}: " if len(settings) > 1 else ""
        made.append(f"{where}{text if where else text[:1].upper() + text[1:]}.")
    return " ".join(made)


def _names(rows: Sequence[results.Cell]) -> str:
    """Names in a row, set off by semicolons where one has a comma."""
    return joined([display_name(row.rule) for row in rows])


def _robust(section: sections.Section) -> str:
    """Whose gradient the robustness is, where gradients of other rules were tried; else how robust
    rules are in the worst case."""
    eps = robustness.headline_radius(section)
    crossed = [heat.conclusion for heat in robustness.heats(section, eps) if heat.conclusion]
    every = [*crossed, *robustness_words.conclusion(section, robustness.headlines(section, eps))]
    return every[0] if every else ""


def _hashed(section: sections.Section) -> str:
    return next(
        (
            retrieval.conclusion(rows)
            for eps in section.radii
            if (rows := retrieval.lines(section, eps))
        ),
        "",
    )


def _joined(parts: dict[str, str]) -> str:
    found = {heading: text for heading, text in parts.items() if text}
    if len(parts) == 1:
        return "".join(found.values())
    return " ".join(f"{heading}: {text}" for heading, text in found.items())
