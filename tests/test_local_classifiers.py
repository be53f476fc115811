"""Local classifiers of spiking layers: ELL, FELL, BELL, DECOLLE by formulas, and in the runner."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical import data, learners, nets
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.training import loop
from apical.learners import LocalClassifiers
from apical.nets import spiking
from test_resume import Killed, interrupted_at

T, N, K, DECAY, RATE = 5, 4, 3, 0.7, 0.5
QUIET = Execution(quiet=True)
Numbers = dict[str, Tensor]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(form: str, **options: Any) -> spiking.SpikingNet:
    output = "membrane" if form == "decolle" else "count"
    choices = {"hidden": [6, 5], "steps": T, "decay": DECAY, "gain": 8.0, "output": output}
    shape = (T, 2, 2) if options.get("encoding") == "frames" else (1, 2, 2)
    return nets.build(
        "spiking_mlp", in_shape=shape, num_classes=K, seed=0, **{**choices, **options}
    ).double()


def batch(channels: int = 1) -> tuple[Tensor, Tensor]:
    x = torch.rand(N, channels, 2, 2, generator=generator(1), dtype=torch.float64)
    return 2 * x, torch.tensor([0, 2, 1, 2])


def phi(v: Tensor) -> Tensor:
    """The default surrogate, arctan with k = 2."""
    return 1 / (1 + (torch.pi * v) ** 2)


def leaky(current: Tensor, m: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
    m = DECAY * m + current - s
    return m, (m > 1).double()


class Written:
    """ELL, FELL and DECOLLE by hand: layer after layer, all steps of one before the next, and
    plain descent at every step."""

    def __init__(self, form: str, p: Numbers, sizes: Tensor | None) -> None:
        self.form, self.p, self.sizes = form, {k: v.clone() for k, v in p.items()}, sizes

    def layer(self, inputs: list[Tensor], y: Tensor) -> list[Tensor]:
        p, target, fired = self.p, F.one_hot(y, K).double(), []
        m, s, u, o, xbar, sbar, n = (torch.zeros(()).double() for _ in range(7))
        keep = 0.0 if self.form == "ell" else DECAY
        for x in inputs:
            m, s = leaky(x @ p["W"].t() + p["b"], m, s)
            xbar, sbar, n = keep * xbar + x, keep * sbar + s, keep * n + 1
            logits = s @ p["C"].t() + p["c"]
            if self.form == "decolle":
                at_classifier = (logits - target).clamp(-1, 1) / (N * K)
            else:
                u, o = leaky(logits, u, o)
                at_classifier = 2 * (o - target) / (N * K) * phi(u - 1)
            back = p["C"] if self.sizes is None else self.sizes * p["C"].sign()
            at_layer = at_classifier @ back * phi(m - 1)
            if self.form != "decolle":
                p["C"] = p["C"] - RATE * at_classifier.t() @ sbar
                p["c"] = p["c"] - RATE * at_classifier.sum(0) * n
            p["W"] = p["W"] - RATE * at_layer.t() @ xbar
            p["b"] = p["b"] - RATE * at_layer.sum(0) * n
            fired.append(s)
        return fired


def numbers(model: nn.Module, layer: str, classifier: str) -> Numbers:
    weights = dict(model.state_dict())
    return {
        "W": weights[f"{layer}.weight"],
        "b": weights[f"{layer}.bias"],
        "C": weights[f"{classifier}weight"],
        "c": weights[f"{classifier}bias"],
    }


PLACES = (("fc1", "learner.fc1_"), ("fc2", "fc3."))


@pytest.mark.parametrize("encoding", ["direct", "frames"])
@pytest.mark.parametrize("feedback", ["symmetric", "concordant"])
@pytest.mark.parametrize("form", ["ell", "fell", "decolle"])
def test_every_step_by_hand(form: Any, feedback: Any, encoding: str) -> None:
    learner = LocalClassifiers(form, feedback)
    model = learners.attach(net(form, encoding=encoding), learner)
    x, y = batch(T if encoding == "frames" else 1)
    rows = (
        [frame.flatten(1) for frame in x.unbind(1)] if encoding == "frames" else [x.flatten(1)] * T
    )
    expected: Numbers = {}
    for layer, classifier in PLACES:
        memory = dict(model.state_dict())
        sizes = memory.get(f"learner.{layer}_sizes")
        by_hand = Written(form, numbers(model, layer, classifier), sizes)
        rows = by_hand.layer(rows, y)
        assert 0.1 < torch.stack(rows).mean() < 0.9
        expected |= {f"{layer} {name}": value for name, value in by_hand.p.items()}
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    before = torch.stack([p.detach().norm() for p in model.parameters()])
    learner.stepwise(model, (x, y), update)
    update()
    assert not torch.equal(torch.stack([p.detach().norm() for p in model.parameters()]), before)
    for layer, classifier in PLACES:
        for name, value in numbers(model, layer, classifier).items():
            assert_close(value, expected[f"{layer} {name}"])


def test_bell_is_backpropagation_through_time_in_each_layer() -> None:
    for reset in ("subtract", "zero", "none"):
        learner = LocalClassifiers("bell")
        model = learners.attach(net("bell", reset=reset), learner)
        (x, y), lif = batch(), model.lif1
        target = F.one_hot(y, K).double()
        memory = dict(model.named_parameters())
        rows, total = x.flatten(1).expand(T, N, 4).flatten(0, 1), torch.zeros(()).double()
        for layer, classifier in PLACES:
            spikes = lif(
                F.linear(rows.detach(), memory[f"{layer}.weight"], memory[f"{layer}.bias"])
            )
            weights = memory[f"{classifier}weight"], memory[f"{classifier}bias"]
            answers = lif(F.linear(spikes, *weights)).view(T, N, K)
            total = total + (answers - target).square().mean((1, 2)).sum()
            rows = spikes
        expected = torch.autograd.grad(total, list(memory.values()))
        learner.gradients(model, (x, y))
        for (name, parameter), gradient in zip(memory.items(), expected, strict=True):
            assert gradient.abs().max() > 0, name
            assert_close(parameter.grad, gradient)


def test_bell_with_one_hidden_layer_is_backpropagation_through_the_net() -> None:
    model, learner, (x, y) = net("bell", hidden=[6]), LocalClassifiers("bell"), batch()
    answers = nn.Sequential(*[m for name, m in model.layers() if name != "read"])(x).view(T, N, K)
    (answers - F.one_hot(y, K)).square().mean((1, 2)).sum().backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    _, info = learner.gradients(model, (x, y))
    for name, parameter in model.named_parameters():
        assert_close(parameter.grad, expected[name])
    assert torch.equal(info.scores, model(x))
    each = (answers - F.one_hot(y, K)).square().mean((1, 2))
    assert_close(info.local_losses, each.detach())


def test_without_a_memory_traces_are_inputs() -> None:
    """ELL and FELL differ by what decays."""
    after = {}
    for form in ("ell", "fell"):
        for decay in (0.0, DECAY):
            model, learner = net(form, hidden=[6], decay=decay), LocalClassifiers(form)
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
            learner.stepwise(model, batch(), optimizer.step)
            after[form, decay] = model.fc1.weight.detach()
    assert torch.equal(after["ell", 0.0], after["fell", 0.0])
    assert not torch.allclose(after["ell", DECAY], after["fell", DECAY])


def test_no_layer_receives_a_signal_from_those_above() -> None:
    for form in ("bell", "decolle", "ell", "fell"):
        found = []
        for factor in (1.0, 0.5):
            learner = LocalClassifiers(form)
            model = learners.attach(net(form), learner, seed=2)
            with torch.no_grad():
                model.fc2.weight.mul_(factor)
                model.fc3.weight.mul_(factor)
            learner.gradients(model, batch())
            found.append((model.fc1.weight.grad, model.fc2.weight.grad))
        assert found[0][0].abs().max() > 0
        assert torch.equal(found[0][0], found[1][0])
        assert not torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("form", "updates"), [("bell", 0), ("decolle", 4), ("ell", 4), ("fell", 4)]
)
def test_the_last_update_is_the_loops(form: Any, updates: int) -> None:
    learner, calls = LocalClassifiers(form), []
    model = learners.attach(net(form), learner)
    learner.stepwise(model, batch(), lambda: calls.append(1))
    assert len(calls) == updates
    calls.clear()
    learners.Backprop().stepwise(model, batch(), lambda: calls.append(1))
    assert not calls


# The neuron of DECOLLE -------------------------------------------------------------------------

ALPHA, BETA, REST, DEPTH = 0.8, 0.6, 0.5, 0.3


def double(steps: int = T) -> spiking.OverTime:
    cell = spiking.DoubleExponential(alpha=ALPHA, beta=BETA, rest=REST, depth=DEPTH)
    return spiking.OverTime(cell, steps, start=cell.start)


def test_the_neuron_of_decolle_is_its_recurrence() -> None:
    current = torch.randn(T, N, K, generator=generator(), dtype=torch.float64).requires_grad_()
    spikes = double()(current.flatten(0, 1)).view(T, N, K)
    q = p = r = s = torch.zeros(N, K, dtype=torch.float64)
    fired = []
    for now in current.detach():
        q = BETA * q + (1 - BETA) * now
        p = ALPHA * p + (1 - ALPHA) * q
        r = REST * r - (1 - REST) * s * DEPTH
        u = p + r
        s = (u > 0).double()
        fired.append(s)
    assert torch.equal(spikes, torch.stack(fired))
    assert 0.1 < spikes.mean() < 0.9
    spikes[-1].sum().backward()
    slope = 1 / (1 + 10 * u.abs()) ** 2
    lags = range(T - 1, -1, -1)  # of the two filters together
    kernel = [sum(ALPHA**i * BETA ** (lag - i) for i in range(lag + 1)) for lag in lags]
    expected = [slope * (1 - ALPHA) * (1 - BETA) * weight for weight in kernel]
    assert_close(current.grad, torch.stack(expected))


def test_the_neuron_of_decolle_is_silent_on_silence() -> None:
    assert not double()(torch.zeros(T * N, K)).any()


def test_decolle_with_its_own_neurons_by_hand() -> None:
    torch.manual_seed(0)
    layers = {
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(4, 6),
        "encode": spiking.Direct(T),
        "fire": double(),
        "fc2": nn.Linear(6, K),
        "read": spiking.Membrane(T, DECAY),
    }
    model, learner, (x, y) = (
        spiking.SpikingNet(layers).double(),
        LocalClassifiers("decolle"),
        batch(),
    )
    x = x - 1
    _, info = learner.gradients(model, (x, y))
    assert_close(info.scores, model(x).detach())
    assert model.fc2.weight.grad is None
    filters = double().cell
    trace, ones = filters.start(x.flatten(1))[0], filters.start(torch.ones(1).double())[0]
    spikes = model.fire(model.encode(model.fc1(x.flatten(1)))).view(T, N, 6).detach()
    assert 0.1 < spikes.mean() < 0.9
    weight, bias, hole = (
        torch.zeros(6, 4).double(),
        torch.zeros(6).double(),
        torch.zeros(N, 6).double(),
    )
    before = torch.zeros(N, 6).double()
    for s in spikes:
        trace = filters.filtered(x.flatten(1), trace)
        ones = filters.filtered(torch.ones(1).double(), ones)
        hole = REST * hole - (1 - REST) * DEPTH * before
        u = F.linear(trace.twice, model.fc1.weight, model.fc1.bias * ones.twice) + hole
        wrong = (model.fc2(s) - F.one_hot(y, K)).clamp(-1, 1) / (N * K)
        at_layer = wrong @ model.fc2.weight / (1 + 10 * u.abs()) ** 2
        weight = weight + at_layer.t() @ trace.twice
        bias, before = bias + at_layer.sum(0) * ones.twice, s
    assert_close(model.fc1.weight.grad, weight.detach())
    assert_close(model.fc1.bias.grad, bias.detach())


# Refusals, the runner --------------------------------------------------------------------------


def converted() -> nn.Module:
    return apical.convert(net("ell"), "fa")


def with_other_neurons() -> spiking.SpikingNet:
    layers = {"fc1": nn.Linear(4, 6), "fire1": double(), "fc2": nn.Linear(6, K)}
    return spiking.SpikingNet({**layers, "fire2": double(), "read": spiking.Count(T)})


def test_what_it_cannot_teach_is_refused() -> None:
    for form, make, told in (
        ("ell", lambda: nets.build("mlp", in_shape=(1, 2, 2), num_classes=3, seed=0), "no spiking"),
        (
            "ell",
            lambda: nets.build("spiking_conv", in_shape=(1, 8, 8), num_classes=3, seed=0),
            "no spiking_mlp",
        ),
        ("ell", converted, r"apical\.revert"),
        ("ell", lambda: net("decolle"), "output='count'"),
        ("decolle", lambda: net("ell"), "output='membrane'"),
        ("fell", lambda: net("fell", reset="zero"), "reset='zero'"),
        ("bell", with_other_neurons, "it trains LIF neurons.*not OverTime"),
        ("ell", lambda: net("ell"), "learners.attach"),
    ):
        with pytest.raises(ValueError, match=told):
            LocalClassifiers(form).gradients(make(), batch())


def test_values_out_of_range_are_refused() -> None:
    for options in ({"alpha": 1.0}, {"beta": -0.1}, {"rest": 2.0}, {"depth": -1.0}, {"slope": 0.0}):
        with pytest.raises(ValueError, match=f"DoubleExponential.*{next(iter(options))}"):
            spiking.DoubleExponential(**options)


@pytest.mark.parametrize("form", ["bell", "decolle", "ell", "fell"])
def test_it_learns_digits(form: Any) -> None:
    digits = data.load("digits")
    output = "membrane" if form == "decolle" else "count"
    model = nets.build(
        "spiking_mlp", in_shape=digits.shape, num_classes=10, seed=0, hidden=[60, 40], steps=4,
        output=output,
    )  # fmt: skip
    learner = LocalClassifiers(form)
    learners.attach(model, learner)
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-3 if form == "bell" else 2e-3)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad()

    common: dict[str, Any] = {"mean": digits.mean, "std": digits.std}
    batches = data.Batches(digits.train, 96, shuffle_seed=0, **common)
    for epoch in range(4):
        for part in batches.epoch(epoch):
            learner.stepwise(model, part, update)
            update()
    x, y = next(data.Batches(digits.test, 360, **common).epoch(0))
    assert (model(x).argmax(1) == y).float().mean() > 0.75


def experiment(form: str) -> Experiment:
    output = "membrane" if form == "decolle" else "count"
    return Experiment(
        net="spiking_mlp", net_options={"hidden": [10, 8], "steps": 3, "output": output},
        probe_every=0,
        learner={"learner": "local_classifiers", "form": form}, train_images=96, batch_size=32,
        optimizer="adam", lr=5e-3, epochs=2, test_images=50, clip_norm=1.0,
    )  # fmt: skip


def test_the_runner_is_a_loop_with_updates_in_between(tmp_path: Path) -> None:
    loop.run(experiment("ell"), tmp_path, QUIET)
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=True)["state"]
    steps = {int(each["step"]) for each in state["optimizer"]["state"].values()}
    assert steps == {2 * 3 * 3}  # epochs, batches, steps
    assert state["position"]["step"] == 2 * 3


@pytest.mark.parametrize("form", ["decolle", "ell"])
def test_it_resumes_to_the_same_bits(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    loop.run(experiment(form), straight, QUIET)
    within = Execution(quiet=True, checkpoint_steps=1)
    with monkeypatch.context() as patch:
        interrupted_at(3, patch, after=True)
        with pytest.raises(Killed):
            loop.run(experiment(form), broken, within)
    loop.run(experiment(form), broken, within)
    one, other = (
        torch.load(place / "checkpoint.pt", weights_only=True)["state"]
        for place in (straight, broken)
    )
    for part in ("model", "optimizer"):
        assert str(one[part]) == str(other[part])
    assert all(torch.equal(one["model"][name], other["model"][name]) for name in one["model"])
