"""Hashing in the runner: options, what is descended and recorded, resuming, and bad input."""

import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from apical import data, retrieval
from apical.attacks import Effort
from apical.bench.cli import main as cli
from apical.bench.evaluate import trained_net
from apical.bench.evaluate.evaluation import evaluate
from apical.bench.evaluate.robustness import Evaluation
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment, differing, from_dict, to_dict
from apical.bench.experiment.loss_settings import Hashing
from apical.bench.experiment.training_settings import Schedule
from apical.bench.storage import checkpoint, records
from apical.bench.training import build, loop, objectives
from apical.retrieval import Continuation

BALANCED = {"loss": "dpsh", "pair_weight": "balanced"}
BASE = Experiment(
    net_options={"hidden": [16]},
    hashing=Hashing(8, "csq"),
    train_images=400,
    epochs=2,
    batch_size=50,
    probe_every=0,
    optimizer_options={"momentum": 0.9},
)
QUIET = Execution(quiet=True)
pytestmark = pytest.mark.filterwarnings("ignore::apical.retrieval.ConstantBitWarning")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hashed") / "run"
    loop.run(dataclasses.replace(BASE, validation=100), folder, QUIET)
    return folder


def test_options_have_one_form_and_old_keys_stay() -> None:
    written_out = Hashing(16, {"loss": "dpsh", "pair_weight": "none", "quantisation": 0.1})
    assert written_out == Hashing(16, "dpsh")
    assert Experiment(hashing=written_out).key == Experiment(hashing=Hashing(16, "dpsh")).key
    assert Experiment(hashing=Hashing()).key != Experiment().key
    assert "hashing" not in differing(Experiment())
    full = Experiment(hashing=Hashing(32, BALANCED, k=100, continuation=Continuation(0.1, 3)))
    assert from_dict(to_dict(full)) == full
    assert full.name.startswith("digits_dpsh_32-mlp-bp-s0-")


def test_records_of_a_run(run: Path) -> None:
    rows = records.read(run / "records.jsonl")
    final = rows[-1]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert [row["val_map"] for row in epochs][-1] == final["val_map"]
    course = [row for row in rows if (row["kind"], row.get("split")) == ("course", "test")]
    assert [row["radius"] for row in course] == list(range(9))
    assert course[2]["precision"] == pytest.approx(final["test_precision2"], abs=1e-12)
    assert course[-1]["recall"] == 1.0
    assert final["test_count"] == 360
    # the same by hand: codes of the whole training split less the validation split, and of the test
    net = trained_net.from_run(run)
    assert isinstance(net, trained_net.HashNet) and net.bits == 8
    images = data.load("digits")
    kept = data.split_validation(images.train, 100, 0)[0]
    unit: dict[str, Any] = {"mean": (0.0,), "std": (1.0,)}
    x, y = next(iter(data.Batches(kept, 2000, **unit).epoch(0)))
    database = retrieval.Database(retrieval.encode(net.model, x), y)
    queries, labels = next(iter(data.Batches(images.test, 360, **unit).epoch(0)))
    codes = retrieval.encode(net.model, queries)
    found = retrieval.average_precision(codes, labels, database, ties="expected").mean().item()
    assert final["test_map"] == pytest.approx(found, abs=1e-3)  # pixels are scaled in other order
    nearest = retrieval.average_precision(codes, labels, database, k=1, ties="expected")
    assert final["test_acc"] == pytest.approx(nearest.mean().item(), abs=1e-2)


def test_the_loss_is_that_of_the_library_and_steepens_with_the_step() -> None:
    options = Hashing(4, BALANCED, continuation=Continuation(3.0, 2))
    parts = build.build(dataclasses.replace(BASE, hashing=options))
    done = [0]
    loss = parts.objective.training(lambda: done[0])
    outputs = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 2, 0, 1, 2])
    plain = retrieval.DPSH(pair_weight="balanced")
    for done[0], alpha in ((1, 1.0), (3, 7**0.5)):
        assert torch.equal(loss(outputs, y), plain(torch.tanh(alpha * outputs), y))
    assert torch.equal(parts.objective.loss(outputs, y, reduction="sum"), 6 * plain(
        torch.tanh(outputs), y
    ))  # fmt: skip


def test_right_in_training_is_whose_nearest_neighbour_in_the_batch_is_alike() -> None:
    objective = build.build(BASE).objective
    outputs = torch.tensor([[1.0, 1, 1], [1, 1, -1], [-1, -1, -1], [-1, -1, 1]])
    y = torch.tensor([0, 0, 1, 0])
    assert objective.correct(outputs, y).tolist() == [True, True, False, False]
    assert objective.correct(outputs[:1], y[:1]).tolist() == [False]


@pytest.mark.parametrize(
    "options",
    [Hashing(8, "hashnet", continuation=Continuation(0.5, 1)), Hashing(6, "dpn", k=5)],
    ids=["hashnet", "dpn"],
)
def test_a_killed_run_goes_on_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Hashing
) -> None:
    experiment = dataclasses.replace(
        BASE, hashing=options, rule="fa", augment="flip_crop", schedule=Schedule("cosine")
    )
    often = Execution(checkpoint_steps=3, quiet=True)
    loop.run(experiment, tmp_path / "whole", often)
    original, count = checkpoint.save, 0

    def save(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        original(*args, **kwargs)

    monkeypatch.setattr(checkpoint, "save", save)
    with pytest.raises(KeyboardInterrupt):
        loop.run(experiment, tmp_path / "killed", often)
    loop.run(experiment, tmp_path / "killed", often)
    states = [checkpoint.read(tmp_path / n / "checkpoint.pt")[0] for n in ("whole", "killed")]
    for name, tensor in states[0]["model"].items():
        assert torch.equal(tensor, states[1]["model"][name]), name
    finals = [records.read(tmp_path / n / "records.jsonl")[-1] for n in ("whole", "killed")]
    assert finals[0]["test_map"] == finals[1]["test_map"]


@pytest.mark.parametrize("rule", ["bp", "usf", "dfa", "kp"])
@pytest.mark.parametrize("loss", ["csq", BALANCED], ids=["csq", "dpsh"])
def test_rules_learn_codes(tmp_path: Path, rule: str, loss: Any) -> None:
    options = Hashing(16, loss)
    experiment = dataclasses.replace(BASE, hashing=options, rule=rule, epochs=4, probe_every=4)
    final = loop.run(experiment, tmp_path, QUIET)
    assert final["test_map"] > 0.15  # chance finds one in ten


def test_options_that_cannot_be_meant() -> None:
    for options, told in (
        ({"bits": 1}, "bits=1: must be at least 2"),
        ({"k": 0}, "k=0: must be at least 1"),
        ({"bits": 12, "loss": "csq"}, "CSQ: codes of 12 bits are not supported"),
        ({"bits": 7, "loss": "dpn"}, "DPN: codes of 7 bits are not supported"),
        ({"loss": "dsph"}, "unknown loss of hashing 'dsph'; did you mean "),
        ({"loss": {"loss": "csq", "margn": 1}}, "unknown option of the loss csq 'margn'"),
        ({"loss": {"loss": "csq", "classes": 3}}, "classes=3 follows from the data"),
        ({"loss": {"loss": "dsh", "pair_weight": "even"}}, "pair_weight='even' is not one of"),
        ({"loss": {"margin": 1.0}}, "unknown loss of hashing"),
        ({"continuation": {"rate": -1.0}}, "rate=-1.0 must be at least 0"),
    ):
        with pytest.raises(ValueError, match=told):
            Hashing(**options)


def test_fields_that_have_no_meaning_beside() -> None:
    for changes, told in (
        (
            {"loss": "binary_cross_entropy"},
            "loss='binary_cross_entropy' cannot be combined with hash",
        ),
        ({"label_smoothing": 0.1}, "label_smoothing=0.1 cannot be combined with hashing"),
        (
            {"learner": {"learner": "backprop", "clip_norm": 1.0}},
            "learner=.* cannot be combined with hashing",
        ),
        ({"rule": "drtp"}, "rule='drtp' learns from one label for each output: codes have none"),
        ({"accumulate": 2}, "a batch of hashing is compared with itself"),
    ):
        with pytest.raises(ValueError, match=told):
            dataclasses.replace(BASE, **changes)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (Hashing(4, "csq"), "CSQ: 10 classes, but 4 bits have centres for 8; use 8 bits"),
        (Hashing(4, "dpn"), "DPN: 10 classes, but 4 bits have only 6 balanced codes"),
        (Hashing(3, "dpsh"), "10 classes, but 3 bits have only 8 codes"),
        (Hashing(8, k=1438), "k=1438: the database holds 1437 codes"),
    ],
)
def test_what_the_data_do_not_allow_stops_a_run_before_it_writes(
    tmp_path: Path, options: Hashing, told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        loop.run(dataclasses.replace(BASE, hashing=options), tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


def test_codes_that_hold_nan_are_refused() -> None:
    parts = build.build(BASE)
    with torch.no_grad():
        next(parts.model.parameters()).fill_(torch.nan)
    objective = parts.objective
    assert isinstance(objective, objectives.OfCodes)
    with pytest.raises(ValueError, match="codes hold NaN, first row 0: the net has diverged"):
        objective.scores(parts.model, parts.test, torch.enable_grad)


def test_a_bit_that_never_changes_is_warned_of_and_counted() -> None:
    parts = build.build(dataclasses.replace(BASE, hashing=Hashing(8, "dpsh")))
    with torch.no_grad():
        list(parts.model.parameters())[-1][[2, 5]] = 100.0
    with pytest.warns(retrieval.ConstantBitWarning, match=r"2 of 8 bits .* \(2, 5\)"):
        parts.objective.course(parts.model, parts.test, torch.enable_grad)
    found = parts.objective.scores(parts.model, parts.test, torch.enable_grad)
    assert found["constant_bits"] == 2


def test_a_bit_that_the_loss_keeps_constant_is_no_surprise() -> None:
    parts = build.build(dataclasses.replace(BASE, hashing=Hashing(16, "csq")))
    weight, bias = list(parts.model.parameters())[-2:]
    with torch.no_grad():
        weight.normal_(generator=torch.Generator().manual_seed(0))
        bias.copy_(-weight.sum(1) / 3)
        bias[0] = 100.0  # +1 in each of the first 16 centres
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        parts.objective.course(parts.model, parts.test, torch.enable_grad)


def test_attacks_on_classes_refuse_a_hash_net(run: Path, tmp_path: Path) -> None:
    net = trained_net.from_run(run)
    with pytest.raises(ValueError, match="hash codes of 8 bits, no scores of classes"):
        evaluate(net, Evaluation((0.1,), images=9, effort=Effort(steps=1)), tmp_path)


def test_train_on_the_command_line(tmp_path: Path, capsys: Any) -> None:
    words = ["train", "--hashing.bits", "8", "--hashing.loss.loss", "dpsh"]
    words += ["--hashing.loss.pair_weight", "balanced", "--epochs", "1", "--train_images", "300"]
    words += ["--probe_every", "0", "--quiet", "true", "--folder", str(tmp_path / "run")]
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    assert "test mAP " in out
    assert "nearest item right " in out
    found = json.loads((tmp_path / "run" / "experiment.json").read_text())["experiment"]
    assert found["hashing"]["loss"] == BALANCED
    assert cli.main(["train", "--hashing.bits", "12", "--folder", str(tmp_path / "no")]) == 1
    assert "codes of 12 bits are not supported" in capsys.readouterr().err
