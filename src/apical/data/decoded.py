"""Decoded images kept in the cache, so that a slow format is decoded once."""

import os
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np

from apical.data.places import cache_folder

Arrays = dict[str, np.ndarray]


def kept(key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of `make()`, from the cache if they are there.

    Written under another name and then renamed: a killed process leaves no half file. A cache
    that cannot be read or written costs the time of decoding again and a warning, no more.

    Args: key: names the content, e.g. by its checksum; usable as a file name.
    """
    path = cache_folder() / "decoded" / f"{key}.npz"
    if path.is_file():
        try:
            # opened here: numpy leaves a file open when it is no archive
            with path.open("rb") as source, np.load(source, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            warnings.warn(f"{path} cannot be read ({error}); decoding again", stacklevel=2)
    arrays = make()
    try:
        _write(path, arrays)
    except OSError as error:
        text = f"the decoded images could not be kept in {path}: {error}; set APICAL_CACHE"
        warnings.warn(text, stacklevel=2)
    return arrays


def _write(path: Path, arrays: Arrays) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as sink:
            np.savez(sink, **arrays)  # type: ignore[arg-type]
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
