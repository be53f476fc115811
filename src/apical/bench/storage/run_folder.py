"""A run folder: which experiment it holds, and how far that has come."""

from pathlib import Path
from typing import Any

from apical.bench.experiment.experiment import Experiment, to_dict, versions
from apical.bench.storage import records
from apical.bench.storage.environment import environment

ENDS = ("final", "stopped")
"""Kinds of the row that closes a run: trained to the end, or ended by a non-finite loss."""


def check(folder: Path, experiment: Experiment) -> None:
    """Refuse a folder that holds anything but this experiment.

    Raises: ValueError saying what differs; the folder is left untouched.
    """
    described = folder / "experiment.json"
    if not described.exists():
        foreign = [p.name for p in _listing(folder) if not p.name.startswith(("claim", "."))]
        if foreign:
            raise ValueError(
                f"{folder} is not empty ({', '.join(sorted(foreign)[:3])}) and holds no "
                "experiment.json: choose another folder"
            )
        return
    found = records.read_json(described)
    if found.get("key") == experiment.key:
        return
    raise ValueError(
        f"{folder} holds another experiment ({_difference(found, experiment)}). It was left "
        "untouched: choose another folder, or remove this one"
    )


def create(folder: Path, experiment: Experiment, execution: Any) -> None:
    """Write what describes a run; a folder that has it is only told if the environment changed."""
    for part in [*folder.glob("*.part"), *folder.glob(".*.tmp")]:
        part.unlink()  # left by a kill in the middle of a write; the claim says nobody writes now
    described = {
        "key": experiment.key,
        "versions": versions(),
        "experiment": to_dict(experiment),
    }
    if not (folder / "experiment.json").exists():
        records.write_json(folder / "experiment.json", described)
    here = environment() | {"device": execution.device, "run_threads": execution.threads}
    path = folder / "environment.json"
    if not path.exists():
        records.write_json(path, here)
        return
    found = records.read_json(path)
    last = {**found, **(found.get("resumed_with") or [{}])[-1]}
    if changed := {name: value for name, value in here.items() if last.get(name) != value}:
        found.setdefault("resumed_with", []).append(changed)
        records.write_json(path, found)


def end(folder: Path) -> dict[str, Any] | None:
    """The row that closes the run, None if it is not there yet."""
    rows = _rows(folder)
    return rows[-1] if rows and rows[-1].get("kind") in ENDS else None


def state(folder: Path) -> str:
    """``finished``, ``stopped`` (failed for good), ``interrupted`` or ``new``."""
    row = end(folder)
    if row is not None:
        return "finished" if row["kind"] == "final" else "stopped"
    return "interrupted" if (folder / "checkpoint.pt").exists() else "new"


def _rows(folder: Path) -> list[dict[str, Any]]:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a torn last line is what a resume mends
        return records.read(folder / "records.jsonl")


def _listing(folder: Path) -> list[Path]:
    return list(folder.iterdir()) if folder.is_dir() else []


def _difference(found: dict[str, Any], experiment: Experiment) -> str:
    theirs, ours = found.get("experiment", {}), to_dict(experiment)
    told = [
        f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    if not told:
        told = [f"versions {found.get('versions')} there, {versions()} here"]
    return "; ".join(told)
