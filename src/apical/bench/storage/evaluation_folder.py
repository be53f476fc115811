"""The files of an evaluation of a trained net, whatever is evaluated."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import versions
from apical.bench.storage import records
from apical.bench.storage.environment import environment


def rows(folder: Path, last: str) -> list[dict[str, Any]]:
    """The rows of a finished evaluation, whose last is of the kind `last`; none while it is not."""
    found = records.read(folder / "records.jsonl")
    return found if found and found[-1]["kind"] == last else []


def check(folder: Path, key: str) -> None:
    """Raises: ValueError if the folder holds another evaluation."""
    path = folder / "setting.json"
    if path.exists() and (there := records.read_json(path).get("key")) != key:
        raise ValueError(
            f"{folder} holds the evaluation {there}, not {key}; it was left untouched: choose "
            "another folder"
        )


def describe(
    folder: Path,
    key: str,
    checkpoint: str,
    setting: Mapping[str, Any],
    execution: Execution,
    **version: int,
) -> None:
    """Write what is evaluated, by what, and where.

    Args: checkpoint: digest of the net. version: of the kind of evaluation, by its name.
    """
    told = {"key": key, "versions": {**versions(), **version}}
    records.write_json(
        folder / "setting.json", told | {"checkpoint": checkpoint, "setting": dict(setting)}
    )
    records.write_json(
        folder / "environment.json",
        environment() | {"device": execution.device, "run_threads": execution.threads},
    )


def write_rows(folder: Path, made: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows of the report, whole."""
    text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in made)
    records.write_bytes(folder / "records.jsonl", text.encode())


def write_examples(folder: Path, values: Mapping[str, Any]) -> None:
    """Write arrays of a few examples."""
    import numpy as np

    buffer, arrays = io.BytesIO(), {name: np.asarray(value) for name, value in values.items()}
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes a flag there
    records.write_bytes(folder / "examples.npz", buffer.getvalue())
