"""The house rules that a machine can keep: sizes, versions, pins, dependencies, no paths."""

import ast
import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "apical"
MODULES = sorted(SOURCE.rglob("*.py"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IMPORT_NAMES = {
    "PIL": "pillow",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}  # where the module is called otherwise than its distribution


def requirement_name(requirement: str) -> str:
    return re.split(r"[\[<>=!~; ]", requirement, maxsplit=1)[0].lower().replace("_", "-")


def declared(*extras: str) -> set[str]:
    """Names of what the given extras require beside torch."""
    lists = [PROJECT["dependencies"], *(PROJECT["optional-dependencies"][e] for e in extras)]
    return {requirement_name(r) for group in lists for r in group} - {"apical"}


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    exact = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {requirement_name(name): version for name, version in exact}


def code_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its docstring."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= (first.end_lineno or first.lineno) - first.lineno + 1
    return lines


def text_files() -> list[Path]:
    """Every file of the project that people read, environments and outputs excepted."""
    skipped = {"build", "dist", "runs", "_build", "__pycache__", "results"}
    kinds = {".py", ".md", ".toml", ".txt", ".cff", ".html", ".css", ".js", ""}
    return [
        path
        for path in sorted(ROOT.rglob("*"))
        if path.is_file()
        and path.suffix in kinds
        and not any(p in skipped or p.startswith((".git", ".venv")) for p in path.parts)
        and not any(p.endswith("_cache") or p == ".hypothesis" for p in path.parts)
    ]


def test_files_and_functions_are_of_a_size_to_read() -> None:
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    problems = []
    for path in MODULES:
        text = path.read_text()
        tree, where = ast.parse(text), path.relative_to(SOURCE)
        if len(text.splitlines()) > 400:
            problems.append(f"{where}: more than 400 lines")
        if path.stem in {"utils", "helpers", "misc", "common"}:
            problems.append(f"{where}: a name that says nothing")
        if not ast.get_docstring(tree):
            problems.append(f"{where}: no docstring")
        problems += [
            f"{where}: {node.name} has {code_lines(node)} lines"
            for node in ast.walk(tree)
            if isinstance(node, kinds) and code_lines(node) > 70
        ]
    assert len(MODULES) > 200
    assert not problems


def test_no_file_names_a_machine() -> None:
    folders = "|".join(["wo" + "rk", "ro" + "ot", "ho" + "me", "opt/wheels", "tmp/pl" + "an"])
    machine = re.compile(rf"(?<![\w.~$}}])/(?:{folders})/")
    files = text_files()
    found = {
        str(path.relative_to(ROOT)): match.group()
        for path in files
        if (match := machine.search(path.read_text(errors="replace")))
    }
    assert len(files) > 20
    assert not found


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X)\b")
    assert not [str(p.relative_to(ROOT)) for p in text_files() if marks.search(p.read_text())]


def test_every_place_gives_the_same_version() -> None:
    import apical

    version = PROJECT["version"]
    citation = (ROOT / "CITATION.cff").read_text()
    changes = re.findall(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), flags=re.M)
    assert apical.__version__ == version
    assert re.search(rf"^version: {re.escape(version)}$", citation, flags=re.M)
    assert changes[0] == version


def test_torch_is_pinned_without_a_build_and_never_a_build_requirement() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["build-system"]["requires"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", pins()["torch"])
    assert not any("torch" in requirement for requirement in build)


def test_every_dependency_of_our_environments_is_pinned() -> None:
    assert declared("bench", "vision", "test", "docs", "dev") <= pins().keys()


def test_what_is_imported_is_declared() -> None:
    """A third-party module named anywhere in the package belongs to the core or to an extra."""
    imported: set[str] = set()
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                imported.add((node.module or "").split(".")[0])
    foreign = imported - set(sys.stdlib_module_names) - {"apical"}
    assert "torch" in foreign
    assert {IMPORT_NAMES.get(name, name) for name in foreign} <= declared(
        "bench", "vision", "ray", "slurm", "track"
    )


@pytest.mark.parametrize("target", ["bench", "dev"])
def test_an_environment_is_renewed_when_its_sources_change(target: str) -> None:
    rule = re.search(rf"^\$\(VENV\)/\.made-{target}:(.*)$", (ROOT / "Makefile").read_text(), re.M)
    assert rule is not None
    assert {"pyproject.toml", "constraints.txt"} <= set(rule.group(1).split())
