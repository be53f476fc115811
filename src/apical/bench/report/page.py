"""Pages: a study as one self-contained HTML file, CSV and PNG beside it; an index of several."""

import base64
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apical.bench.report import (
    angles,
    curves,
    diagnostics,
    figures,
    flow,
    flow_table,
    hash_figures,
    hash_page,
    memory,
    order,
    protocol,
    robust_page,
    robust_words,
    solved,
    spike_page,
    table,
    tuning,
)
from apical.bench.report.looks import Look, css_variables, looks
from apical.bench.report.names import display_name
from apical.bench.report.read import FULL_TIER, Study, is_run, is_study, read_run, read_study
from apical.bench.report.render import Group, legend_svg, to_svg, write_png
from apical.bench.storage.records import StorageError, write_bytes
from apical.measure.statistics import ALLOWANCE

TEMPLATES = Path(__file__).parent / "templates"
PNG_COLUMNS = 4
ANGLES_CSV = "delta-angles.csv"


def write(folder: str | os.PathLike[str], out: str | os.PathLike[str] | None = None) -> Path:
    """Write the report of a study folder, of every study in a folder of studies, or of one run.

    Args: folder: `runs/<study>`, `runs` or the folder of a run. out: where the pages go, default
        `<folder>/report`;
        a folder of studies gets an index and one folder per study.
    Returns: the page to open.
    Raises: ValueError where there is no study; StorageError where `out` cannot be written. A study
        without a finished run is no error: its page says what is missing.
    """
    source = Path(folder)
    target = source / "report" if out is None else Path(out)
    if is_study(source):
        return _write_study(read_study(source), target)
    if is_run(source):
        return _write_run(read_run(source), target)
    children = sorted(source.iterdir()) if source.is_dir() else []
    studies = {child.name: read_study(child) for child in children if is_study(child)}
    if not studies:
        raise ValueError(
            f"no study in {source}: neither it nor a folder in it has a study.json; "
            "run one first (apical study smoke) or name another folder; a run of apical train is "
            "shown by its own folder"
        )
    for name, study in studies.items():
        _write_study(study, target / name)
    return _write_html(target, "index.html.j2", entries=_entries(studies))


def _entries(studies: Mapping[str, Study]) -> list[dict[str, Any]]:
    return [
        {"folder": name, "study": study, "state": protocol.state(study)}
        for name, study in studies.items()
    ]


def _write_study(study: Study, out: Path) -> Path:
    _make_folder(out)
    rows = table.cells(study)
    look = looks(study.rules)
    write_bytes(out / "table.csv", table.to_csv(rows).encode())
    if study.curves:
        write_bytes(out / "curves.csv", curves.to_csv(curves.points(study)).encode())
    return _write_html(
        out,
        "study.html.j2",
        study=study,
        state=protocol.state(study),
        summary=protocol.summary(study),
        verdicts=protocol.verdicts(rows),
        protocols=protocol.protocols(study),
        search=protocol.search(study),
        environment=protocol.environment(study),
        unfinished=[run for run in study.runs if run.status != "finished"],
        rows=rows,
        points=curves.points(study),
        solved=_solved(study),
        learners=_learners(study),
        sources=list(dict.fromkeys(row.published.source for row in rows if row.published)),
        orders=order.told(rows),
        tuned=_tuning(study, out),
        robust=robust_page.write(study, out, slugs),
        hashed=hash_page.write(study, out),
        spikes=spike_page.write(study, out),
        most_neurons=spike_page.MOST_NEURONS,
        sections=[_section(study, rows, setting, look, out) for setting in study.settings],
        diagnoses=[
            _diagnosed(found, study, look, out)
            for setting in study.settings
            if (found := diagnostics.diagnose(study, setting, look)) is not None
        ],
        allowance=ALLOWANCE,
        full_tier=FULL_TIER,
    )


def _solved(study: Study) -> dict[str, Any]:
    found = solved.lines(study)
    return {"lines": found, "lengths": solved.lengths(found), "told": solved.told(study)}


def _learners(study: Study) -> dict[str, Any] | None:
    if not flow_table.concerns(study):
        return None
    return {
        "lines": flow_table.lines(study),
        "missing": flow_table.missing(study),
        "told": flow_table.legend(study),
    }


def _tuning(study: Study, out: Path) -> dict[str, Any] | None:
    """The table of fine-tuned nets for the page, None without any; its CSV is written here."""
    found = tuning.lines(study)
    if not found:
        return None
    write_bytes(out / "tuning.csv", tuning.to_csv(found).encode())
    words = {name: getattr(robust_words, name) for name in ("percent", "points", "span")}
    return {"lines": found, "told": tuning.told(study, found), "between": tuning.between, **words}


def _section(
    study: Study, rows: Sequence[table.Cell], setting: str, look: Mapping[str, Look], out: Path
) -> dict[str, Any]:
    """The figures of one setting for the page; their PNG files are written on the way."""
    groups = figures.groups(study, rows, setting, look)
    groups += curves.groups(study, setting, look)
    groups += flow.groups(study, setting, look)
    groups += memory.groups(study, setting, look)
    groups += hash_figures.groups(study, setting, look)
    shown = [row.rule for row in rows if row.setting == setting and row.summary]
    slug = f"{slugs(study.settings)[setting]}-" if len(study.settings) > 1 else ""
    drawn = _drawn(groups, f"{study.title} · {setting}", look, out, slug)
    return {"setting": setting, "groups": drawn, "legend": _legend(shown, look)}


def _write_run(study: Study, out: Path) -> Path:
    """The page of one run: how it trained, and its robustness where that was evaluated."""
    _make_folder(out)
    (run,) = study.runs
    look = looks([run.rule])
    made = (make.of_runs({run.rule: [run]}, look) for make in (figures, flow, memory))
    groups = [group for several in made for group in several]
    drawn = _drawn(groups, study.title, look, out, "")
    (cell,) = table.cells(study)
    return _write_html(
        out,
        "run.html.j2",
        study=study,
        run=run,
        cell=cell,
        state=protocol.state(study),
        protocols=protocol.protocols(study),
        environment=protocol.environment(study),
        tuned=_tuning(study, out),
        robust=robust_page.write(study, out, slugs),
        hashed=hash_page.write(study, out),
        sections=[{"setting": run.setting, "groups": drawn, "legend": []}],
        diagnoses=[
            _diagnosed(found, study, look, out)
            for found in [diagnostics.diagnose(study, run.setting, look)]
            if found is not None
        ],
    )


def _diagnosed(
    found: diagnostics.Diagnosis, study: Study, look: Mapping[str, Look], out: Path
) -> dict[str, Any]:
    """The diagnostics of one setting for the page."""
    slug = f"{slugs(study.settings)[found.setting]}-" if len(study.settings) > 1 else ""
    drawn = _drawn(found.groups, f"{study.title} · {found.setting}", look, out, slug)
    legend = _legend(found.drawn, look) if len(found.drawn) > 1 else []
    if found.last:
        rows = angles.to_csv([*found.last, *found.last_by_layer])
        write_bytes(out / f"{slug}{ANGLES_CSV}", rows.encode())
    told = {"angles_told": f"{angles.TOLD} {angles.TIES}", "angles_csv": f"{slug}{ANGLES_CSV}"}
    return {**vars(found), **told, "figures": drawn, "legend": legend}


def _drawn(
    groups: Sequence[Group], title: str, look: Mapping[str, Look], out: Path, slug: str
) -> list[dict[str, Any]]:
    """Figures for the page; their PNG files are written on the way."""
    for group in groups:
        write_png(
            out / f"{slug}{group.name}.png",
            group,
            title=f"{title} · {group.heading}",
            legend=[(display_name(rule), look[rule]) for rule in group.rules],
            columns=PNG_COLUMNS,
        )
    return [_figure(group, f"{slug}{group.name}.png") for group in groups]


def _legend(rules: Sequence[str], look: Mapping[str, Look]) -> list[tuple[str, str]]:
    named = [(display_name(rule), look[rule]) for rule in rules]
    return [(label, legend_svg(each, label)) for label, each in named]


def _figure(group: Group, png: str) -> dict[str, Any]:
    return {
        "group": group,
        "png": png,
        "panels": [(panel.title, to_svg(group, panel)) for panel in group.panels],
    }


def slugs(names: Sequence[str]) -> dict[str, str]:
    """Names as parts of file names: short, plain ASCII, all different."""
    made: dict[str, str] = {}
    for name in names:
        base = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:40] or "setting"
        slug, count = base, 2
        while slug in made.values():
            slug, count = f"{base}-{count}", count + 1
        made[name] = slug
    return made


def _write_html(out: Path, template: str, **values: Any) -> Path:
    import jinja2

    _make_folder(out)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "count": table.count,
        "display_name": display_name,
        "interval": table.interval,
        "share": table.share,
        "number": table.number,
        "paired": flow_table.paired,
        "signed": table.signed,
        "markup": _trusted,
    }
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    for theme, dark in (("light", False), ("dark", True)):
        style = style.replace(f"/* rules: {theme} */", css_variables(dark))
    if values.get("robust") or values.get("hashed"):
        style += (TEMPLATES / "robust.css").read_text(encoding="utf-8")
    if values.get("hashed"):
        style += (TEMPLATES / "hash.css").read_text(encoding="utf-8")
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    page = environment.get_template(template).render(
        style=_trusted(style),
        script=_trusted(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **values,
    )
    write_bytes(out / "index.html", page.encode())
    return out / "index.html"


def _trusted(text: str) -> Any:
    """Marks what this package made itself (figures, style, script) as not to be escaped."""
    from markupsafe import Markup

    return Markup(text)


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {out}: {error.strerror}") from error
