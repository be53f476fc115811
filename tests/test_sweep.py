"""Claims and sweeps: every run done once, whoever works on it and whoever is killed."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.storage import claims, records, run_folder
from apical.bench.sweep import sweep, workers
from apical.bench.training import loop
from processes import CONTEXT

BASE = Experiment(net_options={"hidden": [8]}, epochs=1, batch_size=512, probe_every=0)
EXECUTION = Execution()


def tasks(root: Path, count: int, **changes: Any) -> list[sweep.Task]:
    experiments = [dataclasses.replace(BASE, seed=seed, **changes) for seed in range(count)]
    return [sweep.Task(experiment, root / experiment.name) for experiment in experiments]


# claims


def test_one_claim_at_a_time(tmp_path: Path) -> None:
    with claims.hold(tmp_path):
        assert claims.owner(tmp_path) == f"pid {os.getpid()} on {claims.socket.gethostname()}"
        with pytest.raises(claims.Held, match=f"worked on by pid {os.getpid()} on"):
            with claims.hold(tmp_path):
                pass
    assert claims.owner(tmp_path) is None
    with claims.hold(tmp_path) as again:
        again.check()


def test_many_threads_never_hold_one_folder_together(tmp_path: Path) -> None:
    inside, worst, entered = 0, 0, 0
    lock = threading.Lock()

    def work() -> None:
        nonlocal inside, worst, entered
        end = time.monotonic() + 1.0
        while time.monotonic() < end:
            try:
                with claims.hold(tmp_path):
                    with lock:
                        inside, entered = inside + 1, entered + 1
                        worst = max(worst, inside)
                    time.sleep(0.001)
                    with lock:
                        inside -= 1
            except claims.Held:
                time.sleep(0.0005)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert entered > 5
    assert worst == 1


def hold_forever(folder: Path, ready: Any) -> None:
    with claims.hold(folder):
        ready.set()
        time.sleep(60)


def test_the_claim_of_a_killed_process_is_taken_over(tmp_path: Path) -> None:
    ready = CONTEXT.Event()
    process = CONTEXT.Process(target=hold_forever, args=(tmp_path, ready))
    process.start()
    assert ready.wait(20)
    with pytest.raises(claims.Held, match=f"pid {process.pid}"), claims.hold(tmp_path):
        pass
    process.kill()
    process.join()
    with claims.hold(tmp_path) as claim:
        assert claim.number == 1


def foreign(folder: Path, age: float) -> None:
    """A claim of another machine whose last sign of life is ``age`` seconds old."""
    path = folder / "claim-0.json"
    path.write_text(json.dumps({"pid": 1, "host": "elsewhere", "boot": "x", "started": 1}))
    os.utime(path, (time.time() - age,) * 2)


def test_another_machines_claim_lives_by_its_heartbeat(tmp_path: Path) -> None:
    foreign(tmp_path, age=claims.STALE_AFTER / 2)
    with pytest.raises(claims.Held, match="pid 1 on elsewhere"), claims.hold(tmp_path):
        pass
    foreign(tmp_path, age=claims.STALE_AFTER + 1)
    with claims.hold(tmp_path):
        pass


def test_a_reused_process_number_is_no_owner(tmp_path: Path) -> None:
    values = claims._identity() | {"started": 1}
    (tmp_path / "claim-0.json").write_text(json.dumps(values))
    assert claims.owner(tmp_path) is None


def test_who_was_taken_for_dead_stops(tmp_path: Path) -> None:
    with claims.hold(tmp_path) as claim:
        (tmp_path / "claim-1.json").write_text(json.dumps(claims._identity()))
        with pytest.raises(claims.Lost, match="taken over"):
            claim.check()
    assert not records.read_json(tmp_path / "claim-1.json").get("released")  # not ours to release


def test_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "HEARTBEAT", 0.05)
    with claims.hold(tmp_path):
        path = tmp_path / "claim-0.json"
        os.utime(path, (1, 1))
        deadline = time.monotonic() + 20
        while path.stat().st_mtime < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert path.stat().st_mtime > 2


def hold_with_an_old_listing(folder: Path, log: Path) -> None:
    """Hold the folder again and again, as a process that never sees a claim in its listing."""
    claims._numbers = lambda folder: []
    end = time.monotonic() + 1.0
    while time.monotonic() < end:
        try:
            with claims.hold(folder) as claim:
                marker = os.open(folder / "inside", os.O_CREAT | os.O_EXCL)  # fails beside another
                claim.check()
                time.sleep(0.002)
                os.close(marker)
                (folder / "inside").unlink()
                with open(log, "a") as file:
                    file.write(f"{claim.number}\n")
        except claims.Held:
            time.sleep(0.001)


def test_processes_that_see_old_listings_never_hold_one_folder_together(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    processes = [
        CONTEXT.Process(target=hold_with_an_old_listing, args=(folder, tmp_path / name))
        for name in ("first", "second")
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    held = [(tmp_path / name).read_text().split() for name in ("first", "second")]
    numbers = sorted(int(number) for each in held for number in each)
    assert len(held[0]) > 1 and len(held[1]) > 1  # what the other has released is taken
    assert numbers == list(range(len(numbers)))


def test_a_loss_is_noticed_in_spite_of_an_old_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with claims.hold(tmp_path) as claim:
        monkeypatch.setattr(claims, "_numbers", lambda folder: [claim.number])
        claim.check()
        (tmp_path / "claim-1.json").write_text(json.dumps(claims._identity()))
        with pytest.raises(claims.Lost, match="taken over"):
            claim.check()


# executors


def dying(deaths: int, progress: Path | None = None) -> workers.Make:
    """An executor whose first calls die, each after it has written to a file or to none."""
    left = [deaths]

    class Dying(workers.Here):
        def submit(self, call: Any, /, *args: Any, **options: Any) -> Any:
            if not left[0]:
                return super().submit(call, *args, **options)
            left[0] -= 1
            if progress is not None:
                progress.write_text("")
                os.utime(progress, ns=(left[0], left[0]))
            future: Future[Any] = Future()
            future.set_exception(workers.Died("the node failed"))
            return future

    return Dying


def test_a_death_counts_without_progress_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = tmp_path / "progress"
    monkeypatch.setattr(sweep, "PROGRESS", (str(progress),))  # beside the folder of the run
    for name, executor in (("two", dying(2)), ("six", dying(6, progress)), ("three", dying(3))):
        (task,) = tasks(tmp_path / name, 1)
        task.folder.parent.mkdir()
        outcome = sweep.sweep([task], EXECUTION, executor=executor)
        assert bool(outcome.finished) == (name != "three")
    assert "died 3 times without progress; the node failed" in outcome.failed[task.folder]


def test_an_error_without_a_text_is_a_death_too() -> None:
    assert str(workers.Died.of(ValueError("\nlost\nmore"))) == "lost"
    assert str(workers.Died.of(ValueError())) == "ValueError"


def test_executors_by_name(tmp_path: Path) -> None:
    for jobs in (0, -1):  # which would wait for ever
        with pytest.raises(ValueError, match=f"jobs={jobs}: must be at least 1"):
            sweep.sweep(tasks(tmp_path, 1), EXECUTION, jobs=jobs)
    assert workers.choose("local") is workers.Here
    assert workers.choose(workers.Here, jobs=3) is workers.Here
    with pytest.raises(ValueError, match="unknown executor 'slrum'; did you mean 'slurm'"):
        workers.choose("slrum")
    with pytest.raises(ValueError, match=r"'local' takes no options .*gpus"):
        workers.choose("local", options={"gpus": 1})


@pytest.mark.parametrize(
    ("executor", "package", "options", "wrong"),
    [
        ("ray", "ray", {"num_cpus": 0.5}, {"num_gpu": 1}),
        ("slurm", "submitit", {"cluster": "local"}, {"cluster": "local", "slurm_partitoin": "gpu"}),
    ],
)
def test_clusters(
    executor: str,
    package: str,
    options: dict[str, Any],
    wrong: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs of other processes, in folders named relative to this one's."""
    try:
        importlib.import_module(package)
    except ModuleNotFoundError:
        with pytest.raises(ValueError, match=rf"pip install 'apical\[{executor}\]'"):
            workers.choose(executor)
        pytest.skip(f"without {package} only its refusal can be tested")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "WAIT_SECONDS", 0.05)
    with pytest.raises(ValueError, match=f"executor '{executor}', options"):
        workers.choose(executor, options=wrong)
    good, bad = tasks(Path("runs"), 2), tasks(Path("runs"), 1, net="lenett")
    outcome = sweep.sweep([*bad, *good], EXECUTION, executor=executor, options=options, jobs=3)
    assert {task.folder for task in outcome.finished} == {task.folder for task in good}
    assert "unknown net 'lenett'" in outcome.failed[bad[0].folder]
    assert not list(Path("runs").glob("*/claim*"))


# sweeps


def done_once(root: Path, count: int, **options: Any) -> None:
    todo, told = tasks(root, count), []
    outcome = sweep.sweep(todo, EXECUTION, say=told.append, **options)
    assert {task.folder for task in outcome.finished} == {task.folder for task in todo}
    assert not outcome.failed
    assert len(told) == count
    before = {p: p.stat().st_mtime_ns for p in root.rglob("*")}
    again = sweep.sweep(todo, EXECUTION, say=told.append, **options)
    assert len(again.finished) == count
    assert told[-1] == f"{count} of {count} runs are finished already"
    assert {p: p.stat().st_mtime_ns for p in root.rglob("*")} == before


def test_every_run_is_done_and_done_once_in_this_process_and_a_new_one(tmp_path: Path) -> None:
    done_once(tmp_path / "here", 4, jobs=1)
    done_once(tmp_path / "spawned", 2, executor=workers.local(1))


def test_every_run_is_done_and_done_once_by_two_workers(
    tmp_path: Path, forked_workers: None
) -> None:
    done_once(tmp_path, 6, jobs=2)


def test_a_failed_run_does_not_stop_the_others(tmp_path: Path) -> None:
    good, bad = tasks(tmp_path, 2), tasks(tmp_path, 1, net="lenett")
    blown = tasks(tmp_path, 1, lr=1e30, epochs=3)
    outcome = sweep.sweep([*bad, *blown, *good], EXECUTION)
    assert {task.folder for task in outcome.finished} == {task.folder for task in good}
    assert "unknown net 'lenett'" in outcome.failed[bad[0].folder]
    assert repr(outcome).startswith(f"Outcome(2 finished, 2 failed; {bad[0].folder.name}: ")
    assert "non-finite loss in epoch" in outcome.failed[blown[0].folder]
    assert sweep.sweep(blown, EXECUTION).failed.keys() == {blown[0].folder}


def test_an_unforeseen_error_is_told_with_its_place(tmp_path: Path) -> None:
    todo, told = tasks(tmp_path, 1, net="test_sweep:broken_net", net_options={}), []
    outcome = sweep.sweep(todo, EXECUTION, say=told.append)
    assert "ZeroDivisionError" in outcome.failed[todo[0].folder]
    assert "broken_net" in told[0]


def broken_net(in_shape: Any, num_classes: int) -> Any:
    return 1 / 0


def deadly_net(in_shape: Any, num_classes: int) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_run_that_kills_its_worker_fails_and_the_others_do_not(
    tmp_path: Path, forked_workers: None
) -> None:
    deadly, good = (
        tasks(tmp_path, 1, net="test_sweep:deadly_net", net_options={}),
        tasks(tmp_path, 1),
    )
    outcome = sweep.sweep([*good, *deadly], EXECUTION, executor=workers.local(1))
    assert "worker process died 3 times without progress" in outcome.failed[deadly[0].folder]
    assert [task.folder for task in outcome.finished] == [good[0].folder]


def test_runs_held_elsewhere_are_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "WAIT_SECONDS", 0.05)
    todo = tasks(tmp_path, 3)
    elsewhere, damaged, left = todo

    def other_process() -> None:
        with claims.hold(elsewhere.folder), claims.hold(damaged.folder):
            started.set()
            time.sleep(0.5)
            (damaged.folder / "records.jsonl").write_text("")  # of no experiment
            run_folder.create(elsewhere.folder, elsewhere.experiment, EXECUTION)
            row = {"kind": "final", "epoch": 1, "test_acc": 0.5, "seconds": 1.0}
            records.append(elsewhere.folder / "records.jsonl", row)

    started = threading.Event()
    thread = threading.Thread(target=other_process)
    thread.start()
    started.wait()
    outcome = sweep.sweep(todo, EXECUTION)
    thread.join()
    assert {task.folder for task in outcome.finished} == {elsewhere.folder, left.folder}
    assert "holds no experiment.json" in outcome.failed[damaged.folder]
    assert len(records.read(elsewhere.folder / "records.jsonl")) == 1


def test_a_run_left_by_a_dead_process_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "WAIT_SECONDS", 0.05)
    (task,) = tasks(tmp_path, 1)
    task.folder.mkdir()
    (task.folder / "claim-0.json").write_text(json.dumps(claims._identity()))  # held by "another"

    def dies() -> None:
        time.sleep(0.3)
        (task.folder / "claim-0.json").write_text(json.dumps(claims._identity() | {"started": 1}))

    thread = threading.Thread(target=dies)
    thread.start()
    outcome = sweep.sweep([task], EXECUTION)
    thread.join()
    assert len(outcome.finished) == 1


def test_two_processes_on_one_study(tmp_path: Path) -> None:
    """Both start at once, one is killed and started again: nothing twice, nothing lost."""
    log = tmp_path / "log"
    log.mkdir()

    def started(name: str) -> Any:
        process = CONTEXT.Process(target=work_and_log, args=(tmp_path / "runs", log / name))
        process.start()
        return process

    first, second = started("first"), started("second")
    wait_for(lambda: (log / "second").exists() and len((log / "second").read_text().split()) > 2)
    second.kill()
    second.join()
    third = started("third")
    for process in (first, third):
        process.join()
        assert process.exitcode == 0
    done = " ".join(path.read_text() for path in log.iterdir()).split()
    names = [task.folder.name for task in tasks(tmp_path / "runs", STUDY_RUNS, epochs=2)]
    assert sorted(set(done)) == sorted(names)
    assert len(done) == len(set(done))
    assert (log / "first").read_text().strip()
    for name in names:
        rows = records.read(tmp_path / "runs" / name / "records.jsonl")
        assert [row["kind"] for row in rows] == ["epoch", "epoch", "final"]


STUDY_RUNS = 12


def work_and_log(root: Path, log: Path) -> None:
    """What each process does; every run it ends itself is appended to its log."""
    original = loop.classification

    def classification(experiment: Experiment, *args: Any) -> Any:
        row = original(experiment, *args)
        with open(log, "a") as file:
            file.write(experiment.name + "\n")
        time.sleep(0.1)  # so that both get their share
        return row

    loop.classification = classification
    outcome = sweep.sweep(tasks(root, STUDY_RUNS, epochs=2), EXECUTION)
    sys.exit(len(outcome.finished) != STUDY_RUNS)


def wait_for(condition: Any, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    script = (
        "import sys, time; from apical.bench.sweep import workers\n"
        "if __name__ == '__main__':\n"
        "    with workers.local(1)() as pool:\n"
        "        print(pool.submit(workers.os.getpid).result(), flush=True); time.sleep(60)\n"
    )
    path = tmp_path / "parent.py"
    path.write_text(script)
    with subprocess.Popen([sys.executable, str(path)], stdout=subprocess.PIPE, text=True) as parent:
        worker = int(parent.stdout.readline())
        parent.kill()
    wait_for(lambda: claims._started(worker) is None)
