"""The search of a learning rate for one's own experiment: the procedure of the studies."""

import dataclasses
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from apical import data
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.rule_settings import rule_label
from apical.bench.studies import conduct, selection
from apical.bench.studies.base import LEAST_SEEDS, Entry, Search, Study
from apical.bench.sweep import sweep
from apical.bench.training import build

LOW, HIGH = 0.001, 0.1
SHARE, MOST, SEQUENCES = 0.2, 5000, 1000
"""Examples held out where an experiment has ``validation=0``: of images a share, at most so many;
of a task so many sequences."""


def search(
    experiment: Experiment,
    rules: Mapping[str, str | dict[str, Any]],
    rates: Sequence[float],
    tries: int,
    execution: Execution,
) -> Study:
    """The search of `tune` as a study of which only the learning rates are chosen.

    Args: as of `tune`.
    """
    if tries < LEAST_SEEDS:
        raise ValueError(f"tries={tries}: must be at least {LEAST_SEEDS}")
    source = build.load(experiment, data_root=execution.data_root, download=execution.download)
    chance, count = 0.9, SEQUENCES
    if isinstance(source, data.ImageData):
        chance = 1 - 1 / source.num_classes
        count = min(MOST, round(SHARE * len(source.train)))
    made = Search(
        tuple(rates),
        experiment.epochs,
        experiment.schedule,
        experiment.validation or count,
        seeds=tuple(1000 + i for i in range(tries)),
        chance=chance,
    )
    setting = f"{experiment.task or experiment.data} {experiment.net}"
    entries = tuple(
        Entry(setting, label, dataclasses.replace(experiment, rule=rule, seed=0))
        for label, rule in rules.items()
    )
    return Study("tune", "Learning rates", "full", entries, search=made)


def tune(
    experiment: Experiment,
    rules: Mapping[str, str | dict[str, Any]] | Sequence[str],
    *,
    rates: Sequence[float] = selection.half_decades(LOW, HIGH),
    tries: int = 3,
    folder: str | Path = "runs/tune",
    execution: Execution | None = None,
    jobs: int = 1,
    say: sweep.Say = lambda text: None,
) -> dict[str, dict[str, Any]]:
    """Choose the learning rate of an experiment for each rule, all by one procedure.

    Every rate is tried with several seeds on a validation split; the smallest rate within one
    standard error of the lowest error is chosen; a choice at an edge extends the grid by up to two
    half decades. The test split is not read. Tries that are done are not repeated.

    Args:
        experiment: everything but rule and learning rate. ``validation`` says how many examples are
            held out (0: a fifth of the images, at most 5,000); ``epochs`` how long each try lasts.
        rules: by label, or names.
        rates: tried, in half decades without a gap (0.001, 0.003, 0.01, ...).
        tries: seeds of each rate (>= 3): 1000, 1001, ...
        folder: where the tries lie.
        jobs: tries at once (>= 1), a process each.
        say: is given lines of progress.
    Returns: for each rule its choice: ``lr``, ``at_edge``, and ``tries``, the curve: for each rate
        ``error`` and ``se`` (mean validation error and its standard error, in [0, 1]), ``diverged``
        (of its seeds) and more, as study.json holds them.
    Raises: ValueError for rates off the grid, too few tries or jobs, or if every rate of a rule
        diverged.
    """
    execution = execution or Execution()
    if not isinstance(rules, Mapping):
        rules = {rule_label(rule): rule for rule in rules}
    return choose(search(experiment, rules, rates, tries, execution), folder, execution, jobs, say)


def choose(
    study: Study, folder: str | Path, execution: Execution, jobs: int, say: sweep.Say
) -> dict[str, dict[str, Any]]:
    """Do the tries of what `search` makes. Args, Returns: as of `tune`."""
    work = partial(sweep.sweep, execution=execution, jobs=jobs, say=say)
    choices = conduct.tune(study, Path(folder), work, lambda text: None)
    return {choice["rule"]: choice for choice in choices}
