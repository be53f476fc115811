"""apical sweep, reports over plain runs, studies of one's own, trackers, tables of pandas."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from apical.bench import Execution, Experiment, report, run, to_pandas
from apical.bench.cli import main as cli
from apical.bench.cli.sweep import at_commas, split
from apical.bench.experiment import own_code
from apical.bench.experiment.experiment import to_dict
from apical.bench.report import plain_runs
from apical.bench.storage import packing, records, run_folder

SMALL = ["--net_options.hidden", "[8]", "--epochs", "1", "--batch_size", "512", "--estimate",
         "false", "--probe_every", "0", "--jobs", "1"]  # fmt: skip
BASE = Experiment(net_options={"hidden": [8]}, epochs=1, batch_size=512, probe_every=0)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def finished(folder: Path, accuracy: float = 0.5, **changes: Any) -> Path:
    """A run folder without the training."""
    experiment = dataclasses.replace(BASE, **changes)
    path = folder / experiment.name
    path.mkdir(parents=True)
    run_folder.create(path, experiment, Execution())
    row = {"kind": "final", "epoch": 1, "test_acc": accuracy, "test_count": 360, "seconds": 1.0}
    epoch = {"kind": "epoch", "epoch": 1, "step": 3, "train_loss": 2.0, "train_acc": 0.1}
    records.append(path / "records.jsonl", epoch, row | {"step_ms": 1.0, "test_loss": 1.0})
    return path


# apical sweep


def test_values_are_split_at_commas_outside_brackets() -> None:
    cases = {
        "0.1": ["0.1"],
        "0.1, 0.01": ["0.1", "0.01"],
        "[8,8],[16]": ["[8,8]", "[16]"],
        "fa,sparse(kp, 0.1),{rule: fa, init: x}": ["fa", "sparse(kp, 0.1)", "{rule: fa, init: x}"],
        '"a,b",c': ['"a,b"', "c"],
    }  # fmt: skip
    for text, parts in cases.items():
        assert at_commas(text) == parts


def test_options_of_a_file_and_of_the_command() -> None:
    content = {
        "lr": [0.1, 0.01], "rule": ["fa", {"rule": "kp", "decay": 0.1}], "test_at": [1, 2],
        "net_options": {"hidden": [8, 8]}, "schedule": {"kind": ["cosine", "constant"]},
        "seeds": 3, "device": "cpu",
    }  # fmt: skip
    Path("grid.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    several, others = split(
        ["--batch-size=32,64", "--config", "grid.yaml", "--lr", "0.5", "--jobs", "2"]
    )
    assert several == {
        "lr": ["0.5"], "rule": ["fa", '{"rule": "kp", "decay": 0.1}'], "test_at": ["[1, 2]"],
        "net_options": ['{"hidden": [8, 8]}'], "schedule.kind": ["cosine", "constant"],
        "batch_size": ["32", "64"],
    }  # fmt: skip
    assert others == ["--seeds=3", "--device=cpu", "--jobs", "2"]


def test_a_sweep_runs_every_combination_once(capsys: Any) -> None:
    words = ["sweep", "--lr", "0.1,0.01", "--rule", "fa,{rule: fa, scale: norm}", *SMALL]
    assert cli.main([*words, "--seeds", "2"]) == 0
    folders = sorted(Path("runs/sweep/digits-mlp").iterdir())
    experiments = [records.read_json(p / "experiment.json")["experiment"] for p in folders]
    seen = {(e["lr"], json.dumps(e["rule"]), e["seed"]) for e in experiments}
    assert len(seen) == len(folders) == 8
    assert "8 runs finished, 0 failed" in capsys.readouterr().out
    assert cli.main([*words, "--seed", "0,1,2"]) == 0  # more seeds join what is there
    assert "8 of 12 runs are finished already" in capsys.readouterr().out
    assert cli.main(["report", "runs"]) == 0
    table = Path("runs/report/table.csv").read_text()
    assert table.count('"mlp on digits, lr 0.01"') == table.count('"mlp on digits, lr 0.1"') == 2
    assert table.count('"fa, scale norm",3,3') == 2


def test_what_a_sweep_refuses(capsys: Any) -> None:
    Path("list.yaml").write_text("- lr\n")
    Path("folders.yaml").write_text("folder: [a, b]\n")
    cases = [
        (["--lr"], "--lr needs a value"),
        (["--lr", "0.1,fast"], "--lr fast: expected"),
        (["--seeds", "2", "--seed", "1"], "give one of them"),
        (["--config", "absent.yaml"], "absent.yaml"),
        (["--config", "list.yaml"], "expected settings"),
        (["--config", "folders.yaml"], "folder takes one value"),
        (["--learning_rate", "1"], "did you mean"),
    ]
    for words, told in cases:
        assert cli.main(["sweep", *words]) == 2, words
        assert told in capsys.readouterr().err
    assert cli.main(["sweep", "--rule", "fa,fq"]) == 1
    assert "unknown rule 'fq'" in capsys.readouterr().err
    assert not Path("runs").exists()


# reports and tables over any folder


def test_a_report_over_plain_runs() -> None:
    place = Path("runs/one/two")
    for seed in range(3):
        finished(place, 0.6 + seed / 100, rule="fa", seed=seed)
        finished(place, 0.5 + seed / 100, rule="fa", lr=0.5, seed=seed)
    finished(Path("runs/copies"), 0.9, rule="fa", seed=0)
    finished(place, rule="dfa", batch_size=64)
    finished(place / "starts", rule="bp")
    (place / "loop").symlink_to(Path("runs").resolve())
    study = plain_runs.read_runs(Path("runs"), plain_runs.find(Path("runs"))[1])
    both = "mlp on digits, batch_size {}, lr {}".format
    wide = {(both(512, lr), "fa", seed) for lr in (BASE.lr, 0.5) for seed in range(3)}
    found = {(run.setting, run.rule, run.seed) for run in study.runs}
    assert found == wide | {(both(64, BASE.lr), "dfa", 0)}
    assert study.notes == ("Left out: 1 runs that repeat an experiment of this table.",)
    page = report(Path("runs")).read_text()
    assert "tier" not in page.partition("<main>")[0]
    assert "repeat an experiment" in page


def test_settings_of_plain_runs_are_in_the_order_of_their_numbers() -> None:
    for lr in (0.3, 10.0, 1e-05, 2.0, 0.1):
        finished(Path("runs"), lr=lr)
    study = plain_runs.read_runs(Path("runs"), plain_runs.find(Path("runs"))[1])
    rates = ("1e-05", "0.1", "0.3", "2.0", "10.0")
    assert list(study.settings) == [f"mlp on digits, lr {rate}" for rate in rates]


def test_runs_of_edited_code_are_no_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    """And they stay in the setting of the rules that they are compared with."""

    def rows(**changes: Any) -> set[tuple[str, ...]]:
        shutil.rmtree("runs", ignore_errors=True)
        finished(Path("runs"), rule="bp")
        for sign in ("1", "-1"):
            monkeypatch.setattr(own_code, "_known", {})
            Path("edited_code.py").write_text(MY_CODE.format(sign))
            finished(Path("runs"), **changes)
        study = plain_runs.read_runs(Path("runs"), plain_runs.find(Path("runs"))[1])
        assert len(study.runs) == 3 and study.notes == ()
        names = {(run.setting, run.rule) for run in study.runs}
        return {tuple(re.sub("[0-9a-f]{16}", "X", name) for name in each) for each in names}

    monkeypatch.syspath_prepend(".")
    here = "mlp on digits"
    assert rows(rule="edited_code:Mine") == {
        (here, "bp"),
        (here, "edited_code:Mine, code.edited_code:Mine X"),
    }
    of_net = "edited_code:net on digits, code.edited_code:net X"
    assert rows(net="edited_code:net") == {(here, "bp"), (of_net, "bp")}
    finished(Path("runs"), learner="edited_code:Learns", rule="bp")
    finished(Path("runs"), learner="edited_code:Learns", rule="fa")
    found = plain_runs.read_runs(Path("runs"), plain_runs.find(Path("runs"))[1]).runs
    names = {run.rule for run in found if "Learns" in run.rule}
    assert names == {"edited_code:Learns, rule bp", "edited_code:Learns, rule fa"}


MY_CODE = """
from dataclasses import dataclass
from apical.learners.backprop import Backprop
from apical.rules import FA
SIGN = {}
net = None

@dataclass(frozen=True)
class Mine(FA):
    pass

@dataclass(frozen=True)
class Learns(Backprop):
    pass
"""


def test_studies_and_plain_runs_of_a_folder_share_an_index() -> None:
    finished(Path("runs/train"), rule="fa")
    path = finished(Path("runs/deep/mine"), rule="bp")
    value = {"name": "mine", "title": "Mine", "tier": "short", "command": "apical study my:make",
             "runs": [{"folder": path.name, "setting": "a", "rule": "bp", "seed": 0}],
             "published": [], "notes": []}  # fmt: skip
    records.write_json("runs/deep/mine/study.json", value)
    index = report(Path("runs")).read_text()
    assert "deep/mine/index.html" in index and "other-runs/index.html" in index
    assert Path("runs/report/deep/mine/index.html").is_file()
    with pytest.raises(ValueError, match="no run and no study in"):
        report(Path("runs/report"))


def test_to_pandas_and_duckdb() -> None:
    import pandas

    finished(Path("runs/train"), 0.7, rule="fa", lr=0.5)
    path = finished(Path("runs/mine"), 0.6, rule="bp")
    value = {"name": "mine", "title": "Mine", "tier": "short", "command": "", "published": [],
             "runs": [{"folder": path.name, "setting": "a", "rule": "bp", "seed": 0}],
             "notes": []}  # fmt: skip
    records.write_json("runs/mine/study.json", value)
    packing.pack("runs/mine", "kept/mine")
    frame = to_pandas("runs")
    assert isinstance(frame, pandas.DataFrame)
    assert dict(zip(frame["rule"], frame["test_acc"], strict=True)) == {"bp": 0.6, "fa": 0.7}
    assert dict(zip(frame["rule"], frame["experiment.lr"], strict=True))["fa"] == 0.5
    assert to_pandas("kept/mine", "epoch")["train_loss"].tolist() == [2.0]
    assert to_pandas(path)["test_acc"].tolist() == [0.6]
    records.append(path / "records.jsonl", {"kind": "robustness", "rule": "usf", "seed": 7})
    attacked = to_pandas(path, "robustness").iloc[0]  # its own names do not replace the run's
    assert [attacked[name] for name in ("rule", "record.rule", "record.seed")] == ["bp", "usf", 7]
    with pytest.raises(ValueError, match="no run in"):
        to_pandas("kept/mine/" + path.name + "/none")
    import duckdb

    query = (
        "SELECT json_extract_string(r.experiment, '$.rule') AS rule, p.test_acc "
        "FROM 'kept/mine/records.parquet' p JOIN read_json('kept/mine/runs.jsonl', "
        "columns={folder: 'VARCHAR', experiment: 'JSON'}) r ON r.folder = p._folder "
        "WHERE p.kind = 'final'"
    )
    assert duckdb.sql(query).fetchall() == [("bp", 0.6)]


# studies of one's own


def test_a_study_of_ones_own(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("my_own_study.py").write_text(
        "from apical.bench import Entry, Experiment, Study\n"
        "def make(tier, seeds):\n"
        "    experiment = lambda rule, seed: Experiment(net_options={'hidden': [8]}, epochs=1,\n"
        "        batch_size=512, probe_every=0, rule=rule, seed=seed)\n"
        "    entries = [Entry('tiny', rule, experiment(rule, seed))\n"
        "               for rule in ('bp', 'fa') for seed in range(seeds)]\n"
        "    return Study('mine', 'My own', tier, tuple(entries))\n"
        "def nothing(tier, seeds):\n"
        "    return 3\n"
        "made = make('short', 1)\n"
    )
    words = ["--seeds", "1", "--jobs", "1", "--estimate", "false"]
    try:
        assert cli.main(["study", "my_own_study:make", *words]) == 0
        assert "2 runs finished, 0 failed" in capsys.readouterr().out
        value = records.read_json("runs/mine-short/study.json")
        assert value["command"] == "apical study my_own_study:make --seeds 1"
        assert cli.main(["study", "my_own_study:nothing", *words]) == 1
        assert "my_own_study:nothing' returns int: it must be" in capsys.readouterr().err
        assert cli.main(["study", "my_own_study:made", *words]) == 1  # has its tier and seeds
        assert "my_own_study:made' is Study: it must be a function" in capsys.readouterr().err
    finally:
        sys.modules.pop("my_own_study", None)


# trackers


def test_a_tracker_that_is_not_installed_is_refused_before_the_first_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ValueError, match=r"track='wandb' is not installed: pip install '"):
        run(BASE, "run", Execution(track="wandb"))
    assert not Path("run").exists()
    with pytest.raises(ValueError, match="track='tensorbord' is not one of"):
        Execution(track="tensorbord")  # type: ignore[arg-type]


def test_tensorboard() -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    row = run(BASE, "run", Execution(track="tensorboard"))
    events = EventAccumulator("run/tensorboard")
    events.Reload()
    (final,) = events.Scalars("final/test_acc")
    assert final.value == pytest.approx(row["test_acc"]) and final.step == 3
    assert len(events.Scalars("epoch/train_loss")) == 1


def test_mlflow(monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy", reason="the store of runs without a server")
    row = run(BASE, "runs/run", Execution(track="mlflow"))
    (found,) = mlflow.MlflowClient().search_runs(
        [mlflow.get_experiment_by_name("apical").experiment_id]
    )
    assert found.data.metrics["final/test_acc"] == row["test_acc"]
    assert found.data.tags["key"] == BASE.key and found.data.params["lr"] == str(BASE.lr)


def test_wandb_offline() -> None:
    pytest.importorskip("wandb")
    run(BASE, "run", Execution(track="wandb"))
    (path,) = Path("run/wandb").glob("offline-run-*/run-*.wandb")
    assert b"test_acc" in path.read_bytes()


def test_execution_is_no_part_of_the_key() -> None:
    assert not {"track", "parallel", "regroup"} & to_dict(BASE).keys()
