"""A run killed at any moment and started again ends with the same bits."""

import dataclasses
import pickle
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apical import data
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.report import gained
from apical.bench.report.plain_runs import read_below
from apical.bench.storage import checkpoint, records
from apical.bench.training import loop
from apical.rules import RULES
from processes import CONTEXT

ROOT = Path(__file__).resolve().parents[1]


sys.path.append(str(ROOT / "benchmarks"))

import kill_test  # noqa: E402

BASE = Experiment(
    net_options={"hidden": [16]},
    epochs=2,
    batch_size=256,
    augment="flip_crop",
    validation=200,
    schedule=Schedule("cosine", warmup=0.5),
    optimizer_options={"momentum": 0.9},
    probe_images=16,
    probe_share=1.0,
)


class Killed(BaseException):
    """Stands for a kill: nothing in the package may catch it."""


def interrupted_at(saves: int, monkeypatch: pytest.MonkeyPatch, *, after: bool) -> None:
    """Let the run die before or after its n-th checkpoint is written."""
    count, original = 0, checkpoint.save

    def save(*args: Any, **options: Any) -> None:
        nonlocal count
        count += 1
        if count == saves and not after:
            raise Killed
        original(*args, **options)
        if count == saves:
            raise Killed

    monkeypatch.setattr(checkpoint, "save", save)


@pytest.mark.parametrize("rule", RULES)
def test_resumes_to_the_same_bits(
    rule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = dataclasses.replace(BASE, rule=rule)
    execution = Execution(checkpoint_steps=2)
    whole = loop.run(experiment, tmp_path / "whole", execution)
    for saves in (1, 2, 3, 1):
        with monkeypatch.context() as patch:
            interrupted_at(saves, patch, after=saves % 2 == 0)
            with pytest.raises(Killed):
                loop.run(experiment, tmp_path / "killed", execution)
    resumed = loop.run(experiment, tmp_path / "killed", execution)
    assert kill_test.differences(tmp_path / "whole", tmp_path / "killed") == []
    assert resumed["test_loss"] == whole["test_loss"]


def test_the_checkpoint_before_a_damaged_one_leads_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution, path = Execution(checkpoint_steps=2), tmp_path / "killed" / "checkpoint.pt"
    loop.run(BASE, tmp_path / "whole", execution)
    with monkeypatch.context() as patch:
        interrupted_at(3, patch, after=True)
        with pytest.raises(Killed):
            loop.run(BASE, tmp_path / "killed", execution)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"checkpoint before it: mv \S*previous\.pt \S*point\.pt"):
        loop.run(BASE, tmp_path / "killed", execution)
    checkpoint.previous(path).rename(path)
    loop.run(BASE, tmp_path / "killed", execution)
    assert kill_test.differences(tmp_path / "whole", tmp_path / "killed") == []
    assert not checkpoint.previous(path).exists()


SWITCHED = dataclasses.replace(BASE, epochs=4, switch={1: "kp", 2: "fa", 3: {"fc1": "kp"}})


@pytest.mark.parametrize(
    ("saves", "after"),
    [(4, False), (4, True), (5, True), (7, False), (7, True), (10, True), (12, False)],
)
def test_switched_rules_resume_to_the_same_bits(
    saves: int, after: bool, tmp_path: Path, switched: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed before the checkpoints that follow a switch (4, 7, 10), after them, and later."""
    execution = Execution(checkpoint_steps=2)
    with monkeypatch.context() as patch:
        interrupted_at(saves, patch, after=after)
        with pytest.raises(Killed):
            loop.run(SWITCHED, tmp_path, execution)
    loop.run(SWITCHED, tmp_path, execution)
    assert kill_test.differences(switched, tmp_path) == []


@pytest.fixture(scope="module")
def switched(tmp_path_factory: Any) -> Path:
    """An undisturbed run: one checkpoint at the start, three in each of four epochs."""
    folder = tmp_path_factory.mktemp("switched")
    loop.run(SWITCHED, folder, Execution(checkpoint_steps=2))
    return folder


def test_rows_beyond_the_checkpoint_are_repeated_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupted_at(2, patch, after=False)  # the first epoch's rows are written already
        with pytest.raises(Killed):
            loop.run(BASE, tmp_path)
    written = records.read(tmp_path / "records.jsonl")
    assert [r["epoch"] for r in written if r["kind"] == "epoch"] == [1]
    loop.run(BASE, tmp_path)
    rows = records.read(tmp_path / "records.jsonl")
    assert [r["epoch"] for r in rows if r["kind"] == "epoch"] == [1, 2]
    assert rows[-1]["kind"] == "final"


@pytest.mark.parametrize("library", ["torch", "numpy", "python"])
def test_dropout_resumes_to_the_same_bits(
    library: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"library": library}
    experiment = dataclasses.replace(BASE, net="test_resume:with_dropout", net_options=options)
    before = random.getstate(), np.random.get_state()[1]
    loop.run(experiment, tmp_path / "whole")
    assert random.getstate() == before[0] and (np.random.get_state()[1] == before[1]).all()
    with monkeypatch.context() as patch:
        interrupted_at(2, patch, after=True)
        with pytest.raises(Killed):
            loop.run(experiment, tmp_path / "killed")
    # the caller's random numbers are not the run's
    print(torch.rand(7), np.random.rand(7), random.random())
    loop.run(experiment, tmp_path / "killed")
    assert kill_test.differences(tmp_path / "whole", tmp_path / "killed") == []


DROPOUTS = {
    "torch": lambda x: torch.dropout(x, 0.5, True),
    "numpy": lambda x: x * float(np.random.rand() < 0.5),
    "python": lambda x: x * float(random.random() < 0.5),
}


class Dropout(torch.nn.Module):
    """Random numbers of one library."""

    def __init__(self, library: str) -> None:
        super().__init__()
        self.library = library

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return DROPOUTS[self.library](x) if self.training else x


def with_dropout(in_shape: Any, num_classes: int, library: str) -> torch.nn.Module:
    layers = torch.nn.Linear(64, 16), Dropout(library), torch.nn.Linear(16, 10)
    return torch.nn.Sequential(torch.nn.Flatten(), *layers)


def test_random_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kill_test, "CONTEXT", CONTEXT)
    settings = [*kill_test.SETTINGS, "--epochs", "6"]
    result = kill_test.kill_test(3, seed=1, settings=settings, scratch=tmp_path)
    assert len(result["kills"]) == 3
    assert result["bitwise_equal"], result["runs"]


def test_same_finds_a_single_changed_bit(tmp_path: Path) -> None:
    loop.run(BASE, tmp_path / "one")
    loop.run(BASE, tmp_path / "two")
    assert kill_test.differences(tmp_path / "one", tmp_path / "two") == []
    path = tmp_path / "two" / "checkpoint.pt"
    content = torch.load(path, weights_only=True)
    weight = content["state"]["model"]["fc1.weight"]
    weight[0, 0] = torch.nextafter(weight[0, 0], torch.tensor(9.0))
    torch.save(content, path)
    assert kill_test.differences(tmp_path / "one", tmp_path / "two") == ["model.fc1.weight"]


def test_a_finished_run_is_not_touched(tmp_path: Path) -> None:
    row = loop.run(BASE, tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    assert loop.run(BASE, tmp_path) == row
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


def test_finished_runs_whose_records_were_exchanged_are_refused_and_in_no_table(
    tmp_path: Path,
) -> None:
    seeds = [dataclasses.replace(BASE, epochs=1, seed=seed) for seed in (0, 1)]
    folders = [tmp_path / each.name for each in seeds]
    for experiment, folder in zip(seeds, folders, strict=True):
        loop.run(experiment, folder)
    one, other = (folder / "records.jsonl" for folder in folders)
    kept = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(kept)
    with pytest.raises(ValueError, match="are not those that the run was finished"):
        loop.run(seeds[0], folders[0])
    for run in read_below(tmp_path)[""].runs:
        assert run.status == "failed" and "is damaged, or was changed" in run.reason


def test_runs_on_other_images_under_the_same_name_are_not_trained_alike(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = data.load("digits")
    runs = [dataclasses.replace(BASE, epochs=1, rule=rule) for rule in ("bp", "fa", "frozen")]
    test = dataclasses.replace(source.test, images=source.test.images.flip(3))
    other = dataclasses.replace(source, test=test)
    for experiment in runs:
        if experiment.rule == "fa":  # on a machine with another copy of the data
            monkeypatch.setattr(data, "load", lambda *a, **k: other)
        loop.run(experiment, tmp_path / experiment.name)
        monkeypatch.undo()
    study = read_below(tmp_path)[""]
    assert "Not trained alike: FA (data_sha256)." in gained.missing(study)


# refusals


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed after its first epoch."""
    with monkeypatch.context() as patch:
        interrupted_at(2, patch, after=True)
        with pytest.raises(Killed):
            loop.run(BASE, tmp_path)
    return tmp_path


def test_other_settings_never_touch_the_folder(begun: Path) -> None:
    for name, value in (("rule", "fa"), ("seed", 1), ("net_options", {"hidden": [17]})):
        before = {p.name: p.read_bytes() for p in begun.iterdir()}
        with pytest.raises(ValueError, match=rf"{name}: .* there, .* here.*left untouched"):
            loop.run(dataclasses.replace(BASE, **{name: value}), begun)
        assert {p.name: p.read_bytes() for p in begun.iterdir()} == before


def test_a_checkpoint_of_another_run_is_refused(begun: Path, tmp_path_factory: Any) -> None:
    other = tmp_path_factory.mktemp("other")
    loop.run(dataclasses.replace(BASE, seed=5, epochs=1), other)
    (begun / "checkpoint.pt").write_bytes((other / "checkpoint.pt").read_bytes())
    with pytest.raises(ValueError, match="belongs to another run .experiment: "):
        loop.run(BASE, begun)


@pytest.mark.parametrize("part", ["train", "test"])
@pytest.mark.parametrize("what", ["labels", "images"])
def test_other_data_are_refused(
    what: str, part: str, begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where APICAL_DATA names another folder, or a file changed that the user's code reads."""
    before = (begun / "checkpoint.pt").read_bytes()
    found = data.load("digits")
    split = getattr(found, part)
    changed = getattr(split, what).clone()
    changed[0] = (changed[0] + 1) % 10
    split = dataclasses.replace(split, **{what: changed})
    other = dataclasses.replace(found, **{part: split})
    monkeypatch.setattr(data, "load", lambda name, **options: other)
    with pytest.raises(ValueError, match="no longer those that the run began with"):
        loop.run(BASE, begun)
    assert (begun / "checkpoint.pt").read_bytes() == before


def test_other_threads_are_refused(begun: Path) -> None:
    with pytest.raises(ValueError, match="threads: 1, not 2"):
        loop.run(BASE, begun, Execution(threads=2))


def test_another_format_is_refused(begun: Path) -> None:
    torch.save({"format": 0, "belongs_to": {}, "state": {}}, begun / "checkpoint.pt")
    with pytest.raises(ValueError, match="checkpoint format 0.*reads 2 and 1"):
        loop.run(BASE, begun)


def test_a_truncated_checkpoint_is_refused(begun: Path) -> None:
    path = begun / "checkpoint.pt"
    whole = path.read_bytes()
    for kept in (0, 100, 5000):
        path.write_bytes(whole[:kept])
        with pytest.raises(ValueError, match="is damaged|is not a readable checkpoint"):
            loop.run(BASE, begun)


class Malicious:
    def __reduce__(self) -> Any:
        return (Path.touch, (Path("executed"),))


def test_code_in_a_checkpoint_is_never_run(
    begun: Path, tmp_path_factory: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("here"))
    (begun / "checkpoint.pt").write_bytes(pickle.dumps(Malicious(), protocol=2))
    with pytest.raises(ValueError, match="not a readable checkpoint"):
        loop.run(BASE, begun)
    assert not Path("executed").exists()


def test_a_full_disk_leaves_the_last_checkpoint(
    begun: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = (begun / "checkpoint.pt").read_bytes()

    def full(*args: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", full)
        with pytest.raises(OSError, match="the disk is full.*start"):
            loop.run(BASE, begun)
    assert (begun / "checkpoint.pt").read_bytes() == before
    assert not list(begun.glob("*.part"))
    assert loop.run(BASE, begun)["kind"] == "final"
