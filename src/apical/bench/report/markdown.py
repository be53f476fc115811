"""What a study has found, and its tables, in Markdown files between markers."""

import difflib
import os
import re
from pathlib import Path

from apical.bench.report import (
    angles,
    credit,
    fine_tuning,
    overview,
    results,
    retrieval,
    robustness,
    robustness_words,
    sections,
    sequences,
    spikes,
    verified,
)
from apical.bench.report.read import Study, is_study, read_study
from apical.bench.report.table import for_markdown
from apical.bench.report.templating import document
from apical.bench.storage.records import write_bytes

Pathlike = str | os.PathLike[str]


def table_markdown(folder: Pathlike) -> str:
    """The finding of the study in `folder` and its table: test error in %, one line per setting and
    rule.

    A study of robustness has its table of robust accuracies instead, one of hash nets that of mAP.
    """
    study = read_study(Path(folder))
    found = finding(study)
    start = f"**{for_markdown(found)}**\n\n" if found else ""
    return start + _table(study, Path(folder))


def finding(study: Study) -> str:
    """What the study shows, from its numbers alone; "" where there is nothing to compare yet."""
    if credit.concerns(study):
        return credit.finding(study)
    if spikes.concerns(study):
        return spikes.seen(spikes.of_study(study))
    if study.robustness:
        return _joined({each.heading: _robust(each) for each in sections.of_study(study)})
    if study.retrieval:
        return _joined({each.heading: _hashed(each) for each in sections.sections(study.retrieval)})
    return results.finding(results.cells(study))


def _robust(section: sections.Section) -> str:
    """Whose gradient the robustness is, where gradients of other rules were tried; else how robust
    rules are in the worst case."""
    eps = robustness.headline_radius(section)
    crossed = [heat.conclusion for heat in robustness.heats(section, eps) if heat.conclusion]
    every = [*crossed, *robustness_words.conclusion(robustness.headlines(section, eps))]
    return every[0] if every else ""


def _hashed(section: sections.Section) -> str:
    every = (retrieval.conclusion(retrieval.lines(section, eps)) for eps in section.radii)
    return next(filter(None, every), "")


def _joined(parts: dict[str, str]) -> str:
    found = {heading: text for heading, text in parts.items() if text}
    if len(parts) == 1:
        return "".join(found.values())
    return " ".join(f"{heading}: {text}" for heading, text in found.items())


def _table(study: Study, folder: Path) -> str:
    if study.overview is not None:
        times = overview.step_times(folder.parent, study.overview["timed"])
        return document("overview", study=study, times=times, name=folder.name)
    if credit.concerns(study):
        return document("credit", study=study)
    if sequences.concerns(study):
        return document("sequences", study=study)
    if study.retrieval:
        found = sections.sections(study.retrieval)
        rows = retrieval.of_sections(found)
        return document("retrieval", study=study, found=found, rows=rows)
    if tuned := fine_tuning.lines(study):
        return document("fine_tuning", study=study, rows=tuned)
    found = sections.of_study(study)
    if spikes.concerns(study):
        return document("spikes", study=study, found=found, rows=spikes.of_study(study))
    if study.robustness:
        radii = [(section, robustness.headline_radius(section)) for section in found]
        rows = [row for section, eps in radii for row in robustness.headlines(section, eps)]
        compared = [row for each in found for row in robustness.compared(each, study.tier)]
        return document("robustness", study=study, found=found, rows=rows, compared=compared)
    return document("results", study=study, rows=results.cells(study))


def angles_markdown(folder: Pathlike) -> str:
    """The delta angles of the study in `folder` at the end of training, by setting and rule.

    Raises: ValueError where none were measured.
    """
    study = read_study(Path(folder))
    return document("angles", study=study, rows=angles.of_study(study))


KINDS = {"table": table_markdown, "angles": angles_markdown}
MARKER = re.compile(
    rf"<!-- (?P<kind>{'|'.join(KINDS)}|verified):(?P<name>[\w.-]+) -->\n.*?<!-- end -->", flags=re.S
)
OPENING = re.compile(rf"<!-- (?:{'|'.join(KINDS)}|verified):")


def refresh(markdown_file: Pathlike, results_folder: Pathlike) -> bool:
    """Rewrite what stands between `<!-- table:NAME -->` and `<!-- end -->` from a study's records.

    NAME is a study in `results_folder`, of which there may be a shorter tier only (the folder
    NAME-short, or else NAME-smoke). `<!-- angles:NAME -->` opens its table of delta angles at the
    end of training instead, `<!-- verified:all -->` what `apical verify` has found of all studies.
    The rest of the file is left as it is.
    Returns: whether the file changed.
    Raises: ValueError for a marker that is not closed, a NAME without a study, a study without
        delta angles.
    """
    path, folder = Path(markdown_file), Path(results_folder)
    text = path.read_text(encoding="utf-8")
    blocks = list(MARKER.finditer(text))
    nested = [block for block in blocks if len(OPENING.findall(block[0])) > 1]
    if nested or len(blocks) != len(OPENING.findall(text)):
        where = f" after {nested[0]['kind']}:{nested[0]['name']}" if nested else ""
        raise ValueError(f"{path}: a table marker is not closed by <!-- end -->{where}")

    def block(match: re.Match[str]) -> str:
        kind, name = match["kind"], match["name"]
        if kind == "verified":
            made = document("verified", rows=verified.lines(folder))
        else:
            made = KINDS[kind](_folder(path, folder, f"{kind}:{name}"))
        return f"<!-- {kind}:{name} -->\n{made}<!-- end -->"

    fresh = MARKER.sub(block, text)
    if fresh == text:
        return False
    write_bytes(path, fresh.encode())
    return True


def _folder(path: Path, results_folder: Path, marker: str) -> Path:
    name = marker.partition(":")[2]
    for tier in ("", "-short", "-smoke"):
        if is_study(results_folder / f"{name}{tier}"):
            return results_folder / f"{name}{tier}"
    there = sorted(entry.name for entry in results_folder.iterdir() if is_study(entry))
    near = difflib.get_close_matches(name, there, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(
        f"{path}: {marker}: no such study in {results_folder} "
        f"(there: {', '.join(there) or 'none'}){hint}"
    )
