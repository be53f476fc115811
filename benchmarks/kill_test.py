"""Kill a training run at random moments, start it again each time, compare with an undisturbed run.

    python benchmarks/kill_test.py --kills 20 --out results/kill_test.json

Every kill is SIGKILL. The result must be bitwise the same: weights, optimizer, random states, and
all records but times and memory. The rule is brSF, whose feedback changes at every step.
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

SETTINGS = (
    "--data digits --net mlp --net_options.hidden [64,32] --rule brsf --optimizer adam --lr 0.002 "
    "--epochs 40 --batch_size 32 --augment flip_crop --validation 200 --schedule.kind cosine "
    "--checkpoint_steps 7 --quiet true"
).split()
TIMES = ("seconds", "cpu_seconds", "step_ms", "step_cpu_ms", "memory_mb")


def command(folder: Path, settings: list[str]) -> list[str]:
    return [sys.executable, "-m", "apical", "train", "--folder", str(folder), *settings]


def finish(folder: Path, settings: list[str]) -> float:
    """Run to the end without disturbance; returns the seconds it took."""
    begin = time.monotonic()
    done = subprocess.run(command(folder, settings), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the run failed:\n{done.stdout}{done.stderr}")
    return time.monotonic() - begin


def kill_once(folder: Path, settings: list[str], delay: float) -> dict[str, Any] | None:
    """Start the run and kill it after ``delay`` seconds; None if it ended before."""
    begun = command(folder, settings)
    with subprocess.Popen(begun, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            _, told = process.communicate(timeout=delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return {"delay": round(delay, 3), **position(folder)}
    if process.returncode:
        raise RuntimeError(f"the run failed: {told.decode()}")
    return None


def position(folder: Path) -> dict[str, Any]:
    """How far the killed run had come: its last checkpoint's step, and rows written since."""
    path = folder / "checkpoint.pt"
    rows = len((folder / "records.jsonl").read_bytes().splitlines()) if path.exists() else 0
    if not path.exists():
        return {"step": 0, "rows_beyond": rows}
    state = torch.load(path, weights_only=True)["state"]
    return {"step": state["position"]["step"], "rows_beyond": rows - state["rows"]}


def differences(one: Path, other: Path) -> list[str]:
    """Names of everything that is not bitwise the same in two run folders."""
    first, second = (comparable(folder) for folder in (one, other))
    return sorted(
        name
        for name in first.keys() | second.keys()
        if name not in first or name not in second or not same(first[name], second[name])
    )


def comparable(folder: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in (folder / "records.jsonl").read_text().splitlines()]
    kept = [{k: v for k, v in row.items() if k not in TIMES} for row in rows]
    state = torch.load(folder / "checkpoint.pt", weights_only=True)["state"]
    flat = {"records": kept, "rows": state["rows"], "step": state["position"]["step"]}
    flatten("model", state["model"], flat)
    flatten("optimizer", state["optimizer"], flat)
    flatten("processes", state["processes"], flat)
    return flat


def flatten(name: str, value: Any, into: dict[str, Any]) -> None:
    if isinstance(value, dict):
        for key, part in value.items():
            flatten(f"{name}.{key}", part, into)
    elif isinstance(value, list | tuple):
        for key, part in enumerate(value):
            flatten(f"{name}.{key}", part, into)
    else:
        into[name] = value


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return bool(a == b)


def kill_test(kills: int, seed: int, settings: list[str], scratch: Path) -> dict[str, Any]:
    """Do ``kills`` kills, over as many runs as that takes; compare each run that ended."""
    draw = random.Random(seed)
    seconds = finish(scratch / "undisturbed", settings)
    start_up = imported_in()
    done: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    while len(done) < kills:
        folder = scratch / f"killed-{len(compared)}"
        while True:
            delay = draw.uniform(0.7 * start_up, 0.5 * (start_up + max(seconds, 1.5 * start_up)))
            happened = kill_once(folder, settings, delay) if len(done) < kills else None
            if happened is None:
                break
            done.append({"run": len(compared), **happened})
        finish(folder, settings)
        apart = differences(scratch / "undisturbed", folder)
        compared.append({"run": len(compared), "differences": apart})
        shutil.rmtree(folder)
    return {
        "kills": done,
        "runs": compared,
        "bitwise_equal": not any(run["differences"] for run in compared),
        "command": "apical train " + " ".join(settings),
        "torch": str(torch.__version__),
        "undisturbed_seconds": round(seconds, 2),
    }


def imported_in() -> float:
    begin = time.monotonic()
    subprocess.run([sys.executable, "-c", "import apical.bench.training.loop"], check=True)
    return time.monotonic() - begin


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        result = kill_test(options.kills, options.seed, SETTINGS, Path(scratch))
    if options.out:
        options.out.write_text(json.dumps(result, indent=2) + "\n")
    steps = [kill["step"] for kill in result["kills"]]
    print(f"{len(steps)} kills in {len(result['runs'])} runs, at steps {steps}")
    print("bitwise equal" if result["bitwise_equal"] else f"DIFFERENT: {result['runs']}")
    return 0 if result["bitwise_equal"] else 1


if __name__ == "__main__":
    sys.exit(main())
