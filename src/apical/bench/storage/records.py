"""Records of a run: JSON lines that survive a kill, whole files that are never half written.

What is promised, and how it is kept:

- A row is on disk when `append` returns: one `write` of complete lines, then `fsync`.
- A kill or a power cut loses at most the rows of the `append` under way. What it may leave, a last
  line without its newline or one that is not JSON, is dropped on reading (with a warning) and cut
  away by the next `append`.
- A write that fails (disk full, read-only folder) raises `StorageError`; the rows written before
  are intact, and the file is cut back to them.
- `write_json` and `write_bytes` go through a temporary file in the same folder, `fsync` and
  `os.replace`: a reader sees the old file or the new one, never a mixture.

The number of rows, not of bytes, is the position a checkpoint remembers: times differ in length
from run to run, rows do not differ in number.
"""

import contextlib
import json
import os
import secrets
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]
Pathlike = str | os.PathLike[str]


class StorageError(OSError):
    """A result could not be written: disk full, folder missing or not writable."""


def append(path: Pathlike, *rows: Row) -> None:
    """Add rows at the end of a JSON lines file and wait until they are on disk.

    Rows that belong together (one epoch: its losses and one row per layer) go into one call: after
    a kill they are mostly all there or all missing.
    Args: rows: flat mappings of text to text, finite numbers, booleans, None or lists of these.
    Raises: ValueError for a value JSON cannot hold (nan, inf, tensors), naming row kind and key;
        StorageError when the disk is full or the folder is not writable; earlier rows stay intact.
    """
    data = b"".join(_line(row) for row in rows)
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


def read(path: Pathlike) -> list[dict[str, Any]]:
    """All complete rows of a JSON lines file.

    A torn last line, left by a kill, is dropped with a warning. A file that is not there has no
    rows.
    Raises: ValueError when a line before the last is no JSON object, naming file and line.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows, _, torn = _scan(path)
    if torn:
        warnings.warn(f"{path}: dropped a torn last line ({torn} bytes)", stacklevel=2)
    return rows


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


def write_json(path: Pathlike, value: Any) -> None:
    """Write a JSON file as a whole or not at all; keys keep their order, two spaces of indent.

    Raises: ValueError for values JSON cannot hold; StorageError, the old file then stays as it was.
    """
    try:
        text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    write_bytes(path, (text + "\n").encode())


def read_json(path: Pathlike) -> Any:
    """Read a JSON file.

    Raises: FileNotFoundError; ValueError when it is not JSON, naming file, line and column.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error.reason}") from error
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}"
        ) from error


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


def _line(row: Row) -> bytes:
    try:
        return (json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n").encode()
    except (TypeError, ValueError) as error:
        bad = [f"{key}={value!r}" for key, value in row.items() if not _is_json(value)]
        raise ValueError(
            f"row of kind {row.get('kind')!r}: JSON cannot hold {', '.join(bad)}; "
            "leave out keys without a finite value and convert tensors with .item()"
        ) from error


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
        end += len(line)
        rows.append(row)
        ends.append(end)
    return rows, ends, 0


def _parse(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _drop_torn_tail(file: Any) -> int:
    """Cut a last line that a kill left unfinished or unreadable; returns the size that is left."""
    size = file.seek(0, os.SEEK_END)
    if not size:
        return 0
    start = _line_start(file, size)
    file.seek(start)
    if _parse(file.read(size - start)) is not None:
        return size
    file.truncate(start)
    return start


def _line_start(file: Any, end: int, block: int = 1 << 16) -> int:
    """Where the line that ends at byte `end` begins."""
    position = end - 1  # a newline at the very end belongs to this line
    while position > 0:
        begin = max(0, position - block)
        file.seek(begin)
        newline = file.read(position - begin).rfind(b"\n")
        if newline >= 0:
            return begin + newline + 1
        position = begin
    return 0


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


def _storage_error(path: Path, error: OSError, state: str) -> StorageError:
    reason = error.strerror or str(error)
    if not path.parent.is_dir():
        reason = f"the folder {path.parent} does not exist"
    return StorageError(
        f"cannot write {path}: {reason}; {state}. "
        "Free some space or correct the folder's permissions, then start again"
    )
