"""What a benchmark measured, as the JSON file that documents and reports read."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apical.bench.storage.environment import environment


def write(path: Path | None, tables: Sequence[dict[str, Any]]) -> None:
    """The tables, and the machine and the code they are of; without a path nothing."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    made = {"environment": environment(Path(__file__).resolve().parents[1]), "tables": list(tables)}
    path.write_text(json.dumps(made, indent=1) + "\n")


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """The rows, one a line, and the machine and the code they are of: the whole new file, or the
    old one."""
    lines = ",\n".join(json.dumps(row) for row in rows)
    header = json.dumps(environment(Path(__file__).resolve().parents[1]))
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".tmp")
    fresh.write_text(f'{{"environment": {header},\n"rows": [\n{lines}\n]}}\n')
    fresh.replace(path)
