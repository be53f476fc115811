"""Imports point one way, the core needs torch alone, and importing it is cheap.

The modules of the package stand in ORDER, lowest first. A module may import from lower lines only
(and from its own package); a new module joins its line here. Type-checking imports do not count.
"""

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Sequence
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
    {"probes"},
    {"contract", "findings"},
    {"diagnostics", "flow"},
]
LEAVES = [{"nets", "data"}, {"tasks"}, {"mnm"}]
RESULTS = [{"records"}, {"packing"}, {"phases", "stats"}, {"report"}]
RUNNING = [
    {"attacks", "learners", "losses", "starts"},
    {"hashing"},
    {"bench.experiment"},
    {"claims", "checkpoint", "environment", "workers"},
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
    {"bench.cli"},
    {"bench"},
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
    """The module or package directly under apical, or apical.bench, that a file belongs to."""
    return unit_of(path.relative_to(SOURCE).with_suffix("").parts)


def unit_of(parts: Sequence[str]) -> str:
    if parts[0] == "bench" and len(parts) > 1 and (SOURCE / "bench" / parts[1]).is_dir():
        return f"bench.{parts[1]}"
    return parts[0]


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
    units = {unit_of(name.split(".")[1:]) for name in found if name.startswith("apical.")}
    return {u for u in units if u in RANK}


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
        assert own(of_file(path)) == {"bench.cli"}
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
    code = "import sys, torch; before = set(sys.modules); from apical import *; "
    more = in_a_new_process(code + "print(*(set(sys.modules) - before))").split()
    assert "apical.core.convert" in more
    assert {name.split(".")[0] for name in more} & HEAVY == set()


def test_importing_costs_little_over_torch() -> None:
    code = (
        "import time, torch; start = time.process_time(); from apical import *; "
        "print(time.process_time() - start)"
    )
    seconds = [float(in_a_new_process(code)) for _ in range(3)]
    # The promise is 0.2 s; processor time on a busy machine varies, the smallest is the import's.
    assert median(seconds) < 0.6
    assert min(seconds) < 0.2


@pytest.mark.parametrize("package", ["apical", "apical.bench"])
def test_public_names_are_all_there_and_alike_for_type_checkers(package: str) -> None:
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__ or "").read_text())
    typed: dict[str, str] = {}
    for block in filter(is_for_type_checking, tree.body):
        for node in ast.walk(block):
            if isinstance(node, ast.ImportFrom):
                typed |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
    assert sorted(typed) == sorted(module.__all__)
    for name, place in typed.items():
        owner, _, last = place.rpartition(".")
        expected = sys.modules.get(place) if owner == "apical" else None
        assert getattr(module, name) is (
            expected or getattr(importlib.import_module(owner), last)
        ), name
    assert set(typed) <= set(dir(module))
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'convrt'"):
        module.convrt


def test_a_function_wins_over_the_file_of_its_name() -> None:
    code = "import apical.convert, apical.plan, apical; print(apical.convert.__name__, apical.plan)"
    assert in_a_new_process(code).startswith("convert <function plan")


def test_an_experiment_loads_no_attack_data_set_or_learner() -> None:
    code = (
        "import sys; from apical.bench import Experiment; Experiment(rule='fa').key; "
        "print(*(name for name in sys.modules if name.startswith('apical.')))"
    )
    loaded = {".".join(name.split(".")[:2]) for name in in_a_new_process(code).split()}
    assert "apical.rules" in loaded
    assert (
        loaded & {"apical.attacks", "apical.data", "apical.learners", "apical.data.sequences"}
        == set()
    )


def test_the_runner_loads_each_of_its_names_alone() -> None:
    code = (
        "import sys; from apical.bench import Execution; "
        "print(*(name for name in sys.modules if name == 'torch' or name.startswith('apical.')))"
    )
    assert "torch" not in in_a_new_process(code).split()


def classes_defined_in(package: object) -> set[type]:
    """Concrete public classes that the files of a package define."""
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
