"""Records survive kills, full disks and torn lines."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest

import apical
from apical.bench.storage import records
from apical.bench.storage.environment import INSTALLED, _installed_commit, environment

ROWS = [{"kind": "epoch", "epoch": e, "train_loss": 1 / e} for e in (1, 2, 3)]


def test_rows_come_back_as_written(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append(path, ROWS[0])
    records.append(path, *ROWS[1:])
    assert records.read(path) == ROWS
    assert path.read_text().count("\n") == 3


def test_rows_and_files_are_on_disk_when_the_call_returns(tmp_path, monkeypatch):
    """fsync is called after the last byte is written; what a power cut does is not simulated."""
    sizes = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (sizes.append(os.fstat(fd).st_size), real(fd)))
    records.append(tmp_path / "records.jsonl", *ROWS)
    assert sizes[0] == (tmp_path / "records.jsonl").stat().st_size
    sizes.clear()
    records.write_json(tmp_path / "a.json", {"a": 1})
    assert sizes[0] == (tmp_path / "a.json").stat().st_size


def test_a_missing_file_has_no_rows(tmp_path):
    assert records.read(tmp_path / "records.jsonl") == []


@pytest.mark.parametrize("tail", [b'{"kind": "ep', b"\x00\x00\x00", b"{]\n", b"3\n", b'"\xff"\n'])
def test_a_torn_last_line_is_dropped_and_cut_by_the_next_append(tmp_path, tail):
    path = tmp_path / "records.jsonl"
    records.append(path, *ROWS[:2])
    with open(path, "ab") as file:
        file.write(tail)
    with pytest.warns(UserWarning, match=f"torn last line \\({len(tail)} bytes\\)"):
        assert records.read(path) == ROWS[:2]
    records.append(path, ROWS[2])
    assert records.read(path) == ROWS


def test_every_cut_of_the_file_reads_as_a_prefix(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append(path, *ROWS)
    whole = path.read_bytes()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        complete = whole[:size].count(b"\n")
        records.append(path, {"kind": "after"})
        assert records.read(path) == [*ROWS[:complete], {"kind": "after"}]


def test_a_long_torn_line_is_found_from_the_end(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append(path, {"text": "a" * 200_000}, {"text": "b" * 200_000})
    os.truncate(path, path.stat().st_size - 1)
    records.append(path, ROWS[0])
    assert [row.get("text", "")[:1] for row in records.read(path)] == ["a", ""]


def test_a_broken_line_in_the_middle_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text('{"kind": "epoch"}\n{"kind": \n{"kind": "final"}\n')
    with pytest.raises(ValueError, match=r"records.jsonl, line 2: not a row"):
        records.read(path)


def _finished(folder: Path, loss: float) -> Path:
    """A finished run, of which the loss tells the rows and the settings."""
    folder.mkdir()
    records.write_json(folder / "experiment.json", {"key": "k", "experiment": {"lr": loss}})
    records.write_json(folder / "environment.json", {"git_dirty": True})
    records.append(folder / "records.jsonl", *ROWS)
    records.close(folder / "records.jsonl", {"kind": "test"}, {"kind": "final", "loss": loss})
    return folder / "records.jsonl"


def _swapped(one: Path, other: Path) -> None:
    one.write_bytes(other.read_bytes())


def _joined(one: Path, other: Path) -> None:
    one.write_bytes(one.read_bytes() + other.read_bytes())


def _without_a_row(one: Path, other: Path) -> None:
    one.write_bytes(b"".join(one.read_bytes().splitlines(keepends=True)[1:]))


def _edited(one: Path, other: Path) -> None:
    one.write_text(one.read_text().replace('"loss": 0.5', '"loss": 0.25'))


def _resettled(one: Path, other: Path) -> None:
    records.write_json(one.with_name("experiment.json"), {"key": "k", "experiment": {"lr": 1.0}})


def _cleaned(one: Path, other: Path) -> None:
    records.write_json(one.with_name("environment.json"), {"git_dirty": False})


def _goes_on(one: Path, other: Path) -> None:
    records.append(one, {"kind": "final", "loss": 0.1})


@pytest.mark.parametrize(
    "change", [_swapped, _joined, _without_a_row, _edited, _resettled, _cleaned, _goes_on]
)
def test_rows_of_a_finished_run_are_those_it_was_finished_with(change, tmp_path):
    one, other = (_finished(tmp_path / name, loss) for name, loss in (("a", 0.5), ("b", 0.7)))
    rows = [*ROWS, {"kind": "test"}, {"kind": "final", "loss": 0.5}]
    assert records.read(one) == rows  # as they were given
    change(one, other)
    with pytest.raises(ValueError, match=r"a/records.jsonl is damaged, or was changed"):
        records.read(one)
    one.unlink()
    records.append(one, *rows)  # as versions before wrote them
    assert records.read(one) == rows


@pytest.mark.parametrize("value", [float("nan"), float("inf"), object()])
def test_values_json_cannot_hold_are_named_and_nothing_is_written(tmp_path, value):
    path = tmp_path / "records.jsonl"
    records.append(path, ROWS[0])
    with pytest.raises(ValueError, match=r"'epoch'.*val_loss="):
        records.append(path, ROWS[1], {"kind": "epoch", "val_loss": value})
    assert records.read(path) == ROWS[:1]


def test_truncate_keeps_the_rows_the_checkpoint_remembers(tmp_path):
    path, undisturbed = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    records.append(undisturbed, *ROWS)
    records.append(path, *ROWS[:2], {"kind": "layer", "epoch": 3})
    with open(path, "ab") as file:
        file.write(b'{"torn')
    records.truncate(path, 2)
    assert undisturbed.read_bytes().startswith(path.read_bytes())
    with open(path, "ab") as file:
        file.write(b'{"torn')
    records.truncate(path, 2)  # all complete rows stay, the torn line goes
    assert undisturbed.read_bytes().startswith(path.read_bytes())
    records.append(path, ROWS[2])
    assert path.read_bytes() == undisturbed.read_bytes()
    records.truncate(path, 0)
    assert path.read_bytes() == b""


def test_truncate_refuses_a_file_that_is_too_short(tmp_path):
    path = tmp_path / "records.jsonl"
    records.append(path, ROWS[0])
    with pytest.raises(ValueError, match=r"has 1 complete rows, the checkpoint was made after 2"):
        records.truncate(path, 2)
    with pytest.raises(ValueError, match=r"has 0 complete rows"):
        records.truncate(tmp_path / "none.jsonl", 1)
    records.truncate(tmp_path / "none.jsonl", 0)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_one_clear_error():
    with pytest.raises(records.StorageError, match=r"the disk is full.*are intact"):
        records.append("/dev/full", ROWS[0])


def test_a_disk_that_fills_midway_leaves_earlier_rows_intact(tmp_path):
    """RLIMIT_FSIZE stands in for the full disk: the write stops in the middle of a row."""
    program = f"""
import resource, signal, sys
from apical.bench.storage import records
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
try:
    for epoch in range(1000):
        records.append({str(tmp_path / "r.jsonl")!r}, {{"kind": "epoch", "epoch": epoch}})
except records.StorageError as error:
    print(epoch, error)
"""
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    ).stdout
    assert "larger than allowed" in out
    assert "are intact" in out
    rows = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(int(out.split()[0])))


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(records.StorageError, match=r"the folder .*gone does not exist"):
        records.append(tmp_path / "gone" / "records.jsonl", ROWS[0])
    with pytest.raises(records.StorageError, match=r"the folder .*gone does not exist"):
        records.write_json(tmp_path / "gone" / "a.json", {})


def test_a_failed_whole_file_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    path = tmp_path / "some.json"
    records.write_json(path, {"lr": 0.1})
    monkeypatch.setattr(os, "replace", _fail)
    with pytest.raises(records.StorageError, match=r"what was there before is unchanged"):
        records.write_json(path, {"lr": 0.2})
    assert records.read_json(path) == {"lr": 0.1}
    assert os.listdir(tmp_path) == ["some.json"]


def _fail(*_):
    raise OSError(28, "No space left on device")


def test_json_files_keep_order_and_text(tmp_path):
    path = tmp_path / "a.json"
    value = {"z": 1, "a": [1.5, None, "ä <b>"]}
    records.write_json(path, value)
    assert list(records.read_json(path)) == ["z", "a"]
    assert records.read_json(path) == value
    with pytest.raises(ValueError, match=r"a.json: not JSON"):
        records.write_json(path, {"x": float("nan")})
    path.write_text("{\n  oops")
    with pytest.raises(ValueError, match=r"a.json is not JSON.*line 2, column 3"):
        records.read_json(path)


def test_kill_at_any_moment_leaves_a_gapless_prefix(tmp_path):
    """A writer is killed with SIGKILL; what is read is 0, 1, 2, ... without a gap."""
    path = tmp_path / "records.jsonl"
    program = f"""
import itertools
from apical.bench.storage import records
for epoch in itertools.count():
    records.append({str(path)!r}, {{"kind": "epoch", "epoch": epoch, "pad": "x" * 3000}})
"""
    for wait in (0.02, 0.05, 0.1):
        path.unlink(missing_ok=True)
        writer = subprocess.Popen([sys.executable, "-c", program])
        while not path.exists():
            assert writer.poll() is None
            time.sleep(0.005)
        time.sleep(wait)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        with warnings.catch_warnings():  # of the line under way at the kill, where there was one
            warnings.filterwarnings("ignore", message=".*dropped a torn last line")
            before = [row["epoch"] for row in records.read(path)]
        assert before == list(range(len(before)))
        records.append(path, {"kind": "epoch", "epoch": len(before)})
        assert len(records.read(path)) == len(before) + 1


def commit_a_file(folder: Path, name: str) -> list[str]:
    """A new git work tree with one file; returns the command that runs git there."""
    git = ["git", "-C", str(folder), "-c", "user.name=n", "-c", "user.email=e@example.org"]
    (folder / name).write_text("1")
    for command in (["init", "-q"], ["add", name], ["commit", "-qm", "first"]):
        subprocess.run(git + command, check=True)
    return git


def test_environment_tells_versions_and_keeps_people_out(tmp_path):
    header = environment()
    assert {"python", "torch", "numpy", "cpu", "cores", "threads", "system"} <= set(header)
    text = json.dumps(header)
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    assert os.uname().nodename not in text
    assert "git" not in environment(tmp_path)


def test_environment_reads_the_git_state(tmp_path):
    git = commit_a_file(tmp_path, "a.txt")
    (tmp_path / "untracked.txt").write_text("results do not count")
    header = environment(tmp_path)
    assert len(header["git"]) == 40
    assert header["git_dirty"] is False
    (tmp_path / "a.txt").write_text("2")
    assert environment(tmp_path)["git_dirty"] is True
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "b.txt").write_text("1")
    subprocess.run([*git, "add", "package"], check=True)
    subprocess.run([*git, "commit", "-qm", "second"], check=True)
    assert environment(tmp_path / "package")["git_dirty"] is False  # a.txt lies elsewhere


def test_the_commit_is_that_of_the_package_wherever_it_is_used(tmp_path, monkeypatch):
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    commit_a_file(foreign, "a.txt")
    here = environment()
    monkeypatch.chdir(foreign)
    assert environment() == here
    assert here.get("git") != environment(foreign)["git"]
    assert Path(apical.__file__).resolve().parent == INSTALLED


def test_a_package_inside_a_foreign_work_tree_has_the_commit_that_pip_recorded(
    tmp_path, monkeypatch
):
    """A virtual environment in the folder of somebody's project."""
    commit_a_file(tmp_path, "a.txt")
    package = tmp_path.resolve() / ".venv" / "apical"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    info = tmp_path / ".venv" / "apical-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: apical\nVersion: 0.1.0\n")
    monkeypatch.syspath_prepend(str(package.parent))
    assert _installed_commit(package) == {}
    source = {
        "url": "https://example.org/apical",
        "vcs_info": {"vcs": "git", "commit_id": "c" * 40},
    }
    (info / "direct_url.json").write_text(json.dumps(source))
    assert _installed_commit(package) == {"git": "c" * 40}
    elsewhere = tmp_path / "copy"  # imported from a folder that pip did not install
    elsewhere.mkdir()
    (elsewhere / "__init__.py").write_text("")
    assert _installed_commit(elsewhere) == {}
    subprocess.run(["git", "-C", str(tmp_path), "add", ".venv/apical"], check=True)
    assert set(_installed_commit(package)) == {"git", "git_dirty"}
