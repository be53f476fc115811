"""Options of the command line, and the errors where they cannot be understood."""

import re
import signal
from typing import Any


class UsageError(ValueError):
    """A command line that cannot be understood."""


def make_parser(verb: str, description: str, operand: str = "") -> Any:
    """The parser of a verb. Args: operand: name of the argument after its options."""
    from jsonargparse import ArgumentParser

    return ArgumentParser(
        prog=f"apical {verb}",
        usage=f"apical {verb} [options] {operand}".rstrip(),
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
    )


def parse(parser: Any, words: list[str]) -> dict[str, Any]:
    """Values of the options. ``--batch-size`` and ``--batch_size`` are the same."""
    from argparse import ArgumentError

    names = [o for action in parser._actions for o in action.option_strings]
    for action in parser._actions:
        action.help = action.help and action.help.replace("``", "")
    words = [underscored(word) for word in words]
    try:
        values = parser.parse_args(words).as_dict()
    except ArgumentError as error:
        text = _explained(str(error), names)
        raise UsageError(f"{text} ({parser.prog} --help lists all options)") from error
    return values


def add_experiment(parser: Any) -> None:
    """Every setting of an experiment as an option, and how it is executed."""
    from apical.bench.experiment.execution import Execution
    from apical.bench.experiment.experiment import GROUPS

    for group in GROUPS:
        parser.add_class_arguments(group, None)
    parser.add_class_arguments(Execution, None)
    add_keep_memory(parser)


def experiment_of(values: dict[str, Any]) -> Any:
    """The ``Experiment`` of the options."""
    from dataclasses import fields

    from apical.bench.experiment.experiment import Experiment, from_dict

    return from_dict({field.name: values[field.name] for field in fields(Experiment)})


def add_executor(parser: Any) -> None:
    """Where the runs of a study or a sweep are executed, and how many at once."""
    from typing import Literal

    parser.add_argument(
        "--jobs", default=None, type=int,
        help="runs at once (default: cores / threads; of slurm and ray: 100)",
    )  # fmt: skip
    parser.add_argument(
        "--executor", default="local", type=Literal["local", "ray", "slurm"],
        help="processes here, jobs of Slurm (submitit), or tasks of Ray",
    )  # fmt: skip
    parser.add_argument(
        "--executor_options", default={}, type=dict,
        help="of the engine, by its own names, as --executor_options.gpus_per_node 1",
    )  # fmt: skip


def jobs_of(values: dict[str, Any]) -> int:
    """Runs at once."""
    import os

    if values["jobs"] or values["executor"] != "local":
        return values["jobs"] or QUEUED
    able = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if able else os.cpu_count() or 1
    return max(1, cores // values["threads"])


QUEUED = 100
"""Runs that wait in the queue of a cluster at once."""


def add_keep_memory(parser: Any) -> None:
    """The option of every verb that trains or attacks."""
    parser.add_argument("--keep_memory", default=False, action="store_true",
                        help="keep freed memory (glibc); measure whether it is faster")  # fmt: skip


def execution_of(values: dict[str, Any]) -> Any:
    """The ``Execution`` of the options; also sets the allocator and the signals of the process."""
    from apical.bench.cli.keep_memory import keep_memory
    from apical.bench.experiment.execution import Execution

    if values["keep_memory"]:
        keep_memory()
    signal.signal(signal.SIGTERM, _interrupt)
    names = [name for name in Execution.__dataclass_fields__ if name in values]
    return Execution(**{name: values[name] for name in names})


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def underscored(word: str) -> str:
    """The word with the name of its option written with underscores."""
    if not re.match(r"--[a-z]", word):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


def _explained(message: str, names: list[str]) -> str:
    """jsonargparse's message on one line, with similar names where one is misspelt."""
    known = [name for name in names if name.startswith("--")]
    if found := re.search(r"Group '(\S+)' does not accept option '(\S+)'", message):
        return _misspelt(f"--{found[1]}.{found[2]}", known)
    if found := re.search(r"Option '([^'.]+)\S*' is not accepted", message):
        return _misspelt(f"--{found[1]}", known)
    if found := re.search(r"unrecognized arguments: (--[^\s=]+)", message):
        return _misspelt(found[1], known)
    message = " ".join(message.split())
    if found := re.search(r'Parser key "(\S+)":.*? Given value: (.*)', message):
        kinds = dict.fromkeys(re.findall(r"- Expected an? <class '(\w+)'>", message))
        return f"--{found[1]} {found[2]}: expected {' or '.join(kinds)}".replace("NoneType", "null")
    if found := re.search(r'Parser key "(\S+)": Expected an? (.*)\. Got value: (.*)', message):
        kind = re.sub(r"<class '(\w+)'>", r"\1", found[2])
        kind = re.sub(r"typing.Literal\[(.*)\]", r"one of \1", kind)
        kind = {"tuple": "a list, as [1,2]", "dict": "a mapping, as '{\"a\": 1}'"}.get(kind, kind)
        return f"--{found[1]} {found[3]}: expected {kind}"
    return message


def _misspelt(option: str, known: list[str]) -> str:
    """Similar names only: all would fill the screen."""
    from apical.names import unknown

    bare = unknown("option", option[2:], [name[2:] for name in known])
    text = str(bare).partition(" Allowed: ")[0].rstrip(".")
    return re.sub(r"'([\w.-]+)'", r"'--\1'", text)
