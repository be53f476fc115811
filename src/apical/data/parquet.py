"""Parquet tables of encoded images, in the layout of the Hugging Face copies."""

import hashlib
import io
import os
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np

from apical.data.places import cache_folder, damaged

VERSION = 1  # of the decoded form; raise it when the decoding changes
IMAGE_COLUMNS = ("img", "image")
JPEG = b"\xff\xd8\xff"
Arrays = dict[str, np.ndarray]


def find_parquet(place: Path, split: str) -> list[Path]:
    """The shards `split-*.parquet` in a folder, in order; empty if there are none."""
    return sorted(place.glob(f"{split}-*.parquet"))


def read_parquet(
    shards: list[Path],
    *,
    count: int,
    classes: int,
    size: tuple[int, int],
    label: str,
    mode: Literal["L", "RGB"],
    again: str,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The images and labels of one split; decoded once, then read from the cache.

    Args: count: expected number of images.     classes: labels are 0 to classes - 1.
        size: height and width of the images in pixels.     label: name of the label column.
        mode: "L" (one channel) or "RGB".     again: how to replace a damaged file.
    Returns: uint8 (N, C, H, W), int64 (N,), and whether the images were stored as JPEG.
    Raises: DamagedFile (a ValueError) naming the file; ValueError if pyarrow or Pillow is missing.
    """
    pyarrow = _libraries()
    for shard in shards:
        if not shard.is_file():  # a pipe would never end
            raise damaged(shard, "no ordinary file", "a Parquet file", again)
    digests = [hashlib.md5(shard.read_bytes(), usedforsecurity=False) for shard in shards]
    joined = "".join(digest.hexdigest() for digest in digests) + f":{label}:{mode}:{VERSION}"
    key = "parquet-" + hashlib.sha256(joined.encode()).hexdigest()[:20]
    arrays = _cached(key, lambda: _decode(pyarrow, shards, label, mode, again))
    images, labels = arrays["images"], arrays["labels"]
    place = shards[0].parent
    check_images(place, images, labels, count=count, classes=classes, size=size, again=again)
    return images, labels, bool(arrays["jpeg"])


def check_images(
    path: Path,
    images: np.ndarray,
    labels: np.ndarray,
    *,
    count: int,
    classes: int,
    size: tuple[int, int],
    again: str,
) -> None:
    """Check the content of a file, of whatever format: number and size of images, and labels.

    Args: images: uint8 (N, C, H, W), or (N, C * H * W). labels: int64 (N,).
    Raises: DamagedFile (a ValueError) naming the file.
    """
    if len(labels) != count or len(images) != count:
        raise damaged(path, f"{len(labels)} images", f"{count} images", again)
    if labels.min() < 0 or labels.max() >= classes:
        got = f"labels {labels.min()}..{labels.max()}"
        raise damaged(path, got, f"labels 0..{classes - 1}", again)
    height, width = size
    flat = images.ndim == 2 and images.shape[1] % (height * width) == 0
    if not flat and images.shape[2:] != size:
        raise damaged(path, f"images {images.shape[1:]}", f"{height}x{width} pixels", again)


def _cached(key: str, make: Callable[[], Arrays]) -> Arrays:
    """The arrays of `make()`, from the cache if they are there.

    Written under another name and then renamed: a killed process leaves no incomplete file. A cache
    that cannot be read or written causes a warning and the time of decoding again, nothing else.
    """
    path = cache_folder() / "decoded" / f"{key}.npz"
    if path.is_file():
        try:
            # opened here: numpy leaves a file open when it is no archive
            with path.open("rb") as source, np.load(source, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            warnings.warn(f"{path} cannot be read ({error}); decoding again", stacklevel=3)
    arrays = make()
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as sink:
                np.savez(sink, **arrays)  # type: ignore[arg-type]
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
    except OSError as error:
        text = f"the decoded images could not be kept in {path}: {error}; set APICAL_CACHE"
        warnings.warn(text, stacklevel=3)
    return arrays


def _libraries() -> ModuleType:
    try:
        import PIL.Image  # noqa: F401
        import pyarrow.parquet
    except ImportError as error:
        raise ValueError(
            f"Parquet image tables need pyarrow and Pillow: {error}; pip install 'apical[bench]'"
        ) from error
    return pyarrow


def _decode(pyarrow: ModuleType, shards: list[Path], label: str, mode: str, again: str) -> Arrays:
    images: list[np.ndarray] = []
    labels: list[np.ndarray] = []
    jpeg = False
    for shard in shards:
        encoded, shard_labels = _columns(pyarrow, shard, label, again)
        jpeg = jpeg or any(image[:3] == JPEG for image in encoded)
        images.extend(_pixels(shard, row, image, mode, again) for row, image in enumerate(encoded))
        labels.append(shard_labels)
    if len({image.shape for image in images}) != 1:
        found = "images of several sizes" if images else "no images"
        raise damaged(shards[0], found, "images of one size", again)
    stacked = np.stack(images)
    stacked = stacked[:, None] if mode == "L" else stacked.transpose(0, 3, 1, 2)
    return {
        "images": np.ascontiguousarray(stacked),
        "labels": np.concatenate(labels),
        "jpeg": np.array(jpeg),
    }


def _columns(
    pyarrow: ModuleType, shard: Path, label: str, again: str
) -> tuple[list[bytes], np.ndarray]:
    try:
        table = pyarrow.parquet.read_table(shard, page_checksum_verification=True)
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise damaged(shard, reason, "a whole Parquet file", again) from error
    image = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    if image is None or label not in table.column_names:
        expected = f"{' or '.join(IMAGE_COLUMNS)} {{bytes, path}}, and {label}"
        raise damaged(shard, f"columns {table.column_names}", expected, again)
    kinds = pyarrow.types
    kind, labels = table.schema.field(image).type, table.column(label)
    parts = [kind.field(i) for i in range(kind.num_fields)] if kinds.is_struct(kind) else []
    binary = {p.name for p in parts if kinds.is_binary(p.type) or kinds.is_large_binary(p.type)}
    if "bytes" not in binary:
        raise damaged(shard, f"column {image!r} of type {kind}", "{bytes: binary, path}", again)
    if not kinds.is_integer(labels.type):
        raise damaged(shard, f"column {label!r} of type {labels.type}", "whole numbers", again)
    if labels.null_count:
        raise damaged(shard, f"{labels.null_count} labels that are null", "a label for each", again)
    encoded = table.column(image).combine_chunks().field("bytes")
    if encoded.null_count:
        raise damaged(shard, f"{encoded.null_count} images that are null", "bytes for each", again)
    return encoded.to_pylist(), labels.to_numpy().astype(np.int64)


def _pixels(shard: Path, row: int, encoded: bytes, mode: str, again: str) -> np.ndarray:
    from PIL import Image

    try:
        return np.asarray(Image.open(io.BytesIO(encoded)).convert(mode))
    except Exception as error:  # of bytes that are no image, decoders raise anything
        raise damaged(shard, f"row {row}: {error}", "an image", again) from error
