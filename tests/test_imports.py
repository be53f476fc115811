"""Imports point one way, the core needs torch alone, and importing it is cheap.

The modules of the package stand in ORDER, lowest first. A module may import from lower lines only
(and from its own package); a new module joins its line here. Type-checking imports do not count.
"""

import ast
import graphlib
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "apical"
MODULES = sorted(SOURCE.rglob("*.py"))

BASIS = [{"names", "allocator"}, {"spiking"}]
CORE = [
    {"rules"},
    {"core"},
    {"signals"},
    {"linear_probe"},
    {"probes"},
    {"contract", "findings"},
    {"diagnostics", "flow"},
]
LEAVES = [{"nets", "data"}, {"tasks"}, {"mnm"}]
RESULTS = [{"records"}, {"phases", "stats"}, {"report"}]
RUNNING = [
    {"attacks", "learners", "losses", "schedule", "starts"},
    {"assignment", "teaching"},
    {"hashing", "limits"},
    {"experiment", "optimizers", "claims", "checkpoint", "environment", "workers"},
    {"observe", "splits", "tuning"},
    {"objectives"},
    {"prepare"},
    {"monitor", "resume", "run_folder", "progress"},
    {"gradients"},
    {"pretraining"},
    {"training"},
    {"trained", "evaluation_folder"},
    {"robustness"},
    {"retrieval"},
    {"sweep"},
    {"studies"},
    {"cli_parsing", "cli_retrieval", "cli_robustness_tables"},
    {"cli_robustness"},
    {"cli"},
]
ORDER = [*BASIS, *CORE, *LEAVES, *RESULTS, *RUNNING]
RANK = {name: rank for rank, line in enumerate(ORDER) for name in line}
HEAVY = {
    "PIL",
    "duckdb",
    "jinja2",
    "jsonargparse",
    "matplotlib",
    "pandas",
    "pyarrow",
    "rich",
    "scipy",
    "sklearn",
    "timm",
    "torchvision",
}


def names(lines: list[set[str]]) -> set[str]:
    return {name for line in lines for name in line}


def unit(path: Path) -> str:
    """The module or package directly under apical that a file belongs to."""
    return path.relative_to(SOURCE).with_suffix("").parts[0]


def is_for_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def imports(node: ast.AST, path: Path, *, inside_functions: bool) -> set[str]:
    """Absolute dotted names that a file imports; `from apical import x` counts as apical.x."""
    found: set[str] = set()
    for child in ast.iter_child_nodes(node):
        if is_for_type_checking(child):
            continue
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef) and not inside_functions:
            continue
        if isinstance(child, ast.Import):
            found |= {alias.name for alias in child.names}
        elif isinstance(child, ast.ImportFrom):
            package = ["apical", *path.relative_to(SOURCE).parts[:-1]]
            base = package[: len(package) - child.level + 1] if child.level else []
            parts = [*base, *(child.module or "").split(".")] if child.module else base
            found |= {".".join([*parts, alias.name]) for alias in child.names}
        found |= imports(child, path, inside_functions=inside_functions)
    return found


def of_file(path: Path, *, inside_functions: bool = True) -> set[str]:
    return imports(ast.parse(path.read_text()), path, inside_functions=inside_functions)


def own(found: set[str]) -> set[str]:
    """Units of the package among the imported names."""
    units = {name.split(".")[1] for name in found if name.startswith("apical.")}
    return {u for u in units if (SOURCE / u).is_dir() or (SOURCE / f"{u}.py").is_file()}


def foreign(found: set[str]) -> set[str]:
    tops = {name.split(".")[0] for name in found}
    return tops - set(sys.stdlib_module_names) - {"apical"}


def files_of(units: set[str]) -> list[Path]:
    return [path for path in MODULES if unit(path) in units]


def test_every_module_stands_in_the_order() -> None:
    units = {unit(path) for path in MODULES} - {"__init__", "__main__"}
    assert units == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_imports_point_downwards(path: Path) -> None:
    if unit(path) == "__main__":
        assert own(of_file(path)) == {"cli"}
        return
    if unit(path) == "__init__":
        assert own(of_file(path, inside_functions=False)) <= names([*BASIS, *CORE])
        return
    upward = {
        other
        for other in own(of_file(path))
        if other != unit(path) and RANK[other] >= RANK[unit(path)]
    }
    assert not upward


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_autograd_functions_are_those_of_rules_and_of_spikes(path: Path) -> None:
    classes = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.ClassDef)]
    bases = {ast.unparse(base) for c in classes for base in c.bases}
    if (unit(path), path.stem) != ("core", "autograd") and path.parts[-2:] != (
        "spiking",
        "neurons.py",
    ):
        assert not any("autograd.Function" in base for base in bases)


def test_the_core_needs_torch_alone() -> None:
    for path in files_of(names([*BASIS, *CORE]) | {"__init__"}):
        assert foreign(of_file(path)) <= {"torch"}, path


def test_the_files_of_the_core_import_each_other_in_one_direction() -> None:
    """Imports for type checking and inside functions count; a circle raises CycleError."""
    graph = {}
    for path in files_of({"names", "rules", "core"}):
        parts = path.relative_to(SOURCE).with_suffix("").parts
        tree = ast.parse(path.read_text())
        graph[".".join(parts)] = {
            base.removeprefix("apical.") if base != "apical.rules" else "rules.__init__"
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("apical")
            for alias in node.names
            for base in [_file(node.module or "", alias.name)]
        }
    graph["rules.wrappers"].discard("rules.__init__")  # names within names, when one is built
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert order.index("names") < order.index("rules.base") < order.index("core.feedback")
    for name, others in graph.items():
        if name.startswith("rules"):
            assert not any(other.startswith("core") for other in others), name


def _file(module: str, name: str) -> str:
    """The dotted file that `from module import name` imports."""
    inner = SOURCE.joinpath(*module.split(".")[1:], f"{name}.py")
    return f"{module}.{name}" if inner.is_file() else module


def test_nets_and_data_know_nothing_of_the_core() -> None:
    for path in files_of(names(LEAVES)):
        assert own(of_file(path)) - {unit(path)} <= names([*BASIS, *LEAVES]), path


def test_results_need_no_model() -> None:
    for path in files_of(names(RESULTS)):
        assert "torch" not in foreign(of_file(path)), path
        assert own(of_file(path)) <= names(RESULTS) | names(BASIS), path


def in_a_new_process(code: str) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout


def test_importing_brings_in_torch_and_nothing_heavy() -> None:
    code = "import sys, torch; before = set(sys.modules); import apical; "
    more = in_a_new_process(code + "print(*(set(sys.modules) - before))").split()
    assert "apical.core.convert" in more
    assert {name.split(".")[0] for name in more} & HEAVY == set()


def test_importing_costs_little_over_torch() -> None:
    code = (
        "import time, torch; start = time.process_time(); import apical; "
        "print(time.process_time() - start)"
    )
    seconds = [float(in_a_new_process(code)) for _ in range(3)]
    # The promise is 0.2 s; processor time on a busy machine varies, the smallest is the import's.
    assert median(seconds) < 0.6
    assert min(seconds) < 0.2


def classes_defined_in(package: object) -> set[type]:
    """Concrete public classes that the files of a package define."""
    import importlib
    import inspect
    import pkgutil

    folder, prefix = package.__path__, package.__name__  # type: ignore[attr-defined]
    found: set[type] = set()
    for info in pkgutil.iter_modules(folder, prefix + "."):
        module = importlib.import_module(info.name)
        for _, value in inspect.getmembers(module, inspect.isclass):
            if value.__module__ == info.name and not inspect.isabstract(value):
                found.add(value)
    return found


def test_the_table_of_rules_holds_every_rule_there_is() -> None:
    from apical import rules

    classes = {c for c in classes_defined_in(rules) if issubclass(c, rules.Rule)}
    defined = {c for c in classes if c.__module__ != "apical.rules.base"}
    assert {type(rule) for rule in rules.RULES.values()} == defined
    assert list(rules.RULES) == sorted(rules.RULES)
    assert all(rule.name == name for name, rule in rules.RULES.items())


@pytest.mark.parametrize(
    ("package", "table"),
    [
        ("attacks", "ATTACKS"),
        ("data", "DATA"),
        ("learners", "LEARNERS"),
        ("nets", "CELLS"),
        ("nets", "NETS"),
        ("studies", "STUDIES"),
        ("tasks", "TASKS"),
    ],
)
def test_a_table_is_literal_and_sorted(package: str, table: str) -> None:
    tree = ast.parse((SOURCE / package / "__init__.py").read_text())
    tables = {
        ast.unparse(target): node.value
        for node in tree.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
    }
    literal = tables[table]
    assert isinstance(literal, ast.Dict)
    keys = [key.value for key in literal.keys if isinstance(key, ast.Constant)]
    assert len(keys) == len(literal.keys) > 0
    assert keys == sorted(keys)
