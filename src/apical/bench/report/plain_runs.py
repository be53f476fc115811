"""Folders of any runs: those of no study, read as one, whose rows are named by what they differ in;
and the records of all as one table of pandas."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apical.bench.experiment.experiment import Experiment, to_dict
from apical.bench.report.evaluations import Robustness
from apical.bench.report.names import learner_of, rule_name
from apical.bench.report.read import (
    Run,
    Study,
    is_run,
    is_study,
    one_run,
    read_run,
    read_study,
)
from apical.bench.report.table import flatten
from apical.bench.storage import packing
from apical.bench.storage.records import Record, grouped
from apical.names import unknown

if TYPE_CHECKING:
    import pandas

SKIPPED = ("report", "search", "starts")
"""Folders that may stand among runs: pages, tries of learning rates, nets that runs start from."""

DEFAULTS = to_dict(Experiment())
"""What an experiment had for a setting that came with a later version."""


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


def read_below(folder: Path) -> dict[str, Study]:
    """The studies below a folder by their paths, then under "" the runs that belong to none."""
    paths, runs = find(folder)
    studies = {path.relative_to(folder).as_posix(): read_study(path) for path in paths}
    return studies | ({"": read_runs(folder, runs)} if runs else {})


def read_runs(folder: Path, runs: list[Path]) -> Study:
    """Runs of a folder as a study without a tier or a command.

    A run stands at its net and data, with every setting in which runs of that net on these data
    differ, and at its rule, likewise. Runs that are the same experiment count once.
    """
    every = []
    for path in runs:
        run = one_run(packing.open_folder(path.parent), path.name)
        every.append(dataclasses.replace(run, folder=path.relative_to(folder).as_posix()))
    by_place: dict[tuple[str, str, int], Run] = {}
    for setting, members in grouped(every, lambda run: run.setting).items():
        settings = [_settings(run) for run in members]
        varied = _varied(settings)
        varied_of = {
            name: _varied([_options(run) for run in of_rule])
            for name, of_rule in grouped(members, lambda r: rule_name(r.experiment)).items()
        }
        for run, values in zip(members, settings, strict=True):
            name = rule_name(run.experiment)
            rule = ", ".join([name, *_named(_options(run), varied_of[name])])
            place = (", ".join([setting, *_named(values, varied)]), rule, run.seed)
            if place not in by_place or by_place[place].status != "finished":
                by_place[place] = dataclasses.replace(run, setting=place[0], rule=rule)
    notes = []
    if copies := len(runs) - len(by_place):
        notes.append(f"Left out: {copies} runs that repeat an experiment of this table.")
    if any((path / Robustness.home).is_dir() for path in runs):
        notes.append("Evaluations of robustness are shown on the page of each run.")
    name = folder.resolve().name
    ordered = sorted(by_place.values(), key=lambda run: _natural(run.setting))
    return Study(name, f"Runs in {name}", tuple(ordered), notes=tuple(notes))


def _natural(text: str) -> list[str | float]:
    """An order by the numbers in a text: lr 0.03, lr 0.1, lr 0.3; folders are named by digests."""
    parts = re.split(r"(\d+(?:\.\d+)?(?:e-?\d+)?)", text)
    return [float(part) if place % 2 else part for place, part in enumerate(parts)]


def _varied(peers: list[dict[str, str]]) -> list[str]:
    """The keys whose values are not the same in all, in the order of the first mention."""
    keys = dict.fromkeys(key for peer in peers for key in peer)
    return [key for key in keys if len({peer.get(key) for peer in peers}) > 1]


def _named(values: Record, keys: list[str]) -> list[str]:
    """ "lr 0.1" for each key that has a value."""
    return [f"{key} {values[key]}" for key in keys if key in values]


def _settings(run: Run) -> dict[str, str]:
    """Settings other than the seed, the rule, the net and the data; the versions of what computes
    the run, and the digests of the user's code, but for that of the rule."""
    named = ("seed", "rule", "learner", "net", "data", "task", "length")
    every = {**DEFAULTS, **run.experiment, "versions": run.versions}
    every["code"] = {name: digest for name, digest in run.code.items() if not _of_rule(name, run)}
    return _as_text({key: value for key, value in every.items() if key not in named})


def _options(run: Run) -> dict[str, str]:
    """Of the rule; or of the learner, where that is another than backprop, with its rule. And the
    digests of their code."""
    code = {name: digest for name, digest in run.code.items() if _of_rule(name, run)}
    rule, learner = run.experiment.get("rule"), learner_of(run.experiment)
    if learner["learner"] != "backprop":
        others = {key: option for key, option in learner.items() if key != "learner"}
        return _as_text({"rule": rule, **others, "code": code})
    options = rule if isinstance(rule, Mapping) else {}
    named = {key: option for key, option in options.items() if key != "rule"}
    return _as_text({**named, "code": code})


def _of_rule(name: str, run: Run) -> bool:
    """Whether code of the user is that of the rule or learner, not that of what all rules share."""
    return name not in {run.experiment.get(key) for key in ("net", "data", "optimizer")}


def _as_text(values: Record) -> dict[str, str]:
    return {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in flatten(values, empty=True).items()
    }


def to_pandas(folder: str | os.PathLike[str], kind: str = "final") -> pandas.DataFrame:
    """One row for each record of a kind, of all runs in a folder: loose or packed studies, runs of
    no study, at any depth.

    Args: kind: of the records: ``final``, ``epoch``, ``layer``, ``test``, ``warning``, ...
    Returns: columns ``folder``, ``setting``, ``rule``, ``seed`` and ``status`` of the run, those
        of the records (``record.rule`` where they have the name of one before), and the settings of
        its experiment as ``experiment.lr``; lists and mappings in them as JSON text.
    Raises: ValueError where there is no run, no record of that kind, or without pandas.
    """
    try:
        import pandas
    except ModuleNotFoundError as error:
        raise ValueError(f"to_pandas: {error}; pip install 'apical[track]'") from error
    rows = []
    kinds = {"warning"}  # which a run may have none of
    for place, run in _runs(Path(folder)):
        about: dict[str, Any] = {"folder": place}
        about |= {key: getattr(run, key) for key in ("setting", "rule", "seed", "status")}
        for name, value in run.experiment.items():
            packed = isinstance(value, dict | list)
            about[f"experiment.{name}"] = json.dumps(value) if packed else value
        kinds |= {row["kind"] for row in run.rows}
        for row in (row for row in run.rows if row.get("kind") == kind):
            rows.append(about | {f"record.{k}" if k in about else k: v for k, v in row.items()})
    if kind not in kinds:
        raise unknown("kind of records", kind, kinds)
    return pandas.DataFrame(rows)


def _runs(folder: Path) -> Iterator[tuple[str, Run]]:
    if is_run(folder):
        yield ".", read_run(folder).runs[0]
        return
    studies = {"": read_study(folder)} if is_study(folder) else read_below(folder)
    if not studies:
        raise ValueError(f"to_pandas: no run in {folder}, nor in the folders below it")
    for name, study in studies.items():
        for run in study.runs:
            yield (Path(name) / run.folder).as_posix(), run
