"""Timing steps against a base step: adjacent pairs in one process, in random order.

A round runs base, A, base, B, base, ... with A, B, ... in random order. The ratio of A in that
round is its time over the mean of the two adjacent base runs; the result is the median over rounds.
A second copy of the base among them, the control, must have the ratio 1.

Ratios use two clocks: wall time, and CPU time of the process. On a machine with other load
the wall clock also measures that load; the CPU clock does not. With several threads the CPU clock
also counts threads that wait for each other.
"""

from __future__ import annotations

import gc
import math
import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

SLOT = 0.1
"""Seconds of CPU time. Steps are repeated until they fill a slot: in a shorter one the weights of
the base, which runs in every second slot, would be in the cache and those of the others not."""
MOST_REPEATS = 500

Step = Callable[[], None]


@dataclass
class Times:
    """Milliseconds of a step and its ratios to the base, one entry per round."""

    wall_ms: list[float] = field(default_factory=list)
    cpu_ms: list[float] = field(default_factory=list)
    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    def summary(self) -> dict[str, float]:
        """Medians, and the half width of the middle half of the rounds' ratios."""
        row = {"wall_ratio": statistics.median(self.wall), "cpu_ratio": statistics.median(self.cpu)}
        for clock, ratios in (("wall", self.wall), ("cpu", self.cpu)):
            if len(ratios) > 3:
                low, _, high = statistics.quantiles(ratios, n=4)
                row[f"{clock}_spread"] = (high - low) / 2
        row["wall_ms"] = statistics.median(self.wall_ms)
        row["cpu_ms"] = statistics.median(self.cpu_ms)
        return {key: round(value, 4) for key, value in row.items()}


def compare(base: Step, others: Mapping[str, Step], *, rounds: int, seed: int) -> dict[str, Times]:
    """The times of every contestant relative to `base`.

    Args: rounds: at least 1.     seed: of the order within each round.
    """
    order = random.Random(seed)
    repeats = {name: _warm(step) for name, step in {"": base, **others}.items()}
    results = {name: Times() for name in others}
    gc.collect()
    gc.disable()  # a collection would hit one contestant and not its neighbour
    try:
        for _ in range(rounds):
            before = _timed(base, repeats[""])
            for name in order.sample(list(others), len(others)):
                wall, cpu = _timed(others[name], repeats[name])
                after = _timed(base, repeats[""])
                row = results[name]
                row.wall_ms.append(1000 * wall)
                row.cpu_ms.append(1000 * cpu)
                row.wall.append(2 * wall / (before[0] + after[0]))
                row.cpu.append(2 * cpu / (before[1] + after[1]))
                before = after
            gc.collect()
    finally:
        gc.enable()
    return results


def _warm(step: Step) -> int:
    """Run a step until it is warm; how often to repeat it in a slot."""
    for _ in range(2):
        step()
    _, cpu = _timed(step, 1)
    return math.ceil(SLOT / max(cpu, SLOT / MOST_REPEATS))


def _timed(step: Step, repeats: int) -> tuple[float, float]:
    """Seconds of one step: (wall, CPU of the process)."""
    cpu, wall = time.process_time(), time.perf_counter()
    for _ in range(repeats):
        step()
    return (time.perf_counter() - wall) / repeats, (time.process_time() - cpu) / repeats
