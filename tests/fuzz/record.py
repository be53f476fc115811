"""Run many fuzzed cases and record what came of them.

    python tests/fuzz/record.py 10000        # writes results/fuzz.json

Cases are drawn by hypothesis from a fixed seed; each kind gets the same number. Defects are printed
with their tracebacks; the exit status is 1 if there are any.
"""

import argparse
import collections
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import cases
from hypothesis import HealthCheck, Phase, given, seed, settings

from apical.bench.storage.environment import environment


def run(count: int, *, start: int = 0, limit: float = float("inf")) -> dict[str, dict[str, int]]:
    """Outcomes of so many cases of each kind. Args: limit: seconds for all kinds together."""
    found: dict[str, dict[str, int]] = {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        drawn = cases.strategies(place, cases.prepare(place))
        stop = time.monotonic() + limit
        for number, kind in enumerate(reversed(cases.KINDS)):  # the slowest last
            now = time.monotonic()
            end = now + (stop - now) / (len(cases.KINDS) - number)
            with cases.limited_memory():
                found[kind] = dict(judge_all(drawn[kind], count, start + number, end))
            print(f"{kind}: {found[kind]}", flush=True)
    return found


def judge_all(strategy: Any, count: int, start: int, end: float) -> collections.Counter[str]:
    """The outcomes of `count` cases, or of those until the time `end`."""
    counts: collections.Counter[str] = collections.Counter()

    @seed(start)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(strategy)
    def each(call: Any) -> None:
        if time.monotonic() > end:
            return
        log: list[str] = []
        outcome = cases.judged(call, log)
        counts[outcome] += 1
        if outcome in cases.DEFECTS:
            print(f"{outcome}: {log[-1]}", file=sys.stderr, flush=True)

    each()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("count", type=int, help="cases, over all kinds")
    parser.add_argument("--out", default="results/fuzz.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=float("inf"), help="seconds at most")
    given_ = parser.parse_args()
    begin = time.perf_counter()
    found = run(given_.count // len(cases.KINDS), start=given_.seed, limit=given_.limit)
    total = collections.Counter[str]()
    for counts in found.values():
        total.update(counts)
    here = environment()
    record = {
        "command": f"python tests/fuzz/record.py {given_.count}",
        "asked": given_.count,
        "cases": sum(total.values()),
        **{f"{name}s": total[name] for name in cases.DEFECTS},
        "seconds": round(time.perf_counter() - begin, 1),
        "seed": given_.seed,
        "kinds": found,
        "environment": here,
    }
    Path(given_.out).write_text(json.dumps(record, indent=2) + "\n")
    return int(any(total[name] for name in cases.DEFECTS))


if __name__ == "__main__":
    sys.exit(main())
