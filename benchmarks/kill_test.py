"""Kill a training run at random moments, start it again each time, compare with an undisturbed run.

    python benchmarks/kill_test.py --kills 20 --out results/kill_test.json

Every kill is SIGKILL. The result must be bitwise the same: weights, optimizer, random states, and
all records but times and memory. The rule is brSF, whose feedback changes at every step.

    python benchmarks/kill_test.py --executor ray --kills 20 --out results/kill_test.json

does the same to `apical sweep` under an executor (local, ray, slurm; submitit: its executor on this
machine): what is killed is the process that holds a run's claim, every fifth time the sweep itself,
which is started again; under Slurm and submitit every third is preempted instead (SIGUSR2). Runs on
other machines are left alone. No run may be lost or done twice.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from apical.bench.cli import main as cli
from apical.bench.storage import records
from apical.bench.training import loop  # noqa: F401  so that the copies need not import it

SETTINGS = (
    "--data digits --net mlp --net_options.hidden [64,32] --rule brsf --optimizer adam --lr 0.002 "
    "--epochs 40 --batch_size 32 --augment flip_crop --validation 200 --schedule.kind cosine "
    "--checkpoint_steps 7 --quiet true"
).split()
CONTEXT = multiprocessing.get_context("fork")
TIMES = ("seconds", "cpu_seconds", "step_ms", "step_cpu_ms", "memory_mb")


def begun(folder: Path, settings: list[str]) -> BaseProcess:
    """`apical train` in a copy of this process, so that no kill falls on its imports."""
    process = CONTEXT.Process(target=_train, args=(folder, settings))
    process.start()
    return process


def _train(folder: Path, settings: list[str]) -> None:
    with open(os.devnull, "w") as sink, contextlib.redirect_stdout(sink):
        sys.exit(cli.main(["train", "--folder", str(folder), *settings]))


def finish(folder: Path, settings: list[str]) -> float:
    """Run to the end without disturbance; returns the seconds it took."""
    begin = time.monotonic()
    ended(begun(folder, settings))
    return time.monotonic() - begin


def ended(process: BaseProcess) -> None:
    process.join()
    if process.exitcode:
        raise RuntimeError(f"the run ended with status {process.exitcode}; its message is above")


def kill_once(folder: Path, settings: list[str], delay: float) -> dict[str, Any] | None:
    """Start the run and kill it after ``delay`` seconds; None if it ended before."""
    process = begun(folder, settings)
    process.join(delay)
    if process.is_alive():
        process.kill()
        process.join()
        return {"delay": round(delay, 3), **position(folder)}
    ended(process)
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
    rows = records.read(folder / "records.jsonl")
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
    done: list[dict[str, Any]] = []
    compared: list[dict[str, Any]] = []
    while len(done) < kills:
        folder = scratch / f"killed-{len(compared)}"
        while True:
            delay = draw.uniform(0.05, 0.7) * seconds
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


EXECUTORS = {
    "local": ["--executor", "local"],
    "ray": ["--executor", "ray"],
    "slurm": ["--executor", "slurm"],
    "submitit": ["--executor", "slurm", "--executor_options.cluster", "local"],
}
RUNS, EPOCHS, JOBS = 5, 12, 2
PATIENCE = 180.0
"""Seconds without any kill after which the test gives up."""


def sweep_command(executor: str, folder: Path) -> list[str]:
    words = [sys.executable, "-m", "apical", "sweep", *SETTINGS, "--epochs", str(EPOCHS)]
    words += ["--seeds", str(RUNS), "--folder", str(folder), "--jobs", str(JOBS)]
    return [*words, "--estimate", "false", *EXECUTORS[executor]]


def executor_test(executor: str, kills: int, seed: int, scratch: Path) -> dict[str, Any]:
    """A sweep under an executor whose workers are killed, compared with an undisturbed one."""
    subprocess.run(sweep_command("local", scratch / "undisturbed"), cwd=scratch, check=True)
    draw = random.Random(seed)
    folder = scratch / "runs"
    done: list[dict[str, Any]] = []
    seen: dict[str, int] = {}
    last = time.monotonic()
    with (scratch / "log").open("w") as log:
        while True:
            sweep = subprocess.Popen(
                sweep_command(executor, folder), cwd=scratch, stdout=log, stderr=subprocess.STDOUT
            )
            while sweep.poll() is None:
                time.sleep(0.1)
                stuck = time.monotonic() - last > PATIENCE
                target = next(proceeding(folder, seen), None) if len(done) < kills else None
                if target is not None:
                    time.sleep(draw.uniform(0, 1.5))
                    happened = strike(sweep, executor, len(done), *target)
                    if happened:
                        done.append(
                            {"run": target[0].name, "kind": happened, **position(target[0])}
                        )
                        last = time.monotonic()
                        print(len(done), done[-1], flush=True)
                elif stuck and len(done) < kills:
                    sweep.kill()
            if sweep.returncode != -signal.SIGKILL or (stuck and len(done) < kills):
                break
    print((scratch / "log").read_text()[-2000:])
    return {"kills": done, **outcome(scratch / "undisturbed", folder)}


def proceeding(folder: Path, seen: dict[str, int]) -> Any:
    """Runs that were claimed by a process here and have a checkpoint since their last kill."""
    for claim in sorted(folder.glob("*/claim-*.json"), reverse=True):
        with contextlib.suppress(OSError, ValueError):
            values = json.loads(claim.read_text())
            written = (claim.parent / "checkpoint.pt").stat().st_mtime_ns
            here = values.get("host") == socket.gethostname()
            if here and written > seen.get(claim.parent.name, 0) and alive(values["pid"]):
                seen[claim.parent.name] = time.time_ns()
                yield claim.parent, values["pid"]


def strike(
    sweep: subprocess.Popen[bytes], executor: str, number: int, folder: Path, pid: int
) -> str:
    """Kill or preempt; what was done, "" where the process had ended."""
    with contextlib.suppress(ProcessLookupError):
        if number % 5 == 4:
            sweep.kill()
            return "sweep killed"
        if executor in ("slurm", "submitit") and number % 3 == 2:
            os.kill(pid, signal.SIGUSR2)
            return "preempted"
        os.kill(pid, signal.SIGKILL)
        return "killed"
    return ""


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").exists()


def outcome(undisturbed: Path, folder: Path) -> dict[str, Any]:
    """The state of the runs: numbers of those that are lost or done twice, and differences."""
    runs, lost, doubled = [], 0, 0
    for path in sorted(undisturbed.glob("*/experiment.json")):
        killed = folder / path.parent.name
        text = (killed / "records.jsonl").read_text() if killed.exists() else ""
        rows = [json.loads(line) for line in text.splitlines()]
        ends = [row["kind"] for row in rows].count("final")
        epochs = [row["epoch"] for row in rows if row["kind"] == "epoch"]
        lost += ends == 0
        doubled += ends > 1 or len(epochs) != len(set(epochs))
        apart = differences(path.parent, killed) if ends else ["not finished"]
        runs.append({"run": path.parent.name, "differences": apart})
    equal = not any(run["differences"] for run in runs)
    return {"runs": runs, "lost": lost, "doubled": doubled, "bitwise_equal": equal}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--executor", choices=EXECUTORS, help="absent: apical train")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if options.executor:
            result = executor_test(options.executor, options.kills, options.seed, Path(scratch))
            result |= {"torch": str(torch.__version__)}
        else:
            result = kill_test(options.kills, options.seed, SETTINGS, Path(scratch))
    if options.out:
        write(options.out, options.executor, result)
    print(f"{len(result['kills'])} kills in {len(result['runs'])} runs")
    if options.executor:
        print(f"{result['lost']} runs lost, {result['doubled']} done twice")
    print("bitwise equal" if result["bitwise_equal"] else f"DIFFERENT: {result['runs']}")
    return 0 if result["bitwise_equal"] and len(result["kills"]) >= options.kills else 1


def write(path: Path, executor: str | None, result: dict[str, Any]) -> None:
    """Record a result beside those of the other executors."""
    recorded = json.loads(path.read_text()) if path.exists() else {}
    executors = recorded.pop("executors", {})
    if executor:
        executors[executor] = result
    else:
        recorded = result
    path.write_text(json.dumps(recorded | {"executors": executors}, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
