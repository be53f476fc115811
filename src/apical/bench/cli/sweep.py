"""``apical sweep``: a run for every combination of the values that options are given."""

import dataclasses
import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from apical.bench.cli import parsing
from apical.bench.cli.parsing import UsageError

OPENING, CLOSING, QUOTES = "[{(", "]})", "\"'"


def sweep(words: list[str]) -> int:
    """Do all runs of the options; returns the exit status."""
    from apical.bench.studies import cost
    from apical.bench.sweep import sweep as sweeps

    parser = parsing.make_parser(
        "sweep",
        "Train once for every combination of values: --lr 0.1,0.01 --rule fa,kp --seeds 3. Any "
        "setting of an experiment takes several values between commas; lists and mappings stand in "
        "brackets. Runs that are done are skipped.",
        essential=("dry_run", "data", "net", "net_options", "rule", "lr", "epochs", "batch_size",
                   "optimizer", "validation", "seeds", "config", "folder", "jobs", "executor"),
    )  # fmt: skip
    parser.add_argument("--config", default=None, type=str,
                        help="YAML file with options; a list gives several values")  # fmt: skip
    parser.add_argument("--seeds", default=None, type=int,
                        help="runs of each combination, with seeds from 0")  # fmt: skip
    parser.add_argument("--folder", default=None, type=str,
                        help="folder of the runs (default: runs/sweep/DATA-NET)")  # fmt: skip
    parsing.add_estimate(parser)
    parsing.add_executor(parser)
    parsing.add_experiment(parser)
    parsing.add_execution(parser)
    parsing.add_trust(parser)
    several, others = split(words)
    values = parsing.parse(parser, others)
    execution = parsing.execution_of(values)
    if values["seeds"] is not None:
        if "seed" in several or values["seeds"] < 1:
            raise UsageError("--seeds N stands for --seed 0,1,..., N at least 1: give one of them")
        several["seed"] = [str(seed) for seed in range(values["seeds"])]
    experiments, labels = {}, {}
    for combination in itertools.product(*several.values()):
        options = [f"--{name}={text}" for name, text in zip(several, combination, strict=True)]
        experiment = parsing.experiment_of(parsing.parse(parser, [*others, *options]))
        experiments[experiment.key] = experiment
        pairs = zip(several.items(), combination, strict=True)
        varied = [f"{name}={text}" for (name, texts), text in pairs if len(texts) > 1]
        labels[experiment.key] = " ".join(varied)
    first = next(iter(experiments.values()))
    folder = Path(values["folder"] or f"runs/sweep/{first.name.rsplit('-', 3)[0]}")
    tasks = [
        sweeps.Task(each, folder / each.name, labels[key]) for key, each in experiments.items()
    ]
    jobs = parsing.jobs_of(values)
    print(f"{len(tasks)} runs in {folder}", flush=True)
    if values["dry_run"]:
        for task in tasks:
            state = "" if task.ended() is None else "  (finished)"
            print(f"  {task.label or task.experiment.name}{state}")
    if values["estimate"]:
        print(cost.estimate(tasks, execution).text(jobs), flush=True)
    if values["dry_run"]:
        print("nothing was started (--dry-run)")
        return 0
    outcome = sweeps.sweep(
        tasks,
        execution,
        executor=values["executor"],
        options=values["executor_options"],
        jobs=jobs,
        say=parsing.say,
    )
    return parsing.closed(outcome, folder)


def split(words: list[str]) -> tuple[dict[str, list[str]], list[str]]:
    """Settings of an experiment with their values as texts, and the other words as they stand.

    Raises: UsageError for a setting without a value, or a YAML file that is not a mapping.
    """
    from apical.bench.experiment.experiment import Experiment

    several: dict[str, list[str]] = {}
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        name, equals, text = parsing.underscored(word).partition("=")
        setting = name.removeprefix("--")
        if name == "--config":
            from_file, more = _from_file(text if equals else next(rest, ""), "--trust" in words)
            several, others = from_file | several, more + others  # options win over the file
        elif name.startswith("--") and setting.split(".")[0] in Experiment.__dataclass_fields__:
            value = text if equals else next(rest, None)
            if value is None or not value:
                raise UsageError(f"{name} needs a value, or several between commas")
            several[setting] = at_commas(value)
        else:
            others.append(word)
    return several, others


def at_commas(text: str) -> list[str]:
    """The parts between commas that stand in no brackets or quotes.

    >>> at_commas("fa,{rule: kp, decay: 0.1},sparse(fa, 0.5)")
    ['fa', '{rule: kp, decay: 0.1}', 'sparse(fa, 0.5)']
    """
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in QUOTES:
            quote = character
        depth += (character in OPENING) - (character in CLOSING) if not quote else 0
        if character == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def _from_file(path: str, trust: bool) -> tuple[dict[str, list[str]], list[str]]:
    """As ``split``, of a YAML file: a list is several values; of a setting that is a list itself, a
    list of lists is.

    Raises: UsageError for a file that cannot be read, ValueError if it names code and is not
        trusted.
    """
    from apical.bench.experiment import own_code
    from apical.bench.experiment.experiment import Experiment
    from apical.bench.experiment.settings import default_of
    from apical.bench.experiment.yaml_values import read_yaml

    parsing.check_config(path)
    content = read_yaml(Path(path).read_text(encoding="utf-8"))
    several: dict[str, list[str]] = {}
    others: list[str] = []
    for name, value in content.items():
        field = str(name).partition(".")[0]
        if field in Experiment.__dataclass_fields__:
            if not trust:
                for each in value if isinstance(value, list) else [value]:
                    own_code.refuse({field: each}, path)
            several.update(_settings(str(name), value, default_of(Experiment, field)))
        elif isinstance(value, list):
            raise UsageError(f"--config {path}: {name} takes one value, not {value!r}")
        else:
            others.append(f"--{name}={_text(value)}")
    return several, others


def _settings(name: str, value: Any, default: Any) -> Iterator[tuple[str, list[str]]]:
    """A setting of a YAML file with its values, or one entry for each part of a group."""
    if isinstance(value, dict) and dataclasses.is_dataclass(default):
        for key, part in value.items():
            yield from _settings(f"{name}.{key}", part, None)
    elif isinstance(value, list) and not (
        isinstance(default, tuple) and not all(isinstance(each, list) for each in value)
    ):
        yield name, [_text(each) for each in value]
    else:
        yield name, [_text(value)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
