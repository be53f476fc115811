"""Downloads: one file, checked, and moved to its place only when complete."""

import hashlib
import http.client
import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from apical.data.places import DamagedFile, MissingData

TIMEOUT_S = 30
BLOCK = 1 << 18


def download(urls: tuple[str, ...], target: Path, *, md5: str | None) -> Path:
    """Download `target` from the first of `urls` that has it.

    Args: md5: of the file as downloaded; None = the reader checks the content.
    Returns: target.     Raises: MissingData (a ValueError) with the reason for every url.
    """
    reasons = []
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    for url in urls:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            _fetch(url, part, md5)
            os.replace(part, target)
            return target
        # URLError and timeouts are OSErrors
        except (OSError, http.client.HTTPException, DamagedFile) as error:
            reasons.append(f"{url}: {error}")
        finally:
            part.unlink(missing_ok=True)
    raise MissingData("The download failed (" + "; ".join(reasons) + ").")


def _fetch(url: str, part: Path, md5: str | None) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as source, part.open("wb") as sink:
        length = source.headers.get("Content-Length")
        received = 0
        with _progress(url, int(length) if length else None) as advance:
            while block := source.read(BLOCK):
                sink.write(block)
                digest.update(block)
                received += len(block)
                advance(len(block))
    if length and received != int(length):
        raise DamagedFile(f"got {received} of {length} bytes")
    if md5 and digest.hexdigest() != md5:
        raise DamagedFile(f"md5 {digest.hexdigest()}, expected {md5}")


@contextmanager
def _progress(url: str, total: int | None) -> Iterator:
    """A function that counts bytes, with a progress bar if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn())
    with Progress(*columns, TransferSpeedColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(url.rsplit("/", 1)[-1], total=total)
        yield lambda count: bar.advance(task, count)
