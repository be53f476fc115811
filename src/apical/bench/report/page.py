"""Pages: a study as one self-contained HTML file, CSV and PNG beside it; an index of several."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apical.bench.report import (
    angles,
    curves,
    diagnostics,
    figures,
    fine_tuning,
    linear_probes,
    markdown,
    pictures,
    plain_runs,
    protocol,
    render,
    results,
    retrieval,
    robustness,
    robustness_figures,
    sections,
    spikes,
    templating,
)
from apical.bench.report import robustness_tables as tables
from apical.bench.report.colours import colours
from apical.bench.report.lines import Looks, spread
from apical.bench.report.read import Study, is_run, is_study, read_run, read_study
from apical.bench.report.render import Files, prefix
from apical.bench.report.sections import Section
from apical.bench.storage.records import StorageError, write_bytes

OTHER_RUNS = "other-runs"
"""Folder of the page of runs that belong to no study."""

MOST_RADII = 4
"""Radii that have a table of their own on the page, evenly spaced; all are in the CSV."""

Say = Callable[[str], None]


def write(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    png: bool = True,
    say: Say = lambda text: None,
) -> Path:
    """Write the report of a study, of one run, or of whatever studies and runs a folder holds.

    Args: folder: `runs/<study>`, the folder of a run, or one with studies and runs at any depth.
        out: where the pages go, default `<folder>/report`; several studies get an index and one
        folder each, and the runs that belong to none share one table.
        png: whether every figure is written as a PNG file for print too, which takes as long as
        the page itself.     say: is given what is being written.
    Returns: the page to open.
    Raises: ValueError where there is neither study nor run; StorageError where `out` cannot be
        written. A study without a finished run is no error: its page says what is missing.
    """
    source = Path(folder)
    target = source / "report" if out is None else Path(out)
    if is_study(source):
        say(f"reading {source}")
        return _write_study(read_study(source), target, png, say)
    if is_run(source):
        return _write_run(read_run(source), target, png, say)
    folders, runs = plain_runs.find(source)
    studies = {path.relative_to(source).as_posix(): read_study(path) for path in folders}
    if runs:
        studies[OTHER_RUNS] = plain_runs.read_runs(source, runs)
    if not studies:
        raise ValueError(
            f"no run and no study in {source}, nor in the folders below it: run one first "
            "(apical train, apical study smoke) or name another folder"
        )
    if not folders:
        return _write_study(studies[OTHER_RUNS], target, png, say)
    for name, study in studies.items():
        _write_study(study, target / name, png, say)
    return _write_html(_made(target), "index", studies=studies)


def _write_study(study: Study, out: Path, png: bool, say: Say) -> Path:
    files = Files(_made(out), study.title, png)
    say(f"{study.title}: tables of {len(study.runs)} runs")
    rows, looks = results.cells(study), colours(study.rules)
    table, courses = results.table(study, rows), curves.table(study)
    files.csv("table.csv", table)
    if study.curves:
        files.csv("curves.csv", courses)
    drawn = []
    for setting in study.settings:
        say(f"{study.title}: figures of {setting}")
        groups = figures.of_setting(study, rows, setting, looks)
        groups += curves.groups(study, setting, looks)
        slug = prefix(study.settings, setting)
        drawn.append((setting, files.draw(groups, setting, slug), render.legend(groups)))
    return _write_html(
        out,
        "study",
        **_common(study, looks, files, say),
        finding=markdown.finding(study),
        rows=rows,
        table=table,
        courses=courses,
        figures=drawn,
        spiking=_spiking(study, files),
    )


def _write_run(study: Study, out: Path, png: bool, say: Say) -> Path:
    """The page of one run: how it trained, and its robustness where that was evaluated."""
    files = Files(_made(out), study.title, png)
    (run,) = study.runs
    looks = colours([run.rule])
    say(f"{study.title}: figures")
    return _write_html(
        out,
        "run",
        **_common(study, looks, files, say),
        run=run,
        cell=results.cells(study)[0],
        figures=[(run.setting, files.draw(figures.of_run(run, looks)), [])],
    )


def _common(study: Study, looks: Looks, files: Files, say: Say) -> dict[str, Any]:
    """What pages of studies and of runs show alike; their CSV and PNG files are written here."""
    tuned = fine_tuning.lines(study)
    if tuned:
        files.csv("tuning.csv", fine_tuning.layers_csv(tuned))
    diagnoses = []
    for setting in study.settings:
        if found := diagnostics.diagnose(study, setting, looks):
            say(f"{study.title}: diagnostics of {setting}")
            diagnoses.append(_diagnosis(found, prefix(study.settings, setting), files))
    return {
        "study": study,
        "state": protocol.state(study),
        "several": study.several,
        "tuned": tuned,
        "attacked": _attacked(study, files),
        "hashed": _hashed(study, files),
        "diagnoses": diagnoses,
    }


def _diagnosis(found: diagnostics.Diagnosis, slug: str, files: Files) -> dict[str, Any]:
    """The diagnostics of one setting."""
    layers = angles.by_layer(found.last)
    if found.last:
        files.csv(f"{slug}delta-angles.csv", angles.table([*found.last, *layers]))
    if found.readouts:
        files.csv(f"{slug}linear-probes.csv", linear_probes.table(found.readouts))
    legend = render.legend(found.groups)
    return {
        "found": found,
        "slug": slug,
        "figures": files.draw(found.groups, found.setting, slug),
        "legend": legend if len(legend) > 1 else [],
    }


def _attacked(study: Study, files: Files) -> list[dict[str, Any]]:
    """Classifiers under attack, a part for each section."""
    found = sections.of_study(study)
    if found:
        files.csv("robust.csv", tables.numbers_csv(found))
        files.csv("robust-checks.csv", tables.checks_csv(found))
        files.csv("robust-audit.csv", tables.audits_csv(found))
    headings = [section.heading for section in found]
    return [
        _classifiers(section, f"robust-{prefix(headings, section.heading)}", files)
        for section in found
    ]


def _classifiers(section: Section, slug: str, files: Files) -> dict[str, Any]:
    eps = robustness.headline_radius(section)
    heats = [
        (heat, files.print(robustness_figures.crossed(heat, number), section.heading, slug))
        for number, heat in enumerate(robustness.heats(section, eps), 1)
    ]
    groups, kinds = robustness_figures.over_radius(section)
    read, problems = pictures.of_section(section, pictures.examples)
    examples = [each for _, each in read]
    if examples and files.png:
        title = f"{files.title} · {section.heading}"
        pictures.write_png(files.folder / f"{slug}examples.png", examples, title)
    return {
        "section": section,
        "eps": eps,
        "others": [each for each in spread(section.radii, MOST_RADII) if each != eps],
        "heats": heats,
        "curves": files.draw(groups, section.heading, slug),
        "legend": render.legend(groups),
        "kinds": kinds,
        "examples": examples,
        "problems": problems,
        "png": f"{slug}examples.png" if files.png else "",
    }


def _hashed(study: Study, files: Files) -> list[dict[str, Any]]:
    """Hash nets under attack, a part for each section."""
    found = sections.sections(study.retrieval)
    if found:
        files.csv("retrieval.csv", retrieval.numbers_csv(found))
        files.csv("retrieval-attacks.csv", retrieval.attacks_csv(found))
    parts = []
    for section in found:
        radii = {eps: rows for eps in section.radii if (rows := retrieval.lines(section, eps))}
        answers, problems = pictures.answers(section)
        part = {"section": section, "radii": radii, "answers": answers, "problems": problems}
        parts.append(part)
    return parts


def _spiking(study: Study, files: Files) -> list[tuple[Any, ...]]:
    """Spiking nets under attack: section, its lines, and their rasters, as PNG too."""
    return [
        (section, spikes.lines(section), spikes.rasters(section, files.folder / f"spikes-{n}.png"))
        for n, section in enumerate(spikes.sections_of(study), 1)
    ]


def _write_html(out: Path, template: str, **values: Any) -> Path:
    write_bytes(out / "index.html", templating.page(template, **values).encode())
    return out / "index.html"


def _made(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {out}: {error.strerror}") from error
    return out
