"""One check of shape for everything that is read from a file: names, types, ranges, and where.

A shape is a type, a tuple of types, `[shape]` for a list, `{name: shape}` for a mapping with these
names (`"name?"` may be absent; others are allowed), or `{str: shape}` for a mapping of any names.
Whole numbers pass for `float`, and True for no number. Numbers must be finite.
"""

import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

Shape = Any

NUMBER = (int, float)

COUNT = "a whole number of at least 0"
"""A shape beside the types: rows, epochs, steps."""

MAYBE_NAN = "a number, nan included"
"""Another one: what was not measured yet."""

WORDS: Mapping[Any, str] = {
    COUNT: COUNT,
    MAYBE_NAN: "a number",
    bool: "true or false",
    dict: "a mapping",
    float: "a finite number",
    int: "a whole number",
    list: "a list",
    str: "a text",
}
"""How errors call the shapes."""

ENDS = ("final", "stopped")
"""Kinds of the row that closes a run: trained to the end, or ended by a non-finite loss."""

EXPERIMENT_FILE: Shape = {
    "experiment": dict,
    "key?": str,
    "versions?": {str: int},
    "code?": {str: str},
}
RUN_FILE: Shape = EXPERIMENT_FILE | {"key": str, "versions": {str: int}}
"""An experiment.json that says which run lies beside it."""

SETTING_FILE: Shape = {"setting": dict, "key?": str, "versions?": {str: int}, "checkpoint?": str}
ENVIRONMENT_FILE: Shape = {"resumed_with?": [dict]}

_NAMED: Shape = {"setting": str, "rule": str}
_RUN: Shape = {"folder": str, **_NAMED, "seed": int}
_PUBLISHED: Shape = {
    **_NAMED,
    "metric": str,
    "value": float,
    "unit": str,
    "source": str,
    "n?": int,
    "other_scale?": str,
}
STUDY_FILE: Shape = {
    "name": str,
    "title": str,
    "tier": str,
    "command": str,
    "runs": [{**_RUN, "command?": str}],
    "published": [_PUBLISHED],
    "notes": [str],
    "search?": [{**_NAMED, "lr": float, "tries": [{"lr": float}]}],
    "curves?": [{**_NAMED, "metric": str, "values": {str: float}, "source": str}],
    "robustness?": [{**_RUN, "evaluation": str}],
    "retrieval?": [{**_RUN, "evaluation": str}],
    "robust_published?": [{**_PUBLISHED, "attack": str, "eps": float}],
}

FILES: Mapping[str, Shape] = {
    "environment.json": ENVIRONMENT_FILE,
    "experiment.json": EXPERIMENT_FILE,
    "setting.json": SETTING_FILE,
    "sha256.json": {str: str},
    "study.json": STUDY_FILE,
}
"""Shapes of the JSON files of runs and studies."""

COUNTS = "count epoch examples feedback_bytes parameters step".split()
TEXTS = "before kind reason rule verdict where".split()
NUMBERS = ("_acc", "_loss", "_map", "_ms", "_deg", "accuracy")
SHARES = ("_acc", "accuracy")
"""Names of values in rows, or ends of names, that are counts, texts, numbers, shares in [0, 1]."""

OF_KIND: Mapping[str, tuple[str, ...]] = {
    "epoch": ("epoch",),
    "final": ("epoch",),
    "layer": ("layer",),
    "stopped": ("reason",),
    "test": ("epoch",),
}
"""Names that a row of a kind must have."""


def check(value: Any, shape: Shape, where: str) -> None:
    """Check a value that was read from a file.

    Args: where: the file, and the line if it has lines.
    Raises: ValueError naming file, place, what was found and what is allowed.
    """
    if problem := _problem(value, shape, ""):
        raise ValueError(f"{where}: {problem}")


def check_rows(rows: Sequence[Mapping[str, Any]], where: str) -> None:
    """Check the rows of a records.jsonl. Raises: ValueError as `check` does, with the line."""
    for number, row in enumerate(rows, 1):
        if problem := _problem_of_row(row):
            raise ValueError(f"{where}, line {number}: {problem}")


def _problem_of_row(row: Mapping[str, Any]) -> str:
    """What does not fit, "" if all does."""
    kind = row.get("kind")
    if not isinstance(kind, str):
        return f"kind is {_short(kind)}, expected a text"
    for name in OF_KIND.get(kind, ()):
        if name not in row:
            return f"a row of kind {kind!r} without {name!r}"
    for name, value in row.items():
        shape = _shape_of(name)
        if shape is None or value is None:
            continue
        if problem := _problem(value, shape, name):
            return problem
        if name.endswith(SHARES) and not 0 <= value <= 1:
            return f"{name}={value} is outside [0, 1]"
    return ""


@functools.cache
def _shape_of(name: str) -> Shape:
    if name in TEXTS:
        return str
    if name in COUNTS:
        return COUNT
    return float if name.endswith(NUMBERS) and name != "zero_loss" else None


def _problem(value: Any, shape: Shape, place: str) -> str:
    """What does not fit, "" if all does."""
    kind = type(shape) if isinstance(shape, list | Mapping) else shape
    if not _is(value, kind):
        expected = WORDS.get(kind) or f"a {kind.__name__}"
        return f"{place or 'it'} is {_short(value)}, expected {expected}"
    if isinstance(shape, list):
        inner = (_problem(v, shape[0], f"{place}[{i}]") for i, v in enumerate(value))
        return next(filter(None, inner), "")
    if not isinstance(shape, Mapping):
        return ""
    if str in shape:
        inner = (_problem(v, shape[str], f"{place}.{k}".lstrip(".")) for k, v in value.items())
        return next(filter(None, inner), "")
    for key, each in shape.items():
        name = key.removesuffix("?")
        inside = f"{place}.{name}".lstrip(".")
        if name not in value:
            if name == key:
                return f"{inside} is missing"
        elif problem := _problem(value[name], each, inside):
            return problem
    return ""


def _is(value: Any, kind: Any) -> bool:
    if kind is list:
        return isinstance(value, list | tuple)
    if kind is dict:
        return isinstance(value, Mapping)
    if kind not in (float, int, COUNT, MAYBE_NAN):
        return isinstance(value, kind)
    if not isinstance(value, NUMBER) or isinstance(value, bool):
        return False
    if kind is float:
        return math.isfinite(value)
    return kind == MAYBE_NAN or (isinstance(value, int) and (kind is int or value >= 0))


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
