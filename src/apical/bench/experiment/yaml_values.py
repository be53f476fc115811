"""YAML and JSON that users write: plain values, each key once.

YAML accepts silently what is mostly a mistake: of a repeated key the last value counts, 1.5 and
true may be keys, aliases can make one line stand for billions of values. Here these are errors.
"""

import stat
from collections.abc import Container
from pathlib import Path
from typing import Any

import yaml
from jsonargparse._loaders_dumpers import get_yaml_default_loader

LARGEST = 1 << 20
"""Bytes of a file of settings."""

DEEPEST = 50
"""Levels of nesting."""

CLASSES = {"class_path", "init_args"}
"""Keys by which jsonargparse would import a class in the place of a group of settings."""


class Loader(get_yaml_default_loader()):  # type: ignore[misc]  # made by a function of jsonargparse
    """Reads 1e-3 as a number, which is text in YAML 1.1."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for key in keys:
            if type(key) not in (str, int):
                raise ValueError(f"the key {key!r} is not a text: write it in quotes")
            if not CLASSES.isdisjoint(str(key).split(".")):
                raise ValueError(f"unknown key {key!r}: settings have no classes")
        texts = [str(key) for key in keys]
        for text in texts:
            if texts.count(text) > 1:
                raise ValueError(f"the key {text!r} occurs twice")
        return super().construct_mapping(node, deep)


def read_yaml(text: str) -> Any:
    """The value of a YAML or JSON text.

    Raises: ValueError for a text that is not YAML, for aliases, keys that are not texts or occur
        twice, and values nested too deep.
    """
    if len(text) > LARGEST:
        raise ValueError(f"{len(text)} characters of settings, at most {LARGEST} are read")
    try:
        depth = 0
        for event in yaml.parse(text, Loader=Loader):
            if isinstance(event, yaml.AliasEvent):
                raise ValueError(f"the alias *{event.anchor}: write the value out instead")
            depth += isinstance(event, yaml.MappingStartEvent | yaml.SequenceStartEvent)
            depth -= isinstance(event, yaml.MappingEndEvent | yaml.SequenceEndEvent)
            if depth > DEEPEST:
                raise ValueError(f"values are nested more than {DEEPEST} deep")
        value = yaml.load(text, Loader=Loader)  # a safe loader: no tag makes an object
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())}") from error
    except (RecursionError, OverflowError) as error:
        raise ValueError(f"not YAML that can be read: {error}") from error
    if isinstance(value, dict) and value and all(each is None for each in value.values()):
        words = set(text.strip(" {}").replace(" ", "").split(","))
        if words == set(value) or text.strip() == f"{next(iter(value))}:":
            return text  # as jsonargparse: {a, b} and a word before a colon are texts
    return value


def check_file(name: str, groups: Container[str] = ()) -> None:
    """Check a file of settings before it is read for its values.

    Args: groups: keys whose values are mappings: jsonargparse would import a class that stands
        there by its name.
    Raises: ValueError naming the file and what is wrong with it, without repeating its content.
    """
    path = Path(name)
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise ValueError(f"--config {name}: not a file")
        if status.st_size > LARGEST:
            raise ValueError(f"--config {name}: {status.st_size} bytes, at most {LARGEST} are read")
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"--config {name}: not UTF-8 text ({error.reason})") from error
    except OSError as error:
        raise ValueError(f"--config {name}: {error.strerror}") from error
    try:
        value = read_yaml(text)
    except ValueError as error:
        raise ValueError(f"--config {name}: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"--config {name}: expected settings, one a line, as 'epochs: 3'")
    for key in value:
        if not all(part.isidentifier() for part in str(key).split(".")):
            raise ValueError(f"--config {name}: {str(key)[:80]!r} is not the name of an option")
        several = value[key] if isinstance(value[key], list) else [value[key]]
        if str(key) in groups and any(isinstance(each, str) for each in several):
            raise ValueError(f"--config {name}: {key}: expected a mapping of its settings")
    for key in ("config", "trust"):
        if value.get(key):  # what --print_config writes has them unset
            raise ValueError(f"--config {name}: {key!r} can be given as an option only")
