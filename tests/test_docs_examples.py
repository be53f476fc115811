"""Every example a reader may copy runs: python blocks of the documents, and docstrings."""

import doctest
import importlib
import pkgutil
import re
import sys
import types
from pathlib import Path

import pytest

import apical
from apical import rules

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```(?:python|\{code-block\} python)\n(.*?)^```$", re.M | re.S)


def python_blocks(document: Path) -> list[tuple[int, str]]:
    """(line, code) of each python block."""
    text = document.read_text()
    return [(text[: m.start(1)].count("\n"), m.group(1)) for m in FENCE.finditer(text)]


def with_blocks() -> list[Path]:
    """But for the page whose blocks need many libraries: tests/test_your_model.py."""
    found = [d for d in DOCUMENTS if d.exists() and python_blocks(d)]
    return [d for d in found if d.name != "your_model.md"]


def module_names() -> list[str]:
    walk = pkgutil.walk_packages(apical.__path__, prefix="apical.")
    return ["apical", *sorted(m.name for m in walk if not m.name.endswith("__main__"))]


@pytest.mark.parametrize("document", with_blocks(), ids=lambda p: str(p.relative_to(ROOT)))
def test_the_examples_of_a_document_run(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    # A real module: classes defined in the examples can be found by name, pickled and unpickled.
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    for line, code in python_blocks(document):
        # Leading newlines keep the document's line numbers in tracebacks.
        exec(compile("\n" * line + code, str(document), "exec"), module.__dict__)


def test_the_tables_of_the_documents_come_from_the_records(tmp_path: Path) -> None:
    """`make tables` has nothing to change."""
    from apical.bench.report import refresh

    documents = [d for d in DOCUMENTS if "<!-- table:" in d.read_text()]
    assert ROOT / "README.md" in documents
    for document in documents:
        copy = tmp_path / document.name
        copy.write_text(document.read_text())
        assert not refresh(copy, ROOT / "results"), f"{document}: run make tables"


@pytest.mark.parametrize("document", ["README.md", "docs/rules.md"])
def test_every_rule_has_a_row_in_the_tables_of_rules(document: str) -> None:
    rows = [r for r in (ROOT / document).read_text().splitlines() if r.startswith("|")]
    assert not {name for name in rules.RULES if not any(f"| `{name}` |" in row for row in rows)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_files_lead_somewhere(document: Path) -> None:
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text())
    assert not [t for t in targets if not (document.parent / t).exists()]


def test_the_documents_have_examples() -> None:
    names = {d.name for d in with_blocks()}
    assert {"README.md", "CONTRIBUTING.md", "quickstart.md", "write_a_rule.md"} <= names


@pytest.mark.parametrize("name", module_names())
def test_the_examples_of_a_module_run(name: str) -> None:
    result = doctest.testmod(importlib.import_module(name), optionflags=doctest.ELLIPSIS)
    assert result.failed == 0
