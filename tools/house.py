"""The health figures of the code base, measured from its imports and files.

    python tools/house.py            # prints them
    python tools/house.py --check    # exit status 1 where a limit is passed

Imports inside functions and for type checking count as any other. A floor is a file in the longest
chain of imports.
"""

from __future__ import annotations

import argparse
import functools
import sys
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "apical"
LOOSE = {"__init__.py", "__main__.py", "names.py"}


def lines(folder: Path, *kinds: str) -> int:
    files = [f for f in folder.rglob("*") if f.suffix in kinds]
    return sum(len(f.read_text().splitlines()) for f in files)


def circles(graph: grimp.ImportGraph) -> list[list[str]]:
    """Groups of files that import each other, by Tarjan's algorithm."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(module: str) -> None:
        number[module] = low[module] = len(number)
        stack.append(module)
        for other in graph.find_modules_directly_imported_by(module):
            if other not in number:
                visit(other)
                low[module] = min(low[module], low[other])
            elif other in stack:
                low[module] = min(low[module], number[other])
        if low[module] == number[module]:
            group = stack[stack.index(module) :]
            del stack[stack.index(module) :]
            if len(group) > 1:
                found.append(sorted(group))

    for module in sorted(graph.modules):
        if module not in number:
            visit(module)
    return found


def longest_chain(graph: grimp.ImportGraph) -> list[str]:
    """The files of the longest chain of imports, from the top; only without circles."""

    @functools.cache
    def below(module: str) -> tuple[str, ...]:
        chains = map(below, graph.find_modules_directly_imported_by(module))
        return (module, *max(chains, key=len, default=()))

    return list(max(map(below, graph.modules), key=len))


def figures() -> dict[str, object]:
    sys.setrecursionlimit(10_000)
    graph = grimp.build_graph("apical", exclude_type_checking_imports=False, cache_dir=None)
    groups = circles(graph)
    return {
        "circles of imports": len(groups) if not groups else f"{len(groups)}: {groups}",
        "floors of files": "circular" if groups else len(longest_chain(graph)),
        "loose files beside the rooms": sorted(
            f.name for f in SOURCE.glob("*.py") if f.name not in LOOSE
        ),
        "files of the package": len(list(SOURCE.rglob("*.py"))),
        "lines of the package": lines(SOURCE, ".py", ".j2", ".css", ".js"),
        "lines of the report": lines(SOURCE / "bench" / "report", ".py", ".j2", ".css", ".js"),
        "lines of tests": lines(ROOT / "tests", ".py"),
        "files in results/": sum(f.is_file() for f in (ROOT / "results").rglob("*")),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="fail where a limit is passed")
    parser.add_argument("--chain", action="store_true", help="print the longest chain of imports")
    options = parser.parse_args()
    found = figures()
    for name, value in found.items():
        print(f"{name:30} {value}")
    if options.chain:
        graph = grimp.build_graph("apical", exclude_type_checking_imports=False, cache_dir=None)
        print("\n".join(longest_chain(graph)))
    bad = found["circles of imports"] or found["loose files beside the rooms"]
    return int(options.check and bool(bad))


if __name__ == "__main__":
    sys.exit(main())
