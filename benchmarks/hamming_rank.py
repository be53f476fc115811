"""Ranking by packed bits against the same ranking by a float32 matrix product and a sort.

Both rank the whole database for every query, in blocks of queries; packed bits also break ties by
the order of the database, which the float sort does not. Timed side by side in one process.

    python benchmarks/hamming_rank.py                   # 10,000 queries, 50,000 codes of 64 bits
    python benchmarks/hamming_rank.py --quick           # small, with a check that both agree
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch
from pairs import compare
from torch import Tensor

from apical import retrieval

_ROWS = 40
"""Queries in a block, as the library takes them for 50,000 codes."""


def by_floats(queries: Tensor, database: Tensor) -> Tensor:
    """Ranking of blocks of queries; the last block's is returned."""
    order = torch.empty(0)
    for block in queries.split(_ROWS):
        order = (block @ database.T).sort(dim=1, descending=True).indices
    return order


def by_bits(queries: retrieval.Codes, database: retrieval.Codes) -> Tensor:
    """The same; codes are packed before, as a database is."""
    order = torch.empty(0)
    for _, block in retrieval.rankings(queries, database):
        order = block
    return order


def check(signs: Tensor, codes: retrieval.Codes, held: Tensor, database: retrieval.Codes) -> None:
    """Raises: AssertionError if the two rank by different distances, or ties are not in order."""
    order = retrieval.rank(codes, database)
    products = signs @ held.T
    expected = products.sort(dim=1, descending=True, stable=True).indices
    assert torch.equal(order, expected)


def seconds(step: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    step()
    return time.process_time() - start


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--database", type=int, default=50_000)
    parser.add_argument("--bits", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7, help="interleaved, of 400 queries each")
    parser.add_argument("--whole", action="store_true", help="also time all queries once each way")
    parser.add_argument("--quick", action="store_true", help="200 queries, 2,000 codes, 1 round")
    options = parser.parse_args(arguments)
    if options.quick:
        options.queries, options.database, options.rounds = 200, 2000, 1
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    signs, held = (
        torch.randn(count, options.bits, generator=generator).sign()
        for count in (options.queries, options.database)
    )
    queries, database = retrieval.pack(signs), retrieval.pack(held)
    check(signs[:50], queries[:50], held, database)
    few = min(400, options.queries)
    times = compare(
        lambda: by_bits(queries[:few], database),
        {"floats": lambda: by_floats(signs[:few], held)},
        rounds=options.rounds,
        seed=0,
    )["floats"].summary()
    print(
        f"{few} queries, {options.database} codes of {options.bits} bits, one thread: packed bits"
        f" are {times['cpu_ratio']:.1f} times faster (CPU time; {times['wall_ratio']:.1f} by the"
        f" wall clock; float32 {times['cpu_ms']:.0f} ms)"
    )
    if options.whole:
        slow = seconds(lambda: by_floats(signs, held))
        fast = seconds(lambda: by_bits(queries, database))
        print(f"{options.queries} queries: {slow:.1f} s and {fast:.1f} s, {slow / fast:.1f} times")


if __name__ == "__main__":
    main()
