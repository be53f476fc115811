"""Every example a reader may copy runs: the blocks of the documents, and docstrings."""

import doctest
import importlib.util
import pkgutil
import re
import sys
import types
import warnings
from pathlib import Path

import pytest
import torch

import apical
import small_budget
from apical import rules
from small_budget import small  # noqa: F401, a fixture

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^```([^\n`]*)\n(.*?)^```$", re.M | re.S)
NOT_CODE = {
    "": "a drawing or a printed result",
    "py": "needs transformers; test_adapters_libraries.py does the same",
    "text": "needs the runs of a finished study",
    "diff": "applied by test_house.py, on a copy of the package",
    "{eval-rst}": "directives of Sphinx, built by make docs",
    "{include} ../CHANGELOG.md": "the changelog",
    "{toctree}": "the list of pages",
}
"""Kinds of blocks that are not run, and why."""


def blocks(document: Path) -> list[tuple[str, int, str]]:
    """(kind, line, code) of each block that runs."""
    text = document.read_text()
    found = [(m[1], text[: m.start(2)].count("\n"), m[2]) for m in FENCE.finditer(text)]
    assert {kind for kind, _, _ in found} <= {"python", "sh", "yaml", *NOT_CODE}, document
    return [block for block in found if block[0] not in NOT_CODE]


def python_blocks(document: Path) -> list[tuple[int, str]]:
    """(line, code) of each block of Python."""
    return [(line, code) for kind, line, code in blocks(document) if kind == "python"]


def with_blocks() -> list[Path]:
    """But for the page whose blocks need many libraries: tests/test_your_model.py."""
    found = [d for d in DOCUMENTS if d.exists() and blocks(d)]
    return [d for d in found if d.name != "your_model.md"]


def prepare(executed: list[str]) -> None:
    """What the documents presume: a package that holds the rule of the text, and a model."""
    Path("my_package").mkdir()
    Path("my_package/__init__.py").write_text("")
    Path("my_package/my_rules.py").write_text("\n".join(executed))
    Path("my_package/my_nets.py").write_text(
        "from torch import nn\n\n\n"
        "def make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"
    )
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    torch.save(model.state_dict(), "weights.pt")


def module_names() -> list[str]:
    walk = pkgutil.walk_packages(apical.__path__, prefix="apical.")
    return ["apical", *sorted(m.name for m in walk if not m.name.endswith("__main__"))]


@pytest.mark.parametrize("document", with_blocks(), ids=lambda p: str(p.relative_to(ROOT)))
@pytest.mark.usefixtures("small")
@pytest.mark.timeout(600)  # seconds on a free machine, some of them minutes on a busy one
def test_the_blocks_of_a_document_run(
    document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All Python and shell blocks, in their order, in one folder; commands on a small budget."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    # A real module: classes defined in the examples can be found by name, pickled and unpickled.
    module = types.ModuleType("example")
    monkeypatch.setitem(sys.modules, "example", module)
    if document.name == "CONTRIBUTING.md":  # its file of the library is not there
        monkeypatch.setitem(sys.modules, "apical.rules.binary", module)
    executed: list[str] = []
    try:
        for kind, line, code in blocks(document):
            if named := re.match(r"# file: (\S+)\n", code):
                Path(named[1]).write_text(code)
            if kind == "yaml":
                assert named, f"{document}:{line}: a comment '# file: NAME' says where it lies"
                continue
            if kind == "python":
                # Leading newlines keep the document's line numbers in tracebacks.
                exec(compile("\n" * line + code, str(document), "exec"), module.__dict__)
                executed.append(code)
                continue
            if "my_package" in code:
                prepare(executed)
            with warnings.catch_warnings():
                # nets that saw 64 images once have every fault that training warns of
                warnings.simplefilter("ignore")
                for command in code.splitlines():
                    small_budget.run(command)
    finally:
        for name in set(sys.modules) - before:  # modules of this folder, not of the next test
            if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
                del sys.modules[name]


def test_the_tables_of_the_documents_come_from_the_records(tmp_path: Path) -> None:
    """`make tables` has nothing to change."""
    from apical.bench.report import refresh

    documents = [d for d in DOCUMENTS if "<!-- table:" in d.read_text()]
    assert ROOT / "README.md" in documents
    for document in documents:
        copy = tmp_path / document.name
        copy.write_text(document.read_text())
        assert not refresh(copy, ROOT / "results"), f"{document}: run make tables"


def test_every_rule_has_a_row_in_the_tables_of_rules() -> None:
    for document in ("docs/choose_a_rule.md", "docs/rules.md"):
        rows = [r for r in (ROOT / document).read_text().splitlines() if r.startswith("|")]
        assert not {name for name in rules.RULES if not any(f"| `{name}` |" in row for row in rows)}


def test_links_have_a_text_and_those_between_files_lead_somewhere() -> None:
    for document in DOCUMENTS:
        text = document.read_text()
        targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
        assert not [t for t in targets if not (document.parent / t).exists()], document
        assert not re.findall(r"\[\]\([^)]*\)", text), document  # empty on a repository's page


def test_the_documents_have_examples() -> None:
    names = {d.name for d in with_blocks()}
    assert {"README.md", "CONTRIBUTING.md", "quickstart.md", "write_a_rule.md"} <= names


NEEDS = {"apical.bench.sweep.ray": "ray", "apical.bench.sweep.slurm": "submitit"}
"""Modules of an extra that tests are not run with."""


def test_the_examples_of_every_module_run() -> None:
    found = {}
    for name in module_names():
        if name not in NEEDS or importlib.util.find_spec(NEEDS[name]):
            module = importlib.import_module(name)
            found[name] = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert sum(result.attempted for result in found.values()) > 50
    assert not [name for name, result in found.items() if result.failed]
