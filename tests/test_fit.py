"""Training a model of one's own on data of one's own, by `bench.fit`."""

import copy
import re
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import apical
from apical.bench import Execution, fit, load_run
from apical.bench.experiment.own_code import digest_of

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(200, 6, generator=GENERATOR)
Y = (X[:, 0] + X[:, 1] > 0).long()
TRAIN, TEST = (X[:150], Y[:150]), (X[150:], Y[150:])
QUIET = Execution(quiet=True)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 24), nn.Tanh(), nn.Linear(24, 2))


def test_a_copy_of_the_model_is_trained_and_recorded() -> None:
    torch.manual_seed(0)
    model = make()
    before = copy.deepcopy(model.state_dict())
    done = fit(model, TRAIN, TEST, rule="fa", epochs=20, lr=0.02, batch_size=16, execution=QUIET)
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])  # the model itself stays as it is
    assert done.accuracy is not None and done.model is not None and done.accuracy > 0.8
    scores = done.model(TEST[0]).argmax(1)
    assert (scores == TEST[1]).double().mean().item() == pytest.approx(done.accuracy)
    assert [row["kind"] for row in done.records].count("epoch") == 20
    text = repr(done)
    assert len(text) < 200 and f"test accuracy {done.accuracy:.2%} (n = {len(TEST[1])})" in text
    assert str(done.folder) in text and done.folder.parts[:2] == ("runs", "fit")
    assert re.fullmatch(r"Sequential-fa-s0-[0-9a-f]{10}", done.folder.name)
    page = done.report().read_text()
    assert re.search(r"Sequential [0-9a-f]{6} on data [0-9a-f]{6}", page)
    loaded = load_run(done.folder, model=make())
    assert torch.equal(loaded.model(TEST[0]), done.model(TEST[0]))
    assert len(repr(loaded)) < 400
    with pytest.raises(ValueError, match=r"load_run\(folder, model=net\)"):
        load_run(done.folder)
    plain = apical.revert(done.model)
    assert set(plain.state_dict()) == set(before)


def test_what_did_not_change_is_not_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = make()
    options: dict[str, Any] = {"rule": "dfa", "epochs": 1, "execution": QUIET}
    first = fit(model, TRAIN, TEST, **options)
    again = fit(model, TRAIN, TEST, **options)
    assert first.folder == again.folder and first.end == again.end  # the times too: nothing ran
    assert first.model is not None and again.model is not None
    assert torch.equal(first.model(X), again.model(X))
    loader = DataLoader(TensorDataset(*TRAIN), batch_size=32, shuffle=True)
    other_data = ((X[:150] + 1, Y[:150]), TEST)
    folders = {first.folder}
    for changed in (
        fit(make(), TRAIN, TEST, **options),
        fit(model, *other_data, **options),
        fit(model, TRAIN, TEST, **{**options, "rule": "fa"}),
        fit(model, TRAIN, TEST, **{**options, "seed": 1}),
        fit(model, loader, TEST, **options),
        fit(nn.Sequential(*model[:1], nn.ReLU(), model[2]), TRAIN, TEST, **options),
    ):
        assert changed.folder not in folders
        folders.add(changed.folder)
    assert changed.experiment.batch_size == 64


class Squashed(nn.Module):
    """A net whose representation does not show what it computes."""

    def __init__(self, factor: float = 1.0, squash: Any = torch.relu) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 2)
        self.factor, self.squash = factor, squash

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return squashed(self, x)


def squashed(net: Any, x: torch.Tensor) -> torch.Tensor:
    return net.second(net.squash(net.factor * net.first(x)))


class Inherited(Squashed):
    pass


class Noisy:
    """A generator of NumPy shows its address, not its state."""

    def __init__(self, seed: int) -> None:
        self.generator = np.random.default_rng(seed)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_numpy(self.generator.normal(size=x.shape)).to(x)


def bent(rate: float) -> Any:
    return lambda x: torch.where(x > 0, x, rate * x)


def kept_first() -> nn.Module:
    net = Squashed()
    net.first.requires_grad_(False)
    return net


def hooked() -> nn.Module:
    net = Squashed()
    net.first.register_forward_hook(lambda layer, inputs, output: 2 * output)
    return net


def tied(really: bool) -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2))
    net[1].load_state_dict(net[0].state_dict())
    net[1].weight = net[0].weight if really else net[1].weight
    return net


def test_a_compiled_net_is_named_by_what_is_compiled() -> None:
    warnings.simplefilter("ignore", DeprecationWarning)  # of dynamo, about its own call of torch
    net = Squashed()
    assert digest_of(torch.compile(net)) == digest_of(torch.compile(net)) != digest_of(net)


def test_a_net_that_computes_something_else_is_trained_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Any] = [
        Squashed,
        Inherited,
        kept_first,
        hooked,
        lambda: Squashed(factor=-3.0),
        lambda: Squashed(squash=torch.tanh),
        lambda: Squashed(squash=bent(0.1)),
        lambda: Squashed(squash=bent(0.2)),
        lambda: Squashed(squash=partial(torch.clamp, min=0.0)),
        lambda: Squashed(squash=partial(torch.clamp, min=0.1)),
        lambda: Squashed(squash=Noisy(3)),
        lambda: Squashed(squash=Noisy(4)),
        lambda: tied(True),
        lambda: tied(False),
    ]
    options: dict[str, Any] = {"epochs": 1, "execution": QUIET}
    first = {fit(net, TRAIN, TEST, **options).folder for net in made}
    assert first == {fit(net, TRAIN, TEST, **options).folder for net in made}
    assert len(first) == len(made)
    monkeypatch.setitem(globals(), "squashed", lambda net, x: net.second(net.first(x)))
    assert fit(Inherited, TRAIN, TEST, **options).folder not in first  # its base calls another


def test_a_loader_names_its_batches() -> None:
    loader = DataLoader(TensorDataset(*TRAIN), batch_size=32, shuffle=True, drop_last=True)
    done = fit(make, loader, DataLoader(TensorDataset(*TEST)), epochs=2, execution=QUIET)
    assert (done.experiment.batch_size, done.experiment.drop_last) == (32, True)
    assert next(row for row in done.records if row["kind"] == "epoch")["step"] == 150 // 32


def test_a_function_gives_initial_weights_by_the_seed() -> None:
    before = torch.get_rng_state()
    one, same, other = (
        fit(make, TRAIN, TEST, epochs=1, seed=s, execution=QUIET) for s in (0, 0, 1)
    )
    assert torch.equal(before, torch.get_rng_state())
    assert one.folder == same.folder != other.folder
    assert one.experiment.net == other.experiment.net  # seeds of one row of a report
    assert one.model is not None and other.model is not None
    assert not torch.equal(one.model(X), other.model(X))
    named = fit("mlp", TRAIN, TEST, epochs=1, net_options={"hidden": [5]}, execution=QUIET)
    assert load_run(named.folder).model[1].weight.shape == (5, 6)


def test_a_run_that_diverges_is_a_result() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of layers that are saturated
        done = fit(make, TRAIN, TEST, optimizer="sgd", lr=1e39, epochs=5, execution=QUIET)
    assert (done.accuracy, done.model) == (None, None)
    assert "diverged in epoch" in repr(done) and "a smaller lr may help" in repr(done)


class Returns(nn.Module):
    """A net that makes something of its scores."""

    def __init__(self, make: Any) -> None:
        super().__init__()
        self.layer, self.make = nn.Linear(6, 2), make

    def forward(self, x: torch.Tensor) -> Any:
        return self.make(self.layer(x), self.training)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda y, training: (y, y.sum()),
            r"a tuple with tensors of shapes .*return self.net\(x\)\[0\]$",
        ),
        (lambda y, training: {"logits": y}, r"a dict .*return self.net\(x\)\['logits'\]$"),
        (lambda y, training: y[:, None], r"of shape \(2, 1, 2\) .*return self.net\(x\)\[:, -1\]$"),
        (lambda y, training: ((y[:, None],), y[None]), r"return self.net\(x\)\[0\]\[0\]\[:, -1\]$"),
        (lambda y, training: y[0], r"a tensor of shape \(2,\) .* of your own that returns it$"),
        (lambda y, training: y.round().long(), r"shape \(2, 2\) and torch.int64"),
        (lambda y, training: y.detach(), "depend on no parameter"),
    ],
)
@pytest.mark.parametrize("rule", ["bp", "dfa"])
def test_what_a_net_must_return(make: Any, message: str, rule: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(Returns(make), TRAIN, TEST, rule=rule, epochs=1, execution=QUIET)
    assert not Path("runs").exists()


def test_auxiliary_outputs_in_training_mode_are_named() -> None:
    net = Returns(lambda y, training: (y, y) if training else y)
    with pytest.raises(ValueError, match=r"in training mode returned a tuple .*self.net\(x\)\[0\]"):
        fit(net, TRAIN, TEST, epochs=1, execution=QUIET)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (3, "give a torch.nn.Module"),
        (lambda: 3, r"model\(\) returned a int"),
        (lambda: apical.convert(make(), "fa"), "converted already"),
        (lambda: nn.Linear(6, 3), r"gave outputs of shape \[\(2, 3\)\], not 2 classes"),
        (lambda: nn.Linear(7, 2), r"cannot take inputs \(6,\)"),
        (nn.Flatten, r"gave outputs of shape"),
        (nn.Bilinear, r"Bilinear\(\) needs arguments: give the module"),
        ("lenet", r"must be \(channels, height, width\)"),
    ],
)
def test_models_that_do_not_fit(model: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        fit(model, TRAIN, TEST, epochs=1, execution=QUIET)
    assert not Path("runs").exists()


def test_settings_that_do_not_fit() -> None:
    for settings, message in (
        ({"rules": "fa"}, "unknown setting of fit 'rules'; did you mean 'rule'"),
        ({"learning_rate": 0.1}, "did you mean 'lr'"),
        ({"net": "mlp"}, "unknown setting of fit 'net'"),
        ({"optimizer": torch.optim.SGD(make().parameters(), 0.1)}, "optimizer is a SGD: give its"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(make(), TRAIN, TEST, **settings)
    assert not Path("runs").exists()
