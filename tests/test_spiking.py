"""Spiking neurons, encodings and nets: formulas written out, snnTorch as the oracle, refusals."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

from apical import attacks, nets
from apical.bench.evaluate import trained_net
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.storage import records
from apical.bench.training import loop
from apical.bench.training.monitor import LearningWarning
from apical.nets import spiking
from apical.nets.spiking.neurons import RESETS, SURROGATES

T, N, UNITS = 7, 3, 5
QUIET = Execution(quiet=True)
DETACHED = {"learner": "backprop", "through": "detached"}


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def current(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(T, N, UNITS, generator=generator(), dtype=dtype)


SLOPES = {
    "arctan": lambda v, k: k / 2 / (1 + (torch.pi / 2 * k * v) ** 2),
    "exponential": lambda v, k: torch.exp(-k * v.abs()),
    "fast_sigmoid": lambda v, k: 1 / (1 + k * v.abs()) ** 2,
    "triangular": lambda v, k: (1 - k * v.abs()).clamp(min=0),
}


class Cell(nn.Module):
    """The equations of LIF a step at a time, with surrogates by a sum that is zero."""

    def __init__(self, decay: float, threshold: float, reset: str, surrogate: str, k: float):
        super().__init__()
        self.decay, self.threshold, self.reset = decay, threshold, reset
        self.surrogate, self.k = surrogate, k

    def forward(self, arriving: Tensor, m: Tensor) -> tuple[Tensor, Tensor]:
        r = (m.detach() > self.threshold).to(m.dtype)
        if self.reset == "zero":
            m = self.decay * (1 - r) * m + arriving
        else:
            m = self.decay * m + arriving - (self.threshold * r if self.reset == "subtract" else 0)
        v = m - self.threshold
        phi = SLOPES[self.surrogate](v.detach(), self.k)
        return (v.detach() > 0).to(m.dtype) + phi * (v - v.detach()), m


def spikes_and_gradient(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.clone().requires_grad_()
    fired = layer(x.flatten(0, 1)).view_as(x)
    weights = torch.randn(x.shape, generator=generator(1), dtype=x.dtype)
    (fired * weights).sum().backward()
    return fired.detach(), x.grad


def test_lif_is_its_equations() -> None:
    for surrogate in SURROGATES:
        for reset in RESETS:
            lif = spiking.LIF(
                T, decay=0.7, threshold=0.5, reset=reset, surrogate=surrogate, slope=1.5
            )
            plain = spiking.OverTime(Cell(0.7, 0.5, reset, surrogate, 1.5), T)
            fired, gradient = spikes_and_gradient(lif, current())
            expected, slow = spikes_and_gradient(plain, current())
            assert torch.equal(fired, expected.round()) and 0 < fired.mean() < 1
            assert_close(gradient, slow, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reset", RESETS)
@pytest.mark.parametrize("surrogate", ["arctan", "fast_sigmoid"])
def test_lif_is_snntorchs_to_the_bit(reset: Any, surrogate: str) -> None:
    snntorch = pytest.importorskip("snntorch", reason="snnTorch is an oracle of the tests only")
    grad = {
        "arctan": snntorch.surrogate.atan(2.0),
        "fast_sigmoid": snntorch.surrogate.fast_sigmoid(25),
    }
    leaky = snntorch.Leaky(
        beta=0.9, threshold=0.6, reset_mechanism=reset, spike_grad=grad[surrogate]
    )
    slope = {"arctan": 2.0, "fast_sigmoid": 25.0}[surrogate]
    ours = spiking.LIF(25, decay=0.9, threshold=0.6, reset=reset, surrogate=surrogate, slope=slope)
    x = torch.randn(25, 8, 50, generator=generator())
    for mine, theirs in zip(
        spikes_and_gradient(ours, x),
        spikes_and_gradient(spiking.OverTime(leaky, 25), x),
        strict=True,
    ):
        assert torch.equal(mine, theirs)


def test_any_neuron_plugs_in_with_a_state_of_its_own() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            seen = state["seen"] + x
            return seen, {"seen": seen}

    layer = spiking.OverTime(Twice(), 3, start=lambda x: {"seen": torch.zeros_like(x)})
    assert layer(torch.ones(6, 2))[:, 0].tolist() == [1, 1, 2, 2, 3, 3]


def test_within_steps_nothing_travels_back_through_the_membrane() -> None:
    lif = spiking.LIF(T, decay=0.9)
    x = current().requires_grad_()
    with spiking.within_steps(lif):
        fired = lif(x.flatten(0, 1)).view_as(x)
        fired[-1].sum().backward()
    assert not x.grad[:-1].any() and x.grad[-1].any()
    assert torch.equal(fired, lif(x.flatten(0, 1)).view_as(x))  # what is fired is the same
    assert lif.through_time


# Encodings -------------------------------------------------------------------------------------


def test_direct_is_the_same_at_every_step() -> None:
    x = torch.rand(2, 1, 2, 2, generator=generator())
    assert torch.equal(spiking.Direct(3)(x), torch.cat([x, x, x]))


def test_poisson_fires_at_the_rate_of_the_pixel_and_lets_the_gradient_through() -> None:
    x = torch.tensor([[[[0.0, 0.3], [0.7, 1.0]]]]).requires_grad_()
    torch.manual_seed(0)
    spikes = spiking.Poisson(4000)(x)
    assert set(spikes.unique().tolist()) == {0.0, 1.0}
    assert_close(spikes.mean(0).flatten(), x.flatten(), atol=0.03, rtol=0)  # 4 deviations
    spikes.sum().backward()
    assert x.grad.unique().tolist() == [4000]


def test_latency_fires_once_the_brighter_the_sooner() -> None:
    x = torch.tensor([[[[0.0, 0.5, 1.0]]]]).requires_grad_()
    spikes = spiking.Latency(5)(x)
    assert spikes[:, 0, 0].T.tolist() == [[0, 0, 0, 0, 0], [0, 0, 1, 0, 0], [1, 0, 0, 0, 0]]
    (spikes * torch.arange(1.0, 6).view(5, 1, 1, 1)).sum().backward()
    assert x.grad.flatten().tolist() == [0, 3, 1]  # the weight of its own spike


def test_delta_has_an_event_where_a_frame_changes() -> None:
    frames = torch.tensor([0.0, 0.5, 0.45, 0.0]).view(1, 4, 1, 1).requires_grad_()
    events = spiking.Delta(4, threshold=0.1)(frames)
    assert events.view(4, 2).tolist() == [[0, 0], [1, 0], [0, 0], [0, 1]]
    events[:, 0].sum().backward()
    assert frames.grad.flatten().tolist() == [0, 0, 0, 1]  # changes up to the last frame add up


def test_frames_come_step_by_step() -> None:
    x = torch.arange(2 * 6.0).view(2, 6, 1, 1)  # 2 samples, 3 steps of 2 channels
    assert spiking.Frames(3)(x).flatten(1).tolist() == [
        [0, 1], [6, 7], [2, 3], [8, 9], [4, 5], [10, 11],
    ]  # fmt: skip


@pytest.mark.parametrize("kind", [spiking.Poisson, spiking.Latency])
def test_values_that_are_no_probabilities_are_refused(kind: Any) -> None:
    with pytest.raises(ValueError, match=r"between -0.5 and 0.2.*pixels='unit'"):
        kind(3)(torch.tensor([[-0.5, 0.2]]))


# Nets ------------------------------------------------------------------------------------------


def net(**options: Any) -> spiking.SpikingNet:
    given = {"hidden": [6], "steps": T, **options}
    return nets.build("spiking_mlp", in_shape=(1, 3, 3), num_classes=4, seed=0, **given).double()


def test_a_net_is_its_layers_over_time() -> None:
    model, x = net(output="membrane", decay=0.5), torch.rand(2, 1, 3, 3, dtype=torch.float64)
    m, o, means = torch.zeros(2, 6), torch.zeros(2, 4), torch.zeros(2, 4)
    s = torch.zeros(2, 6, dtype=torch.float64)
    for _ in range(T):
        m = 0.5 * m + model.fc1(x.flatten(1)) - s
        s = (m > 1).double()
        o = 0.5 * o + model.fc2(s)
        means = means + o / T
    assert_close(model(x), means, atol=1e-6, rtol=0)  # weights of the readout are float32
    counts = net(output="count")(x)
    assert torch.equal(counts, counts.round()) and counts.max() <= T


@pytest.mark.parametrize("encoding", ["direct", "frames"])
def test_a_constant_current_is_made_behind_the_first_synapses(encoding: str) -> None:
    names = list(dict(net(encoding=encoding, steps=1).named_children()))
    assert (names.index("encode") > names.index("fc1")) == (encoding == "direct")


def test_convolutions_take_all_steps_at_once() -> None:
    made = nets.build(
        "spiking_conv", in_shape=(6, 8, 8), num_classes=4, seed=0, steps=3, encoding="frames",
        channels=[4, 5], hidden=[7],
    )  # fmt: skip
    fired = spiking.spikes(made, torch.rand(2, 6, 8, 8))
    shapes = {"lif1": (3, 2, 4, 8, 8), "lif2": (3, 2, 5, 4, 4), "lif3": (3, 2, 7)}
    assert {name: tuple(each.shape) for name, each in fired.items()} == shapes


def test_gain_is_a_factor_on_the_initial_weights() -> None:
    assert_close(net(gain=3.0).fc1.weight, 1.5 * net(gain=2.0).fc1.weight)


def test_silent_and_busy_layers_are_told_with_their_names() -> None:
    model, x = net(hidden=[6, 5]), torch.rand(4, 1, 3, 3, dtype=torch.float64)
    nn.init.zeros_(model.fc1.weight), nn.init.constant_(model.fc1.bias, 5.0)
    nn.init.zeros_(model.fc2.weight), nn.init.constant_(model.fc2.bias, -1.0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = spiking.check_activity(model, x)
    assert (found["lif1"].busy, found["lif1"].rate) == (1, 1)
    assert (found["lif2"].silent, found["lif2"].rate) == (1, 0)
    told = [str(w.message) for w in caught if issubclass(w.category, spiking.SilentWarning)]
    assert told[0].startswith("lif1: 100% of its neurons fire at every step")
    assert told[1].startswith("lif2: 100% of its neurons never fire")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        spiking.check_activity(net(hidden=[6]), 30 * torch.randn_like(x))
    with pytest.raises(ValueError, match="no spiking neurons"):
        spiking.activity(nn.Linear(2, 2), torch.zeros(1, 2))


def test_random_scores_are_refused_by_attacks_and_averaged_by_eot() -> None:
    torch.manual_seed(0)
    model = nets.build(
        "spiking_mlp", in_shape=(1, 4, 4), num_classes=3, seed=0, hidden=[20], encoding="poisson"
    ).eval()
    x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    with pytest.raises(ValueError, match=r"attacks\.EOT"):
        attacks.FGSM(0.1)(model, x, y)
    points = attacks.EOT(attacks.FGSM(0.1), samples=4)(model, x, y)
    assert_close((points - x).abs().amax(), torch.tensor(0.1))


def test_what_does_not_fit_is_refused() -> None:
    for options, told in (
        ({"decay": 1.5}, r"decay=1.5 is outside \[0, 1\]"),
        ({"decay": -0.1}, r"decay=-0.1 is outside \[0, 1\]"),
        ({"threshold": 0.0}, "threshold=0.0 must be a finite number above 0"),
        ({"slope": -1.0}, "slope=-1.0"),
        ({"steps": 0}, "steps=0 must be a whole number"),
        ({"reset": "subtrakt"}, "did you mean 'subtract'"),
        ({"surrogate": "atan"}, "arctan"),
        ({"encoding": "rate"}, "encoding of a spiking net"),
        ({"output": "counts"}, "did you mean 'count'"),
        ({"gain": 0.0}, "gain=0.0"),
        ({"hidden": []}, r"\[200, 100\]"),
        ({"encoding": "frames", "steps": 2}, "1 are no multiple of steps=2"),
    ):
        with pytest.raises(ValueError, match=told):
            net(**options)


def test_rows_that_are_not_encoded_are_refused() -> None:
    with pytest.raises(ValueError, match="4 rows are no whole number of samples at 3 steps"):
        spiking.LIF(3)(torch.zeros(4, 2))


def test_it_trains_on_digits() -> None:
    from apical import data

    digits = data.load("digits")
    model = nets.build("spiking_mlp", in_shape=digits.shape, num_classes=10, seed=0, hidden=[40])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    common = {"mean": digits.mean, "std": digits.std}
    for x, y in data.Batches(digits.train, 48, shuffle_seed=0, **common).epoch(0):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    x, y = next(data.Batches(digits.test, 360, **common).epoch(0))
    assert (model(x).argmax(1) == y).float().mean() > 0.75


# The runner ------------------------------------------------------------------------------------


def experiment(**changes: Any) -> Experiment:
    options = {"hidden": [10], "steps": 3, **changes.pop("net_options", {})}
    return Experiment(
        net="spiking_mlp", net_options=options, train_images=64, optimizer="adam", lr=5e-3,
        epochs=1, **changes,
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes",
    [
        {"rule": {"fc1": "bp", "*": {"rule": "dfa", "sample_axis": "steps"}}},
        {"rule": {"rule": "le", "sample_axis": "steps", "readout": "trained"}},
        {"rule": {"rule": "le", "sample_axis": "steps"}, "learner": DETACHED},
        {"learner": {"learner": "eprop", "feedback": "random"}},
    ],
    ids=["dfa", "trained local errors", "detached", "e-prop"],
)
def test_every_training_runs_and_its_net_is_attacked(changes: Any, tmp_path: Path) -> None:
    loop.run(experiment(probe_every=0, **changes), tmp_path, QUIET)
    found = trained_net.from_run(tmp_path)
    x, y = found.examples(20)
    own, exact = (attacks.FGSM(0.2)(found.model, x, y, gradient=g) for g in ("own", "exact"))
    assert torch.equal(own, exact) == ("learner" in changes and "rule" not in changes)


def test_a_run_records_what_neurons_fire_and_warns_of_silence(tmp_path: Path) -> None:
    quiet = experiment(net_options={"gain": 1e-3}, data="digits")
    with pytest.warns(LearningWarning, match="lif1: 100% of its neurons never fire"):
        loop.run(quiet, tmp_path, QUIET)
    rows = records.read(tmp_path / "records.jsonl")
    spikes = [row for row in rows if row["kind"] == "spikes"]
    assert [row["epoch"] for row in spikes] == [0, 1]
    assert spikes[0] | {"kind": "spikes", "layer": "lif1", "rate": 0.0, "silent": 1.0} == spikes[0]
    told = [row for row in rows if row["kind"] == "warning" and row["finding"] == "silent lif1"]
    assert len(told) == 1
