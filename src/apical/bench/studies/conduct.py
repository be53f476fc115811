"""Conducting a study: choose learning rates, run everything, describe it in study.json."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from apical import data
from apical.bench.experiment.execution import Execution
from apical.bench.storage import packing, records, run_folder
from apical.bench.studies import assess, selection
from apical.bench.studies.base import Choice, Entry, Search, Study
from apical.bench.studies.published import published_rows
from apical.bench.sweep import sweep, workers
from apical.bench.training import starts


def conduct(
    study: Study,
    root: Path,
    execution: Execution,
    *,
    command: str,
    executor: str | workers.Make = "local",
    options: Mapping[str, Any] | None = None,
    jobs: int = 1,
    say: sweep.Say = lambda text: None,
) -> sweep.Outcome:
    """Do what is left of a study; doing it again does nothing, and so does another process.

    Args: root: the folder that holds studies.     command: what regenerates it, for the report.
        executor, options, jobs, say: as in ``sweep.sweep``.
    Returns: what became of the runs of the table. A try of the search that diverged is a result,
        not a failure; one that broke off otherwise is, and stops the study.
    Raises: ValueError if the folder holds the study at other settings, or tries broke off.
    """
    folder = root / study.folder
    check(study, folder)
    work = partial(
        sweep.sweep, execution=execution, executor=executor, options=options, jobs=jobs, say=say
    )
    found: list[dict[str, Any]] = []
    if first := start_tasks(study, folder):
        say(f"training what the runs start from: {len(first)} nets")
        outcome = work(first)
        if outcome.failed:
            reasons = "; ".join(f"{path.name}: {why}" for path, why in outcome.failed.items())
            raise ValueError(f"what the runs start from could not be trained: {reasons}")
    if study.search is not None:
        found = tune(study, folder, work, say)
        study = study.chosen(rates(found))
    folder.mkdir(parents=True, exist_ok=True)
    if study.evaluations and (copied := assess.reuse(study, root)):
        say(f"{copied} trained nets taken over from other studies in {root}")
    notes = data_notes(study, execution)
    value = described(study, command, found, notes)
    _write(study, folder, value, notes)
    outcome = work(table_tasks(study, folder))
    if not study.evaluations:
        return outcome
    evaluated = _write(study, folder, value, notes)
    attacks = [job for _, job in evaluated]
    say(f"attacking {len(attacks)} trained nets")
    later = work(attacks)
    for (setting, rule), verdict in assess.verdicts(evaluated).items():
        say(f"{setting}, {rule}: {verdict.word} ({verdict.reasons[0]})")
    return sweep.Outcome(outcome.finished + later.finished, outcome.failed | later.failed)


def _write(
    study: Study, folder: Path, value: dict[str, Any], notes: Sequence[str]
) -> list[tuple[Entry, assess.Assessment]]:
    """Write study.json with the evaluations of what is trained so far; returns those."""
    found = assess.assessments(study, folder)
    records.write_json(folder / "study.json", value | assess.described(study, found, notes))
    return found


def start_tasks(study: Study, folder: Path) -> list[sweep.Task]:
    """The runs that train what others start from, each once."""
    before = {first.key: first for e in study.entries if (first := e.experiment.before)}
    place = folder / starts.FOLDER
    return [sweep.Task(first, place / first.name) for first in before.values()]


def table_tasks(study: Study, folder: Path) -> list[sweep.Task]:
    """The runs of the table."""
    return [
        sweep.Task(entry.experiment, folder / entry.experiment.name, entry.label)
        for entry in study.entries
    ]


def tune(
    study: Study,
    folder: Path,
    work: Callable[[Sequence[sweep.Task]], sweep.Outcome],
    say: sweep.Say,
) -> list[dict[str, Any]]:
    """Choose the learning rates that are open, and say what was chosen.

    Args: work: does tasks, as ``sweep.sweep`` does.
    Returns: as ``searched`` does.
    Raises: ValueError if tries broke off for another reason than that they diverged.
    """
    found, left = searched(study, folder)
    while left:
        say(f"choosing learning rates: {len(left)} short runs on a validation split")
        outcome = work(left)
        broken = [
            f"{folder.name}: {why}"
            for folder, why in outcome.failed.items()
            if run_folder.state(folder) != "stopped"  # it diverged
        ]
        if broken:
            raise ValueError("the search could not be finished: " + "; ".join(broken))
        found, left = searched(study, folder)
    for choice in found:
        edge = ", at the edge of what was tried" if choice["at_edge"] else ""
        say(f"learning rate of {choice['rule']} ({choice['setting']}): {choice['lr']:g}{edge}")
    return found


def searched(study: Study, folder: Path) -> tuple[list[dict[str, Any]], list[sweep.Task]]:
    """What the finished tries say, and the tries still to be done.

    Returns: for each cell that is decided its choice, as study.json holds it: ``lr``, the rate
        chosen by `selection.choose`; ``at_edge``, whether it is the smallest or the largest tried
        although the grid was extended; ``extended``, the rates by which it was; and ``tries``, by
        rising rate: the validation ``errors`` of its ``seeds``, by ``metric`` (``val_map`` for
        hash nets, else ``val_acc``), their mean ``error`` and its standard error ``se``,
        ``losses`` (null where a try diverged), ``diverged``, how many did, ``reason`` of the first
        of them, ``folders``, and the means ``val_acc``, ``val_map`` and ``val_loss``.
    Raises: ValueError if no try of a cell came to its end.
    """
    found, left = [], []
    for cell, search in study.searches.items():
        grid = list(search.values)
        extended: list[float] = []
        while True:
            tasks = {rate: _try_tasks(study, cell, rate, folder) for rate in grid}
            open_tasks = [task for each in tasks.values() for task in each if task.ended() is None]
            if open_tasks:
                left += open_tasks
                break
            rows = [_tried(rate, each, search) for rate, each in tasks.items()]
            lr = selection.choose(list(map(selection.Tried.of_row, rows))).rate
            further = selection.beyond(grid, lr)
            if further is None or len(extended) == search.extensions:
                if all(row["diverged"] == len(search.seeds) for row in rows):
                    raise ValueError(f"{', '.join(cell)}: every learning rate tried diverged")
                choice = {"setting": cell[0], "rule": cell[1], "lr": lr}
                tries = sorted(rows, key=lambda row: row["lr"])
                edge = {"at_edge": further is not None, "extended": extended}
                found.append(choice | edge | {"tries": tries})
                break
            grid.append(further)
            extended.append(further)
    return found, left


def left(
    study: Study, folder: Path, *, table: bool = True
) -> tuple[list[sweep.Task], list[sweep.Task]]:
    """What a study has to do but for attacks; and the tries that come on top of it if every open
    choice of a learning rate lies at an edge of its grid as often as the grid may grow, at rates
    that stand for any.

    Where a learning rate is still open, the runs of the table stand for those that it will have.

    Args: table: whether the runs of the table belong to it, or only the choice of rates.
    """
    found, tasks = searched(study, folder)
    decided = rates(found)
    if table:
        tasks = start_tasks(study, folder) + tasks + table_tasks(study.chosen(decided), folder)
    extensions: list[sweep.Task] = []
    for cell, search in study.searches.items():
        for step in range(1, search.extensions + 1) if cell not in decided else ():
            further = selection.half_decade(max(search.values), step)
            extensions += [t for t in _try_tasks(study, cell, further, folder) if t.ended() is None]
    return tasks, extensions


def outline(study: Study, folder: Path, *, table: bool = True) -> list[str]:
    """What a study consists of, a line for each setting, and how much of it is done.

    Args: table: as of `left`.
    """
    lines = []
    for setting, entries in records.grouped(study.entries, lambda entry: entry.setting).items():
        cells = list(dict.fromkeys(entry.cell for entry in entries))
        text = f"  {setting}: {', '.join(rule for _, rule in cells)}"
        if table:
            seeds = sorted({entry.experiment.seed for entry in entries})
            text += f"; {len(seeds)} seeds, from {seeds[0]}"
        if search := next(filter(None, map(study.search_of, cells)), None):
            values = ", ".join(f"{rate:g}" for rate in search.values)
            epochs = search.epochs
            text += f"; learning rates {values}, each tried for {epochs} epoch{'s' * (epochs != 1)}"
            text += f" with seeds {', '.join(map(str, search.seeds))}"
        if setting in study.evaluations:
            text += "; trained nets attacked"
        lines.append(text)
    tasks, _ = left(study, folder, table=table)  # of the tries those that have not ended
    tasks += [
        task
        for cell, search in study.searches.items()
        for rate in search.values
        for task in _try_tasks(study, cell, rate, folder)
        if task.ended() is not None
    ]
    ended = sum(task.ended() is not None for task in tasks)
    what = "runs" if table else "tries of learning rates"
    more = ", tries of learning rates included" if table and study.search is not None else ""
    return [*lines, f"  {len(tasks)} {what}{more}, {ended} finished"]


def rates(found: Sequence[Mapping[str, Any]]) -> dict[Choice, float]:
    """The rates chosen, by cell."""
    return {(choice["setting"], choice["rule"]): choice["lr"] for choice in found}


def data_notes(study: Study, execution: Execution) -> list[str]:
    """What must stand beside numbers measured on the study's data, for example how it differs."""
    experiments = [entry.experiment for entry in study.entries]
    names = dict.fromkeys(each.data for each in experiments if each.task is None)
    load = partial(data.load, root=execution.data_root, download=execution.download)
    return [f"{name}: {note}" for name in names if (note := load(name).note)]


def described(
    study: Study, command: str, found: Sequence[Mapping[str, Any]], data_notes: Sequence[str]
) -> dict[str, Any]:
    """The content of study.json: all a report needs to know beside the run folders."""
    value: dict[str, Any] = {
        "name": study.name,
        "title": study.title,
        "tier": study.tier,
        "command": command,
        "runs": [entry.described for entry in study.entries],
        "published": published_rows(study.published, data_notes),
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
            "another folder with --runs; apical.bench.storage.packing.unpack writes the finished "
            "runs there"
        )
    there = records.read_json(folder / "study.json")
    if (there.get("name"), there.get("tier")) != (study.name, study.tier):
        raise ValueError(
            f"{folder} holds the study {there.get('name')} at tier {there.get('tier')}. It was "
            "left untouched: choose another folder with --runs"
        )


def _try_tasks(study: Study, cell: Choice, rate: float, folder: Path) -> list[sweep.Task]:
    return [
        sweep.Task(
            experiment,
            folder / packing.SEARCH / f"lr{rate:g}-{experiment.name}",
            f"{', '.join(cell)}, lr={rate:g} seed={experiment.seed}",
        )
        for experiment in study.tries(cell, rate)
    ]


def _tried(rate: float, tasks: Sequence[sweep.Task], search: Search) -> dict[str, Any]:
    """What study.json says of a rate all of whose tries ended."""
    ends = [task.ended() or {} for task in tasks]
    done = [end for end in ends if end["kind"] == "final"]
    metric = "val_map" if any("val_map" in end for end in done) else "val_acc"
    errors = [1 - end[metric] if end in done else search.chance for end in ends]
    examples = min((end["val_count"] for end in done), default=search.validation)
    tried = selection.Tried(rate, tuple(errors), examples)
    row: dict[str, Any] = {
        "lr": rate,
        "metric": metric,
        "seeds": list(search.seeds),
        "errors": errors,
        "error": tried.mean,
        "se": tried.standard_error,
        "examples": examples,
        "losses": [end.get("val_loss") for end in ends],
        "diverged": len(ends) - len(done),
        "folders": [f"{packing.SEARCH}/{task.folder.name}" for task in tasks],
    }
    if len(done) < len(ends):
        row["reason"] = next(end["reason"] for end in ends if end["kind"] != "final")
    if done:  # the form that one try a rate had
        row["val_loss"] = fmean(end["val_loss"] for end in done)
        row["val_acc"] = fmean(end["val_acc"] for end in done)
        row[metric] = 1 - tried.mean
    return row
