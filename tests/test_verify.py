"""Runs of a kept study trained again, and what is said of them."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from apical.bench.cli.main import main
from apical.bench.experiment.experiment import Experiment
from apical.bench.report import refresh, verified
from apical.bench.storage import packing, records
from apical.bench.studies import verify
from apical.bench.training import loop

RULES = ("bp", "fa")
BASE = Experiment(net_options={"hidden": [8]}, epochs=1, batch_size=256, lr=0.1)


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("verify") / "tiny"
    runs = []
    for rule in RULES:
        for seed in (0, 1):
            experiment = dataclasses.replace(BASE, rule=rule, seed=seed)
            loop.run(experiment, folder / experiment.name)
            runs.append(
                {"folder": experiment.name, "setting": "digits", "rule": rule, "seed": seed}
            )
    value = {"name": "tiny", "title": "Tiny", "tier": "smoke", "command": "apical study tiny"}
    records.write_json(folder / "study.json", {**value, "runs": runs, "published": [], "notes": []})
    return folder


def changed(loose: Path, out: Path, change: Any) -> Path:
    """The study packed, after ``change(run folder)`` on the folder of each run."""
    import shutil

    copy = out / "loose" / "tiny"
    shutil.copytree(loose, copy)
    for run in copy.glob("*/"):
        change(run)
    packing.pack(copy, out / "tiny")
    return out / "tiny"


def rewritten(run: Path, kind: str, **values: Any) -> None:
    path = run / "records.jsonl"
    rows = [row | (values if row["kind"] == kind else {}) for row in records.read(path)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def nothing(run: Path) -> None:
    pass


def older(run: Path) -> None:
    """A key more, another time, another CPU: all numbers that both have are alike."""
    rewritten(run, "final", seconds=1.5, step_ms=9.0, probed=3)
    records.write_json(run / "environment.json", {"cpu": "another", "run_threads": 1})


def close(run: Path) -> None:
    rewritten(run, "epoch", train_loss=0.5)


def far(run: Path) -> None:
    rewritten(run, "final", test_acc=0.01)


def shorter(run: Path) -> None:
    """A row of training more than are made again."""
    path = run / "records.jsonl"
    rows = records.read(path)
    rows.insert(0, next(row for row in rows if row["kind"] == "epoch") | {"epoch": 0})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def lost(run: Path) -> None:
    """No row of training but the last."""
    path = run / "records.jsonl"
    rows = [row for row in records.read(path) if row["kind"] != "epoch"]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def rekeyed(run: Path) -> None:
    rewritten(run, "final")  # as by a version that stored no digest of a run
    value = records.read_json(run / "experiment.json")
    records.write_json(run / "experiment.json", value | {"key": "0123456789"})


def unbuildable(run: Path) -> None:
    rewritten(run, "final")
    value = records.read_json(run / "environment.json")
    records.write_json(run / "environment.json", value | {"device": "cuda:99"})


def elsewhere(run: Path) -> None:
    """Made on another copy of the data."""
    rewritten(run, "final", data_sha256="0123456789ab")


OUTCOMES = {
    nothing: verified.SAME,
    older: verified.SAME,
    close: verified.CLOSE,
    shorter: verified.CLOSE,
    lost: verified.CLOSE,
    far: verified.DIFFERS,
    rekeyed: verified.NOT_COMPARABLE,
    unbuildable: verified.NOT_COMPARABLE,
    elsewhere: verified.NOT_COMPARABLE,
}


@pytest.mark.parametrize("change", OUTCOMES, ids=lambda change: change.__name__)
def test_each_outcome(change: Any, loose: Path, tmp_path: Path) -> None:
    folder = changed(loose, tmp_path, change)
    said: list[str] = []
    found = verify.verify(folder, minutes=5, data_root=None, say=said.append)
    assert [run["outcome"] for run in found["runs"]] == [OUTCOMES[change]] * 4
    assert json.loads((tmp_path / "verified.json").read_text()) == {"tiny": found}
    (run, *_) = found["runs"]
    if change is older:
        assert run["environment"]["cpu"][0] == "another"
        assert "final.probed" in run["not_compared"]
    if change is close:
        assert run["first_difference"] == "epoch.train_loss, epoch 1"
        assert run["recorded"] == run["rerun"] and 0 < run["tolerance"] < 3
    if change is shorter:
        assert run["first_difference"] == "epoch.rows, 2 recorded, 1 now"
    if change is far:
        assert run["recorded"] == pytest.approx(99) and "final.test_acc" in run["first_difference"]
    if change is rekeyed:
        assert "their key has changed" in run["why"]
    if change is elsewhere:
        assert run["why"].startswith("the images or labels here are not those that the run")
    if change is unbuildable:
        assert "cuda:99" in run["why"]
    assert len(said) == 5 and OUTCOMES[change] in said[1]


def test_the_sample_is_the_cheapest_of_each_rule_within_the_budget(
    loose: Path, tmp_path: Path
) -> None:
    costs = iter((30.0, 9.0, 40.0, 20.0))  # bp 0, bp 1, fa 0, fa 1, in the order of their names

    def timed(run: Path) -> None:
        rewritten(run, "final", seconds=times[run.name])

    names = sorted(
        (path.name for path in loose.glob("*/")), key=lambda name: name.rpartition("-")[0]
    )
    times = dict(zip(names, costs, strict=True))
    folder = changed(loose, tmp_path, timed)
    from apical.bench.report.read import read_study

    source, runs = packing.open_folder(folder), read_study(folder).runs

    def sample(seconds: float) -> tuple[list[tuple[str, int]], dict[str, float]]:
        chosen, left_out = verify.sample(runs, source, seconds)
        return [(run.rule, run.seed) for run in chosen], left_out

    assert sample(8) == ([], {"bp": 0.1, "fa": 0.3})
    assert sample(10) == ([("bp", 1)], {"fa": 0.3})
    assert sample(60) == ([("bp", 1), ("fa", 1), ("bp", 0)], {})
    assert len(sample(99)[0]) == 4


def test_the_command_line_and_the_table_of_all(
    loose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(loose, tmp_path, far)
    assert main(["verify", "tiny", "--results", str(tmp_path), "--minutes", "1"]) == 1
    assert "4 differs" in capsys.readouterr().out
    document = tmp_path / "page.md"
    document.write_text("<!-- verified:all -->\nold\n<!-- end -->\n")
    assert refresh(document, tmp_path)
    text = document.read_text()
    assert "Of 4 runs trained again: 4 differs; those that differ are in tiny." in text
    row = next(line for line in text.splitlines() if line.startswith("| tiny"))
    assert row.split(" | ")[1:7] == ["4", "4", "", "", "4", ""]
    found = json.loads((tmp_path / "verified.json").read_text())
    found["tiny"]["runs"][0]["folder"] = "a-run-of-an-earlier-version"
    (tmp_path / "verified.json").write_text(json.dumps(found))
    assert refresh(document, tmp_path)
    assert "Of 3 runs trained again: 3 differs" in document.read_text()
    found["tiny"]["runs"][1]["recorded"] -= 1  # the study was run again and kept since
    (tmp_path / "verified.json").write_text(json.dumps(found))
    assert refresh(document, tmp_path)
    assert "Of 2 runs trained again: 2 differs" in document.read_text()
    for run in found["tiny"]["runs"]:
        run["folder"] = "another"
    (tmp_path / "verified.json").write_text(json.dumps(found))
    assert refresh(document, tmp_path) and "not verified, a run takes" in document.read_text()
    (tmp_path / "verified.json").unlink()
    assert not refresh(document, tmp_path)  # no record: the same
    assert main(["verify", str(folder), "--minutes", "0"]) == 1
    assert "minutes=0.0: the budget must be above 0" in capsys.readouterr().err


def test_a_study_of_which_nothing_can_be_compared_is_not_verified(
    loose: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = changed(loose, tmp_path, rekeyed)
    assert main(["verify", str(folder), "--minutes", "1"]) == 1
    assert "4 not comparable" in capsys.readouterr().out


def test_a_budget_that_fits_no_run_is_an_error_and_keeps_earlier_reruns(
    loose: Path, tmp_path: Path
) -> None:
    folder = changed(loose, tmp_path, lambda run: rewritten(run, "final", seconds=90.0))
    (tmp_path / "verified.json").write_text('{"tiny": {"runs": [1]}}')
    with pytest.raises(ValueError, match="no run fits into 1 minutes, the cheapest takes 1.5"):
        verify.verify(folder, minutes=1, data_root=None, say=print)
    assert json.loads((tmp_path / "verified.json").read_text()) == {"tiny": {"runs": [1]}}
