"""A folder of runs that belong to no study, read as one: what they differ in names its rows."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from apical.bench.experiment.experiment import Experiment, to_dict
from apical.bench.report.evaluations import Robustness
from apical.bench.report.read import Run, Study, is_study, one_run, rule_name
from apical.bench.report.table import flatten
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
    name = folder.resolve().name
    return Study(name, f"Runs in {name}", tuple(found.values()), notes=tuple(notes))


def _labels(experiments: list[Values]) -> list[tuple[list[str], str]]:
    """For each experiment the settings that are not the same in all, and the name of its rule with
    the options in which it differs from others of that name."""
    names = [rule_name(experiment) for experiment in experiments]
    settings = [_settings(experiment) for experiment in experiments]
    options = [_options(experiment) for experiment in experiments]
    labels = []
    for name, of_run, own in zip(names, settings, options, strict=True):
        peers = [each for other, each in zip(names, options, strict=True) if other == name]
        labels.append((_differing(of_run, settings), ", ".join([name, *_differing(own, peers)])))
    return labels


def _differing(values: Values, peers: list[Values]) -> list[str]:
    """ "lr 0.1" for every value that is not the same in all peers, in the order of the first
    mention."""
    keys = dict.fromkeys(key for peer in peers for key in peer)
    varied = [key for key in keys if len({peer.get(key) for peer in peers}) > 1]
    return [f"{key} {values[key]}" for key in varied if key in values]


def _settings(experiment: Values) -> Values:
    """Settings beside the seed, the rule, the net and the data. What is absent had its default: it
    came with a later version."""
    named = ("seed", "rule", "learner", "net", "data", "task", "length")
    every = {**DEFAULTS, **experiment}
    return _as_text({key: value for key, value in every.items() if key not in named})


def _options(experiment: Values) -> Values:
    """Of the rule and of the learner."""
    made: dict[str, str] = {}
    for part in ("rule", "learner"):
        value = experiment.get(part)
        if isinstance(value, Mapping):
            made |= _as_text({key: option for key, option in value.items() if key != part})
    return made


def _as_text(values: Values) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in flatten(values, empty=True).items()
    }


DEFAULTS = to_dict(Experiment())
