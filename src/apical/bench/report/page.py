"""Pages: a study as one self-contained HTML file, with CSV and PNG files; an index of several."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from apical.bench.report import (
    angles,
    curves,
    diagnostics,
    documents,
    figures,
    fine_tuning,
    pictures,
    plain_runs,
    render,
    results,
    retrieval,
    robustness,
    robustness_tables,
    sections,
    spikes,
)
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
        the page itself. say: is given what is being written.
    Returns: the page to open.
    Raises: ValueError where there is neither study nor run; StorageError where `out` cannot be
        written. A study without a finished run is no error: its page lists what is missing.
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
    # section of spiking nets under attack, its lines, and their rasters, as PNG too
    spiking = [
        (section, spikes.lines(section), spikes.rasters(section, files.folder / f"spikes-{n}.png"))
        for n, section in enumerate(spikes.sections_of(study), 1)
    ]
    return _write_html(
        out,
        "study",
        **_common(study, looks, files, say),
        finding=documents.finding(study),
        rows=rows,
        table=table,
        courses=courses,
        figures=drawn,
        spiking=spiking,
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
    if tuned := fine_tuning.lines(study):
        files.csv("tuning.csv", fine_tuning.layers_csv(tuned))
    diagnoses = []
    for setting in study.settings:
        if diagnosis := diagnostics.diagnose(study, setting, looks):
            say(f"{study.title}: diagnostics of {setting}")
            diagnoses.append(_diagnosis(diagnosis, prefix(study.settings, setting), files))
    return {
        "study": study,
        "tuned": tuned,
        "attacked": _attacked(study, files),
        "hashed": _hashed(study, files),
        "diagnoses": diagnoses,
    }


def _diagnosis(diagnosis: dict[str, Any], slug: str, files: Files) -> dict[str, Any]:
    """The diagnostics of one setting."""
    if last := diagnosis["last"]:
        files.csv(f"{slug}delta-angles.csv", angles.table([*last, *angles.by_layer(last)]))
    if readouts := diagnosis["readouts"]:
        files.csv(f"{slug}linear-probes.csv", diagnostics.readout_table(readouts))
    legend = render.legend(diagnosis["groups"])
    drawn = files.draw(diagnosis["groups"], diagnosis["setting"], slug)
    return diagnosis | {"slug": slug, "figures": drawn, "legend": legend if len(legend) > 1 else []}


def _attacked(study: Study, files: Files) -> list[dict[str, Any]]:
    """Classifiers under attack, a part for each section."""
    if parts := sections.of_study(study):
        files.csv("robust.csv", robustness_tables.numbers_csv(parts))
        files.csv("robust-checks.csv", robustness_tables.nets_csv(parts, "check"))
        files.csv("robust-audit.csv", robustness_tables.nets_csv(parts, "audit"))
    headings = [section.heading for section in parts]
    return [
        _classifiers(section, f"robust-{prefix(headings, section.heading)}", files)
        for section in parts
    ]


def _classifiers(section: Section, slug: str, files: Files) -> dict[str, Any]:
    eps = robustness.headline_radius(section)
    heats = [
        (heat, files.print(robustness.crossed(heat, number), section.heading, slug))
        for number, heat in enumerate(robustness.heats(section, eps), 1)
    ]
    groups, kinds = robustness.over_radius(section)
    nets, problems = pictures.of_section(section, pictures.examples)
    examples = [each for _, each in nets]
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


def _hashed(study: Study, files: Files) -> list[tuple[Section, dict[float, Any]]]:
    """Hash nets under attack: each section, and its lines by radius."""
    if parts := sections.sections(study.retrieval):
        files.csv("retrieval.csv", retrieval.numbers_csv(parts))
        files.csv("retrieval-attacks.csv", retrieval.attacks_csv(parts))
    return [
        (section, {e: rows for e in section.radii if (rows := retrieval.lines(section, e))})
        for section in parts
    ]


def _write_html(out: Path, template: str, **values: Any) -> Path:
    write_bytes(out / "index.html", documents.page(template, **values).encode())
    return out / "index.html"


def _made(out: Path) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {out}: {error.strerror}") from error
    return out
