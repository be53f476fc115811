"""Pages: a study as one self-contained HTML file, with CSV and PNG files; an index of several."""

import os
from pathlib import Path
from typing import Any

from apical.bench.report import documents, plain_runs, results
from apical.bench.report.colours import colours
from apical.bench.report.read import Study, is_run, is_study, read_run, read_study
from apical.bench.report.render import Files, Say
from apical.bench.storage.records import StorageError, write_bytes

OTHER_RUNS = "other-runs"
"""Folder of the page of runs that belong to no study."""


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
        return _write_study(read_run(source), target, png, say, "run")
    studies = plain_runs.read_below(source)
    if not studies:
        raise ValueError(
            f"no run and no study in {source}, nor in the folders below it: run one first "
            "(apical train, apical study smoke) or name another folder"
        )
    if studies.keys() == {""}:
        return _write_study(studies[""], target, png, say)
    studies = {name or OTHER_RUNS: study for name, study in studies.items()}
    for name, study in studies.items():
        _write_study(study, target / name, png, say)
    return _write_html(target, "index", studies=studies)


def _write_study(study: Study, out: Path, png: bool, say: Say, template: str = "study") -> Path:
    """A page of a study or, with the template "run", of one run; its figures and CSV files are
    written where the page links to them."""
    say(f"{study.title}: tables of {len(study.runs)} runs")
    return _write_html(
        out,
        template,
        study=study,
        finding=documents.finding(study),
        rows=results.cells(study),
        looks=colours(study.rules),
        files=Files(out, study.title, png, say),
    )


def _write_html(out: Path, template: str, **values: Any) -> Path:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {out}: {error.strerror}") from error
    write_bytes(out / "index.html", documents.page(template, **values).encode())
    return out / "index.html"
