"""The sentence that a page and a table open with: what the study has found."""

from apical.bench.report import credit, results, retrieval, robustness, robustness_words, spikes
from apical.bench.report.read import Study
from apical.bench.report.sections import Section, of_study, sections


def finding(study: Study) -> str:
    """What the study shows, from its numbers alone; "" where there is nothing to compare yet."""
    if credit.concerns(study):
        return credit.finding(study)
    if spikes.concerns(study):
        return spikes.seen(spikes.of_study(study))
    if study.robustness:
        return _joined({each.heading: _robust(each) for each in of_study(study)})
    if study.retrieval:
        return _joined({each.heading: _hashed(each) for each in sections(study.retrieval)})
    return results.finding(results.cells(study))


def _robust(section: Section) -> str:
    """Whose gradient the robustness is, where gradients of other rules were tried; else how robust
    rules are in the worst case."""
    eps = robustness.headline_radius(section)
    crossed = [heat.conclusion for heat in robustness.heats(section, eps) if heat.conclusion]
    every = [*crossed, *robustness_words.conclusion(robustness.headlines(section, eps))]
    return every[0] if every else ""


def _hashed(section: Section) -> str:
    every = (retrieval.conclusion(retrieval.lines(section, eps)) for eps in section.radii)
    return next(filter(None, every), "")


def _joined(parts: dict[str, str]) -> str:
    found = {heading: text for heading, text in parts.items() if text}
    if len(parts) == 1:
        return "".join(found.values())
    return " ".join(f"{heading}: {text}" for heading, text in found.items())
