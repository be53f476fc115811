"""Hamming distances by bit counts, and rankings by a counting sort.

Sizes: Q queries, N codes in the database, K bits. NumPy counts bits by the processor's own
instruction and sorts small whole numbers by counting; torch has neither.
"""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from apical.retrieval.codes import Codes

_BLOCK = 2_000_000  # distances held at a time: they stay in the cache of the processor


def distances(queries: Codes, database: Codes) -> Tensor:
    """How many bits differ, of each pair. Shapes: (Q, N), uint8 up to 255 bits, else int16."""
    _check_bits(queries, database)
    return torch.from_numpy(_distances(_words(queries), _words(database), database.bits))


def pairwise_distances(codes: Codes, others: Codes) -> Tensor:
    """How many bits differ between codes of the same place. Shapes: N codes each -> (N,) int64."""
    _check_bits(codes, others)
    if len(codes) != len(others):
        raise ValueError(f"{len(codes)} and {len(others)} codes do not pair up")
    words = _words(codes) ^ _words(others)
    return torch.from_numpy(np.bitwise_count(words).sum(1, dtype=np.int64))


def rank(queries: Codes, database: Codes, *, k: int | None = None) -> Tensor:
    """The k nearest codes to each query, nearest first, of ties the earlier in the database.

    Args: k: 1 to N; None: all of them.
    Shapes: (Q, k) int64.     Raises: ValueError for other k, or codes of other lengths.
    """
    orders = [order for _, order in rankings(queries, database, k=k)]
    return torch.cat([torch.empty(0, k or len(database), dtype=torch.int64), *orders])


def rankings(
    queries: Codes, database: Codes, *, k: int | None = None
) -> Iterator[tuple[slice, Tensor]]:
    """`rank`, some queries at a time: (which queries, their ranking), for less memory."""
    _check_bits(queries, database)
    check_k(k, len(database))
    for rows, block in blocks(queries, database):
        if k is None or k == len(database):
            order = block.argsort(axis=1, kind="stable")
        else:
            order = np.stack([_nearest(row, k, database.bits) for row in block])
        yield rows, torch.from_numpy(order)


def blocks(queries: Codes, database: Codes) -> Iterator[tuple[slice, np.ndarray]]:
    """`distances`, some queries at a time."""
    wanted, held = _words(queries), _words(database)
    step = max(1, _BLOCK // len(database))
    for start in range(0, len(queries), step):
        rows = slice(start, min(start + step, len(queries)))
        yield rows, _distances(wanted[rows], held, database.bits)


def check_k(k: int | None, size: int) -> None:
    """Raises: ValueError unless k items can be taken from so many."""
    if k is not None and not (isinstance(k, int) and 1 <= k <= size):
        raise ValueError(
            f"k={k}: the database holds {size} codes; k is 1 to {size}, or None for all"
        )


def _nearest(row: np.ndarray, k: int, bits: int) -> np.ndarray:
    within = np.bincount(row, minlength=bits + 1).cumsum()
    radius = int(np.searchsorted(within, k))  # the smallest that holds k codes
    found = np.flatnonzero(row <= radius)
    return found[row[found].argsort(kind="stable")[:k]]


def _distances(queries: np.ndarray, database: np.ndarray, bits: int) -> np.ndarray:
    total = np.zeros((len(queries), len(database)), np.uint8 if bits < 256 else np.int16)
    for query, held in zip(queries.T, database.T, strict=True):
        total += np.bitwise_count(query[:, None] ^ held)
    return total


def _words(codes: Codes) -> np.ndarray:
    """The codes as the widest whole numbers that hold them without much waste: (N, words)."""
    packed = codes.packed.numpy()
    width = packed.shape[1]
    size = next((s for s in (1, 2, 4, 8) if s >= width), 8)
    padded = np.zeros((len(packed), -(-width // size) * size), np.uint8)
    padded[:, :width] = packed
    return padded.view(f"u{size}")


def _check_bits(queries: Codes, database: Codes) -> None:
    if queries.bits != database.bits:
        raise ValueError(
            f"queries of {queries.bits} bits against a database of {database.bits}: codes of two"
            " nets cannot be compared"
        )
