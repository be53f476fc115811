"""Sphinx configuration: MyST pages, furo theme, docstrings shown as they are written."""

import re
import tomllib
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert as mathml

ROOT = Path(__file__).resolve().parents[1]

project = "Apical"
author = "The Apical authors"
copyright = author
version = release = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]

extensions = ["myst_parser", "sphinx.ext.autodoc"]
html_math_renderer = "mathml"
myst_enable_extensions = ["dollarmath", "colon_fence", "deflist"]
myst_heading_anchors = 3
html_theme = "furo"
html_title = "Apical"
exclude_patterns = ["_build"]
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 90  # longer ones have a line for each argument
python_use_unqualified_type_names = True
add_module_names = False
nitpicky = False

SECTION = re.compile(r"^\s*(Args|Attributes|Returns|Raises|Shapes|Source|Warns|Yields|Example)s?:")
ENTRY = re.compile(r"^(\s*)([A-Za-z]\w*(?:, [A-Za-z]\w*)*): ")

COLUMNS = re.compile(r"\S {2,}\S| = ")
"""A table or a formula."""


def as_written(app, what, name, obj, options, lines: list[str]) -> None:
    """Keep the layout of our docstrings: prose flows, sections and lists keep their lines.

    They are written to be read in an editor, not as reStructuredText.
    """
    blocks: list[list[str]] = [[]]
    for line in lines:
        starts = SECTION.match(line) or line.lstrip().startswith(">>>")
        if not line.strip():
            blocks.append([])
            continue
        if starts and blocks[-1] and not blocks[-1][-1].lstrip().startswith(">>>"):
            blocks.append([])
        blocks[-1].append(line)
    lines[:] = [out for block in blocks if block for out in [*block_lines(block), ""]]


def block_lines(block: list[str]) -> list[str]:
    """One paragraph, doctest or section as reStructuredText."""
    if SECTION.match(block[0]):
        joined: list[str] = []
        for line in block:  # an entry of a section is one line, which the browser wraps
            if joined and not ENTRY.match(line) and not joined[-1].endswith(":"):
                joined[-1] += f" {line.strip()}"
            else:
                joined.append(line)
        block = joined
    if block[0].lstrip().startswith(">>>"):
        return [line.strip() for line in block]
    if all(line.startswith("    ") for line in block) and any(COLUMNS.search(b) for b in block):
        return ["::", "", *block]
    keeps_lines = SECTION.match(block[0]) or any(re.match(r"\s+|[*-] ", line) for line in block)
    named = bool(re.match(r"\s*(Args|Attributes):", block[0]))
    escaped = [re.sub(r"(?<!`)([*|\\]|(?<=\w)_(?=\W|$))(?!`)", r"\\\1", line) for line in block]
    if not keeps_lines:
        return escaped
    if named:  # "Args: name: text" begins with an entry, too
        escaped[:1] = re.sub(r"^(\s*\w+:) +(?=\w)", r"\1\n    ", escaped[0]).split("\n")
        escaped = [escaped[0], *(ENTRY.sub(r"\1**\2**: ", line) for line in escaped[1:])]
    return ["| " + SECTION.sub(r"**\1:**", line) if line.strip() else "|" for line in escaped]


def inline_formula(writer, node: nodes.math) -> None:
    """A formula as MathML: browsers show it without scripts and without a network."""
    writer.body.append(mathml(node.astext()))
    raise nodes.SkipNode


def display_formula(writer, node: nodes.math_block) -> None:
    formula = mathml(node.astext(), display="block")
    # The theme would give it scroll bars.
    writer.body.append(formula.replace("<math ", '<math style="overflow: visible" ', 1))
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (inline_formula, None), (display_formula, None))
    app.connect("autodoc-process-docstring", as_written)
