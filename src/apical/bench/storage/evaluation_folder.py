"""The files of an evaluation of a trained net, whatever is evaluated."""

import hashlib
import io
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from apical.bench.experiment.execution import Execution
from apical.bench.storage import records
from apical.bench.storage.environment import environment

T = TypeVar("T")

CLASSIFIED = {
    "x": "kChw", "adv": "skChw", "names": "s", "labels": "k", "predictions_clean": "k",
    "predictions_adv": "sk",
}  # fmt: skip
RETRIEVED = {
    "x": "kChw", "adv": "skChw", "names": "s", "labels": "k", "precision": "ak", "found": "aknCHW",
    "found_labels": "akn",
}  # fmt: skip
"""Shape of each array in an examples.npz of each kind: k images, s attacks, a = s + 1 answers, n
items found, C = 1 or 3 colours."""

DIGESTS = "sha256.json"
"""SHA-256 of each file of results of a finished evaluation."""


def rows(folder: Path, last: str) -> list[dict[str, Any]]:
    """The rows of a finished evaluation, whose last is of the kind `last`; none while it is not."""
    verify(folder / "records.jsonl")
    found = records.read(folder / "records.jsonl")
    return found if found and found[-1].get("kind") == last else []


def check(folder: Path, key: str) -> None:
    """Raises: ValueError if the folder holds another evaluation."""
    path = folder / "setting.json"
    if path.exists() and (there := records.read_json(path).get("key")) != key:
        raise ValueError(
            f"{folder} holds the evaluation {there}, not {key}; it was left untouched: choose "
            "another folder"
        )


def describe(
    folder: Path,
    key: str,
    checkpoint: str,
    setting: Mapping[str, Any],
    execution: Execution,
    versions: Mapping[str, int],
) -> None:
    """Write what is evaluated, by what, and where.

    Args: checkpoint: digest of the net. versions: of all that decides what is found, by name.
    """
    records.remove_parts(folder)
    described = {
        "key": key,
        "versions": dict(versions),
        "checkpoint": checkpoint,
        "setting": dict(setting),
    }
    records.write_json(folder / "setting.json", described)
    records.write_json(folder / "environment.json", environment() | execution.recorded())


def write_rows(folder: Path, made: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows of the report, whole, and before them the digests of all results: the rows
    say that the evaluation is finished."""
    data = "".join(json.dumps(row, allow_nan=False) + "\n" for row in made).encode()
    digests = {"records.jsonl": hashlib.sha256(data).hexdigest()}
    for name in ("trials.jsonl", "examples.npz"):
        if (folder / name).exists():
            digests[name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    records.write_json(folder / DIGESTS, digests)
    records.write_bytes(folder / "records.jsonl", data)


def trials(folder: Path, read: Callable[[Mapping[str, Any]], T]) -> list[T]:
    """The attacks that are finished, in a folder that may have been left by a kill.

    Args: read: makes one of its row.
    Raises: ValueError naming a line that is not a row of an attack, or is damaged, with the remedy.
    """
    path = folder / "trials.jsonl"
    rows = records.read(path, warn=False)  # what follows the last whole row is done again
    found = []
    for number, row in enumerate(rows, 1):
        try:
            found.append(read(row))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise ValueError(
                f"{path}, line {number}: not a finished attack ({type(error).__name__}: {error}). "
                f"Cut the file before this line (head -n {number - 1}) and start the same command "
                "again: it goes on from the last good row"
            ) from error
    return found


def verify(path: Path) -> None:
    """Check a file of a finished evaluation against the SHA-256 that was stored at its end. Files
    of evaluations under way, or made by versions that stored none, pass.

    Raises: ValueError if it is damaged, with the remedy.
    """
    stored, finished = path.parent / DIGESTS, path.parent / "records.jsonl"
    if not (stored.exists() and finished.exists() and path.exists()):
        return
    digest = records.read_json(stored).get(path.name)
    if digest is not None and digest != hashlib.sha256(path.read_bytes()).hexdigest():
        raise ValueError(
            f"{path} is damaged, or was changed: its SHA-256 is not the one in {DIGESTS}. Remove "
            f"records.jsonl, {DIGESTS} and this file from {path.parent}, and start the same "
            "command again: it goes on from the attacks that are left in trials.jsonl"
        )


def write_examples(folder: Path, values: Mapping[str, Any]) -> None:
    """Write arrays of a few examples."""
    import numpy as np

    buffer, arrays = io.BytesIO(), {name: np.asarray(value) for name, value in values.items()}
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes a flag there
    records.write_bytes(folder / "examples.npz", buffer.getvalue())


def read_examples(path: Path, shapes: Mapping[str, str]) -> dict[str, Any]:
    """The arrays of an examples.npz.

    Args: shapes: of those it must hold in addition to `eps`, as in `CLASSIFIED`.
    Raises: ValueError saying what is wrong with it.
    """
    import numpy as np

    verify(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            values = {key: file[key] for key in file.files}
    except (zipfile.BadZipFile, zlib.error, ValueError, EOFError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if missing := sorted({*shapes, "eps"} - values.keys()):
        raise ValueError(f"{path} has no {', '.join(missing)}")
    sizes: dict[str, int] = {}
    for key, letters in shapes.items():
        shape = values[key].shape
        fits = len(shape) == len(letters) and all(
            sizes.setdefault(letter, size) == size
            for letter, size in zip(letters, shape, strict=True)
        )
        answers = sizes.get("s", 0) + 1
        if not fits or sizes.get("C", 1) not in (1, 3) or sizes.get("a", answers) != answers:
            expected = ", ".join(f"{name} ({', '.join(of)})" for name, of in shapes.items())
            raise ValueError(
                f"{path}: {key} {shape}: expected grey or colour images (C = 1 or 3) with the same "
                f"letter for the same size, a = s + 1, in {expected}"
            )
    return values
