"""The loop against a plainer one, its options, and what it does when numbers blow up."""

import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

import apical
from apical import data, nets
from apical.bench.experiment import optimizers
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.storage import records, run_folder
from apical.bench.training import build, loop, progress
from apical.bench.training import evaluate as observe
from apical.core.layers import feedback_modules
from apical.data import Batches

BASE = Experiment(
    net_options={"hidden": [16]},
    epochs=2,
    batch_size=128,
    optimizer_options={"momentum": 0.9},
    probe_images=16,
    probe_share=1.0,
)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["model"]


def trained(tmp_path: Path, **changes: Any) -> dict[str, torch.Tensor]:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    loop.run(dataclasses.replace(BASE, **changes), folder)
    return weights(folder)


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], atol: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=atol)


def plain_loop(clip: float | None = None, smoothing: float = 0.0) -> dict[str, torch.Tensor]:
    """What BASE says, written out: heavy ball by hand, rate halved after the first epoch."""
    images = data.load("digits")
    with torch.random.fork_rng():
        torch.manual_seed(BASE.seed)
        model = nets.build("mlp", in_shape=images.shape, num_classes=10, hidden=[16])
    batches = Batches(images.train, 128, mean=images.mean, std=images.std, shuffle_seed=0)
    speeds = [torch.zeros_like(p) for p in model.parameters()]
    for epoch in range(2):
        for x, y in batches.epoch(epoch):
            loss = F.cross_entropy(model(x), y, label_smoothing=smoothing)
            grads = torch.autograd.grad(loss, list(model.parameters()))
            norm = torch.cat([g.flatten() for g in grads]).norm()
            factor = min(1.0, clip / (norm.item() + 1e-6)) if clip else 1.0
            with torch.no_grad():
                for p, g, v in zip(model.parameters(), grads, speeds, strict=True):
                    v.mul_(0.9).add_(g, alpha=factor)
                    p.sub_(v, alpha=0.05 * 0.5**epoch)
    return model.state_dict()


HALVED = Schedule("multistep", (1,), gamma=0.5)


@pytest.mark.parametrize(("clip", "smoothing"), [(None, 0.0), (0.5, 0.0), (None, 0.2)])
def test_equals_a_plain_loop(tmp_path: Path, clip: float | None, smoothing: float) -> None:
    # float32 sums in another order: a few units in the last place over 24 steps
    found = trained(tmp_path, schedule=HALVED, clip_norm=clip, label_smoothing=smoothing)
    close(found, plain_loop(clip, smoothing))


def test_parts_of_a_batch_add_up(tmp_path: Path) -> None:
    close(trained(tmp_path), trained(tmp_path, accumulate=3))


def test_channels_last_is_the_same_net(tmp_path: Path) -> None:
    options = {"net": "test_training:small_conv", "net_options": {}}
    close(trained(tmp_path, **options), trained(tmp_path, **options, channels_last=True))


def small_conv(in_shape: tuple[int, ...], num_classes: int) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(144, 10)
    )


def test_bf16_autocast_trains_nearly_alike(tmp_path: Path) -> None:
    exact, rough = trained(tmp_path), trained(tmp_path, autocast="bf16")
    assert not torch.equal(exact["fc1.weight"], rough["fc1.weight"])
    close(exact, rough, atol=0.02)  # 8 bits of mantissa


def test_fp16_without_scaler_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs CUDA; use autocast='bf16'"):
        trained(tmp_path, autocast="fp16")
    assert not list(tmp_path.iterdir())


# torch's own tracing of an autograd Function makes an instance of it
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_compiled_is_the_same_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def compile(model: Any) -> Any:
        calls.append(model)
        return original(model, backend="eager")

    original = torch.compile
    monkeypatch.setattr(torch, "compile", compile)
    close(trained(tmp_path, rule="fa"), trained(tmp_path, rule="fa", compile=True))
    assert len(calls) == 1
    changes = {"switch": {1: "kp"}, "optimizer_options": {"momentum": 0.9}}
    close(trained(tmp_path, **changes), trained(tmp_path, **changes, compile=True))
    assert len(calls) == 3  # anew after the switch


def test_probes_leave_no_trace(tmp_path: Path) -> None:
    measured = trained(tmp_path, rule="brsf", probe_every=1)
    unmeasured = trained(tmp_path, rule="brsf", probe_every=0)
    assert all(torch.equal(measured[name], unmeasured[name]) for name in measured)


def test_rows(tmp_path: Path) -> None:
    experiment = dataclasses.replace(
        BASE, rule="fa", epochs=3, probe_every=2, validation=100, schedule=HALVED
    )
    loop.run(experiment, tmp_path)
    rows = records.read(tmp_path / "records.jsonl")
    layers = [(r["epoch"], r["layer"]) for r in rows if r["kind"] == "layer"]
    assert layers == [(e, layer) for e in (0, 2, 3) for layer in ("fc1", "fc2")]
    epochs = [r for r in rows if r["kind"] == "epoch"]
    assert [r["step"] for r in epochs] == [11, 22, 33]  # 1337 images in batches of 128
    assert [r["lr"] for r in epochs] == [0.05, 0.025, 0.025]
    assert all(0 <= r["val_acc"] <= 1 and r["memory_mb"] > 0 for r in epochs)
    final = rows[-1]
    assert (final["kind"], final["test_count"], final["val_count"]) == ("final", 360, 100)
    assert final["train_acc"] == epochs[-1]["train_acc"]
    assert final["parameters"] == 64 * 16 + 16 + 16 * 10 + 10
    assert final["feedback_bytes"] == 4 * (64 * 16 + 16 * 10)
    described = json.loads((tmp_path / "experiment.json").read_text())
    assert described["key"] == experiment.key
    assert json.loads((tmp_path / "environment.json").read_text())["device"] == "cpu"
    assert not list(tmp_path.glob("claim*"))


def test_reported_accuracy_is_that_of_the_last_weights(tmp_path: Path) -> None:
    row = loop.run(BASE, tmp_path)
    images = data.load("digits")
    model = nets.build("mlp", in_shape=images.shape, num_classes=10, hidden=[16])
    model.load_state_dict(weights(tmp_path))
    x = (images.test.images / 255 - torch.tensor(images.mean)) / torch.tensor(images.std)
    scores = model(x.float())
    hits = (scores.argmax(1) == images.test.labels).sum().item()
    assert row["test_acc"] == hits / 360
    assert row["test_loss"] == pytest.approx(F.cross_entropy(scores, images.test.labels).item())


@pytest.mark.parametrize(("test", "reads"), [(True, 1), (False, 0)])
def test_the_test_split_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: bool, reads: int
) -> None:
    sizes = []
    original = observe.evaluate

    def evaluate(model: Any, batches: Any, *rest: Any) -> Any:
        sizes.append(len(batches.split))
        return original(model, batches, *rest)

    monkeypatch.setattr(observe, "evaluate", evaluate)
    row = loop.run(dataclasses.replace(BASE, validation=100, test=test), tmp_path)
    assert sizes.count(360) == reads
    assert ("test_acc" in row) == test


def test_the_callers_settings_return(tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    loop.run(BASE, tmp_path, Execution(threads=2))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == 1


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    one, again, other = (trained(tmp_path, seed=seed, rule="fa") for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["fc1.weight"], other["fc1.weight"])
    assert not torch.equal(one["fc1.feedback.matrix"], other["fc1.feedback.matrix"])


# rules that switch


def test_a_switched_run_is_the_loop_with_a_switch_between_its_epochs(tmp_path: Path) -> None:
    """Backprop for an epoch, then Kolen-Pollack, with the momentum of the first."""
    found = trained(tmp_path, switch={1: "kp"}, probe_every=0)
    images = data.load("digits")
    with torch.random.fork_rng():
        torch.manual_seed(BASE.seed)
        model = nets.build("mlp", in_shape=images.shape, num_classes=10, hidden=[16])
    options = {"momentum": 0.9}
    optimizer = optimizers.build("sgd", model.parameters(), lr=0.05, options=options)
    batches = Batches(images.train, 128, mean=images.mean, std=images.std, shuffle_seed=0)
    for epoch in range(2):
        if epoch == 1:
            apical.switch(model, "kp", optimizer=optimizer)
        for x, y in batches.epoch(epoch):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    assert model.state_dict().keys() == found.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


def test_a_switch_leaves_a_row_and_the_rule_in_force_is_the_last(tmp_path: Path) -> None:
    experiment = dataclasses.replace(
        BASE, epochs=3, switch={1: {"rule": "kp", "decay": 1e-3}, 2: {"fc1": "fa"}}
    )
    row = loop.run(experiment, tmp_path)
    rows = records.read(tmp_path / "records.jsonl")
    assert [r for r in rows if r["kind"] == "switch"] == [
        {"kind": "switch", "epoch": 1, "rule": "kp", "before": "bp"},
        {"kind": "switch", "epoch": 2, "rule": "mixed", "before": "kp"},
    ]
    last = [r["layer"] for r in rows if r["kind"] == "layer" and r["epoch"] == 3]
    assert "fc1" in last  # measured under the rule in force
    assert row["feedback_bytes"] == 4 * 64 * 16
    images = data.load("digits")
    for epoch, layers in ((0, 0), (1, 2), (3, 1)):
        model = build.build_model(experiment, images, epoch=epoch)
        assert len(list(feedback_modules(model))) == layers
    model.load_state_dict(weights(tmp_path))


def test_a_switch_that_could_not_happen_stops_the_run_before_it_starts(tmp_path: Path) -> None:
    switch: Any = {1: {"fc9": "fa", "*": "bp"}, 2: {"rule": "ldfa", "rank": 12}}
    experiment = dataclasses.replace(BASE, epochs=3, switch=switch)
    with pytest.raises(ValueError) as caught:
        loop.run(experiment, tmp_path / "run")
    told = str(caught.value)
    assert "switch at epoch 1: nothing was converted" in told
    assert "'fc9' matches no layer; near: 'fc2', 'fc1'" in told
    assert "switch at epoch 2: " in told and "rank=12 is above 10" in told
    assert not (tmp_path / "run").exists()


# numbers that blow up


def test_a_nonfinite_loss_ends_the_run_and_says_where(tmp_path: Path) -> None:
    experiment = dataclasses.replace(BASE, lr=1e30)
    row = loop.run(experiment, tmp_path)
    assert (row["kind"], row["reason"], row["epoch"]) == ("stopped", "non-finite loss", 1)
    assert 1 < row["step"] < 5
    assert "of layer fc" in row["where"]
    assert run_folder.state(tmp_path) == "stopped"
    before = (tmp_path / "records.jsonl").read_bytes()
    assert loop.run(experiment, tmp_path) == row
    assert (tmp_path / "records.jsonl").read_bytes() == before


@pytest.mark.parametrize(("split", "epoch"), [("val", 1), ("test", 2)])
def test_a_nonfinite_loss_of_a_split_ends_the_run(
    split: str, epoch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The mean over a split can overflow where every training batch is finite. The test split is
    read at the end alone."""
    scores = loop._scores

    def overflow(experiment: Any, parts: Any, name: str, each: Any) -> dict[str, float]:
        found = scores(experiment, parts, name, each)
        return found | {f"{name}_loss": math.inf} if name == split else found

    monkeypatch.setattr(loop, "_scores", overflow)
    experiment = dataclasses.replace(BASE, epochs=2, validation=100)
    row = loop.run(experiment, tmp_path)
    assert (row["kind"], row["reason"], row["epoch"]) == ("stopped", "non-finite loss", epoch)
    assert row["where"] == f"the split {split!r}"
    assert run_folder.state(tmp_path) == "stopped" and loop.run(experiment, tmp_path) == row


@pytest.mark.parametrize(
    ("breaks", "told"),
    [
        ("x", "the images"),
        ("fc2.weight", "parameter weight of layer fc2"),
        ("fc1.bias", "parameter bias of layer fc1"),
        (None, "the loss"),
    ],
)
def test_first_nonfinite(breaks: str | None, told: str) -> None:
    model = nets.build("mlp", in_shape=(1, 2, 2), num_classes=3, hidden=[4, 5])
    x = torch.ones(2, 1, 2, 2)
    with torch.no_grad():
        broken = {"x": x, **dict(model.named_parameters())}.get(breaks or "")
        if broken is not None:
            broken.view(-1)[1] = float("nan")
    assert observe.first_nonfinite(model, x) == told


def test_first_nonfinite_output() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.fill_(3e38)
    assert observe.first_nonfinite(model, torch.ones(1, 2) * 9) == "output of layer 0"


# folders


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"not empty \(thesis.tex\).*choose another folder"):
        loop.run(BASE, tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"net": "lenett"}, "unknown net 'lenett'; did you mean 'lenet'"),
        ({"data": "digts"}, "unknown data set 'digts'"),
        ({"rule": "faa"}, "unknown rule 'faa'"),
        ({"rule": {"fc*": "fa", "zz*": "bp"}}, "'zz\\*' matches no layer"),
        ({"optimizer": "adagrad"}, "did you mean 'torch.optim:Adagrad'"),
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg'; did you mean 'sgd'"),
        ({"optimizer_options": {"momentm": 1}}, "did you mean 'momentum'"),
        ({"optimizer_options": {"momentum": -1}}, "Invalid momentum"),
        ({"net_options": {"hiden": [3]}}, "did you mean 'hidden'"),
        ({"validation": 5000}, "validation: count=5000"),
    ],
)
def test_what_cannot_be_built_leaves_no_folder(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    with pytest.raises(ValueError, match=told):
        loop.run(dataclasses.replace(BASE, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_missing_device_is_refused() -> None:
    missing = "cuda:99"
    with pytest.raises(ValueError, match=r"device 'cuda:99'.*This machine has: .*cpu"):
        build.check_device(missing, BASE)


def test_execution_out_of_range() -> None:
    for values, text in (
        ({"threads": 0}, "threads=0 must lie in"),
        ({"threads": 100_000}, "threads=100000 must lie in"),
        ({"checkpoint_steps": -1}, "checkpoint_steps=-1 must be at least 0"),
    ):
        with pytest.raises(ValueError, match=text):
            Execution(**values)


# optimizers


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("adam", torch.optim.Adam),
        ("adamw", torch.optim.AdamW),
        ("rmsprop", torch.optim.RMSprop),
        ("sgd", torch.optim.SGD),
        ("torch.optim:Adagrad", torch.optim.Adagrad),
        ("torch.optim.NAdam", torch.optim.NAdam),
    ],
)
def test_optimizers(name: str, kind: type) -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    built = optimizers.build(name, [parameter], lr=0.3, options={"weight_decay": 0.1})
    assert type(built) is kind
    assert (built.defaults["lr"], built.defaults["weight_decay"]) == (0.3, 0.1)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("torch.optim:Adagra", "unknown name in 'torch.optim' 'Adagra'; did you mean 'Adagrad'"),
        ("torch.optimm:SGD", "no module 'torch.optimm'"),
        (":SGD", "write it as package.module:Name"),
    ],
)
def test_optimizer_paths_that_lead_nowhere(name: str, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        optimizers.build(name, [torch.nn.Parameter(torch.ones(2))], lr=0.3, options={})


def test_a_frozen_net_is_refused() -> None:
    frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
    with pytest.raises(ValueError, match="no parameter to train"):
        optimizers.build("sgd", [frozen], lr=0.1, options={})


# the terminal


def test_quiet_where_there_is_no_terminal(tmp_path: Path, capfd: Any) -> None:
    loop.run(BASE, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_a_bar_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    with progress.bar(BASE, 3, 3, quiet=False) as show:
        show.step(4)
        time.sleep(0.05)
        show.epoch([{"kind": "epoch", "train_loss": 0.5, "train_acc": 0.75, "val_acc": 0.5}], 2)
    told = capsys.readouterr().err
    assert "6/6" in told
    assert "train 75.0%" in told
    assert "steps/s" in told


# several processes


@pytest.mark.slow
def test_two_processes_train_the_same_net(tmp_path: Path) -> None:
    """Under a rule that resamples feedback, then a broadcast, then one that learns feedback."""
    rule, switch = "brsf", {1: "dfa", 2: "kp"}
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--rdzv-backend", "c10d", "--rdzv-endpoint", "localhost:0"]
    options = f"--net_options.hidden [16] --epochs 3 --batch_size 128 --rule {rule} "
    options += "--optimizer sgd --lr 0.05 --optimizer_options.momentum 0.9 --probe_images 16 "
    options += "--probe_share 1 --accumulate 2 "
    options += "--validation 29"  # leaves 11 x 128 images: every batch divides evenly
    command += ["-m", "apical", "train", "--folder", str(tmp_path / "two"), *options.split()]
    command += ["--switch", json.dumps(switch)]
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    changes = {"rule": rule, "switch": switch, "epochs": 3, "accumulate": 2, "validation": 29}
    alone = dataclasses.replace(BASE, **changes)
    loop.run(alone, tmp_path / "one")
    close(weights(tmp_path / "one"), weights(tmp_path / "two"))
    one, two = (records.read(tmp_path / name / "records.jsonl") for name in ("one", "two"))
    kinds = functools.partial(map, lambda row: (row["kind"], row.get("epoch"), row.get("layer")))
    assert list(kinds(one)) == list(kinds(two))
    assert done.stdout.count("test accuracy") == 1


def test_the_test_split_is_followed_at_the_epochs_asked_for(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other"
    followed = dataclasses.replace(BASE, rule="fa", epochs=3, test_at=(1, 3), probe_every=2)
    last = loop.run(followed, one)
    plain = loop.run(dataclasses.replace(BASE, rule="fa", epochs=3, probe_every=2), other)
    rows = [row for row in records.read(one / "records.jsonl") if row["kind"] == "test"]
    assert [row["epoch"] for row in rows] == [1, 3]
    assert rows[-1]["test_acc"] == last["test_acc"] == plain["test_acc"]
    assert not [row for row in records.read(other / "records.jsonl") if row["kind"] == "test"]
    probed = [row["epoch"] for row in records.read(one / "records.jsonl") if row["kind"] == "layer"]
    assert sorted(set(probed)) == [0, 1, 2, 3]
    assert torch.equal(weights(one)["fc1.weight"], weights(other)["fc1.weight"])


def test_binary_cross_entropy_of_unit_pixels_in_the_order_of_the_split(tmp_path: Path) -> None:
    """One epoch written out: error sigmoid - label, no normalisation, no shuffling."""
    changes = {"loss": "binary_cross_entropy", "pixels": "unit", "shuffle": False}
    changes |= {"epochs": 1, "drop_last": True}
    options = {"net_options": {"hidden": []}, "optimizer_options": {}, "init": "normal"}
    folder = tmp_path / "run"
    experiment = dataclasses.replace(BASE, **changes, **options)  # type: ignore[arg-type]
    loop.run(experiment, folder)
    images = data.load("digits")
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build.build_model(experiment, images)
    weight, bias = (p.detach().double() for p in model.parameters())
    x_all = images.train.images.flatten(1).double() / 255
    pairs = zip(x_all.split(128), images.train.labels.split(128), strict=True)
    for x, y in list(pairs)[:-1]:  # 1,437 images fill eleven batches
        error = torch.sigmoid(x @ weight.T + bias) - F.one_hot(y, 10)
        weight -= 0.05 * error.T @ x / len(x)
        bias -= 0.05 * error.mean(0)
    close(weights(folder)["fc1.weight"], weight.float())
    close(weights(folder)["fc1.bias"], bias.float())


def test_images_that_fill_no_batch_are_refused_alone(tmp_path: Path) -> None:
    experiment = dataclasses.replace(BASE, batch_size=2000, drop_last=True)
    with pytest.raises(ValueError, match="the 1437 training images fill no batch"):
        loop.run(experiment, tmp_path / "run")


def test_the_recorded_loss_is_the_one_trained_on(tmp_path: Path) -> None:
    row = loop.run(dataclasses.replace(BASE, loss="binary_cross_entropy", epochs=1), tmp_path)
    images = data.load("digits")
    model = nets.build("mlp", in_shape=images.shape, num_classes=10, hidden=[16])
    model.load_state_dict(weights(tmp_path))
    x = (images.test.images / 255 - torch.tensor(images.mean)) / torch.tensor(images.std)
    scores = model(x.float()).detach()
    targets = F.one_hot(images.test.labels, 10).float()
    expected = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum") / 360
    assert row["test_loss"] == pytest.approx(expected.item(), rel=1e-5)
