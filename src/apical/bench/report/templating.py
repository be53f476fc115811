"""Templates: pages (HTML), and documents (Markdown), in which everything from files is escaped."""

import base64
import hashlib
import itertools
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from apical.bench.report import (
    angles,
    credit,
    curves,
    diagnostics,
    fine_tuning,
    gained,
    linear_probes,
    names,
    overview,
    pictures,
    protocol,
    results,
    retrieval,
    robustness,
    robustness_words,
    sections,
    sequences,
    spikes,
    verified,
)
from apical.bench.report import robustness_tables as tables
from apical.bench.report.colours import css_variables
from apical.bench.report.names import display_name
from apical.bench.report.read import FULL_TIER
from apical.bench.report.table import ABSENT, for_markdown, number
from apical.measure.robustness_verdict import radius
from apical.measure.statistics import ALLOWANCE

TEMPLATES = Path(__file__).parent / "templates"

MODULES = (
    angles, credit, curves, diagnostics, fine_tuning, gained, linear_probes, names, overview,
    pictures, protocol, results, retrieval, robustness, robustness_words, sections, sequences,
    spikes, verified,
)  # fmt: skip
"""What templates call by name; `tables` are those of robustness."""


def page(template: str, **values: Any) -> str:
    """A page, with its style and script."""
    style = (TEMPLATES / "page.css").read_text(encoding="utf-8")
    for theme, dark in (("light", False), ("dark", True)):
        style = style.replace(f"/* rules: {theme} */", css_variables(dark))
    script = (TEMPLATES / "sort.js").read_text(encoding="utf-8")
    return (
        _environment()
        .get_template(f"{template}.html.j2")
        .render(
            style=Markup(style),
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            **values,
        )
    )


def document(template: str, **values: Any) -> str:
    """Tables and paragraphs of a Markdown file. In the template tables and bullets keep their
    lines, all others of a paragraph become one; a line ¶ ends it, a blank one does not."""

    def escaped(value: Any) -> Markup:
        return value if isinstance(value, Markup) else Markup(for_markdown(str(value)))

    text = _environment(escaped).get_template(f"{template}.md.j2").render(**values)
    made = []
    for part in re.split(r"^¶$", text, flags=re.MULTILINE):
        lines = (line for line in map(str.strip, part.split("\n")) if line not in ("", "-"))
        for is_table, group in itertools.groupby(lines, lambda line: line.startswith("|")):
            block = "\n".join(group)
            made.append(block if is_table else re.sub(r"\n(?!- )", " ", block))
    return "\n\n".join(made) + "\n"


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
        "tables": tables, "display_name": display_name, "number": number, "radius": radius,
        "markup": Markup, "absent": ABSENT, "allowance": ALLOWANCE, "full_tier": FULL_TIER,
    }  # fmt: skip
    environment.filters["display"] = display_name
    environment.filters["markdown"] = lambda table: Markup(table.markdown())
    environment.filters["code"] = lambda text: Markup(f"`{text.replace('`', '')}`")
    return environment
