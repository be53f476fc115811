"""Parquet tables of encoded images, in the layout of the Hugging Face copies."""

import hashlib
import io
from pathlib import Path
from types import ModuleType
from typing import Literal

import numpy as np

from apical.data.decoded import Arrays, kept
from apical.data.errors import damaged

VERSION = 1  # of the decoded form; raise it when the decoding changes
IMAGE_COLUMNS = ("img", "image")
JPEG = b"\xff\xd8\xff"


def find_parquet(place: Path, split: str) -> list[Path]:
    """The shards `split-*.parquet` in a folder, in order; empty if there are none."""
    return sorted(place.glob(f"{split}-*.parquet"))


def read_parquet(
    shards: list[Path],
    *,
    count: int,
    label: str,
    mode: Literal["L", "RGB"],
    again: str,
) -> tuple[np.ndarray, np.ndarray, bool]:
    """The images and labels of one split; decoded once, then read from the cache.

    Args: count: images there must be.     label: name of the label column.
        mode: "L" (one channel) or "RGB".     again: how to replace a damaged file.
    Returns: uint8 (N, C, H, W), int64 (N,), and whether the images were stored as JPEG.
    Raises: DamagedFile (a ValueError) naming the file; ValueError if pyarrow or Pillow is missing.
    """
    pyarrow = _libraries()
    digests = [hashlib.md5(shard.read_bytes(), usedforsecurity=False) for shard in shards]
    joined = "".join(digest.hexdigest() for digest in digests) + f":{label}:{mode}:{VERSION}"
    key = "parquet-" + hashlib.sha256(joined.encode()).hexdigest()[:20]
    arrays = kept(key, lambda: _decode(pyarrow, shards, label, mode, again))
    found = len(arrays["labels"])
    if found != count:
        names = ", ".join(shard.name for shard in shards)
        raise damaged(shards[0].parent, f"{names} hold {found} images", f"{count}", again)
    return arrays["images"], arrays["labels"], bool(arrays["jpeg"])


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
        raise damaged(shards[0], "images of several sizes", "one size", again)
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
    except (pyarrow.ArrowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise damaged(shard, reason, "a whole Parquet file", again) from error
    image = next((name for name in IMAGE_COLUMNS if name in table.column_names), None)
    if image is None or label not in table.column_names:
        expected = f"{' or '.join(IMAGE_COLUMNS)} {{bytes, path}}, and {label}"
        raise damaged(shard, f"columns {table.column_names}", expected, again)
    encoded = table.column(image).combine_chunks().field("bytes").to_pylist()
    return encoded, table.column(label).to_numpy().astype(np.int64)


def _pixels(shard: Path, row: int, encoded: bytes, mode: str, again: str) -> np.ndarray:
    from PIL import Image

    try:
        return np.asarray(Image.open(io.BytesIO(encoded)).convert(mode))
    except (OSError, SyntaxError, TypeError) as error:  # PIL's own errors derive from OSError
        raise damaged(shard, f"row {row}: {error}", "an image", again) from error
