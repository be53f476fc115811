"""Conducting a study: choose what is still open, run everything, describe it in study.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apical import data, packing, pretraining, records, run_folder, sweep, training, workers
from apical.experiment import Experiment
from apical.studies import assess, retrieve
from apical.studies.base import Entry, Study

SEARCH_FOLDER = "search"
"""Where the tries of a search lie, beside the runs of the table."""


def conduct(
    study: Study,
    root: Path,
    execution: training.Execution,
    *,
    command: str,
    make: workers.Make = workers.here,
    jobs: int = 1,
    say: sweep.Say = lambda text: None,
) -> sweep.Outcome:
    """Do what is left of a study; doing it again does nothing, and so does another process.

    Args: root: the folder that holds studies.     command: what regenerates it, for the report.
        make, jobs, say: as in ``sweep.sweep``.
    Returns: what became of the runs of the table. A try of the search that diverged is a result,
        not a failure; one that broke off otherwise is, and stops the study.
    Raises: ValueError if the folder holds the study at other settings, or tries broke off.
    """
    folder = root / study.folder
    check(study, folder)
    found: list[dict[str, Any]] = []
    if first := start_tasks(study, folder):
        say(f"training what the runs start from: {len(first)} nets")
        outcome = sweep.sweep(first, execution, make=make, jobs=jobs, say=say)
        if outcome.failed:
            told = "; ".join(f"{path.name}: {why}" for path, why in outcome.failed.items())
            raise ValueError(f"what the runs start from could not be trained: {told}")
    if study.search is not None:
        tries = search_tasks(study, folder)
        say(f"choosing learning rates: {len(tries)} short runs on a validation split")
        outcome = sweep.sweep(tries, execution, make=make, jobs=jobs, say=say)
        broken = [f"{p.name}: {why}" for p, why in outcome.failed.items() if not _diverged(p)]
        if broken:
            raise ValueError("the search could not be finished: " + "; ".join(broken))
        found = choices(study, folder)
        for choice in found:
            say(f"learning rate of {choice['rule']} ({choice['setting']}): {choice['lr']}")
        study = study.chosen({(c["setting"], c["rule"]): c["lr"] for c in found})
    folder.mkdir(parents=True, exist_ok=True)
    if study.evaluations and (copied := assess.reuse(study, root)):
        say(f"{copied} trained nets taken over from other studies in {root}")
    notes = data_notes(study, execution)
    value = described(study, command, found, notes)
    _write(study, folder, value, notes)
    outcome = sweep.sweep(table_tasks(study, folder), execution, make=make, jobs=jobs, say=say)
    if not (study.evaluations or study.retrievals):
        return outcome
    evaluated, searched = _write(study, folder, value, notes)
    attacks: list[sweep.Job] = [job for _, job in evaluated]
    attacks += [job for _, job in searched]
    say(f"attacking {len(attacks)} trained nets")
    later = sweep.sweep(attacks, execution, make=make, jobs=jobs, say=say)
    for (setting, rule), verdict in assess.verdicts(evaluated).items():
        say(f"{setting}, {rule}: {verdict.word} ({verdict.reasons[0]})")
    return sweep.Outcome(outcome.finished + later.finished, outcome.failed | later.failed)


def _write(
    study: Study, folder: Path, value: dict[str, Any], notes: Sequence[str]
) -> tuple[list[tuple[Entry, assess.Assessment]], list[tuple[Entry, retrieve.Search]]]:
    """Write study.json with the evaluations of what is trained so far; returns those."""
    found, searched = assess.assessments(study, folder), retrieve.searches(study, folder)
    value = value | assess.described(study, found, notes) | retrieve.described(study, searched)
    records.write_json(folder / "study.json", value)
    return found, searched


def start_tasks(study: Study, folder: Path) -> list[sweep.Task]:
    """The runs that train what others start from, each once."""
    before = {first.key: first for e in study.entries if (first := e.experiment.before)}
    place = folder / pretraining.FOLDER
    return [sweep.Task(first, place / first.name) for first in before.values()]


def table_tasks(study: Study, folder: Path) -> list[sweep.Task]:
    """The runs of the table."""
    return [sweep.Task(entry.experiment, folder / entry.experiment.name) for entry in study.entries]


def search_tasks(study: Study, folder: Path) -> list[sweep.Task]:
    """The tries of the search."""
    return [
        sweep.Task(experiment, folder / SEARCH_FOLDER / _try_name(experiment))
        for tries in study.candidates().values()
        for experiment in tries.values()
    ]


def choices(study: Study, folder: Path) -> list[dict[str, Any]]:
    """What the finished tries say: for each cell the best learning rate, and all of them.

    The best is the one of the highest validation accuracy, of these the one of the lowest loss;
    of hash nets mAP is in the place of accuracy.
    ``at_edge`` says that it is the largest or smallest tried: a better one may lie outside.
    """
    found = []
    for (setting, rule), tries in study.candidates().items():
        rows = [_tried(lr, experiment, folder) for lr, experiment in tries.items()]
        done = [row for row in rows if "val_acc" in row]
        if not done:
            raise ValueError(f"{setting}, {rule}: every learning rate tried diverged")
        best = max(done, key=lambda row: (row.get("val_map", row["val_acc"]), -row["val_loss"]))
        rates = sorted(tries)
        found.append(
            {
                "setting": setting,
                "rule": rule,
                "lr": best["lr"],
                "at_edge": best["lr"] in (rates[0], rates[-1]),
                "tries": rows,
            }
        )
    return found


def data_notes(study: Study, execution: training.Execution) -> list[str]:
    """What must stand beside numbers measured on the study's data, for example how it differs."""
    names = dict.fromkeys(entry.experiment.data for entry in study.entries)
    load = partial(data.load, root=execution.data_root, download=execution.download)
    return [f"{name}: {note}" for name in names if (note := load(name).note)]


def described(
    study: Study, command: str, found: Sequence[Mapping[str, Any]], data_notes: Sequence[str]
) -> dict[str, Any]:
    """The content of study.json: all a report needs to know beside the run folders."""
    published = [
        dataclasses.replace(row, other_scale=row.other_scale or "; ".join(data_notes))
        for row in study.published
    ]
    value: dict[str, Any] = {
        "name": study.name,
        "title": study.title,
        "tier": study.tier,
        "command": command,
        "runs": [_run(entry) for entry in study.entries],
        "published": [dataclasses.asdict(row) for row in published],
        "notes": [*study.notes, *(f"{note}." for note in data_notes)],
    }
    if study.curves:
        value["curves"] = [dataclasses.asdict(curve) for curve in study.curves]
    if study.solved is not None:
        value["solved"] = study.solved
    if study.overview:
        value["overview"] = dataclasses.asdict(study.overview)
    if found:
        value["search"] = list(found)
    return value


def check(study: Study, folder: Path) -> None:
    """Raises: ValueError if the folder holds another study or tier."""
    if not (folder / "study.json").exists():
        return
    if packing.is_packed(folder):
        raise ValueError(
            f"{folder} is packed: its runs have no checkpoints to go on from. Run the study in "
            "another folder with --runs"
        )
    there = records.read_json(folder / "study.json")
    if (there.get("name"), there.get("tier")) != (study.name, study.tier):
        raise ValueError(
            f"{folder} holds the study {there.get('name')} at tier {there.get('tier')}. It was "
            "left untouched: choose another folder with --runs"
        )


def _run(entry: Entry) -> dict[str, Any]:
    experiment = entry.experiment
    return {
        "folder": experiment.name,
        "setting": entry.setting,
        "rule": entry.rule,
        "seed": experiment.seed,
    }


def _try_name(experiment: Experiment) -> str:
    return f"lr{experiment.lr:g}-{experiment.name}"


def _tried(lr: float, experiment: Experiment, folder: Path) -> dict[str, Any]:
    name = f"{SEARCH_FOLDER}/{_try_name(experiment)}"
    row = run_folder.end(folder / name)
    if row is None:
        raise ValueError(f"{folder / name} is not finished")
    kept = {
        key: row[key] for key in ("val_acc", "val_map", "val_loss", "reason", "epoch") if key in row
    }
    return {"lr": lr, "folder": name} | kept


def _diverged(folder: Path) -> bool:
    row = run_folder.end(folder)
    return row is not None and row["kind"] == "stopped"
