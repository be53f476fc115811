"""What is read from files is checked: damage, code that a file names, code that was edited."""

import dataclasses
import io
import json
import os
import random
import shutil
import sys
import time
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from apical.bench import Execution, Experiment, load_run
from apical.bench.cli.main import main
from apical.bench.evaluate.trained_net import from_run
from apical.bench.experiment import own_code
from apical.bench.experiment.experiment import from_dict, to_dict
from apical.bench.report.read import read_run, read_study
from apical.bench.report.table import for_spreadsheet
from apical.bench.storage import checkpoint, claims, evaluation_folder, records, run_folder
from apical.bench.training import loop
from apical.nets import pretrained

SMALL = Experiment(
    net="mlp", net_options={"hidden": [8]}, epochs=2, train_images=200, test_images=50
)
QUIET = Execution(quiet=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: Any) -> Path:
    folder = tmp_path_factory.mktemp("trained") / "run"
    loop.run(SMALL, folder, QUIET)
    return folder


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of a finished run."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current folder, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


def interrupted(run: Path) -> Path:
    """Make a finished run one that was killed before its last row."""
    rows = records.read(run / "records.jsonl")
    records.truncate(run / "records.jsonl", len(rows) - 1)
    return run


# damage


def damaged(data: bytes, seed: int) -> bytes:
    """30 bytes anywhere in a file are others."""
    found, draw = bytearray(data), random.Random(seed)
    for place in draw.sample(range(len(found)), 30):
        found[place] ^= draw.randrange(1, 256)
    return bytes(found)


def test_a_damaged_checkpoint_is_refused_by_whoever_reads_it(run: Path) -> None:
    path, rows = run / "checkpoint.pt", run / "records.jsonl"
    whole, before = path.read_bytes(), rows.read_bytes()
    for seed in range(10):
        path.write_bytes(damaged(whole, seed))
        rows.write_bytes(before)
        with pytest.raises(ValueError, match=r"checkpoint\.pt .*or remove it and"):
            load_run(run)
        with pytest.raises(ValueError, match=r"checkpoint\.pt"):
            from_run(run)
        with pytest.raises(ValueError, match=r"checkpoint\.pt"):
            pretrained.read(path)
        assert rows.read_bytes() == before
        interrupted(run)
        with pytest.raises(ValueError, match=r"checkpoint\.pt"):
            loop.run(SMALL, run, QUIET)


def test_one_bit_of_the_weights_or_of_the_digest_is_enough(run: Path) -> None:
    path = run / "checkpoint.pt"
    whole = path.read_bytes()
    for place in (len(whole) // 2, len(whole) - 1, len(whole) - 70):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(ValueError, match="damaged|not a readable checkpoint"):
            checkpoint.read(path)


def earlier_form(path: Path) -> None:
    """Write a checkpoint as version 0.2 did: format 1, no digest."""
    content = torch.load(path, weights_only=True)
    torch.save({**content, "format": 1}, path)


def test_checkpoints_of_earlier_versions_load_and_their_damage_is_found_too(run: Path) -> None:
    path = run / "checkpoint.pt"
    whole = load_run(run).model.state_dict()
    earlier_form(path)
    again = load_run(run).model.state_dict()
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    data = path.read_bytes()
    value = whole["fc1.weight"].numpy().tobytes() if "fc1.weight" in whole else None
    place = data.find(value or next(iter(whole.values())).numpy().tobytes())
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(ValueError, match="checksum"):
        load_run(run)


def test_a_checkpoint_is_still_a_file_of_torch(run: Path) -> None:
    assert torch.load(run / "checkpoint.pt", weights_only=True)["format"] == checkpoint.FORMAT


def test_a_checkpoint_of_another_shape_is_named(run: Path) -> None:
    state, belongs_to = checkpoint.read(run / "checkpoint.pt")
    interrupted(run)
    for change, told in (
        ({"rows": -1}, "rows is -1, expected a whole number of at least 0"),
        ({"rows": "2"}, "rows is '2'"),
        ({"position": {}}, "position: epoch is missing"),
        ({"position": []}, r"position is \[\], expected a mapping"),
        ({"processes": [{}]}, r"processes\[0\]\.sums is missing"),
        ({"model": {}}, "does not fit the net"),
        ({"optimizer": {}}, "does not fit the net"),
    ):
        checkpoint.save(run / "checkpoint.pt", {**state, **change}, belongs_to=belongs_to)
        with pytest.raises(ValueError, match=told):
            loop.run(SMALL, run, QUIET)


def test_changed_rows_of_an_interrupted_run_are_found(run: Path) -> None:
    path = interrupted(run) / "records.jsonl"
    path.write_text(path.read_text().replace('"epoch": 1', '"epoch": 7', 1))
    with pytest.raises(ValueError, match=r"records\.jsonl is damaged.* first \d rows"):
        loop.run(SMALL, run, QUIET)


def test_records_of_another_run_beside_the_weights_are_found(run: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    loop.run(dataclasses.replace(SMALL, lr=0.3), other, QUIET)
    assert load_run(run).records[-1]["kind"] == "final"
    (run / "records.jsonl").unlink()  # as of a version that stored no digest of a run
    records.append(run / "records.jsonl", *records.read(other / "records.jsonl"))
    with pytest.raises(ValueError, match="are not those that the checkpoint was made with"):
        load_run(run)


def test_a_damaged_row_with_a_digest_is_named_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    rows = [{"attack": "pgd", "eps": n / 10} for n in range(4)]
    records.append(path, *rows, digest=True)
    assert records.read(path) == rows
    path.write_text(path.read_text().replace("0.2", "0.7"))
    with pytest.raises(ValueError, match=r"trials\.jsonl, line 3: damaged.*head -n 2.*last good"):
        records.read(path)


def test_files_of_a_finished_evaluation_are_verified(tmp_path: Path) -> None:
    records.append(tmp_path / "trials.jsonl", {"attack": "pgd"}, digest=True)
    evaluation_folder.write_examples(tmp_path, {"x": [1.0], "eps": 0.1})
    evaluation_folder.write_rows(tmp_path, [{"kind": "verdict", "verdict": "robust"}])
    names = ("records.jsonl", "trials.jsonl", "examples.npz")
    for name in names:
        evaluation_folder.verify(tmp_path / name)
    for name in names:
        path = tmp_path / name
        whole = path.read_bytes()
        path.write_bytes(
            damaged(whole * 2, 0)[: len(whole)] if len(whole) < 30 else damaged(whole, 0)
        )
        with pytest.raises(ValueError, match=rf"{name} is damaged"):
            evaluation_folder.verify(path)
        path.write_bytes(whole)
    (tmp_path / evaluation_folder.DIGESTS).unlink()  # as earlier versions left it
    assert evaluation_folder.rows(tmp_path, "verdict")


# code that a file names

EVIL = "import pathlib\npathlib.Path({mark!r}).touch()\n"

HOSTILE: dict[str, dict[str, Any]] = {
    "net of the standard library": {"net": "subprocess:Popen", "net_options": {"args": ["touch"]}},
    "net": {"net": "evil_mod:X"},
    "rule": {"rule": "evil_mod:X"},
    "rule in a wrapper": {"rule": "sparse(evil_mod:X)"},
    "rule in a mapping": {
        "rule": {"fc*": "bp", "*": {"rule": "sparse(fa)", "inner": "evil_mod:X"}}
    },
    "rule later": {"switch": {"1": {"rule": "evil_mod:X"}}},
    "learner": {"learner": {"learner": "evil_mod:X", "gamma": 1.0}},
    "optimizer": {"optimizer": "evil_mod.X"},
    "data": {"data": "evil_mod:make"},
    "start": {"start": {"source": {"rule": "evil_mod:X"}}},
    "start of a start": {"start": {"source": {"start": {"source": {"net": "evil_mod:X"}}}}},
    "pickle of timm": {"net": "timm:resnet18", "net_options": {"checkpoint_path": "evil.pt"}},
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_folder_creates_no_file_and_imports_nothing(
    run: Path, here: Path, change: dict[str, Any], capsys: Any
) -> None:
    mark = here / "EXECUTED"
    (here / "evil_mod.py").write_text(EVIL.format(mark=str(mark)))
    described = records.read_json(run / "experiment.json")
    described["experiment"] |= change
    (run / "experiment.json").write_text(json.dumps(described))
    (here / "config.yaml").write_text(json.dumps(change))
    files = set(here.rglob("*"))
    calls = [["robustness", "run/checkpoint.pt"], ["train", "--config", "config.yaml"]]
    for words in calls:
        assert main(words) == 1
        assert "--trust" in capsys.readouterr().err
    read_run(run)
    for read in (load_run, from_run):
        with pytest.raises(ValueError, match="names code to run"):
            read(run)
    with pytest.raises(ValueError):
        loop.run(SMALL, run, QUIET)
    assert not mark.exists() and "evil_mod" not in sys.modules
    assert set(here.rglob("*")) == files


def test_a_hostile_config_imports_nothing(
    here: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(here)  # as with python -m apical
    (here / "evil_mod.py").write_text(EVIL.format(mark=str(here / "EXECUTED")))
    (here / "other.yaml").write_text("rule: 'evil_mod:X'")
    for text in (
        "schedule: evil_mod.X",
        "hashing: evil_mod.X",
        "start: evil_mod.X",
        "schedule: {class_path: evil_mod.X}",
        "net_options: {hidden: {class_path: evil_mod.X}}",
        "net_options.hidden.class_path: evil_mod.X",
        "rule.rule: 'evil_mod:X'",
        "rule: !!python/object/apply:os.system ['touch EXECUTED']",
        "trust: true\nrule: 'evil_mod:X'",
        "'rule=evil_mod:X --lr': 1",
        "schedule: [evil_mod.X]",
        "config: other.yaml",
    ):
        (here / "config.yaml").write_text(text)
        for verb in ("train", "sweep"):
            assert main([verb, "--config", "config.yaml", "--epochs", "1"]) in (1, 2)
            assert len(capsys.readouterr().err.splitlines()) == 1
            names = ["config.yaml", "evil_mod.py", "other.yaml"]
            assert sorted(p.name for p in here.iterdir()) == names
            assert "evil_mod" not in sys.modules


OWN = """
import torch
from helper_of_mine import SIGN
from apical.data import load as load_digits
from apical.rules import FA
from dataclasses import dataclass

@dataclass(frozen=True)
class Mine(FA):
    def matrix(self, weight, matrix):
        return SIGN * matrix

class Net(torch.nn.Sequential):
    def __init__(self, in_shape, num_classes):
        super().__init__(torch.nn.Flatten(), torch.nn.Linear(64, num_classes))
"""
TRAIN = [
    "train",
    "--epochs",
    "1",
    "--train_images",
    "100",
    "--test_images",
    "50",
    "--quiet",
    "true",
]


def forget(*names: str) -> None:
    """Let the next import read the files again, as a new process does."""
    for name in names:
        sys.modules.pop(name, None)


def test_own_code_runs_by_flags_and_runs_again_after_an_edit(here: Path, capsys: Any) -> None:
    def train(*words: str) -> list[str]:
        forget("my_code", "helper_of_mine")
        assert main([*TRAIN, "--rule", "my_code:Mine", "--net", "my_code:Net", *words]) == 0
        return capsys.readouterr().out.splitlines()

    (here / "my_code.py").write_text(OWN)
    (here / "helper_of_mine.py").write_text("SIGN = 1.0\n")
    first, again = train(), train()
    assert "; nothing was run (--again to repeat)" in again[0] and again[-2:] == first[-2:]
    (here / "helper_of_mine.py").write_text("SIGN = -11.0\n")  # it is imported by the rule
    edited = train()
    assert "nothing was run" not in edited[0] and edited[-2] != first[-2]
    # the folder was made here, yet reading it later needs trust, and the code as it was
    with pytest.raises(ValueError, match="--trust"):
        load_run(first[-2])
    with pytest.raises(ValueError, match="the source of my_code:Mine"):
        load_run(first[-2], trust=True)
    assert type(load_run(edited[-2], trust=True).model).__name__ == "Net"
    options = ["--rule", "my_code:Mine", "--net", "my_code:Net", "--folder", first[-2]]
    assert main([*TRAIN, *options]) == 1
    assert "holds another experiment (the source of my_code:Mine" in capsys.readouterr().err


NOTEBOOK = """
from dataclasses import dataclass
from apical.rules import FA

SIGN = 1.0

def signed(matrix):
    return SIGN * matrix

class Base(FA):
    def matrix(self, weight, matrix):
        return signed(matrix)

@dataclass(frozen=True)
class Mine(Base):
    pass
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("SIGN = 1.0", "SIGN = 2.0"),
        ("return SIGN * matrix", "return -SIGN * matrix"),
        ("return signed(matrix)", "return signed(-matrix)"),
    ],
)
def test_code_of_a_notebook_is_all_that_its_rule_uses(old: str, new: str, monkeypatch: Any) -> None:
    def key(source: str) -> str:
        main = types.ModuleType("__main__")
        exec(source, vars(main))
        monkeypatch.setitem(sys.modules, "__main__", main)
        monkeypatch.setattr(own_code, "_known", {})
        return Experiment(rule="__main__:Mine").key

    assert key(NOTEBOOK) == key(NOTEBOOK + "unused = 3") != key(NOTEBOOK.replace(old, new))


def test_again_repeats_a_finished_run(here: Path, capsys: Any) -> None:
    assert main(TRAIN) == 0
    assert "nothing was run" not in capsys.readouterr().out
    assert main(TRAIN) == 0
    first = capsys.readouterr().out
    assert f"finished on {time.strftime('%Y-')}" in first
    (folder,) = (here / "runs" / "train").iterdir()
    before = (folder / "checkpoint.pt").stat().st_mtime_ns
    assert main([*TRAIN, "--again"]) == 0
    assert "nothing was run" not in capsys.readouterr().out
    assert (folder / "checkpoint.pt").stat().st_mtime_ns > before
    assert run_folder.state(folder) == "finished"


def test_a_changed_image_folder_is_another_experiment(tmp_path: Path) -> None:
    for name in ("train/a/0.png", "train/b/0.png", "val/a/0.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    keys = [Experiment(data=f"folder:{tmp_path}").key]
    (tmp_path / "train/a/1.png").write_bytes(b"x")
    keys.append(Experiment(data=f"folder:{tmp_path}").key)
    (tmp_path / "train/a/1.png").write_bytes(b"xx")
    keys.append(Experiment(data=f"folder:{tmp_path}").key)
    shutil.rmtree(tmp_path / "train" / "b")
    keys.append(Experiment(data=f"folder:{tmp_path}").key)
    linked = tmp_path / ".kept" / "b"  # a class may be a link to a folder, an image one to a file
    linked.mkdir(parents=True)
    (tmp_path / "train" / "b").symlink_to(linked)
    (tmp_path / "train" / "a" / "up").symlink_to(tmp_path)
    for content in (b"x", b"xx"):
        (linked / "0.png").write_bytes(content)
        keys.append(Experiment(data=f"folder:{tmp_path}").key)
    (tmp_path / "elsewhere").write_bytes(b"x")
    (tmp_path / "train" / "a" / "2.png").symlink_to(tmp_path / "elsewhere")
    keys.append(Experiment(data=f"folder:{tmp_path}").key)
    (tmp_path / "elsewhere").write_bytes(b"xx")
    keys.append(Experiment(data=f"folder:{tmp_path}").key)
    assert len(set(keys)) == 8


def test_own_code_is_what_a_module_imports_from_any_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A helper in another folder of the path, a package there, and linked files."""
    aside = here / "aside"
    (aside / "pack_of_mine").mkdir(parents=True)
    monkeypatch.syspath_prepend(aside)
    (here / "links.py").write_text("import beside_link\nimport far_of_mine, torch\n")
    (here / "elsewhere").mkdir()
    (here / "links.py").rename(here / "elsewhere" / "original.py")
    (here / "links.py").symlink_to("elsewhere/original.py")
    (here / "elsewhere" / "shared.py").write_text("A = 1\n")
    (here / "beside_link.py").symlink_to("elsewhere/shared.py")
    (aside / "far_of_mine.py").write_text("from pack_of_mine import part\n")
    (aside / "pack_of_mine" / "__init__.py").write_text("")
    (aside / "pack_of_mine" / "part.py").write_text("B = 1\n")

    def digest() -> str:
        own_code._known.clear()  # as in a new process
        return own_code.digests({"rule": "links:Mine"})["links:Mine"]

    digests = [digest()]
    for edited in (
        here / "elsewhere" / "shared.py",
        here / "elsewhere" / "original.py",
        aside / "far_of_mine.py",
        aside / "pack_of_mine" / "part.py",
        aside / "pack_of_mine" / "__init__.py",
    ):
        edited.write_text(edited.read_text() + "C = 2\n")
        digests.append(digest())
    assert len(set(digests)) == 6


def test_installed_packages_and_the_library_itself_have_no_digest() -> None:
    named = {"optimizer": "torch.optim:Adamax", "rule": "apical.rules.fa:FA"}
    assert own_code.digests(named) == {}
    assert from_dict(to_dict(SMALL)).code == {}


@pytest.mark.parametrize("kind", ["rule", "learner", "net", "optimizer"])
@pytest.mark.parametrize("path", ["os:system", "subprocess:Popen", "json:JSONDecoder", "os:sep"])
def test_what_a_path_finds_must_be_of_its_kind(kind: str, path: str, tmp_path: Path) -> None:
    def train() -> None:
        loop.run(from_dict({kind: path}, trust=True), tmp_path / "run", QUIET)

    with pytest.raises(ValueError, match=rf"{kind}|{path}"):
        train()


def test_texts_of_tables_are_no_formulas() -> None:
    """Spreadsheets run what begins so, and some skip blanks before it."""
    for text in ("=1", "+1", "-1", "@x", "\t=1", "\r=1", "\n=1"):
        assert for_spreadsheet(text) == f"'{text}"
    assert for_spreadsheet("LeNet") == "LeNet" and for_spreadsheet(-1.5) == -1.5


# the shape of files


def test_experiment_files_of_another_shape(run: Path) -> None:
    for content, told in (
        ([], r"it is \[\], expected a mapping"),
        ({}, "experiment is missing"),
        ({"experiment": {}}, "key is missing"),
        ({"key": "x", "versions": {}}, "experiment is missing"),
        ({"key": 3, "versions": {}, "experiment": {}}, "key is 3, expected a text"),
        ({"key": "x", "versions": {"feedback": "1"}, "experiment": {}}, "versions.feedback is '1'"),
        ({"key": "x", "versions": {"experiment": 99}, "experiment": {}}, "version 99 of exper"),
        (
            {"key": "x", "versions": {}, "experiment": {"epochs": "3"}},
            "epochs='3': must be a whole",
        ),
        ({"key": "x", "versions": {}, "experiment": {"lr": True}}, "lr=True: must be a number"),
        ({"key": "x", "versions": {}, "experiment": {"schedule": 1}}, "schedule"),
        ({"key": "x", "versions": {}, "experiment": {}}, "which here is 09a2aa18e8"),
    ):
        (run / "experiment.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=told):
            load_run(run)
        with pytest.raises(ValueError):
            loop.run(SMALL, run, QUIET)


def test_the_key_in_a_file_is_not_trusted(run: Path) -> None:
    described = records.read_json(run / "experiment.json")
    described["experiment"]["lr"] = 0.5
    records.write_json(run / "experiment.json", described)
    with pytest.raises(ValueError, match="which here is"):
        load_run(run)
    with pytest.raises(ValueError, match=r"was changed.*lr: 0\.5 there, 0\.05 here"):
        loop.run(SMALL, run, QUIET)


BAD_ROWS = (
    {"epoch": 1},
    {"kind": 3},
    {"kind": "epoch"},
    {"kind": "epoch", "epoch": "1"},
    {"kind": "final", "epoch": 1, "test_acc": "high"},
    {"kind": "final", "epoch": 1, "test_acc": 1.7},
    {"kind": "final", "epoch": -1},
)


def test_bad_records_are_counted_and_shown_and_the_report_survives(
    trained: Path, tmp_path: Path
) -> None:
    names = ["good", *(f"bad{n}" for n in range(len(BAD_ROWS)))]
    for name, row in zip(names, [None, *BAD_ROWS], strict=True):
        shutil.copytree(trained, tmp_path / name)
        if row is not None:
            path = tmp_path / name / "records.jsonl"
            rows = [*records.read(path), row]
            path.unlink()  # as of a version that stored no digest of a run
            records.append(path, *rows)
    runs = [
        {"folder": name, "setting": "mlp", "rule": "bp", "seed": seed}
        for seed, name in enumerate(names)
    ]
    about = {"name": "s", "title": "t", "tier": "smoke", "command": "c"}
    study = {**about, "runs": runs, "published": [], "notes": []}
    records.write_json(tmp_path / "study.json", study)
    found = read_study(tmp_path)
    assert [run.status for run in found.runs] == ["finished", *["failed"] * len(BAD_ROWS)]
    for name, run in zip(names[1:], found.runs[1:], strict=True):
        assert run.reason.startswith(f"unreadable: {name}/records.jsonl, line"), run.reason
    assert main(["report", str(tmp_path)]) == 0


def test_a_defect_is_one_line_a_file_and_status_70(
    monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def broken(words: list[str]) -> int:
        raise KeyError("no such thing")

    monkeypatch.setattr("apical.bench.cli.verbs.show", broken)
    assert main(["list"]) == 70
    (line,) = capsys.readouterr().err.splitlines()
    path = Path(line.partition("traceback is in ")[2].partition(";")[0])
    assert "KeyError" in line and "no such thing" in path.read_text()
    path.unlink()


# claims

CLAIMS: dict[str, str | None] = {
    "empty": "",
    "cut": '{"pid": 1',
    "a list": "[]",
    "a number": "3",
    "no keys": "{}",
    "wrong types": '{"pid": "x", "host": 3, "boot": null, "started": []}',
    "negative": '{"pid": -1, "host": "elsewhere", "boot": "", "started": 0}',
    "huge": '{"pid": 1' + "0" * 40 + ', "host": "elsewhere", "boot": "", "started": 1}',
    "binary": "\x00\x01",
    "a folder": None,
}


def test_no_claim_blocks_for_ever(tmp_path: Path) -> None:
    for number, content in enumerate(CLAIMS.values()):
        for ahead in (-1000.0, 1e6, 1e9):
            folder = tmp_path / f"{number} {ahead}"
            path = folder / "claim-0.json"
            folder.mkdir()
            path.mkdir() if content is None else path.write_text(content)
            os.utime(path, (time.time() + ahead, time.time() + ahead))
            assert claims.owner(folder) is None
            with claims.hold(folder) as claim:
                assert claim.number == 1
            assert claims.owner(folder) is None


def test_an_empty_claim_is_free_at_once_and_one_of_another_version_is_waited_for(
    tmp_path: Path,
) -> None:
    path = tmp_path / "claim-0.json"
    path.write_text("")
    assert claims.owner(tmp_path) is None
    path.write_text('{"owner": "a later version"}')
    assert claims.owner(tmp_path) is not None


def test_a_claim_behind_the_last_row_is_removed(run: Path) -> None:
    (run / "claim-0.json").write_text(json.dumps(claims._identity()))
    loop.run(SMALL, run, QUIET)
    assert not list(run.glob("claim*"))


# messages


def test_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = OSError(28, os.strerror(28))

    def save(value: Any, file: io.BufferedRandom) -> None:
        try:
            raise full
        except OSError:  # torch's writer covers the reason
            raise RuntimeError("[enforce fail at inline_container.cc:672] . pos 64") from None

    monkeypatch.setattr(torch, "save", save)
    with pytest.raises(OSError, match="checkpoint.pt: the disk is full") as caught:
        checkpoint.save(tmp_path / "checkpoint.pt", {}, belongs_to={})
    assert "enforce" not in str(caught.value) and not list(tmp_path.iterdir())


def test_errors_of_files_name_the_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apical.bench.cli import main as module

    error = OSError(30, "Read-only file system", "/mnt/x")
    assert module._in_words(error) == "/mnt/x: the file system is read-only"


def test_a_config_is_not_repeated_in_the_error(here: Path, capsys: Any) -> None:
    (here / "secret").write_text("password: hunter2\n")
    (here / "a.yaml").write_text("config: secret\n")
    for name in ("a.yaml", "secret"):
        assert main(["train", "--config", name]) in (1, 2)
        assert "hunter2" not in capsys.readouterr().err


def test_aliases_and_deep_nesting_are_refused_at_once(here: Path, capsys: Any) -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(
        f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 60)
    )
    texts = [bomb, "rule: &r {rule: *r}", "rule: " + "[" * 5000, "rule: {a: 1, a: 2}"]
    for text in texts:
        (here / "c.yaml").write_text(text)
        begin = time.perf_counter()
        assert main(["train", "--config", "c.yaml"]) in (1, 2)
        assert time.perf_counter() - begin < 20
        assert len(capsys.readouterr().err.splitlines()) == 1
