"""The contents of CIFAR's python and binary files, read without running code of the file."""

import codecs
import io
import pickle

import numpy as np

PIXELS = 3 * 32 * 32
# What a pickled dictionary of numpy arrays needs, under its old and its new name. The two
# functions are private to numpy and have moved; an array refers to their present place.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_FROMBUFFER = np.zeros(1).__reduce_ex__(5)[0]
HARMLESS: dict[tuple[str, str], object] = {
    ("_codecs", "encode"): codecs.encode,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
}


class ArraysOnly(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, bytes and numpy arrays; imports nothing."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it imports {module}.{name}, which is no data")
        return HARMLESS[module, name]


def read_python(content: bytes, label_key: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one pickled batch.

    Shapes: uint8 (N, 3072), int64 (N,).     Raises: ValueError if it is something else.
    """
    try:
        batch = ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        images, labels = batch[b"data"], np.asarray(batch[label_key.encode()], dtype=np.int64)
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"no batch of arrays: {error}") from error
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise ValueError("no batch of arrays: data is not uint8")
    if images.shape != (len(labels), PIXELS):
        raise ValueError(f"data {images.shape} does not fit {len(labels)} labels")
    return images, labels


def read_binary(content: bytes, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one binary batch; the last of `label_bytes` is the (fine) label.

    Shapes: uint8 (N, 3072), int64 (N,).     Raises: ValueError for a cut file.
    """
    row = label_bytes + PIXELS
    if len(content) % row or not content:
        raise ValueError(f"{len(content)} bytes, no whole number of {row}-byte images")
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64)
