"""Documents: what a study has found, and its tables, in Markdown files between markers; and the
templates that they and the pages are made of."""

import base64
import difflib
import hashlib
import itertools
import os
import re
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from apical.bench.report import (
    angles,
    credit,
    curves,
    diagnostics,
    figures,
    fine_tuning,
    gained,
    lines,
    names,
    overview,
    pictures,
    protocol,
    read,
    render,
    results,
    retrieval,
    robustness,
    robustness_tables,
    sections,
    sequences,
    spikes,
    verified,
)
from apical.bench.report.colours import css_variables
from apical.bench.report.names import display_name
from apical.bench.report.published import FULL_TIER
from apical.bench.report.read import Study, is_study, read_study
from apical.bench.report.table import ABSENT, for_markdown, number
from apical.bench.storage.records import write_bytes
from apical.measure.robustness_verdict import radius
from apical.measure.statistics import ALLOWANCE

Pathlike = str | os.PathLike[str]

TEMPLATES = Path(__file__).parent / "templates"

MODULES = (
    angles, credit, curves, diagnostics, figures, fine_tuning, gained, lines, names, overview,
    pictures, protocol, read, render, results, retrieval, robustness, robustness_tables, sections,
    sequences, spikes, verified,
)  # fmt: skip
"""What templates call by name."""


def table_markdown(folder: Pathlike) -> str:
    """The finding of the study in `folder` and its table: test error in %, one line per setting and
    rule.

    A study of robustness has its table of robust accuracies instead, one of hash nets that of mAP.
    """
    study = read_study(Path(folder))
    text = finding(study).replace("\n", " ")
    start = f"**{for_markdown(text)}**\n\n" if text else ""
    template = next(name for name, shows in DOCUMENTS.items() if shows(study))
    return start + document(template, study=study, folder=Path(folder))


DOCUMENTS: dict[str, Callable[[Study], Any]] = {
    "overview": lambda study: study.overview is not None,
    "credit": credit.concerns,
    "sequences": sequences.concerns,
    "retrieval": lambda study: study.retrieval,
    "fine_tuning": fine_tuning.lines,
    "spikes": spikes.concerns,
    "robustness": lambda study: study.robustness,
    "results": lambda study: True,
}
"""Template -> whether it shows a study; the first one that does is taken."""


def finding(study: Study) -> str:
    """What the study shows, from its numbers alone, a line for each setting; "" where there is
    nothing to compare yet."""
    if credit.concerns(study):
        return credit.finding(study)
    if spikes.concerns(study):
        return spikes.seen(spikes.of_study(study))
    if study.robustness:
        return _robust(sections.of_study(study))
    if study.retrieval:
        parts = sections.sections(study.retrieval)
        return _joined({each.heading: _hashed(each) for each in parts}, len(parts) > 1)
    return results.finding(results.cells(study))


def _robust(parts: list[sections.Section]) -> str:
    """Whose gradient the robustness is, where gradients of other rules were tried, in one sentence;
    of other settings how robust rules are in the worst case."""
    crossed, others = [], {}
    for each in parts:
        eps = robustness.headline_radius(each)
        shown = next(filter(None, (heat.shown for heat in robustness.heats(each, eps))), "")
        if shown:
            crossed.append(f"{shown} ({each.heading})" if len(parts) > 1 else shown)
        else:
            worst = robustness_tables.conclusion(robustness.headlines(each, eps))
            others[each.heading] = next(filter(None, worst), "")
    sentence = [robustness.whose(crossed)] if crossed else []
    return "\n".join([*sentence, *filter(None, [_joined(others, len(parts) > 1)])])


def _hashed(section: sections.Section) -> str:
    """Of the smallest radius at which a rule is masked, else of the smallest."""
    every = [rows for eps in section.radii if (rows := retrieval.lines(section, eps))]
    masked = (rows for rows in every if any(line.word == "masked" for line in rows))
    return retrieval.conclusion(next(masked, every[0])) if every else ""


def _joined(parts: dict[str, str], several: bool) -> str:
    texts = {heading: text for heading, text in parts.items() if text}
    return "\n".join(f"{heading}: {text}" if several else text for heading, text in texts.items())


def angles_markdown(folder: Pathlike) -> str:
    """The delta angles of the study in `folder` at the end of training, by setting and rule.

    Raises: ValueError where none were measured.
    """
    study = read_study(Path(folder))
    return document("angles", study=study, rows=angles.of_study(study))


KINDS = {"table": table_markdown, "angles": angles_markdown}
OPENING = rf"<!-- (?P<kind>{'|'.join(KINDS)}|verified):"
MARKER = re.compile(rf"{OPENING}(?P<name>[\w.-]+) -->\n.*?<!-- end -->", flags=re.S)


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
    nested = [block for block in blocks if len(re.findall(OPENING, block[0])) > 1]
    if nested or len(blocks) != len(re.findall(OPENING, text)):
        where = f" after {nested[0]['kind']}:{nested[0]['name']}" if nested else ""
        raise ValueError(f"{path}: a table marker is not closed by <!-- end -->{where}")

    def block(match: re.Match[str]) -> str:
        kind, marker = match["kind"], f"{match['kind']}:{match['name']}"
        if kind == "verified":
            made = document("verified", rows=verified.lines(folder))
        else:
            made = KINDS[kind](_folder(path, folder, marker))
        return f"<!-- {marker} -->\n{made}<!-- end -->"

    fresh = MARKER.sub(block, text)
    if fresh != text:
        write_bytes(path, fresh.encode())
    return fresh != text


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


# Templates, in which everything from files is escaped


def page(template: str, **values: Any) -> str:
    """A page, with its style and script."""
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    for theme in ("light", "dark"):
        style = style.replace(f"/* rules: {theme} */", css_variables(dark=theme == "dark"))
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    values |= {"style": Markup(style), "script": Markup(script), "script_hash": digest}
    return _compact(_environment().get_template(f"{template}.html.j2").render(**values))


def _compact(page: str) -> str:
    """The page with classes for styles that figures repeat, and without line breaks in tables: a
    third of its size."""
    styled = re.compile(r'(<(?:path|text|use)\b[^>]*?) style="([^"]*)"')
    often = [style for style, n in Counter(s for _, s in styled.findall(page)).items() if n > 9]
    names = {style: f"f{number}" for number, style in enumerate(often)}
    page = styled.sub(lambda m: f'{m[1]} class="{names[m[2]]}"' if m[2] in names else m[0], page)
    rules = "".join(f".{name} {{{style}}}\n" for style, name in names.items())
    page = re.sub(r">\n\s*<(?=/?t[dr]\b)", "><", page)
    return page.replace("</style>", f"{rules}</style>", 1)


def document(template: str, **values: Any) -> str:
    """Tables and paragraphs of a Markdown file. In the template tables and bullets keep their
    lines, all others of a paragraph become one; a line ¶ ends it, a blank one does not."""
    text = _environment(_escaped).get_template(f"{template}.md.j2").render(**values)
    made = []
    for part in re.split(r"^¶$", text, flags=re.MULTILINE):
        lines = (line for line in map(str.strip, part.split("\n")) if line not in ("", "-"))
        for is_table, group in itertools.groupby(lines, lambda line: line.startswith("|")):
            block = "\n".join(group)
            made.append(block if is_table else re.sub(r"\n(?!- )", " ", block))
    return "\n\n".join(made) + "\n"


def _escaped(value: Any) -> Markup:
    return value if isinstance(value, Markup) else Markup(for_markdown(str(value)))


@cache  # templates are compiled once
def _environment(finalize: Any = None) -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=finalize,
    )
    # `markup`: what this package made itself, figures and style, is not escaped
    environment.globals |= {module.__name__.rpartition(".")[2]: module for module in MODULES}
    environment.globals |= {
        "display_name": display_name, "number": number, "radius": radius, "markup": Markup,
        "absent": ABSENT, "allowance": ALLOWANCE, "full_tier": FULL_TIER,
    }  # fmt: skip
    environment.filters["display"] = display_name
    environment.filters["markdown"] = lambda table: Markup(table.markdown())
    environment.filters["code"] = lambda text: Markup(f"`{text.replace('`', '')}`")
    environment.globals["words"] = environment.get_template("words.j2").module
    return environment
