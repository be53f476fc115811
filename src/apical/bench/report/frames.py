"""Records of any folder of runs as one table of pandas."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apical.bench.report import plain_runs
from apical.bench.report.read import Run, is_run, is_study, read_run, read_study
from apical.names import unknown

if TYPE_CHECKING:
    import pandas


def to_pandas(folder: str | os.PathLike[str], kind: str = "final") -> pandas.DataFrame:
    """One row for each record of a kind, of all runs in a folder: loose or packed studies, runs of
    no study, at any depth.

    Args: kind: of the records: ``final``, ``epoch``, ``layer``, ``test``, ``warning``, ...
    Returns: columns ``folder``, ``setting``, ``rule``, ``seed`` and ``status`` of the run, those
        of the records, and the settings of its experiment as ``experiment.lr``; lists and mappings
        in them as JSON text.
    Raises: ValueError where there is no run, no record of that kind, or without pandas.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ValueError(f"to_pandas: {error}; pip install 'apical[track]'") from error
    rows = []
    kinds = {"warning"}  # which a run may have none of
    for place, run in _runs(Path(folder)):
        about = {"folder": place, "setting": run.setting, "rule": run.rule, "seed": run.seed}
        about |= {"status": run.status, **_settings(run.experiment)}
        kinds |= {row["kind"] for row in run.rows}
        rows += [about | dict(row) for row in run.rows if row.get("kind") == kind]
    if kind not in kinds:
        raise unknown("kind of records", kind, kinds)
    return pandas.DataFrame(rows)


def _runs(folder: Path) -> Iterator[tuple[str, Run]]:
    if is_run(folder):
        yield ".", read_run(folder).runs[0]
        return
    studies, runs = ([folder], []) if is_study(folder) else plain_runs.find(folder)
    if not (studies or runs):
        raise ValueError(f"to_pandas: no run in {folder}, nor in the folders below it")
    for path in studies:
        for run in read_study(path).runs:
            yield (path.relative_to(folder) / run.folder).as_posix(), run
    if runs:
        for run in plain_runs.read_runs(folder, runs).runs:
            yield run.folder, run


def _settings(experiment: Mapping[str, Any]) -> dict[str, Any]:
    return {
        f"experiment.{name}": json.dumps(value) if isinstance(value, dict | list) else value
        for name, value in experiment.items()
    }
