"""Options of the command line, and the errors where they cannot be understood."""

import ast
import dataclasses
import itertools
import json
import re
import shlex
import signal
import textwrap
from argparse import ArgumentError
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from apical.names import type_hints, unknown


class UsageError(ValueError):
    """A command line that cannot be understood."""


def make_parser(
    verb: str, description: str, operand: str = "", essential: Sequence[str] = ()
) -> Any:
    """The parser of a verb.

    Args: operand: name of the argument after its options.
        essential: the options that ``--help`` shows, where ``--help-all`` shows all; empty: both
            show all.
    """
    from jsonargparse import ArgumentParser, set_loader, set_parsing_settings

    from apical.bench.experiment.yaml_values import read_yaml

    set_loader("apical", read_yaml, exceptions=(ValueError,))
    # else the name of a class in the place of a group of settings would be imported
    set_parsing_settings(subclasses_disabled=[dataclasses.is_dataclass])
    parser = ArgumentParser(
        parser_mode="apical",
        prog=f"apical {verb}",
        usage=f"apical {verb} [options] {operand}".rstrip(),
        description=description,
        exit_on_error=False,
        allow_abbrev=False,
    )
    parser.essential = tuple(essential)  # type: ignore[attr-defined]
    return parser


def parse(parser: Any, words: list[str]) -> dict[str, Any]:
    """Values of the options. ``--batch-size`` and ``--batch_size`` are the same."""
    names = [o for action in parser._actions for o in action.option_strings]
    typed = {underscored(word).partition("=")[0]: word.partition("=")[0] for word in words}
    words = [underscored(word) for word in words]
    _check_structures(words)
    if {"-h", "--help", "--help_all"} & set(words):
        print(_help(parser, () if "--help_all" in words else parser.essential))
        raise SystemExit(0)
    try:
        return parser.parse_args(words).as_dict()
    except ArgumentError as error:
        text = _as_typed(_explained(str(error), names), typed)
        every = "--help-all" if parser.essential else "--help"
        raise UsageError(f"{text} ({parser.prog} {every} lists all options)") from error


def _as_typed(message: str, typed: dict[str, str]) -> str:
    """A message in which options are spelt as the user did, with hyphens or underscores."""
    hyphens = any("-" in word[2:] for word in typed.values())
    for option in sorted(set(re.findall(r"--[a-z](?:[\w.]*\w)?", message))):
        written = typed.get(option, option.replace("_", "-") if hyphens else option)
        message = re.sub(rf"{re.escape(option)}(?!\.?\w)", f"--{written[2:]}", message)
    return message


def _check_structures(words: list[str]) -> None:
    """Raises: UsageError for a mapping or list that says something twice, or in no plain way."""
    from apical.bench.experiment.yaml_values import read_yaml

    for before, word in zip(["", *words], words, strict=False):
        option, equals, value = word.partition("=")
        if not (equals and option.startswith("--")):
            option, value = before, word
        if option.startswith("--") and value.lstrip()[:1] in ("{", "["):
            try:
                read_yaml(value)
            except ValueError as error:
                raise UsageError(f"{option} {value[:200]}: {error}") from error


def parse_settings(parser: Any, words: list[str]) -> dict[str, Any]:
    """As `parse`, for a verb with --config and --trust. A file of settings may name code to import
    only if it is trusted, or other options of the command name the same.

    Raises: UsageError; ValueError naming the code.
    """
    from apical.bench.experiment import own_code

    files, others = _split_option("--config", [underscored(word) for word in words])
    for name in files:
        check_config(name)
    values = parse(parser, words)
    if files and not values["trust"]:
        own_code.refuse(values, " and ".join(files), but=parse(parser, others))
    return values


def check_config(name: str) -> None:
    """Raises: UsageError for a file of settings that must not be read for its values."""
    from apical.bench.experiment.experiment import Experiment
    from apical.bench.experiment.yaml_values import check_file

    kinds = type_hints(Experiment).items()
    groups = [n for n, kind in kinds if any(map(dataclasses.is_dataclass, (kind, *get_args(kind))))]
    try:
        check_file(name, groups)
    except ValueError as error:
        raise UsageError(str(error)) from error


def _split_option(option: str, words: list[str]) -> tuple[list[str], list[str]]:
    """The values of an option, and the words without it."""
    values: list[str] = []
    others: list[str] = []
    rest = iter(words)
    for word in rest:
        if word == option:
            values += itertools.islice(rest, 1)
        elif word.startswith(f"{option}="):
            values.append(word.partition("=")[2])
        else:
            others.append(word)
    return values, others


def add_trust(parser: Any) -> None:
    """The option of every verb that reads settings from files."""
    parser.add_argument("--trust", default=False, action="store_true",
                        help="import code that the files read name, as my_rules:Mine")  # fmt: skip


def _help(parser: Any, names: Sequence[str]) -> str:
    """The options of these names, or all, a paragraph each."""
    lines = [f"usage: {parser.usage}", "", *textwrap.wrap(parser.description, 100)]
    if names:
        actions = {action.dest: action for action in parser._actions}
        groups = [("", [actions[name] for name in names])]
    else:
        groups = [(group.title, group._group_actions) for group in parser._action_groups]
    for title, group in groups:
        # jsonargparse adds an option for a file to every group of settings
        own = [a for a in group if a.dest != "help" and a.help != "Path to a configuration file."]
        entries = [_entry(action) for action in own]
        if entries:
            plain = title in ("", "options", "positional arguments")
            lines += [
                "",
                *([] if plain else [f"{title[0].upper()}{title[1:]}:"]),
                *itertools.chain(*entries),
            ]
    if names:
        lines += ["", f"{parser.prog} --help-all explains every option."]
    return "\n".join(lines)


INDENT = " " * 24
"""Before the explanation of an option."""


def _entry(action: Any) -> list[str]:
    """An option or argument with its values, explanation and default."""
    text = (
        (action.help or "")
        .replace("``", "")
        .replace("%%", "%")
        .partition(" (type:")[0]
        .rstrip(" .,")
    )
    if action.default not in (None, "", {}, (), [], "==SUPPRESS==") and action.nargs != 0:
        default = json.dumps(action.default) if type(action.default) is bool else action.default
        text += f" (default: {default})"
    head = action.option_strings[-1] if action.option_strings else action.dest.upper()
    if action.option_strings and action.nargs != 0:
        head = f"{head} {_values(action)}".rstrip()
    lines = textwrap.wrap(
        " ".join(text.split()), 100, initial_indent=INDENT, subsequent_indent=INDENT
    )
    if len(head) > len(INDENT) - 4:
        return [f"  {head}", *lines]
    return [f"  {head}".ljust(len(INDENT)) + lines[0].lstrip(), *lines[1:]]


def _values(action: Any) -> str:
    """What stands for the value of an option in its help."""
    if action.metavar is not None:
        return str(action.metavar)
    kind = getattr(action, "_typehint", action.type)
    literals = [v for k in (kind, *get_args(kind)) if get_origin(k) is Literal for v in get_args(k)]
    if literals:
        return "|".join(map(str, literals))
    kinds = set(get_args(kind) or (kind,)) - {type(None)}
    for each, shown in ((bool, "true|false"), (int, "N"), (float, "X")):
        if kinds == {each}:
            return shown
    return str(action.dest).rpartition(".")[2].upper()


def as_flags(message: str) -> str:
    """A message about settings in the form in which the command line takes them.

    >>> as_flags("use autocast='bf16', not test_at=(3,)")
    "use --autocast bf16, not --test_at '[3]'"
    """
    from apical.bench.experiment.experiment import Experiment

    names = Experiment.__dataclass_fields__

    def flag(match: re.Match[str]) -> str:
        try:
            value = ast.literal_eval(match[2])
        except (ValueError, SyntaxError):
            return match[0]
        if value is None:
            return match[0]
        text = value if isinstance(value, str) else json.dumps(value)
        return f"--{match[1]} {shlex.quote(text)}"

    words = "|".join(sorted(names, key=len, reverse=True))
    value = r"""'[^']*'|"[^"]*"|\{[^{}]*\}|\[[^\]]*\]|\([^()]*\)|[\w+-]+(?:\.\w+)*"""
    return re.sub(rf"(?<![\w.-])({words})=({value})", flag, message)


def add_experiment(parser: Any, skip: Sequence[str] = ()) -> None:
    """The options of an experiment; of learning rate and optimizer what `rates.filled` fills in is
    absent."""
    from apical.bench.experiment import rates
    from apical.bench.experiment.experiment import GROUPS

    for group in GROUPS:
        parser.add_class_arguments(group, None, skip={"lr", "optimizer", *skip})
    given = "sgd" if "lr" in skip else "adam, with --lr given sgd"
    about = f"sgd, adam, adamw, rmsprop, or a class as package.module:Class; absent: {given}"
    parser.add_argument("--optimizer", default=None, type=str | None, help=about)
    if "lr" not in skip:
        about = (
            f"learning rate (> 0) before the schedule; absent: {rates.ADAM} of adam, {rates.SGD} "
            "of sgd, with momentum 0.9 that of the rule"
        )
        parser.add_argument("--lr", default=None, type=float | None, help=about)


def experiment_of(values: dict[str, Any]) -> Any:
    """The ``Experiment`` of the options.

    Raises: ValueError for what does not fit, in the form of options.
    """
    from apical.bench.experiment import rates
    from apical.bench.experiment.experiment import Experiment, from_dict

    names = [name for name in Experiment.__dataclass_fields__ if name in values]
    settings = {name: values[name] for name in names}
    if "lr" not in names and settings["optimizer"] is None:
        del settings["optimizer"]
    try:
        return from_dict(rates.filled(settings) if "lr" in names else settings, trust=True)
    except ValueError as error:
        raise ValueError(as_flags(str(error))) from error


def add_estimate(parser: Any) -> None:
    """Whether a verb that trains many nets prints what that will cost, and whether it starts."""
    parser.add_argument("--estimate", default=True, type=bool,
                        help="time a few steps first and print how long all will take")  # fmt: skip
    parser.add_argument("--dry_run", default=False, action="store_true",
                        help="print what would run and the estimate; start nothing")  # fmt: skip


def add_executor(parser: Any) -> None:
    """Where the runs of a study or a sweep are executed, and how many at once."""
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
    """Runs at once. Raises: UsageError for fewer than one."""
    from apical.bench.storage.environment import cores

    jobs = values["jobs"]
    if jobs is None:
        local = values["executor"] == "local"
        jobs = max(1, cores() // values["threads"]) if local else QUEUED
    if jobs < 1:
        raise UsageError(f"--jobs {jobs}: must be at least 1")
    return jobs


QUEUED = 100
"""Runs that wait in the queue of a cluster at once."""


def add_execution(parser: Any, skip: Sequence[str] = ()) -> None:
    """The options of every verb that trains or attacks: where and how."""
    from apical.bench.experiment.execution import Execution

    parser.add_class_arguments(Execution, None, skip=set(skip))
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


def say(text: str) -> None:
    """Print a line of progress at once, also into a pipe."""
    print(text, flush=True)


def closed(outcome: Any, folder: Any) -> int:
    """Print what became of the runs in a folder, the `Outcome` of a sweep.

    Returns: the exit status, 1 if one failed.
    """
    print(f"{len(outcome.finished)} runs finished, {len(outcome.failed)} failed")
    print(f"apical report {folder} --open    shows the table")
    return 1 if outcome.failed else 0


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def underscored(word: str) -> str:
    """The word with the name of its option written with underscores."""
    if not re.match(r"--[a-z]", word):
        return word
    name, equals, value = word.partition("=")
    return "--" + name[2:].replace("-", "_") + equals + value


KINDS = {
    "bool": "true or false", "dict": "a mapping, as '{\"a\": 1}'", "float": "a number",
    "int": "a whole number", "list": "a list, as [1,2]", "str": "a text",
    "tuple": "a list, as [1,2]",
}  # fmt: skip
"""How errors call the types of values."""


def _explained(message: str, names: list[str]) -> str:
    """jsonargparse's message on one line, with similar names where one is misspelt."""
    known = [name for name in names if name.startswith("--")]
    if found := re.search(r"Group '(\S+)' does not accept option '(\S+)'", message):
        return _misspelt(f"--{found[1]}.{found[2]}", known)
    if found := re.search(r"Option '([^'.]+)\S*' is not accepted", message):
        return _misspelt(f"--{found[1]}", known)
    if found := re.search(r"unrecognized arguments: (--[^\s=]+)", message):
        return _misspelt(found[1], known)
    if found := re.search(r"the following arguments are required: (.*)", message):
        return f"{found[1].upper()} missing"
    message = " ".join(message.split())
    if found := re.search(r'Parser key "(\S+)":.*? Given value: (.*)', message):
        kinds = dict.fromkeys(re.findall(r"- Expected an? <class '(\w+)'>", message))
        text = " or ".join(KINDS.get(k, k) for k in kinds if k != "NoneType") or KINDS["dict"]
        return f"--{found[1]} {found[2]}: expected {text}; leave the option out for its default"
    if found := re.search(r'Parser key "(\S+)": Unable to load config', message):
        parts = ", ".join(name for name in known if name.startswith(f"--{found[1]}."))
        return f"--{found[1]} stands for several settings; give one by its name: {parts}"
    if found := re.search(r'Parser key "(\S+)": Expected an? (.*)\. Got value: (.*)', message):
        kind = re.sub(r"<class '(\w+)'>", r"\1", found[2])
        kind = re.sub(r"typing.Literal\[(.*)\]", r"one of \1", kind)
        return f"--{found[1]} {found[3]}: expected {KINDS.get(kind, kind)}"
    return message


def _misspelt(option: str, known: list[str]) -> str:
    """Similar names only: all would fill the screen."""
    names = [name[2:] for name in known]
    if "optimizer_options" in names:
        names += ["optimizer_options.momentum", "optimizer_options.weight_decay"]
    bare = unknown("option", option[2:], names)
    text = str(bare).partition(" Allowed: ")[0].rstrip(" .,")
    return re.sub(r"'([\w.-]+)'", r"'--\1'", text)
