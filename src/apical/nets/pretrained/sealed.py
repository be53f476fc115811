"""Files of tensors that contain their own SHA-256, so that no damaged weights are used.

torch.save writes a zip archive. The digest is in the comment of that archive, the last bytes of the
file: torch and every other reader of zip files read it as before.
"""

import hashlib
import os
import re
import zipfile
import zlib
from pathlib import Path
from typing import BinaryIO

MARK = b"apical sha256 "
LENGTH = len(MARK) + 64
"""Bytes of the comment: the mark and the digest in hexadecimal."""

END = b"PK\x05\x06"
"""Begins the record that ends a zip archive; its last two bytes are the length of the comment."""
END_LENGTH = 22


class Damaged(ValueError):
    """The content of a file is not what was written."""


def seal(file: BinaryIO) -> None:
    """Add the digest to an archive that was just written.

    Args: file: open for reading and writing.
    Raises: OSError as writing does.
    """
    end = file.seek(0, os.SEEK_END)
    file.seek(end - END_LENGTH)
    record = file.read(END_LENGTH)
    assert record[:4] == END and record[-2:] == b"\0\0", "torch.save wrote no plain zip archive"
    file.seek(end - 2)
    file.write(LENGTH.to_bytes(2, "little"))
    digest = _digest(file, end)
    file.seek(end)
    file.write(MARK + digest.encode())


def check(path: Path) -> bool:
    """Whether a file contains a digest, and it is correct.

    For an archive without one, as earlier versions wrote it, the checksums of its entries are
    verified instead. Files of other formats are accepted.

    Raises: Damaged if the content differs from the digest or from the checksums.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise Damaged(f"{path} is no ordinary file")
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - LENGTH))
        comment = file.read()
        if found := re.fullmatch(re.escape(MARK) + rb"([0-9a-f]{64})", comment):
            stored, computed = found[1].decode(), _digest(file, size - LENGTH)
            if computed != stored:
                raise Damaged(
                    f"{path} is damaged: its SHA-256 is {computed[:12]}..., {stored[:12]}... was "
                    "stored when it was written"
                )
            return True
        file.seek(0)
        if file.read(4) != b"PK\x03\x04":
            return False
        try:
            with zipfile.ZipFile(file) as archive:
                entry = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, OSError) as error:
            raise Damaged(f"{path} is damaged: {error}") from error
    if entry is not None:
        raise Damaged(f"{path} is damaged: the checksum of its entry {entry} differs")
    return False


def _digest(file: BinaryIO, size: int) -> str:
    """Of the first bytes of a file."""
    found = hashlib.sha256()
    file.seek(0)
    left = size
    while left and (block := file.read(min(left, 1 << 20))):
        found.update(block)
        left -= len(block)
    return found.hexdigest()
