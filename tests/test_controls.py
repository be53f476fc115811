"""The controls: a net of which only the output layer learns, and one that moves without credit."""

import copy
import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical import data, learners, nets, retrieval
from apical.bench.experiment.experiment import Experiment
from apical.bench.storage import records
from apical.bench.training import build as prepare
from apical.bench.training import loop, monitor, starts
from apical.measure import diagnostics, probes
from apical.measure.linear_probe import RIDGES, _ridge
from apical.nets.pretrained import Start
from apical.rules import FA, TransportRule

Y = torch.arange(6) % 3


def rows(*shape: int) -> Tensor:
    return torch.randn(6, *shape, generator=torch.Generator().manual_seed(2)).double()


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.attend = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.norm, self.readout = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        return self.readout(self.norm(h + self.attend(h, h, h)[0]).mean(1))


def hash_net() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    retrieval.hash_head(net, 8)
    return net


def image_net(name: str, size: int = 8, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nets.build(name, in_shape=(1, size, size), num_classes=3, **options)


def recurrent(name: str) -> Callable[[], nn.Module]:
    return lambda: nets.build_recurrent(name, inputs=4, outputs=3, output="last", hidden=6)


def memory_net() -> nn.Module:
    return apical.nets.memory.build(
        "mnm", inputs=4, outputs=3, output="last", hidden=6, width=5, layers=2
    )


KINDS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "mlp": (image_net("mlp", hidden=[7, 6]), (1, 8, 8), "fc3"),
    "lenet": (image_net("lenet", 32), (1, 32, 32), "fc2"),
    "resnet": (image_net("resnet20"), (1, 8, 8), "fc"),
    "vit": (image_net("vit"), (1, 8, 8), "head"),
    "attention": (Attending, (3, 4), "readout"),
    "spiking mlp": (image_net("spiking_mlp", hidden=[7], steps=3), (1, 8, 8), "fc2"),
    "spiking conv": (
        image_net("spiking_conv", channels=[3], hidden=[], steps=3, output="count"),
        (1, 8, 8),
        "fc1",
    ),
    "srn": (recurrent("srn"), (5, 4), "readout"),
    "lstm": (recurrent("lstm"), (5, 4), "readout"),
    "gru": (recurrent("gru"), (5, 4), "readout"),
    "memory": (memory_net, (4, 4), "readout"),
    "hashing": (hash_net, (4,), "2"),
}


def made(kind: str) -> tuple[nn.Module, Tensor, str]:
    build, shape, readout = KINDS[kind]
    torch.manual_seed(0)
    return build().double(), rows(*shape), readout


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def loss_of(model: nn.Module, x: Tensor) -> Tensor:
    return F.cross_entropy(model(x), Y)


def train(model: nn.Module, x: Tensor, steps: int = 2) -> None:
    optimizer = sgd(model)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()


def assert_only_moved(model: nn.Module, start: dict[str, Tensor], readout: str) -> None:
    for name, parameter in model.named_parameters():
        same = torch.equal(parameter, start[name])
        assert same != name.startswith(f"{readout}."), name


def values(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_only_the_readout_learns_and_by_its_exact_gradient() -> None:
    for kind in KINDS:
        model, x, readout = made(kind)
        plain = copy.deepcopy(model)
        apical.convert(model, "frozen", example=x)
        start = values(model)
        for net in (plain, model):
            loss_of(net, x).backward()
        expected = {
            name: p.grad for name, p in plain.named_parameters() if name.startswith(f"{readout}.")
        }
        found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert found.keys() == expected.keys()
        # attention and the order of sums over positions: rounding of float64
        assert_close(found, expected, rtol=1e-12, atol=1e-15)
        with apical.exact_gradients(model):
            model.zero_grad()
            loss_of(model, x).backward()
        exact = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        assert exact.keys() == {n for n, p in plain.named_parameters() if p.grad is not None}
        train(model, x)
        assert_only_moved(model, start, readout)


def test_a_learner_that_is_backprop_leaves_the_same_to_the_readout() -> None:
    model, x, _ = made("srn")
    apical.convert(model, "frozen")
    twin, start = copy.deepcopy(model), values(model)
    learners.build("backprop").gradients(twin, (x, Y))
    loss_of(model, x).backward()
    for ours, expected in zip(twin.parameters(), model.parameters(), strict=True):
        assert (ours.grad is None) == (expected.grad is None)
        if expected.grad is not None:
            assert_close(ours.grad, expected.grad, rtol=1e-12, atol=1e-15)
    sgd(twin).step()
    assert_only_moved(twin, start, "readout")


def test_below_one_frozen_layer_all_keeps_its_values_and_above_it_learns() -> None:
    model, x, _ = made("mlp")
    apical.convert(model, {"fc2": "frozen", "*": "fa"})
    start = values(model)
    train(model, x)
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, start[name]) == name.startswith("fc1."), name


def test_a_switch_freezes_and_frees() -> None:
    """The momentum of a switched layer would move it once more: a gradient of None is skipped."""
    model, x, readout = made("mlp")
    optimizer = sgd(model)
    for rule, moves in (("fa", True), ("frozen", False), ("fa", True)):
        apical.switch(model, rule, optimizer=optimizer)
        start = values(model)
        optimizer.zero_grad()
        loss_of(model, x).backward()
        optimizer.step()
        assert torch.equal(model.fc1.weight, start["fc1.weight"]) != moves
        assert not torch.equal(model.get_submodule(readout).weight, start[f"{readout}.weight"])


def test_compiled() -> None:
    model, x, readout = made("mlp")
    apical.convert(model, "frozen")
    start = values(model)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = sgd(model)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(compiled(x), Y).backward()
        assert model.fc1.weight.grad is None
        optimizer.step()
    assert_only_moved(model, start, readout)


def test_a_backward_pass_in_exact_gradients_of_a_graph_built_outside_is_refused() -> None:
    model, x, _ = made("mlp")
    loss = loss_of(apical.convert(model, "frozen"), x)
    with apical.exact_gradients(model), pytest.raises(RuntimeError, match="outside"):
        loss.backward()


def test_statistics_of_norms_follow_the_data_and_their_scales_do_not() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    apical.convert(model, "frozen")
    start, mean = values(model), model[1].running_mean.clone()
    train(model, rows(4))
    assert_only_moved(model, start, "3")
    assert not torch.equal(model[1].running_mean, mean)


@pytest.mark.parametrize("head_by", ["rule", "bp"])
def test_fine_tuning_learns_by_the_head(head_by: str, tmp_path: Path) -> None:
    """A head by backprop, beside a rule, would teach the layer below it."""
    model, x, _ = made("mlp")
    torch.save(model.state_dict(), tmp_path / "start.pt")
    start = Start(str(tmp_path / "start.pt"), new_head=True, head="fc3", head_by=head_by)
    apical.convert(model, starts.assigned(model, start, apical.rules.build("frozen")))
    before = values(model)
    train(model, x)
    assert_only_moved(model, before, "fc3")


def test_a_rule_for_the_head_beside_its_exact_gradient_is_refused() -> None:
    start = Start("start.pt", digest="abc", new_head=True, head="fc3", head_by="bp")
    with pytest.raises(ValueError, match="a rule for the layer 'fc3', which is the head"):
        starts.assigned(made("mlp")[0], start, {"fc3": apical.rules.FA(), "*": "usf"})


def test_a_net_with_a_loss_of_its_own_is_refused() -> None:
    experiment = Experiment(
        task="addition",
        length=12,
        net="mnm",
        net_options={"hidden": 6, "width": 5, "reconstruction": 0.1},
        rule="frozen",
        batches=2,
        batch_size=2,
    )
    with pytest.raises(ValueError, match="loss of its own"):
        prepare.build(experiment)


@dataclass(frozen=True)
class Silent(TransportRule):
    """Planted: sends zeros, so that hidden layers get updates of zero."""

    reference: ClassVar[str] = "@misc{silent}"

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def matrix(self, weight: Tensor) -> Tensor:
        return torch.zeros_like(weight)


def test_a_rule_whose_hidden_updates_are_zero_gives_the_frozen_net() -> None:
    for kind in ("mlp", "lenet", "spiking mlp", "lstm"):
        states = []
        for rule in ("frozen", Silent()):
            model, x, _ = made(kind)
            apical.convert(model, rule)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            for _ in range(3):
                optimizer.zero_grad()
                loss_of(model, x).backward()
                optimizer.step()
            states.append(values(model))
        assert_close(states[0], states[1], rtol=0, atol=0)


# Redrawn ------------------------------------------------------------------------------------------


def matrices(model: nn.Module) -> dict[str, Tensor]:
    return {name: b.clone() for name, b in model.named_buffers() if name.endswith("matrix")}


def test_redrawn_begins_as_feedback_alignment_and_changes_with_every_update() -> None:
    model, x, _ = made("mlp")
    twin = copy.deepcopy(model)
    apical.convert(model, "redrawn"), apical.convert(twin, "fa")
    assert_close(matrices(model), matrices(twin), rtol=0, atol=0)
    seen = [matrices(model)["fc2.feedback.matrix"]]
    for _ in range(3):
        train(model, x, steps=1)
        seen.append(matrices(model)["fc2.feedback.matrix"])
        model(x), loss_of(model, x).backward()  # which draw nothing
        assert torch.equal(matrices(model)["fc2.feedback.matrix"], seen[-1])
    for a in range(4):
        assert seen[a].abs().max() <= (6 / (6 + 7)) ** 0.5
        assert all(not torch.equal(seen[a], seen[b]) for b in range(a))


def test_redrawn_depends_on_seed_layer_and_number_of_the_update_alone() -> None:
    model, x, _ = made("mlp")
    apical.convert(model, "redrawn", seed=5)
    train(model, x, steps=1)
    saved = copy.deepcopy(model.state_dict())
    train(model, x, steps=2)
    other, _, _ = made("mlp")
    apical.convert(other, "redrawn", seed=5)
    other.load_state_dict(saved)
    torch.rand(5)
    train(other, 2 * x, steps=2)  # other data, same draws
    assert_close(matrices(other), matrices(model), rtol=0, atol=0)
    reseeded = apical.convert(made("mlp")[0], "redrawn", seed=6)
    train(reseeded, x, steps=3)
    for name, matrix in matrices(other).items():
        assert not torch.equal(matrices(reseeded)[name], matrix)


# Linear probe -------------------------------------------------------------------------------------


def test_ridge_is_the_normal_equations_at_the_best_ridge_left_out_one_by_one() -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(20, 6, generator=generator, dtype=torch.float64)
    b = torch.randn(5, 6, generator=generator, dtype=torch.float64)
    targets = F.one_hot((a[:, 0] + a[:, 1] > 0).long(), 2).double()
    size = (a - a.mean(0)).square().sum(0).mean()

    def fit(a: Tensor, targets: Tensor, ridge: float, b: Tensor) -> Tensor:
        ones = torch.cat([a, torch.ones(len(a), 1).double()], 1)
        penalty = torch.diag(torch.tensor([1.0] * 6 + [0]).double()) * ridge * size
        weights = torch.linalg.solve(ones.T @ ones + penalty, ones.T @ targets)
        return torch.cat([b, torch.ones(len(b), 1).double()], 1) @ weights

    errors = []
    for ridge in RIDGES:
        left = [torch.arange(20) != n for n in range(20)]
        guesses = [fit(a[k], targets[k], ridge, a[~k]) for k in left]
        errors.append((torch.cat(guesses) - targets).square().sum().item())
    best = RIDGES[errors.index(min(errors))]
    assert RIDGES[0] < best < RIDGES[-1]
    assert_close(_ridge(a, targets, b), fit(a, targets, best, b), rtol=1e-9, atol=1e-11)


def test_a_layer_that_keeps_the_classes_is_read_and_one_that_loses_them_is_not() -> None:
    x = torch.randn(3000, 4, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] > 0).long()
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4)), model[0].bias.zero_()
        model[1].weight.copy_(torch.diag(torch.tensor([0.0, 1, 1, 1]))), model[1].bias.zero_()
    found = probes.linear_probe(model, train=(x[:2000], y[:2000]), test=(x[2000:], y[2000:]))
    assert list(found) == ["0", "1", "2", ""]
    assert (
        min(found["0"], found["1"]) > 0.9 and max(found["2"], found[""]) < 0.6
    )  # of two classes; five standard errors


def test_the_probe_leaves_every_model_as_it_was() -> None:
    for kind in KINDS:
        model, x, _ = made(kind)
        apical.convert(model, "brsf", example=x)
        next(model.children()).eval()
        modes = [module.training for module in model.modules()]
        state, random = copy.deepcopy(model.state_dict()), torch.get_rng_state()
        found = probes.linear_probe(model, train=(x, Y), test=(x, Y), features=8)
        assert found.keys() <= {"", *dict(model.named_modules())} and len(found) >= 3
        assert all(0 <= accuracy <= 1 for accuracy in found.values())
        assert [module.training for module in model.modules()] == modes
        assert torch.equal(torch.get_rng_state(), random)
        assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
        assert all(p.grad is None for p in model.parameters())


def test_the_probe_refuses_what_does_not_fit() -> None:
    model, x = nn.Linear(4, 3), rows(4).float()
    for train, message in (
        ((x, Y[:5]), "as many classes"),
        ((x, Y.float()), "integers"),
        ((x[:1], Y[:1]), "at least 2"),
        ((x, Y - 1), "below 0"),
        ((x, Y * 0 + 2), "all of train is of class 2"),
    ):
        with pytest.raises(ValueError, match=message):
            probes.linear_probe(model, train=train, test=(x, Y))
    with pytest.raises(ValueError, match="layer"):
        probes.linear_probe(model, train=(x, Y), test=(x, Y), layers=["nothing"])


@pytest.mark.parametrize(
    ("size", "dtype"), [(1e-30, torch.float32), (1e30, torch.float32), (6e4, torch.float16)]
)
def test_the_size_of_activations_does_not_matter(size: float, dtype: torch.dtype) -> None:
    """Four classes in 800 numbers, which are projected on 256: sums of float16 would overflow."""
    model, x = nn.Linear(800, 4).to(dtype), (size * torch.eye(4).repeat(5, 200)).to(dtype)
    split = x, torch.arange(20) % 4
    model = nn.Sequential(model)
    assert probes.linear_probe(model, train=split, test=split, layers=["0"])["0"] == 1


def test_a_layer_that_overflows_is_left_out() -> None:
    model, x = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3)), rows(4).float()
    model[0].weight.data.fill_(torch.inf)
    assert list(probes.linear_probe(model, train=(x, Y), test=(x, Y))) == ["0"]


# Runs ---------------------------------------------------------------------------------------------

RUN = Experiment(net_options={"hidden": [32, 32]}, rule="fa", epochs=10, lr=0.05, batch_size=32)


def test_a_run_records_linear_probes_before_and_after_training(tmp_path: Path) -> None:
    loop.run(RUN, tmp_path / "fa")
    loop.run(dataclasses.replace(RUN, rule="frozen"), tmp_path / "frozen")
    found = {}
    for rule in ("fa", "frozen"):
        linear = [
            r for r in records.read(tmp_path / rule / "records.jsonl") if r["kind"] == "linear"
        ]
        assert [(r["epoch"], r["layer"]) for r in linear] == [
            (epoch, layer) for epoch in (0, 10) for layer in ("fc1", "fc2", "fc3", "")
        ]
        found[rule] = {(r["epoch"], r["layer"]): r["accuracy"] for r in linear}
    assert all(found["frozen"][0, name] == found["frozen"][10, name] for name in ("fc2", "fc3"))
    assert found["fa"][0, "fc3"] == found["frozen"][0, "fc3"]
    assert found["fa"][10, "fc3"] > found["fa"][0, "fc3"] + 0.05
    warned = [
        r for r in records.read(tmp_path / "frozen" / "records.jsonl") if r["kind"] == "warning"
    ]
    assert warned == []  # that layers do not move is what the control is for


@pytest.mark.parametrize("classes", [2, 4])
def test_labels_that_come_in_turn_are_all_held_out(
    classes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fourth image is held out: of classes in turn these are all of one class."""
    source, seen = data.load("digits"), []

    def probe(model: nn.Module, *, train: Any, test: Any, features: int) -> dict[str, float]:
        seen.append([part[1].unique().tolist() for part in (train, test)])
        return {}

    split = source.train
    turns = torch.stack([(split.labels == c).nonzero()[:100, 0] for c in range(classes)], 1)
    some = data.Split(split.images[turns.flatten()], split.labels[turns.flatten()])
    other = dataclasses.replace(source, train=some, test=some, num_classes=classes)
    monkeypatch.setattr(data, "load", lambda *a, **k: other)
    monkeypatch.setattr(monitor, "linear_probe", probe)
    loop.run(dataclasses.replace(RUN, probe_share=1.0, epochs=80), tmp_path)
    assert seen == 2 * [[[*range(classes)], [*range(classes)]]]


def test_images_of_linear_probes_keep_to_their_share() -> None:
    for steps in (10, 400, 3000, 10**6):
        images = monitor.linear_images(RUN, steps)
        cost = 2 * (monitor.LINEAR_FIT_STEPS + images / 3 / RUN.batch_size)
        assert images <= 1000 and (not images or cost <= monitor.LINEAR_SHARE * steps)
    assert monitor.linear_images(RUN, 10) == 0 and monitor.linear_images(RUN, 10**6) == 1000
    assert monitor.linear_images(dataclasses.replace(RUN, probe_every=0), 10**6) == 0


# Angles that mean nothing -------------------------------------------------------------------------


def test_the_growth_of_a_layer_is_that_of_the_block_around_it_if_larger() -> None:
    torch.manual_seed(0)
    block = nn.Sequential(nn.Linear(4, 4), nn.Hardtanh(-1e9, 1e9), nn.Linear(4, 4, bias=False))
    model = nn.Sequential(block, nn.Linear(4, 3)).double()
    with torch.no_grad():
        block[0].weight.copy_(10 * torch.eye(4)), block[0].bias.zero_()
        block[2].weight.copy_(20 * torch.eye(4))
    apical.convert(model, "fa")
    found = probes.gradient_alignment(model, F.cross_entropy, rows(4), Y)
    for layer in ("0.0", "0.2"):
        assert found[layer]["growth"] == pytest.approx(200)
        assert "grew 200-fold" in probes.no_angle_reason(found[layer], 1.0)
    assert probes.no_angle_reason(found["1"], found["1"]["reference_norm"]) == ""


def test_a_reference_that_is_rounding_noise_is_said() -> None:
    """The length of a weight in front of a batch norm changes nothing: its gradient is zero."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 1), nn.BatchNorm1d(1, eps=1e-12), nn.Tanh(), nn.Linear(1, 3)
    )  # one unit: its weight's length is normalised away
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, 0, 0, 0]]))
    x = rows(4).float() * torch.tensor([1.0, 0, 0, 0])
    found = probes.gradient_alignment(apical.convert(model, FA()), F.cross_entropy, x, Y)
    largest = max(row["reference_norm"] for row in found.values())
    assert "rounding noise" in probes.no_angle_reason(found["0"], largest)
    assert probes.no_angle_reason(found["3"], largest) == ""
    assert probes.no_angle_reason({"angle_deg": 80.0}, 1.0) == ""  # of an older record
    assert "not finite" in probes.no_angle_reason({"reference_norm": math.nan}, 1.0)


def test_a_frozen_net_is_measured_by_its_output_layer() -> None:
    model, x, _ = made("mlp")
    start = diagnostics.Start(apical.convert(model, "frozen"))
    measured = diagnostics.measure(model, F.cross_entropy, x, Y, start)
    layers = [row for row in measured if row["kind"] == "layer"]
    assert [row["layer"] for row in layers] == ["fc3"] and layers[0]["heard"] is False
    assert layers[0]["gradient_angle_deg"] == pytest.approx(0, abs=1e-4)
