"""Results of benchmarks as JSON files, which documents and reports read."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apical.bench.storage.environment import environment

ROOT = Path(__file__).resolve().parents[1]


def write(path: Path | None, tables: Sequence[dict[str, Any]]) -> None:
    """Write the tables with the versions of machine and code; without a path nothing."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {"environment": environment(ROOT), "tables": list(tables)}
    path.write_text(json.dumps(made, indent=1) + "\n")


def write_page(document: Path, marker: str, text: str) -> None:
    """Put a text into a document, between `<!-- marker -->` and the next `<!-- end -->`."""
    place = re.compile(rf"(<!-- {marker} -->\n).*?(<!-- end -->)", re.S)
    document.write_text(place.sub(lambda m: f"{m[1]}{text}{m[2]}", document.read_text()))


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write the rows, one per line, with the versions of machine and code. If that is interrupted,
    the old file remains."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    header = json.dumps(environment(ROOT))
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(f'{{"environment": {header},\n"rows": [\n{lines}\n]}}\n')
    fresh.replace(path)
