"""A run folder: which experiment it holds, and how far that has come."""

import time
from collections.abc import Container
from pathlib import Path
from typing import Any

from apical.bench.experiment import own_code
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment, from_dict, to_dict, versions
from apical.bench.storage import checkpoint, claims, records, schema
from apical.bench.storage.environment import environment


def check(folder: Path, experiment: Experiment) -> None:
    """Refuse a folder that holds anything but this experiment.

    Raises: ValueError saying what differs; the folder is left untouched.
    """
    described = folder / "experiment.json"
    if not described.exists():
        listing = folder.iterdir() if folder.is_dir() else ()
        foreign = [p.name for p in listing if not p.name.startswith(("claim", "."))]
        if foreign:
            raise ValueError(
                f"{folder} is not empty ({', '.join(sorted(foreign)[:3])}) and holds no "
                "experiment.json: choose another folder"
            )
        return
    found = _described(described)
    if found["key"] != experiment.key:
        raise ValueError(
            f"{folder} holds another experiment ({_difference(found, experiment)}). It was left "
            "untouched: choose another folder, or remove this one"
        )
    if _key(found, described, own_code.paths(to_dict(experiment))) != experiment.key:
        raise ValueError(
            f"{described} was changed: its settings do not have its key {found['key']} "
            f"({_difference(found, experiment)}). Restore the file, or choose another folder"
        )


def read(folder: Path, *, trust: bool = False) -> Experiment:
    """The experiment in a run folder. Its code and its image folder are as they were in the run.

    Args: trust: as of ``from_dict``.
    Raises: ValueError if there is none; it is damaged, or another version of apical wrote it; it
        names code that is not trusted; or that code, or the image folder, has changed since.
    """
    path = folder / "experiment.json"
    found = _described(path)
    key = _key(found, path, None if trust else ())
    experiment = from_dict(found["experiment"], trust=True)  # it was checked for its key
    if key != found["key"]:
        raise ValueError(
            f"{folder} has the key {found['key']}, which here is {key}: another version of apical "
            "made it, or the file was changed. Evaluate it with that version (environment.json "
            "names it)"
        )
    then = found.get("code", {})
    if then and (changed := own_code.changes(then, experiment.code)):
        raise ValueError(
            f"{folder}: {'; '.join(changed)} changed since the run was made, so its net cannot be "
            "built again. Restore what changed, or train anew"
        )
    return experiment


def _described(path: Path) -> dict[str, Any]:
    found = records.read_json(path)
    schema.check(found, schema.RUN_FILE, str(path))
    return found


def _key(found: dict[str, Any], path: Path, trusted: Container[str] | None) -> str:
    """The key of the settings in an experiment.json, computed anew.

    Args: trusted: paths to code that it may name; None: any.
    """
    values = found["experiment"]
    for name, version in versions().items():
        if found["versions"].get(name, version) > version:
            raise ValueError(
                f"{path} has version {found['versions'][name]} of {name}, this apical reads "
                f"{version}: read it with the version that wrote it (environment.json names it)"
            )
    named = own_code.paths(values)
    trust = trusted is None or (bool(named) and all(each in trusted for each in named))
    return from_dict(values, trust=trust, where=str(path)).key_with(found.get("code", {}))


def create(folder: Path, experiment: Experiment, execution: Execution) -> None:
    """Write what describes a run; where that is written, what has changed of the environment."""
    records.remove_parts(folder)
    if not (folder / "experiment.json").exists():
        described = {"key": experiment.key, "versions": versions()}
        described["experiment"] = to_dict(experiment)
        if experiment.code:
            described["code"] = experiment.code
        records.write_json(folder / "experiment.json", described)
    here = environment() | execution.recorded()
    path = folder / "environment.json"
    if not path.exists():
        records.write_json(path, here)
        return
    found = records.read_json(path)
    last = {**found, **(found.get("resumed_with") or [{}])[-1]}
    if changed := {name: value for name, value in here.items() if last.get(name) != value}:
        found.setdefault("resumed_with", []).append(changed)
        records.write_json(path, found)


def renew(folder: Path) -> None:
    """Remove the results of a run, so that it is done again; its settings and evaluations of its
    net are kept.

    Raises: claims.Held if a living process works on it.
    """
    path = folder / "checkpoint.pt"
    with claims.hold(folder):
        for each in (
            checkpoint.previous(path), path, folder / "records.jsonl", folder / "environment.json"
        ):  # fmt: skip
            each.unlink(missing_ok=True)
    claims.clear(folder)


def finished_on(folder: Path) -> str:
    """The day and time of a run's last record, as 2026-01-31 23:59."""
    last = (folder / "records.jsonl").stat().st_mtime
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(last))


def end(folder: Path) -> dict[str, Any] | None:
    """The row that closes the run, None if it is not there yet."""
    found = rows(folder)
    return found[-1] if found and found[-1].get("kind") in schema.ENDS else None


def state(folder: Path) -> str:
    """``finished``, ``stopped`` (failed for good), ``interrupted`` or ``new``."""
    row = end(folder)
    if row is not None:
        return "finished" if row["kind"] == "final" else "stopped"
    return "interrupted" if (folder / "checkpoint.pt").exists() else "new"


def rows(folder: Path) -> list[dict[str, Any]]:
    """The complete rows of its records, without a warning: a resume cuts a torn last line."""
    return records.read(folder / "records.jsonl", warn=False)


def _difference(found: dict[str, Any], experiment: Experiment) -> str:
    theirs, ours = found.get("experiment", {}), to_dict(experiment)
    differences = [
        f"{name}: {theirs.get(name)!r} there, {ours.get(name)!r} here"
        for name in sorted(theirs.keys() | ours.keys())
        if theirs.get(name) != ours.get(name)
    ]
    differences += own_code.changes(found.get("code", {}), experiment.code)
    return "; ".join(differences) or f"versions {found.get('versions')} there, {versions()} here"
