"""MNIST and Fashion-MNIST, four IDX files each: a big-endian header, then bytes; maybe gzipped."""

import gzip
import hashlib
import math
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from apical.data.images import ImageData, Split
from apical.data.places import MissingData, cache_folder, candidates, damaged, download, missing

UNSIGNED_BYTE = 8


@dataclass(frozen=True)
class IdxSet:
    """A data set of four IDX files, with the md5 of the uncompressed content of each."""

    name: str
    subfolders: tuple[str, ...]
    md5: dict[str, str]
    mean: float
    std: float
    mirrors: tuple[str, ...]


MNIST = IdxSet(
    name="mnist",
    subfolders=("mnist", "mnist/raw", "MNIST", "MNIST/raw"),
    md5={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    mean=0.1307,
    std=0.3081,
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
)
FASHION_MNIST = IdxSet(
    name="fashion_mnist",
    subfolders=("fashion_mnist", "fashion-mnist", "FashionMNIST", "FashionMNIST/raw"),
    md5={
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    mean=0.2860,
    std=0.3530,
    mirrors=("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
)


def load_mnist(root: str | os.PathLike | None = None, *, download: bool = True) -> ImageData:
    """MNIST: 60,000 + 10,000 digits, 28x28, one channel.

    Source: LeCun, Cortes, Burges 1998. Licence CC BY-SA 3.0.
    """
    return _load(MNIST, root, download)


def load_fashion_mnist(
    root: str | os.PathLike | None = None, *, download: bool = True
) -> ImageData:
    """Fashion-MNIST: 60,000 + 10,000 pieces of clothing, 28x28, one channel.

    Source: Xiao, Rasul, Vollgraf 2017 (arXiv 1708.07747). Licence MIT.
    """
    return _load(FASHION_MNIST, root, download)


def read_idx(path: Path, *, md5: str | None, again: str) -> torch.Tensor:
    """The uint8 tensor in an IDX file.

    Args: md5: of the unpacked content; None = not checked.     again: how to replace the file.
    Raises: DamagedFile (a ValueError) for a wrong checksum, a truncated file or another format.
    Source: the format description at yann.lecun.com/exdb/mnist.
    """
    content = path.read_bytes()
    if content[:2] == b"\x1f\x8b":
        try:
            content = gzip.decompress(content)
        except (EOFError, OSError, zlib.error) as error:
            raise damaged(path, f"gzip: {error}", "a whole gzip file", again) from error
    want = f"md5 {md5} of the unpacked content" if md5 else "an IDX file of bytes"
    try:
        zero, kind, dims = struct.unpack_from(">HBB", content)
        if zero or kind != UNSIGNED_BYTE:
            raise damaged(path, f"the header reads {content[:4].hex()}", want, again)
        shape = struct.unpack_from(f">{dims}I", content, 4)
    except struct.error:
        raise damaged(path, f"only {len(content)} bytes, no header", want, again) from None
    start = 4 + 4 * dims
    if len(content) - start != math.prod(shape):
        size = start + math.prod(shape)
        raise damaged(path, f"{len(content)} bytes", f"{size} bytes for shape {shape}", again)
    if md5 and (found := hashlib.md5(content, usedforsecurity=False).hexdigest()) != md5:
        raise damaged(path, f"md5 {found}", want, again)
    # a copy: the bytes object is read-only, tensors are not
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=start).copy()).view(shape)


def _load(which: IdxSet, root: str | os.PathLike | None, allowed: bool) -> ImageData:
    paths = _find(which, root) or _download(which, root, allowed)
    again = f"delete it and load {which.name!r} again, or copy it from {which.mirrors[0]}"
    tensors = [read_idx(paths[file], md5=md5, again=again) for file, md5 in which.md5.items()]
    train, test = (
        Split(images.unsqueeze(1), labels.long()) for images, labels in (tensors[:2], tensors[2:])
    )
    folder = str(next(iter(paths.values())).parent)
    return ImageData(which.name, train, test, 10, (which.mean,), (which.std,), source=folder)


def _find(which: IdxSet, root: str | os.PathLike | None) -> dict[str, Path] | None:
    """The four files of the first place that has all of them, compressed by gzip or not."""
    for place in candidates(root, which.subfolders):
        paths = {
            file: path
            for file in which.md5
            for path in (place / f"{file}.gz", place / file)  # the last one is preferred
            if path.is_file()
        }
        if len(paths) == len(which.md5):
            return paths
    return None


def _download(which: IdxSet, root: str | os.PathLike | None, allowed: bool) -> dict[str, Path]:
    files = ", ".join(f"{file}[.gz]" for file in which.md5)
    if not allowed:
        raise missing(which.name, root, files, "Downloading was not allowed.")
    target = cache_folder() / "data" / which.subfolders[0]
    paths = {file: target / f"{file}.gz" for file in which.md5}
    try:
        for path in paths.values():
            download(tuple(mirror + path.name for mirror in which.mirrors), path, md5=None)
        return paths
    except MissingData as error:
        raise missing(which.name, root, files, str(error)) from error
