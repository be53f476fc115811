"""IDX files, the format of MNIST: a big-endian header, then bytes; compressed by gzip or not."""

import gzip
import hashlib
import math
import struct
import zlib
from pathlib import Path

import numpy as np
import torch

from apical.data.errors import damaged

UNSIGNED_BYTE = 8


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
