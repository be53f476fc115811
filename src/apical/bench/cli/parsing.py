"""Options of the command line, and the errors where they cannot be understood."""

import dataclasses
import itertools
import re
import signal
from typing import Any, get_args

from apical.names import type_hints


class UsageError(ValueError):
    """A command line that cannot be understood."""


def make_parser(verb: str, description: str, operand: str = "") -> Any:
    """The parser of a verb. Args: operand: name of the argument after its options."""
    from jsonargparse import ArgumentParser, set_loader, set_parsing_settings

    from apical.bench.experiment.yaml_values import read_yaml

    set_loader("apical", read_yaml, exceptions=(ValueError,))
    # else the name of a class in the place of a group of settings would be imported
    set_parsing_settings(subclasses_disabled=[dataclasses.is_dataclass])
    return ArgumentParser(
        parser_mode="apical",
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
    words = [_underscored(word) for word in words]
    _check_structures(words)
    try:
        values = parser.parse_args(words).as_dict()
    except ArgumentError as error:
        text = _explained(str(error), names)
        raise UsageError(f"{text} ({parser.prog} --help lists all options)") from error
    return values


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
    only if it is trusted, or the options beside it name the same.

    Raises: UsageError; ValueError naming the code.
    """
    from apical.bench.experiment import own_code
    from apical.bench.experiment.experiment import Experiment
    from apical.bench.experiment.yaml_values import check_file

    flags = [_underscored(word) for word in words]
    files = _values_of("--config", flags)
    kinds = type_hints(Experiment).items()
    groups = [n for n, kind in kinds if any(map(dataclasses.is_dataclass, (kind, *get_args(kind))))]
    for name in files:
        check_file(name, groups)
    values = parse(parser, words)
    if files and not values["trust"]:
        alone = parse(parser, _without("--config", flags))
        own_code.refuse(values, " and ".join(files), but=alone)
    return values


def _values_of(option: str, words: list[str]) -> list[str]:
    after = [value for word, value in itertools.pairwise(words) if word == option]
    return after + [w.partition("=")[2] for w in words if w.startswith(f"{option}=")]


def _without(option: str, words: list[str]) -> list[str]:
    kept = []
    skip = False
    for word in words:
        if not (skip or word == option or word.startswith(f"{option}=")):
            kept.append(word)
        skip = word == option
    return kept


def add_trust(parser: Any) -> None:
    """The option of every verb that reads settings from files."""
    parser.add_argument("--trust", default=False, action="store_true",
                        help="import code that the files read name, as my_rules:Mine")  # fmt: skip


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


def _underscored(word: str) -> str:
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
