"""Claims: at most one process works on a folder, and none stays locked by a dead one.

A claim is a file ``claim-N.json``; the one of the highest N counts. To take a folder, a process
creates the file of the next N, which the file system grants to exactly one process, and only if
the last one is released or stale. Nothing is ever deleted while a run can still be taken, so a
process that was slow to look can never bring a second owner about.
"""

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HEARTBEAT = 10.0
"""Seconds between two signs of life of an owner."""

STALE_AFTER = 120.0
"""Seconds without a sign of life after which a claim of another machine counts as dead."""


class Held(Exception):
    """Another living process works on this folder."""


class Lost(Exception):
    """This process was taken for dead (suspended?) and another took the folder over."""


@dataclass
class Claim:
    """A claim this process holds on ``folder``."""

    folder: Path
    number: int

    def check(self) -> None:
        """Raises: Lost if another process has taken the folder over."""
        if _latest(self.folder) != self.number:
            raise Lost(f"{self.folder} was taken over by another process while this one hung")


@contextlib.contextmanager
def hold(folder: Path) -> Iterator[Claim]:
    """Hold the claim on a folder (created if absent) for the length of a block.

    Raises: Held, naming the owner, if a living process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    claim = _take(folder)
    stop = threading.Event()
    beat = threading.Thread(target=_beat, args=(claim, stop), daemon=True)
    beat.start()
    try:
        yield claim
    finally:
        stop.set()
        beat.join()
        if _latest(folder) == claim.number:
            _write(_path(folder, claim.number), {"released": True})


def clear(folder: Path) -> None:
    """Remove the claims of a folder in which nothing is left to be done."""
    for path in [_path(folder, number) for number in _numbers(folder)]:
        with contextlib.suppress(IsADirectoryError, PermissionError):
            path.unlink(missing_ok=True)


def owner(folder: Path) -> str | None:
    """Who holds the folder ("pid 12 on host"), or None if it is free."""
    latest = _latest(folder)
    if latest is None or _free(_path(folder, latest)):
        return None
    values = _read(_path(folder, latest))
    return f"pid {values.get('pid')} on {values.get('host')}"


def _take(folder: Path) -> Claim:
    latest = _latest(folder)
    if latest is not None and not _free(_path(folder, latest)):
        raise Held(f"{folder} is being worked on by {owner(folder) or 'another process'}")
    number = 0 if latest is None else latest + 1
    mine = folder / f"claim.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.part"
    _write(mine, _identity())
    try:
        os.link(mine, _path(folder, number))  # atomic, with its content, and fails if it is there
    except (FileExistsError, FileNotFoundError):  # taken, or finished and cleared
        raise Held(f"{folder} was just taken by another process") from None
    finally:
        mine.unlink(missing_ok=True)
    return Claim(folder, number)


def _free(path: Path) -> bool:
    """Whether a claim is released or its owner dead.

    Claims appear with their whole content, so one that is empty or cut was left by a crash of the
    machine. One of another shape may be that of another version, alive while it shows it.
    """
    values = _read(path)
    if values.get("released") is True:
        return True
    pid, started = values.get("pid"), values.get("started")
    ours = (values.get("host"), values.get("boot")) == (socket.gethostname(), _boot())
    if ours and type(pid) is int and pid > 0 and type(started) is int:
        return _started(pid) != started
    try:
        age = _now(path.parent) - path.stat().st_mtime
    except FileNotFoundError:
        return True
    return abs(age) > STALE_AFTER  # no living owner sets a time far ahead


def _now(folder: Path) -> float:
    """The time by the clock of the file system that holds the folder, which stamps the claims."""
    probe = folder / f"claim.{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}.now.part"
    try:
        probe.touch()
        os.utime(probe)
        return probe.stat().st_mtime
    except OSError:
        return time.time()
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _beat(claim: Claim, stop: threading.Event) -> None:
    while not stop.wait(HEARTBEAT):
        with contextlib.suppress(OSError):
            os.utime(_path(claim.folder, claim.number))


def _identity() -> dict[str, Any]:
    pid = os.getpid()
    return {"pid": pid, "host": socket.gethostname(), "boot": _boot(), "started": _started(pid)}


def _boot() -> str:
    """Which start of the machine, and which process namespace: numbers mean nothing elsewhere."""
    try:
        started = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{started} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> int | None:
    """When a process began, in clock ticks (0 where that is unknown); None if it is dead."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else int(fields[19])
    except OSError:
        if Path("/proc/self/stat").exists():
            return None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:
        pass
    return 0


def _path(folder: Path, number: int) -> Path:
    return folder / f"claim-{number}.json"


def _numbers(folder: Path) -> list[int]:
    names = (re.fullmatch(r"claim-(\d+)\.json", p.name) for p in folder.glob("claim-*.json"))
    return sorted(int(m[1]) for m in names if m)


def _latest(folder: Path) -> int | None:
    """The highest number, also where the folder's listing is older than that claim: on a shared
    file system a file may be opened by its name before other machines list it."""
    latest = max(_numbers(folder), default=-1)
    while _path(folder, latest + 1).exists():
        latest += 1
    return latest if latest >= 0 else None


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.exists() and not path.is_file():
            return {}
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {"released": True}  # cleared since: nothing is left to be done there
    except (ValueError, RecursionError):
        return {"released": True}  # cut: see _free
    except OSError:  # a folder, or no permission
        return {}
    return values if isinstance(values, dict) else {}


def _write(path: Path, values: dict[str, Any]) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.part")
    part.write_text(json.dumps(values))
    os.replace(part, path)
