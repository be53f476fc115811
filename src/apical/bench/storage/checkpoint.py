"""Checkpoints: one file of tensors and plain values, written whole or not at all."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from apical.bench.storage import records, schema
from apical.nets.pretrained import sealed

FORMAT = 2
"""Raised when the content of a checkpoint changes its meaning. Format 1 had no digest."""

SHAPE = {
    "model": dict,
    "optimizer": dict,
    "scaler": dict,
    "position": dict,
    "processes": [{"sums": torch.Tensor, "random": torch.Tensor}],
    "rows": schema.COUNT,
    "records?": str,
    "data?": str,
}
"""What the state of a run consists of."""

INTERRUPTS = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR2") if hasattr(signal, name)
]
"""Ctrl-C, the end of a job, and the notice that Slurm gives before one (through submitit)."""


def save(path: Path, state: dict[str, Any], *, belongs_to: dict[str, Any]) -> None:
    """Write a checkpoint so that a reader sees the old file or the new one, never a part. The old
    one is kept under the name that ``previous`` gives.

    Args: state: tensors, numbers, strings, None, and lists, tuples and dicts of them.
        belongs_to: plain values a later ``load`` must match (experiment key, versions, ...).
    Raises: OSError naming the file if it cannot be written; the old file then still stands.
    """
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with _interrupts_held():
            with part.open("w+b") as file:
                torch.save({"format": FORMAT, "belongs_to": belongs_to, "state": state}, file)
                sealed.seal(file)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(OSError):  # a file system without links keeps one checkpoint
                link = path.with_name(f"{path.name}.{os.getpid()}.link")
                os.link(path, link)
                os.replace(link, previous(path))
            os.replace(part, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        why = records.reason(error, path)
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise records.StorageError(
            f"cannot write the checkpoint {path}: {why}. The last one still stands: make room or "
            "fix the permissions, and start the same command again to go on"
        ) from error


def previous(path: Path) -> Path:
    """Where the checkpoint before the one under ``path`` is kept until the run is finished."""
    return path.with_stem(f"{path.stem}.previous")


@contextlib.contextmanager
def _interrupts_held() -> Iterator[None]:
    """Interrupts wait for the end of the block: inside torch's writer an interrupt would
    come out as an error of the file."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    held: list[int] = []
    before = {
        number: signal.signal(number, lambda number, frame: held.append(number))
        for number in INTERRUPTS
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        for waiting in held:
            signal.raise_signal(waiting)


def load(path: Path, *, belongs_to: dict[str, Any], ignoring: Sequence[str] = ()) -> dict[str, Any]:
    """The state saved under ``path``, if it belongs to what is to be continued.

    Args: ignoring: names in ``belongs_to`` that may differ.
    Raises: ValueError as ``read`` does, or naming what differs if it belongs elsewhere.
    """
    state, found = read(path)
    names = sorted((found.keys() | belongs_to.keys()) - set(ignoring))
    differences = [
        f"{name}: {found.get(name)!r}, not {belongs_to.get(name)!r}"
        for name in names
        if found.get(name) != belongs_to.get(name)
    ]
    if differences:
        raise ValueError(
            f"{path} belongs to another run ({', '.join(differences)}). It was left untouched: use "
            "another folder, or the settings it was made with"
        )
    schema.check(state, SHAPE, str(path))
    return state


def read(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The state saved under ``path``, and what it belongs to.

    The SHA-256 in the file is verified first. Then tensors and plain values are loaded, nothing
    else (``weights_only=True``): no code of a file is ever run.

    Raises: ValueError if the file is damaged, of another format or incomplete.
    """
    remedy = "There is no older checkpoint beside it: restore it"
    if previous(path).exists():
        remedy = f"Go on from the checkpoint before it: mv {previous(path)} {path}"
    remedy += f", or remove it and {path.parent / 'records.jsonl'} to train the run anew"
    try:
        has_digest = sealed.check(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError):
        raise
    except sealed.Damaged as error:
        raise ValueError(f"{error}. {remedy}") from error
    except Exception as error:  # of a damaged file the reader raises anything
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        raise ValueError(f"{path} is not a readable checkpoint ({reason}). {remedy}") from error
    given = content.get("format") if isinstance(content, dict) else None
    if given not in (1, FORMAT) or isinstance(given, bool):
        raise ValueError(
            f"{path} has checkpoint format {given}, this version of apical reads {FORMAT} and 1. "
            "Use the version that wrote it (environment.json names it), or train anew elsewhere"
        )
    if given == FORMAT and not has_digest:
        raise ValueError(f"{path} is damaged: the SHA-256 at its end is lost. {remedy}")
    schema.check(content, {"state": dict, "belongs_to": dict}, str(path))
    return content["state"], content["belongs_to"]
