"""A folder of runs that belong to no study, read as one: what they differ in names its rows."""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from apical.bench.experiment.experiment import Experiment, to_dict
from apical.bench.report.evaluations import Robustness
from apical.bench.report.read import Run, Study, is_study, one_run, rule_name
from apical.bench.storage import packing

SKIPPED = ("report", "search", "starts")
"""Folders beside runs: pages, tries of a learning rate, and nets that runs start from."""

Values = Mapping[str, Any]


def find(folder: Path) -> tuple[list[Path], list[Path]]:
    """The studies in a folder, at any depth, and the runs that belong to none of them."""
    studies: list[Path] = []
    runs: list[Path] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        if not path.is_dir() or path.name.startswith(".") or path.name in SKIPPED:
            continue
        if path.is_symlink() and folder.resolve().is_relative_to(path.resolve()):
            continue  # a link to a folder above would have no end
        if is_study(path):
            studies.append(path)
        elif (path / "experiment.json").is_file():
            runs.append(path)
        else:
            below, more = find(path)
            studies += below
            runs += more
    return studies, runs


def read_runs(folder: Path, runs: list[Path]) -> Study:
    """Runs of a folder as a study without a tier or a command.

    A run stands at its net and data, with every setting in which runs of that net on these data
    differ, and at its rule, likewise. Runs that are the same experiment count once.
    """
    groups: dict[str, list[Run]] = {}
    for path in runs:
        run = one_run(packing.open_folder(path.parent), path.name)
        run = dataclasses.replace(run, folder=path.relative_to(folder).as_posix())
        groups.setdefault(run.setting, []).append(run)
    found: dict[tuple[str, str, int], Run] = {}
    for setting, members in groups.items():
        labels = _labels([run.experiment for run in members])
        for run, (differing, rule) in zip(members, labels, strict=True):
            place = (", ".join([setting, *differing]), rule, run.seed)
            if place not in found or found[place].status != "finished":
                found[place] = dataclasses.replace(run, setting=place[0], rule=rule)
    notes = []
    if copies := len(runs) - len(found):
        notes.append(f"Left out: {copies} runs that repeat an experiment of this table.")
    if any((path / Robustness.home).is_dir() for path in runs):
        notes.append("Evaluations of robustness are shown on the page of each run.")
    return Study(
        name=folder.resolve().name,
        title=f"Runs in {folder.resolve().name}",
        tier="",
        command="",
        runs=tuple(found.values()),
        published=(),
        notes=tuple(notes),
    )


def _labels(experiments: list[Values]) -> list[tuple[list[str], str]]:
    """For each experiment the settings that are not the same in all, and the name of its rule."""
    names = [rule_name(experiment) for experiment in experiments]
    flat = [dict(_flat(experiment)) for experiment in experiments]
    rules = [dict(_flat_rule(experiment)) for experiment in experiments]
    varied = _varied(flat)
    labels = []
    for name, values, own in zip(names, flat, rules, strict=True):
        peers = [rule for other, rule in zip(names, rules, strict=True) if other == name]
        options = [f"{key} {own[key]}" for key in _varied(peers) if key in own]
        more = [f"{key} {values[key]}" for key in varied if key in values]
        labels.append((more, ", ".join([name, *options])))
    return labels


def _varied(values: list[dict[str, str]]) -> list[str]:
    """The keys whose values are not the same everywhere, in the order of the first mention."""
    keys = dict.fromkeys(key for each in values for key in each)
    return [key for key in keys if len({each.get(key) for each in values}) > 1]


def _flat(experiment: Values) -> Iterator[tuple[str, str]]:
    """Settings beside the seed, the rule, the net and the data as text, nested ones by a dotted
    name. What is absent had its default: it came with a later version."""
    complete = {**DEFAULTS, **experiment}
    for key, value in complete.items():
        if key not in ("seed", "rule", "learner", "net", "data", "task", "length"):
            yield from _leaves(key, value)


def _flat_rule(experiment: Values) -> Iterator[tuple[str, str]]:
    for part in ("rule", "learner"):
        value = experiment.get(part)
        if isinstance(value, Mapping):
            for key, option in value.items():
                if key != part:
                    yield from _leaves(key, option)


def _leaves(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping) and value:
        for key, part in value.items():
            yield from _leaves(f"{name}.{key}", part)
    else:
        yield name, value if isinstance(value, str) else json.dumps(value)


DEFAULTS = to_dict(Experiment())
