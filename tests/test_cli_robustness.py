"""`apical robustness`: what it prints and writes, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from apical.bench.cli import main as cli
from apical.bench.cli.parsing import UsageError
from apical.bench.cli.robustness import print_rows, radii
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.storage import records
from apical.bench.training import loop

QUICK = ["--images", "40", "--effort.steps", "2", "--effort.adaptive_steps", "2"]
QUICK += ["--effort.queries", "4", "--quiet", "true"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root, found = tmp_path_factory.mktemp("runs"), {}
    for rule in ("bp", "fa"):
        experiment = Experiment(net_options={"hidden": [16]}, rule=rule, epochs=3, probe_every=0)
        found[rule] = root / experiment.name
        loop.run(experiment, found[rule], Execution(quiet=True))
    return found


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("signal.signal", lambda *_: None)


def test_headline_verdict_and_records(runs: dict[str, Path], capsys: Any) -> None:
    words = ["robustness", str(runs["fa"]), "--eps", "8/255,0.3", *QUICK]
    words += ["--transfer", str(runs["bp"]), "--rules", "usf"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    lines = out.splitlines()
    headline = next(i for i, line in enumerate(lines) if "worst case per example" in line)
    assert headline < next(i for i, line in enumerate(lines) if "PGD-2 ce / own" in line)
    for text in (
        "eps 0.03137", "40 images, linf", "PGD-2 ce / exact", "rule:usf", f"/ {runs['bp'].name}",
        "worst case per example (95 % interval)", "verdict: MASKED", "sanity checks: ", "clean",
    ):  # fmt: skip
        assert text in out, text
    folder = Path(lines[-1])
    assert folder.parent == runs["fa"] / "robustness"
    before = (folder / "records.jsonl").stat().st_mtime_ns
    assert cli.main(words) == 0
    assert capsys.readouterr().out == out
    assert (folder / "records.jsonl").stat().st_mtime_ns == before


@pytest.mark.parametrize("words", [["--track", "wandb"], ["--parallel", "fsdp"]])
def test_settings_of_training_are_no_options(
    words: list[str], runs: dict[str, Path], capsys: Any
) -> None:
    assert cli.main(["robustness", str(runs["bp"]), *QUICK, *words]) == 2
    assert words[0] in capsys.readouterr().err


def test_a_checkpoint_instead_of_its_folder(runs: dict[str, Path], capsys: Any) -> None:
    assert cli.main(["robustness", str(runs["bp"] / "checkpoint.pt"), *QUICK]) == 0
    out = capsys.readouterr().out
    assert "verdict: FAITHFUL" in out
    assert Path(out.splitlines()[-1]).parent == runs["bp"] / "robustness"


def test_flagged_checks_are_told(capsys: Any) -> None:
    rows = [
        {"kind": "clean", "accuracy": 0.9, "examples": 10, "norm": "linf", "classes": 10},
        {"kind": "attack", "attack": "FewPixel(2)", "source": "none", "group": "pixels"}
        | {"eps": 2.0, "on": "all", "role": "published", "accuracy": 0.5, "examples": 5},
        {"kind": "attack", "attack": "APGD-5 ce", "source": "exact", "group": "exact"}
        | {"eps": 0.1, "on": "survivors", "role": "usual", "broken": 3},
        {"kind": "worst", "eps": 0.1, "accuracy": 0.4, "low": 0.2, "high": 0.6},
        {"kind": "gap", "eps": 0.1, "own": 0.8, "exact": 0.4},
        {"kind": "check", "name": "a check", "passed": False, "detail": "why"},
        {"kind": "check", "name": "another", "passed": True, "detail": ""},
        {"kind": "check", "name": "not run", "detail": "not run"},
        {"kind": "verdict", "verdict": "masked", "reasons": ["because"]},
    ]
    print_rows("net", rows)
    out = capsys.readouterr().out
    assert "sanity checks: 1 of 2 passed\n  FLAGGED: a check: why" in out
    assert "few pixels (5 images): 2 px 50.0" in out
    assert "verdict: MASKED\n  because" in out
    assert "40.0 (20.0 to 60.0)" in out
    assert "on what was left: APGD-5 ce" in out


def test_audit_alone_writes_nothing(runs: dict[str, Path], capsys: Any) -> None:
    before = sorted(runs["fa"].rglob("*"))
    words = ["robustness", str(runs["fa"]), "--audit-only", "--images", "60", "--rules", "fa"]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "own: a small step along the gradient raises the loss for" in out
    assert "exact: steps along the gradient raise the loss" in out
    assert "rule:fa: " in out
    assert sorted(runs["fa"].rglob("*")) == before


def test_a_model_of_ones_own(capsys: Any) -> None:
    Path("own_net_for_cli.py").write_text(
        "from torch.nn import Flatten, Linear, Sequential\n\n"
        "def make():\n    return Sequential(Flatten(), Linear(64, 10))\n"
    )
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).state_dict(), "weights.pt")
    words = ["robustness", "--model", "own_net_for_cli:make", "--weights", "weights.pt"]
    assert cli.main([*words, "--data", "digits", "--normalise", "false", *QUICK]) == 0
    out = capsys.readouterr().out
    assert "verdict: FAITHFUL" in out
    folder = Path(out.splitlines()[-1])
    assert folder.parent == Path("runs/models/own_net_for_cli.make/robustness")
    assert records.read_json(folder / "setting.json")["setting"]["net"] == "own_net_for_cli.make"


def test_refusals(runs: dict[str, Path], capsys: Any) -> None:
    for words, message, status in (
        (["RUN", "--eps", "8"], "eps=8 is outside [0, 1]; did you mean 8/255?", 1),
        (["RUN", "--eps", "8/0"], "--eps 8/0: expected a number or a fraction", 2),
        (["RUN", "--eps", "much"], "--eps much: expected a number or a fraction", 2),
        (["RUN", "--rules", "faa"], "unknown rule 'faa'", 1),
        (["RUN", "--protocol", "biotorhc"], "did you mean 'biotorch'", 1),
        (["RUN", "--pixels", "some"], "--pixels some: expected whole numbers", 2),
        (["RUN", "--pixel_images", "5"], "have no effect without a protocol", 1),
        (["RUN", "--imges", "5"], "did you mean '--images'", 2),
        (["RUN", "--data", "digits"], "--data belongs to --model; a run has its own", 2),
        (["RUN", "--transfer", "nowhere"], "there is no nowhere", 1),
        (["RUN", "--transfer", "a/run,b/run"], "the last parts of the paths must differ", 2),
        (["RUN", "--effort.steps", "0"], "Effort: steps=0 must be at least 1", 1),
        (["nowhere"], "there is no nowhere: give a run folder", 1),
        ([], "give a run folder, or a model of your own with --model", 2),
        (["RUN", "--model", "a:b"], "one of the two", 2),
        (["--model", "a:b"], "--model needs --data", 2),
    ):
        words = [str(runs["fa"]) if word == "RUN" else word for word in words]
        assert cli.main(["robustness", *words]) == status
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error
        assert error.count("\n") == 1


def test_radii() -> None:
    assert radii("8/255, 0.1,1e-2") == (8 / 255, 0.1, 0.01)
    assert radii("") == ()
    with pytest.raises(UsageError, match=r"as 0.1 or 8/255"):
        radii("8/255/3")
