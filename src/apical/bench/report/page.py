"""Pages: a study as one self-contained HTML file, CSV and PNG beside it; an index of several."""

import base64
import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from apical.bench.report import (
    angles,
    attacked,
    credit,
    curves,
    diagnostics,
    figures,
    fine_tuning,
    gained,
    linear_probes,
    opening,
    plain_runs,
    protocol,
    render,
    results,
    sequence_learners,
    spikes,
    steps_to_solve,
)
from apical.bench.report.colours import Look, colours, css_variables
from apical.bench.report.names import display_name
from apical.bench.report.read import FULL_TIER, Study, is_run, is_study, read_run, read_study
from apical.bench.report.table import ABSENT, number
from apical.bench.storage.records import StorageError, write_bytes
from apical.measure.statistics import ALLOWANCE

TEMPLATES = Path(__file__).parent / "templates"
ANGLES_CSV = "delta-angles.csv"
OTHER_RUNS = "other-runs"
"""Folder of the page of runs that belong to no study."""
READOUTS_CSV = "linear-probes.csv"


def write(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    png: bool = True,
    say: Callable[[str], None] = lambda text: None,
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
    entries = [
        {"folder": name, "study": study, "state": protocol.state(study)}
        for name, study in studies.items()
    ]
    return _write_html(target, "index.html.j2", entries=entries)


def _write_study(study: Study, out: Path, png: bool, say: Callable[[str], None]) -> Path:
    _make_folder(out)
    say(f"{study.title}: tables of {len(study.runs)} runs")
    rows = results.cells(study)
    looks = colours(study.rules)
    several = len(study.settings) > 1
    table = results.table(study, rows)
    write_bytes(out / "table.csv", table.csv().encode())
    courses = curves.table(curves.points(study), several=several)
    if study.curves:
        write_bytes(out / "curves.csv", courses.csv().encode())
    learners = None
    if sequence_learners.concerns(study):
        learners = {
            "table": sequence_learners.table(study),
            "missing": sequence_learners.missing(study),
            "legend": sequence_learners.legend(study),
        }
    return _write_html(
        out,
        "study.html.j2",
        finding=opening.finding(study),
        **_common(study, looks, out, png, say),
        summary=protocol.summary(study),
        verdicts=protocol.verdicts(rows),
        search=protocol.search(study),
        unfinished=[run for run in study.runs if run.status != "finished"],
        rows=rows,
        contradicting=any(results.contradicts(row, rows) for row in rows),
        table=table,
        runs=protocol.runs(study),
        courses=courses,
        solved=steps_to_solve.table(study, several=several),
        solved_legend=steps_to_solve.legend(study),
        learners=learners,
        sources=list(dict.fromkeys(row.published.source for row in rows if row.published)),
        orders=results.orders(rows),
        control=any(row.gain for row in rows),
        owed=[*gained.missing(study), *results.notes(study, rows)],
        credit=_credit(study),
        spikes=attacked.of_spiking_nets(study, out),
        most_neurons=spikes.MOST_NEURONS,
        sections=[
            _section(study, rows, setting, looks, out, png, say) for setting in study.settings
        ],
        allowance=ALLOWANCE,
        full_tier=FULL_TIER,
    )


def _write_run(study: Study, out: Path, png: bool, say: Callable[[str], None]) -> Path:
    """The page of one run: how it trained, and its robustness where that was evaluated."""
    _make_folder(out)
    (run,) = study.runs
    looks = colours([run.rule])
    say(f"{study.title}: figures")
    drawn = render.draw(figures.of_run(run, looks), out, title=study.title, png=png)
    return _write_html(
        out,
        "run.html.j2",
        **_common(study, looks, out, png, say),
        run=run,
        cell=results.cells(study)[0],
        sections=[{"setting": run.setting, "figures": drawn, "legend": []}],
    )


def _common(
    study: Study, looks: Mapping[str, Look], out: Path, png: bool, say: Callable[[str], None]
) -> dict[str, Any]:
    """What pages of studies and of runs show alike."""
    found = [diagnostics.diagnose(study, setting, looks) for setting in study.settings]
    return {
        "study": study,
        "state": protocol.state(study),
        "protocols": protocol.protocols(study),
        "environment": protocol.environment(study),
        "tuned": _fine_tuning(study, out),
        "robust": attacked.of_classifiers(study, out, png),
        "hashed": attacked.of_hash_nets(study, out),
        "diagnoses": [_diagnosis(each, study, out, png, say) for each in found if each is not None],
    }


def _credit(study: Study) -> dict[str, Any] | None:
    """What the learning of each layer is worth, None where no layer was left out."""
    if not credit.concerns(study):
        return None
    return {"table": credit.table(study), "legend": credit.legend(study)}


def _fine_tuning(study: Study, out: Path) -> dict[str, Any] | None:
    """Values for tuning.html.j2, None without fine-tuned nets; their CSV file is written here."""
    found = fine_tuning.lines(study)
    if not found:
        return None
    write_bytes(out / "tuning.csv", fine_tuning.layers_csv(found).encode())
    return {
        "table": fine_tuning.table(found, fine_tuning.gains_of(study, found)),
        "layers": fine_tuning.layers(found),
        "legend": fine_tuning.legend(study, found),
    }


def _slug(study: Study, setting: str) -> str:
    """Start of the names of the files of one setting; "" where there is only one."""
    return f"{attacked.slugs(study.settings)[setting]}-" if len(study.settings) > 1 else ""


def _section(
    study: Study,
    rows: Sequence[results.Cell],
    setting: str,
    looks: Mapping[str, Look],
    out: Path,
    png: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The figures of one setting."""
    say(f"{study.title}: figures of {setting}")
    groups = figures.of_setting(study, rows, setting, looks)
    groups += curves.groups(study, setting, looks)
    title = f"{study.title} · {setting}"
    drawn = render.draw(groups, out, title=title, slug=_slug(study, setting), png=png)
    return {"setting": setting, "figures": drawn, "legend": render.legend(groups)}


def _diagnosis(
    found: diagnostics.Diagnosis,
    study: Study,
    out: Path,
    png: bool,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The diagnostics of one setting."""
    say(f"{study.title}: diagnostics of {found.setting}")
    slug = _slug(study, found.setting)
    title = f"{study.title} · {found.setting}"
    layers = angles.by_layer(found.last)
    file = f"{slug}{ANGLES_CSV}"
    if found.last:
        write_bytes(out / file, angles.table([*found.last, *layers]).csv().encode())
    if found.readouts:
        csv = linear_probes.table(found.readouts).csv()
        write_bytes(out / f"{slug}{READOUTS_CSV}", csv.encode())
    legend = render.legend(found.groups)
    return {
        "found": found,
        "aligned": diagnostics.table(found.rules),
        "aligned_layers": diagnostics.table(found.layers),
        "moving": any(row.moving for row in found.rules),
        "angles": angles.table(found.last) if found.last else None,
        "angles_layers": angles.table(layers),
        "angles_legend": angles.LEGEND,
        "angles_csv": file,
        "readouts": linear_probes.table(found.readouts) if found.readouts else None,
        "readouts_legend": linear_probes.LEGEND,
        "readouts_csv": f"{slug}{READOUTS_CSV}",
        "figures": render.draw(found.groups, out, title=title, slug=slug, png=png),
        "legend": legend if len(legend) > 1 else [],
    }


def _write_html(out: Path, template: str, **values: Any) -> Path:
    import jinja2
    from markupsafe import Markup

    _make_folder(out)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `markup`: what this package made itself, figures and style, is not escaped
    environment.globals |= {
        "display_name": display_name, "number": number, "markup": Markup, "absent": ABSENT,
    }  # fmt: skip
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    for theme, dark in (("light", False), ("dark", True)):
        style = style.replace(f"/* rules: {theme} */", css_variables(dark))
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    page = environment.get_template(template).render(
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
    write_bytes(out / "index.html", page.encode())
    return out / "index.html"


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {out}: {error.strerror}") from error
