"""Records of a run: JSON lines that survive a kill, whole files that are never half written.

- A row is on disk when `append` returns: one `write` of complete lines, then `fsync`.
- A kill or a power cut loses at most the rows of the `append` under way. What it may leave, a last
  line without its newline or one that is not JSON, is dropped on reading and cut away by the next
  `append`.
- A write that fails (disk full, read-only folder) raises `StorageError`; the rows before are kept.
- `write_json` and `write_bytes`: a reader sees the old file or the new one, never a mixture.

A checkpoint stores a number of rows, not of bytes: the times in a row differ in length.
"""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from apical.bench.storage import schema

Record = Mapping[str, Any]
"""A row of a file of records."""
Pathlike = str | os.PathLike[str]
T = TypeVar("T")
K = TypeVar("K", bound=Hashable)

DIGEST = "sha256"
"""Key of a row under which its own digest is stored."""

RUN_DIGEST = "run_sha256"
"""Key of the last row of a run under which the digest of the whole run is stored."""

WHY = {
    errno.EACCES: "no permission",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would be larger than allowed",
    errno.ENOSPC: "the disk is full",
    errno.EROFS: "the file system is read-only",
}

NEARLY_FULL = 1 << 20
"""Bytes left on a disk that count as none."""


class StorageError(OSError):
    """A result could not be written: disk full, folder missing or not writable."""


def append(path: Pathlike, *rows: Record, digest: bool = False) -> None:
    """Add rows at the end of a JSON lines file and wait until they are on disk.

    Rows that belong together (one epoch: its losses and one row per layer) go into one call: after
    a kill they are mostly all there or all missing.
    Args:
        rows: flat mappings of text to text, finite numbers, booleans, None or lists of these.
        digest: store the SHA-256 of each row in it, as `sha256`; `read` verifies and removes it.
    Raises: ValueError for a value JSON cannot hold (nan, inf, tensors), naming row kind and key;
        StorageError when the disk is full or the folder is not writable; earlier rows stay intact.
    """
    data = b"".join(_line({**row, DIGEST: _row_digest(row)} if digest else row) for row in rows)
    path = Path(path)
    try:
        fresh = not path.exists()
        with open(path, "a+b", buffering=0) as file:
            whole = _drop_torn_tail(file)
            try:
                _write_all(file, data)
                os.fsync(file.fileno())
            except OSError:
                with contextlib.suppress(OSError):  # a torn line that stays is dropped on reading
                    file.truncate(whole)
                raise
        if fresh:
            _sync_folder(path.parent)
    except OSError as error:
        raise _storage_error(path, error, "the rows written before are intact") from error


def close(path: Pathlike, *rows: Record) -> None:
    """`append` of the last rows of a run.

    The very last one stores, as `run_sha256`, the SHA-256 of all rows and of the experiment.json
    and environment.json beside the file; `read` verifies and removes it.
    """
    every = [*read(path), *rows]
    append(path, *rows[:-1], {**rows[-1], RUN_DIGEST: _run_digest(Path(path), every)})


def read(path: Pathlike, *, warn: bool = True) -> list[dict[str, Any]]:
    """All complete rows of a JSON lines file.

    A torn last line, left by a kill, is dropped. A file that is not there has no rows.
    Args: warn: of a line that is dropped.
    Raises: ValueError when a line before the last is no JSON object, or a row differs from the
        SHA-256 that was stored with it, naming file and line; or when the rows of a finished run,
        or the experiment.json or environment.json beside them, are not those that it was finished
        with.
    """
    path = Path(path)
    if not path.exists():
        return []
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    rows, _, torn = _scan(path)
    stored = [row.pop(RUN_DIGEST) for row in rows if RUN_DIGEST in row]
    if stored and stored != [_run_digest(path, rows)]:
        raise ValueError(
            f"{path} is damaged, or was changed: its rows, or the experiment.json or "
            "environment.json beside it, are not those that the run was finished with. Restore "
            "them, or delete the run folder to train it anew"
        )
    if torn and warn:
        warnings.warn(f"{path}: dropped a torn last line ({torn} bytes)", stacklevel=2)
    return rows


def grouped(rows: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Rows by a key, in the order in which the keys appear."""
    groups: dict[K, list[T]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return groups


def digest(path: Pathlike, rows: int) -> str | None:
    """SHA-256 of the first `rows` rows of a JSON lines file as they are; None if it has fewer."""
    path = Path(path)
    lines = path.read_bytes().splitlines(keepends=True)[:rows] if path.exists() else []
    whole = len(lines) == rows and all(line.endswith(b"\n") for line in lines)
    return hashlib.sha256(b"".join(lines)).hexdigest() if whole else None


def truncate(path: Pathlike, rows: int) -> None:
    """Keep the first `rows` rows: a resumed run cuts what was written after its checkpoint.

    Afterwards the file holds what an undisturbed run had written at that point, times apart.
    Args: rows: number of rows the checkpoint remembers, 0 or more.
    Raises: ValueError when the file holds fewer complete rows than that (it is not the file the
        checkpoint was made with); StorageError when it cannot be written.
    """
    path = Path(path)
    _, ends, torn = _scan(path) if path.exists() else ([], [], 0)
    if not 0 <= rows <= len(ends):
        raise ValueError(
            f"{path} has {len(ends)} complete rows, the checkpoint was made after {rows}: "
            "they do not belong together; delete the run folder to start it anew"
        )
    if rows == len(ends) and not torn:
        return
    try:
        with open(path, "r+b", buffering=0) as file:
            file.truncate(ends[rows - 1] if rows else 0)
            os.fsync(file.fileno())
    except OSError as error:
        raise _storage_error(path, error, "nothing was cut") from error


def write_json(path: Pathlike, value: Any, *, indent: int = 2) -> None:
    """Write a JSON file as a whole or not at all; keys keep their order, a line for each value.

    Raises: ValueError for values JSON cannot hold; StorageError, the old file then stays as it was.
    """
    try:
        text = json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    write_bytes(path, (text + "\n").encode())


def read_json(path: Pathlike) -> Any:
    """Read a JSON file.

    A file with a shape in `schema.FILES` is checked against it.

    Raises: FileNotFoundError; ValueError when it is not JSON or of another shape, naming file and
        place.
    """
    path = Path(path)
    if not path.is_file() and path.exists():  # a folder, or a pipe, which would never end
        raise ValueError(f"{path} is not a file")
    try:
        value = json.loads(
            path.read_text(encoding="utf-8"), object_pairs_hook=_once, parse_constant=_no_number
        )
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if path.name in schema.FILES:
        schema.check(value, schema.FILES[path.name], str(path))
    return value


def remove_parts(folder: Path) -> None:
    """Remove what a kill in the middle of a write has left. Only for the holder of the claim."""
    for part in [*folder.glob("*.part"), *folder.glob(".*.tmp")]:
        part.unlink()


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The mapping of a JSON object, whose keys must differ."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} occurs twice")
    return found


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not a number of JSON")


def write_bytes(path: Pathlike, data: bytes) -> None:
    """Write a whole file or nothing: temporary file in the same folder, fsync, os.replace.

    Raises: StorageError; the old file then stays as it was and no temporary file is left.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
    try:
        with open(temporary, "xb", buffering=0) as file:
            _write_all(file, data)
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise _storage_error(path, error, "what was there before is unchanged") from error


def _line(row: Record) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        bad = [f"{key}={value!r}" for key, value in row.items() if not _is_json(value)]
        raise ValueError(
            f"row of kind {row.get('kind')!r}: JSON cannot hold {', '.join(bad)}; "
            "leave out keys without a finite value and convert tensors with .item()"
        ) from error


def _row_digest(row: Record) -> str:
    text = json.dumps({k: v for k, v in row.items() if k != DIGEST}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _run_digest(path: Path, rows: Iterable[Record]) -> str:
    files = [path.with_name(f"{name}.json") for name in ("experiment", "environment")]
    described = [read_json(file) if file.exists() else None for file in files]
    text = json.dumps([*described, *rows], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True


def _scan(path: Path) -> tuple[list[dict[str, Any]], list[int], int]:
    """Complete rows, the byte where each ends, and the number of bytes of a torn last line."""
    lines = path.read_bytes().splitlines(keepends=True)
    rows: list[dict[str, Any]] = []
    ends: list[int] = []
    end = 0
    for number, line in enumerate(lines, start=1):
        row = _parse(line)
        if row is None:
            if number == len(lines):
                return rows, ends, len(line)
            raise ValueError(
                f"{path}, line {number}: not a row of JSON; only the last line may be torn. "
                "The file was changed by something else: restore it or delete the run folder"
            )
        stored = row.pop(DIGEST, None)
        if stored is not None and stored != _row_digest(row):
            raise ValueError(
                f"{path}, line {number}: damaged, its content differs from the SHA-256 stored with "
                f"it. Cut the file before this line (head -n {number - 1}) and start the same "
                "command again: it goes on from the last good row"
            )
        end += len(line)
        rows.append(row)
        ends.append(end)
    return rows, ends, 0


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line, parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    return row if isinstance(row, dict) else None


def _drop_torn_tail(file: Any) -> int:
    """Cut a last line that a kill left unfinished or unreadable; returns the size that is left."""
    size = file.seek(0, os.SEEK_END)  # 0 for a device, which might never end
    file.seek(0)
    data = file.read(size)
    if len(data) < size:  # nothing may be cut then
        raise OSError(errno.EIO, "the file could not be read whole")
    start = data.rfind(b"\n", 0, max(0, len(data) - 1)) + 1  # the last byte ends the last line
    if not data or _parse(data[start:]) is not None:
        return size
    file.truncate(start)
    return start


def _write_all(file: Any, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]  # an unbuffered write may be partial


def _sync_folder(folder: Path) -> None:
    """Make a new or renamed file's name durable; folders cannot be opened on Windows."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: BaseException, path: Path) -> str:
    """Why a file could not be written, in plain words."""
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist"
    chain: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in chain:
        chain.append(cause)
        cause = cause.__cause__ or cause.__context__
    for each in chain:
        if isinstance(each, OSError) and each.errno in WHY:
            return WHY[each.errno]
    # torch's own writer says which of its checks failed, not why
    if shutil.disk_usage(path.parent).free < NEARLY_FULL:
        return WHY[errno.ENOSPC]
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text.splitlines()[0]


def _storage_error(path: Path, error: OSError, state: str) -> StorageError:
    return StorageError(
        f"cannot write {path}: {reason(error, path)}; {state}. "
        "Free some space or correct the folder's permissions, then start again"
    )
