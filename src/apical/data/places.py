"""Where data sets are searched for, their download, and the errors of missing and damaged ones."""

import hashlib
import http.client
import os
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

TIMEOUT_S = 30
BLOCK = 1 << 18


class MissingData(ValueError):
    """A data set was not found; the text lists the ways to get it."""


class DamagedFile(ValueError):
    """A data file has unexpected content; the text names the file and says how to replace it."""


def damaged(path: object, found: str, expected: str, again: str) -> DamagedFile:
    """The error for one damaged file.

    Args: found: what it contains.     expected: checksum, size or format.     again: how to replace
        it.
    """
    return DamagedFile(f"{path} is damaged: {found}; expected {expected}. To get it again: {again}")


def cache_folder() -> Path:
    """APICAL_CACHE, else apical in XDG_CACHE_HOME, else ~/.cache/apical. Need not exist yet."""
    named = os.environ.get("APICAL_CACHE")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "apical"


def roots(root: str | os.PathLike | None) -> list[Path]:
    """The folders that may contain data sets, in the order of the search.

    Raises: MissingData (a ValueError) if a folder that was given does not exist.
    """
    found = []
    for origin, folder in (("root", root), ("APICAL_DATA", os.environ.get("APICAL_DATA"))):
        if not folder:
            continue
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise MissingData(f"{origin}={str(folder)!r} is not a folder; name one that exists")
        found.append(path)
    return [*found, cache_folder() / "data"]


def candidates(root: str | os.PathLike | None, subfolders: tuple[str, ...]) -> list[Path]:
    """Existing folders that may contain one data set: these subfolders of each root.

    A root given as an argument may also be the folder of the data set itself.
    """
    places = [place / sub for place in roots(root) for sub in subfolders]
    if root:
        places.insert(0, Path(root).expanduser())
    return [place for place in places if place.is_dir()]


def missing(
    name: str, root: str | os.PathLike | None, files: str, failed: str, *, downloads: bool = True
) -> MissingData:
    """The error for a data set that was not found: where it was searched, and every way to get it.

    Args: files: the files that would have been recognised.     failed: why it was not downloaded.
        downloads: whether it can be downloaded at all.
    """
    searched = ", ".join(str(place) for place in roots(root))
    by_hand = (
        f"put {files} into <folder>/{name} and give <folder> as root= (--data-root) or in the "
        "environment variable APICAL_DATA"
    )
    ways = f"To use it, {by_hand}"
    if downloads:
        ways = (
            "Ways to get it: (1) with a network, load it with download allowed; it is kept in "
            f"{cache_folder() / 'data'}; (2) {by_hand}"
        )
    return MissingData(
        f"data set {name!r} was not found in {searched}. {failed} {ways}. "
        "The data set 'digits' needs no files."
    )


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
