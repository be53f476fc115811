"""Layers that are no Linear and no convolution of torch's own: by adapter, under every rule."""

from __future__ import annotations

import copy
import io
import itertools
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence

import apical
from apical.core import adapters, updates
from apical.core.adapters import Weight
from apical.core.layers import converted_layers
from apical.rules import FA, RULES, KolenPollack

X = torch.randn(6, 5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def align(model: nn.Module) -> nn.Module:
    """The model under FA with B = W."""
    apical.convert(model, FA())
    with torch.no_grad():
        for _, layer in converted_layers(model):
            for slot in updates.slots(layer):
                slot.feedback.memory()[0].copy_(slot.weight)
    return model


def own(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters without those of feedback."""
    named = model.named_parameters()
    return {name: p for name, p in named if "feedback" not in name.split(".")}


# Layers that tests register -----------------------------------------------------------------------


class Halved(nn.Module):
    """y = (x W) / 2 + b, with a layer of its own behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(4, 6))
        self.shift = nn.Parameter(torch.randn(6))
        self.behind = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(torch.tanh((x @ self.matrix) / 2 + self.shift))


class Chosen(nn.Module):
    """Three experts stacked in one parameter, of which each row reads one."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.randn(3, 4, 5) / 2)
        self.up_bias = nn.Parameter(torch.randn(3, 5))
        self.down = nn.Parameter(torch.randn(3, 4, 5) / 2)

    def forward(self, x: Tensor, chosen: Tensor) -> Tensor:
        hidden = torch.tanh(torch.einsum("nf,nfh->nh", x, self.up[chosen]) + self.up_bias[chosen])
        return torch.einsum("nh,noh->no", hidden, self.down[chosen])


def through_chosen(layer: Any, product: Any, x: Tensor, chosen: Tensor) -> Tensor:
    result = torch.zeros(len(x), 4, dtype=x.dtype)
    for expert in range(3):
        rows = torch.where(chosen == expert)[0]
        hidden = torch.tanh(product(x[rows], "up", expert))
        result = result.index_add(0, rows, product(hidden, "down", expert))
    return result


class Listed(nn.Module):
    """Weights in a ParameterList."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([torch.randn(4, 4) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(F.linear(x, self.weights[0])), self.weights[1])


class Odd(nn.Module):
    """Uses its weight as the function it is given says."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(x, self.weight)


def listed(layer: Any, product: Any, x: Tensor) -> Tensor:
    return product(torch.tanh(product(x, "weights.0")), "weights.1")


CHOSEN = {"up": Weight("x W", "up_bias", stacked=True), "down": Weight("x W^T", stacked=True)}
LISTED = {"weights.0": Weight("x W^T"), "weights.1": Weight("x W^T")}


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a test registers is forgotten after it."""
    monkeypatch.setattr(adapters, "_REGISTERED", dict(adapters._REGISTERED))
    adapters.register(Halved, {"matrix": Weight("x W")})
    adapters.register(Chosen, CHOSEN, through_chosen)
    adapters.register(Listed, LISTED, listed)
    yield
    adapters._by_type.cache_clear()
    adapters.converted_class.cache_clear()


# Recurrent layers ---------------------------------------------------------------------------------


def recurrent_layers() -> Iterator[tuple[nn.Module, bool, dict[str, Any]]]:
    """Layers of all kinds and options, whether they are given states and how their input is."""
    kinds = [(nn.LSTM, {}), (nn.GRU, {}), (nn.RNN, {}), (nn.RNN, {"nonlinearity": "relu"})]
    kinds += [(nn.LSTM, {"proj_size": 2})]
    ways = [  # both directions, two layers, samples first, without bias but with states
        (False, False, False, False),
        (True, False, True, True),
        (False, True, True, False),
        (True, True, False, True),
    ]
    for (kind, options), (both, deep, first, plain) in itertools.product(kinds, ways):
        torch.manual_seed(0)
        layer = kind(
            4, 5, num_layers=1 + deep, bidirectional=both, batch_first=first, bias=not plain,
            dropout=0.3 * deep, **options,
        )  # fmt: skip
        yield layer.double(), plain, {"first": first}


def flat(output: Any) -> list[Tensor]:
    if isinstance(output, PackedSequence):
        return [output.data]
    return [output] if isinstance(output, Tensor) else [t for part in output for t in flat(part)]


def states(layer: Any, samples: int) -> Any:
    count = layer.num_layers * (1 + layer.bidirectional)
    generator = torch.Generator().manual_seed(3)
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size]
    made = [torch.randn(count, samples, n, generator=generator).double() for n in sizes]
    return tuple(made) if isinstance(layer, nn.LSTM) else made[0]


def passed(layer: nn.Module, *inputs: Any) -> list[Tensor]:
    """Outputs and gradients of a sum of their sines, with the same dropout masks every time."""
    torch.manual_seed(5)
    outputs = flat(layer(*inputs))
    total = sum((t.sin() * (1 + place)).sum() for place, t in enumerate(outputs))
    wanted = [t for t in flat(inputs) if t.requires_grad]
    return [*outputs, *torch.autograd.grad(total, [*wanted, *own(layer).values()])]


def test_recurrent_layers_with_aligned_feedback_are_the_plain_ones() -> None:
    # 1e-12 in float64: sums of at most 20 products in another order, over 6 steps
    lengths = torch.tensor([2, 6, 1, 4, 4])
    for layer, given, how in recurrent_layers():
        x = X if how["first"] else X.transpose(0, 1)  # six samples of five steps
        x = x.clone().requires_grad_()
        adapted = align(copy.deepcopy(layer))
        samples = 6
        inputs: list[Any] = [x, *([states(layer, samples)] if given else [])]
        packed = pack_padded_sequence(
            X.transpose(0, 1), lengths, batch_first=True, enforce_sorted=False
        )
        cases = [inputs, [packed, *([states(layer, 5)] if given else [])]]
        if not given:
            cases.append([X[0].clone().requires_grad_()])  # one sample, without its axis
        for case in cases:
            expected, seen = passed(layer, *case), passed(adapted, *case)
            for a, b in zip(expected, seen, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
            with apical.exact_gradients(adapted):
                seen = passed(adapted, *case)
            assert all(torch.equal(a, b) for a, b in zip(expected, seen, strict=True))


@pytest.mark.parametrize("kind", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_with_aligned_feedback_are_the_plain_ones(kind: Any) -> None:
    for shape in ((6, 4), (4,)):
        apical.check_adapter(kind(4, 5), torch.randn(shape))
    state = torch.randn(6, 5)
    apical.check_adapter(kind(4, 5), X[:, 0], (state, state) if kind is nn.LSTMCell else state)
    with pytest.raises(ValueError, match="its input is .samples, features. or .features."):
        align(kind(4, 5))(torch.randn(2, 3, 4))


def through(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
    """x w^T whose gradient reaches x through b."""
    to_x = F.linear(x, b)
    return F.linear(x.detach(), w) + to_x - to_x.detach()


def test_a_recurrent_layer_sends_through_both_its_feedback_matrices_at_each_step() -> None:
    layer = apical.convert(nn.LSTM(4, 3, batch_first=True).double(), "fa")
    ih, hh = layer.feedback["weight_ih_l0"].matrix, layer.feedback["weight_hh_l0"].matrix
    assert ih.shape == (12, 4) and hh.shape == (12, 3)
    x = X.clone().requires_grad_()
    seen = passed(layer, x)
    h = c = torch.zeros(6, 3, dtype=torch.float64)
    outputs = []
    for step in x.unbind(1):
        gates = through(step, layer.weight_ih_l0, ih) + through(h, layer.weight_hh_l0, hh)
        i, f, g, o = (gates + layer.bias_ih_l0 + layer.bias_hh_l0).chunk(4, 1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        outputs.append(h)
    made = [torch.stack(outputs, 1), h[None], c[None]]
    total = sum((t.sin() * (1 + place)).sum() for place, t in enumerate(made))
    wanted = [*made, *torch.autograd.grad(total, [x, *own(layer).values()])]
    for a, b in zip(seen, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("first", [True, False])
def test_broadcast_rules_give_a_recurrent_layer_the_error_of_each_sample(first: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.rnn = nn.GRU(4, 5, num_layers=2, bidirectional=True, batch_first=first)
            self.head = nn.Linear(10, 3)
            self.double()

        def forward(self, x: Tensor) -> Tensor:
            steps = self.rnn(x)[0]
            return self.head(steps[:, -1] if first else steps[-1])

    x = X if first else X.transpose(0, 1)
    model = apical.convert(Net(), "dfa", example=x)
    names = set(model.rnn.feedback)
    assert names == {"weight_ih" + s for s in ("_l0", "_l0_reverse", "_l1", "_l1_reverse")}
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0].sum(), x)
    reached = gradient.movedim(0 if first else 1, 0).flatten(1).any(1)
    assert reached.tolist() == [True, False, False, False, False, False]
    lengths = torch.full((6,), 5)
    packed = pack_padded_sequence(x, lengths, batch_first=first)
    with pytest.raises(ValueError, match="rnn.weight_ih_l0: a PackedSequence has no axis.*padded"):
        model.rnn(packed)


# All rules ----------------------------------------------------------------------------------------


class Everything(nn.Module):
    """A classifier of sequences with a layer of each adapted kind that has an axis of samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.halved, self.listed = nn.Linear(4, 4), Halved(), Listed()
        self.lstm = nn.LSTM(4, 6, batch_first=True, bidirectional=True)
        self.cell = nn.GRUCell(12, 4)
        self.pair, self.head = nn.Bilinear(4, 4, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        steps = self.lstm(self.listed(self.halved(torch.tanh(self.first(x)))))[0]
        h = None
        for step in steps[:, -2:].unbind(1):
            h = self.cell(step, h)
        return self.head(torch.tanh(self.pair(h, torch.tanh(h))))


FAMILIES = (
    "fa",
    "redrawn",
    "usf",
    "kp",
    "ldfa",
    "pfa",
    "aa",
    "wm",
    "dfa",
    "drtp",
    "dkp",
    "dldfa",
    "le",
)
"""A rule of each way to send or to learn feedback; the others differ by options or a wrapper."""


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_trains_every_adapted_kind(name: str) -> None:
    model = apical.convert(Everything(), name, example=X.float())
    assert not [r for r in apical.plan(Everything(), name).rows if r.action != "convert"]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    start, losses = {n: p.detach().clone() for n, p in own(model).items()}, []
    for _ in range(15):
        optimizer.zero_grad()
        with apical.labels(model, Y):
            loss = F.cross_entropy(model(X.float()), Y)
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert all(not torch.equal(start[n], p) for n, p in own(model).items())


@pytest.mark.parametrize("name", ["fa", "kp", "brsf", "dfa"])
def test_adapted_layers_keep_what_conversion_promises(name: str) -> None:
    plain = Everything()
    x = X.float()
    keys, expected = list(plain.state_dict()), plain(x)
    model = apical.convert(copy.deepcopy(plain), name, example=x)
    assert isinstance(model.lstm, nn.LSTM) and isinstance(model.halved, Halved)
    assert [key for key in model.state_dict() if "feedback" not in key] == keys
    torch.testing.assert_close(model(x), expected)
    with apical.exact_gradients(model):
        exact = torch.autograd.grad(model(x).sin().sum(), list(own(model).values()))
    wanted = torch.autograd.grad(expected.sin().sum(), list(plain.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(exact, wanted, strict=True))
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    pickled = io.BytesIO()
    torch.save(model, pickled)
    pickled.seek(0), file.seek(0)
    other = apical.convert(Everything(), name, example=x, seed=1)
    other.load_state_dict(torch.load(file))

    def gradients(net: nn.Module) -> list[Tensor]:
        return list(torch.autograd.grad(net(x).sin().sum(), list(own(net).values())))

    seen = gradients(model)
    copies = [copy.deepcopy(model), torch.load(pickled, weights_only=False), other]
    for twin in copies:
        assert all(torch.equal(a, b) for a, b in zip(seen, gradients(twin), strict=True))
    assert copies[0].lstm._flat_weights[0] is copies[0].lstm.weight_ih_l0
    with torch.autocast("cpu", torch.bfloat16):
        half = model(x)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.1)
    apical.revert(model)
    assert list(model.state_dict()) == keys
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # dynamo, after a break
def test_adapted_layers_compile() -> None:
    layers = [nn.Linear(4, 4), Halved(), Listed(), nn.LSTM(4, 3)]
    for name, whole in (("dfa", True), ("fa", False)):
        # dynamo compiles no nn.LSTM, plain or converted, and leaves it to run between two graphs
        model = nn.Sequential(*copy.deepcopy(layers[:3] if whole else layers[2:]))
        x = X[:, 0].float()
        apical.convert(model, name, example=x)
        compiled = torch.compile(copy.deepcopy(model), backend="eager", fullgraph=whole)
        parts = [flat(net(x))[0].sin().sum() for net in (model, compiled)]
        expected = torch.autograd.grad(parts[0], list(own(model).values()))
        seen = torch.autograd.grad(parts[1], list(own(compiled).values()))
        assert all(torch.equal(a, b) for a, b in zip(expected, seen, strict=True))
    torch.compiler.reset()


def test_per_sample_gradients_of_adapted_layers() -> None:
    model = apical.convert(Everything(), "fa")
    parameters = dict(model.named_parameters())

    def loss(parameters: Any, x: Tensor, y: Tensor) -> Tensor:
        output = torch.func.functional_call(model, parameters, (x[None],))
        return F.cross_entropy(output, y[None])

    x = X.float()
    found = torch.func.vmap(torch.func.grad(loss), (None, 0, 0))(parameters, x, Y)
    for sample in range(2):
        single = torch.autograd.grad(
            loss(parameters, x[sample], Y[sample]), list(parameters.values())
        )
        for name, expected in zip(parameters, single, strict=True):
            torch.testing.assert_close(found[name][sample], expected, rtol=1e-4, atol=1e-6)


# Registration -------------------------------------------------------------------------------------


def test_one_call_registers_a_layer_and_check_adapter_compares_it() -> None:
    apical.check_adapter(Halved(), X)
    apical.check_adapter(nn.Bilinear(4, 5, 3), torch.randn(2, 6, 4), torch.randn(2, 6, 5))
    apical.check_adapter(Listed(), X)
    apical.check_adapter(Chosen(), X[:, 0], Y)
    adapters.register(Halved, {"matrix": Weight("x W")}, lambda layer, product, x: product(x))
    with pytest.raises(ValueError, match="output 0 of Halved is .6, 5, 4., its adapter gives"):
        apical.check_adapter(Halved(), X)
    adapters.register(
        Halved,
        {"matrix": Weight("x W")},
        lambda layer, product, x: layer.behind(torch.tanh(product(x) + layer.shift)),
    )
    with pytest.raises(ValueError, match="output 0 of Halved differs from its adapter's by"):
        apical.check_adapter(Halved(), X)


USES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "linear": lambda x, w: F.linear(x, w),
    "linear by name": lambda x, w: F.linear(weight=w, input=x),
    "matmul": lambda x, w: torch.matmul(x, w.t()),
    "method": lambda x, w: x.matmul(w.T),
    "operator": lambda x, w: x @ w.mT,
    "mm": lambda x, w: torch.mm(x.flatten(0, 1), w.t()).view(*x.shape[:-1], 4),
    "addmm": lambda x, w: torch.addmm(x[0, 0] * 0 + 1, x.flatten(0, 1), w.t()).view(x.shape),
    "cast": lambda x, w: F.linear(x, w.to(x.dtype).contiguous()),
    "twice": lambda x, w: F.linear(torch.tanh(F.linear(x, w)), w),
    "sizes": lambda x, w: F.linear(x, w) / w.shape[0] ** 0.5 + w.dim(),
}


@pytest.mark.parametrize("use", USES)
def test_products_in_a_layers_own_forward_go_through_feedback(use: str) -> None:
    adapters.register(Odd, {"weight": Weight("x W^T")})
    apical.check_adapter(Odd(USES[use]), X)
    layer = apical.convert(Odd(USES[use]).double(), "fa")
    with torch.no_grad():
        layer.feedback.matrix.zero_()
    x = X.clone().requires_grad_()
    layer(x).sum().backward()
    # through a feedback of zero only what bypasses the product arrives
    assert not x.grad[1:].any() and layer.weight.grad.any()


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda x, w: F.linear(x, w * w.norm()), "norm"),
        (lambda x, w: x * w.sum(), "sum"),
        (lambda x, w: w @ x.mT, "matmul"),
        (lambda x, w: x @ w, "matmul"),
        (lambda x, w: torch.einsum("...i,oi->...o", x, w), "einsum"),
        (lambda x, w: x, "called no product with its weight"),
        (lambda x, w: F.linear(F.linear(x, w), torch.cat([w, w])), "cat"),
        (lambda x, w: F.linear(x, w) + x @ torch.stack([w, w])[0], "stack"),
    ],
)
def test_other_uses_of_a_registered_weight_are_errors(use: Any, name: str) -> None:
    adapters.register(Odd, {"weight": Weight("x W^T")})
    layer = apical.convert(Odd(use).double(), "fa")
    with pytest.raises(ValueError, match=rf"Odd: its forward .*{name}.*register"):
        layer(X)


def test_own_forwards_of_convolutions() -> None:
    class Wide(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * F.conv2d(x, self.weight, self.bias, self.stride, self.padding)

    x = torch.randn(2, 3, 8, 8)
    text = r"overrides forward of Conv2d.*register.Wide, {'weight': .*Weight.'convolution'.}., or"
    for layer in (Wide(3, 4, 3, padding=1), Wide(3, 4, 3, stride=2, bias=False)):
        with pytest.raises(ValueError, match=text):
            apical.plan(layer, "fa").problems and apical.convert(layer, "fa")
    adapters.register(Wide, {"weight": Weight("convolution", "bias")})
    for layer in (Wide(3, 4, 3, padding=1), Wide(3, 4, 3, stride=2, bias=False)):
        apical.check_adapter(layer, x)
    for name in ("dfa", "dkp", "ldfa"):
        model = nn.Sequential(nn.Conv2d(3, 3, 1), Wide(3, 4, 3), nn.Flatten(), nn.LazyLinear(3))
        model(x)
        apical.convert(model, name, example=x)
        model(x).sum().backward()
        assert model[0].weight.grad.any() and model[1].weight.grad.any()


def test_what_cannot_be_registered_is_named() -> None:
    for kind, weights, forward, text in (
        ("Halved", {"matrix": Weight()}, None, "neither a class of modules nor the name of one"),
        (Halved(), {"matrix": Weight()}, None, "neither a class of modules nor the name of one"),
        (nn.Linear, {"weight": Weight()}, None, "Linear is converted as it is"),
        (Halved, {}, None, "weights are a mapping"),
        (Halved, {"matrix": "x W"}, None, "weights are a mapping"),
        (Halved, None, None, "weights are a mapping"),
        (Chosen, CHOSEN, None, "up, down: what is stacked.*needs a forward function"),
    ):
        with pytest.raises(ValueError, match=text):
            adapters.register(kind, weights, forward)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="computes='W x'"):
        Weight("W x")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="stacked=True is for"):
        Weight("convolution", stacked=True)
    adapters.register(Halved, {"weight": Weight("x W")})
    with pytest.raises(ValueError, match=r"\(Halved\): has no weight, which its adapter names"):
        apical.convert(Halved(), "fa")
    adapters.register(Halved, lambda layer: {"matrix": "x W"})  # type: ignore[dict-item]
    with pytest.raises(ValueError, match="the adapter of Halved gives weights"):
        apical.plan(nn.Sequential(Halved()), "fa")
    adapters.register(Listed, LISTED, lambda layer, product, x: product(x, "other"))
    with pytest.raises(ValueError, match="Listed: no weight 'other' was registered; there are"):
        apical.convert(Listed().double(), "fa")(X)
    adapters.register(Chosen, {"up": CHOSEN["up"]}, through_chosen)
    with pytest.raises(ValueError, match=r"also holds down \(3, 4, 5\), whose use is unknown"):
        apical.convert(Chosen(), "fa")

    class Further(Halved):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    adapters.register(Halved, {"matrix": Weight("x W")})
    with pytest.raises(ValueError, match="overrides forward of Halved"):
        apical.convert(Further(), "fa")


def test_weights_in_a_list_name_what_to_register(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "_REGISTERED", {})
    adapters._by_type.cache_clear()
    with pytest.raises(ValueError, match=r"0.weights \(ParameterList\): is a list of weights"):
        apical.convert(nn.Sequential(Listed(), nn.Linear(4, 2)), "fa")
    adapters.register(Listed, LISTED, listed)
    apical.convert(nn.Sequential(Listed(), nn.Linear(4, 2)), "fa")


def test_stacked_weights_learn_alike_and_broadcast_rules_are_refused() -> None:
    # Kolen-Pollack's law under momentum, also for the expert that no row has chosen
    layer = Chosen().double()
    x, chosen = X[:, 0].clone().requires_grad_(), torch.tensor([0, 0, 1, 1, 0, 1])
    apical.convert(layer, KolenPollack(decay=0.1))
    slots = list(updates.slots(layer))
    assert [s.name for s in slots] == [f"{w}_{e}" for w in ("up", "down") for e in range(3)]
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    before = [(s.feedback.matrix - s.weight).detach().clone() for s in slots]
    for step in range(5):
        optimizer.zero_grad()
        layer(x, chosen if step else Y).square().sum().backward()
        optimizer.step()
    for slot, start in zip(updates.slots(layer), before, strict=True):
        torch.testing.assert_close(slot.feedback.matrix - slot.weight, 0.9**5 * start)
    with pytest.raises(ValueError, match=r"experts \(Chosen\): .*rows that are chosen.*'fa', '\*'"):
        apical.convert(nn.ModuleDict({"experts": Chosen()}), "dfa")


def test_an_alignment_loss_of_an_expert_without_rows_is_no_nan() -> None:
    layer = apical.convert(Chosen().double(), "ia")
    layer(X[:, 0].clone().requires_grad_(), torch.zeros(6, dtype=torch.long)).sum().backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())


# Computed, tied and partitioned weights -----------------------------------------------------------


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))


@pytest.mark.parametrize("compute", [weight_norm, spectral_norm])
@pytest.mark.parametrize("name", ["kp", "ldfa", "pfa", "sparse(kp)"])
@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
def test_rules_that_change_a_computed_weight_name_the_cure(compute: Any, name: str) -> None:
    model = net()
    compute(model[2])
    inner = type(getattr(RULES.get(name), "inner", RULES.get(name, KolenPollack()))).__name__
    with pytest.raises(ValueError, match=rf"2 \(Linear\): .*computed.*{inner}\(decay=0.0\)"):
        apical.convert(model, name)
    apical.convert(model, KolenPollack(decay=0.0))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(X[:, 0].float()), Y).backward()
        optimizer.step()
    assert model[2].feedback.matrix.grad.any()


def test_timm_layers_with_computed_weights_and_padding(vision: Any) -> None:
    from timm.layers import std_conv
    from timm.layers.conv2d_same import Conv2dSame

    x = torch.randn(2, 3, 9, 8)
    names = ("StdConv2d", "StdConv2dSame", "ScaledStdConv2d", "ScaledStdConv2dSame")
    kinds = [*(getattr(std_conv, name) for name in names), Conv2dSame]
    for kind, stride in itertools.product(kinds, (1, 2)):
        apical.check_adapter(kind(3, 4, 3, stride=stride), x)
    with pytest.raises(ValueError, match=r"ScaledStdConv2d\): KolenPollack changes.*decay=0.0"):
        apical.convert(std_conv.ScaledStdConv2d(3, 4, 3), "kp")
    for name in ("fa", "usf", "dfa", "wm", KolenPollack(decay=0.0)):
        model = nn.Sequential(
            std_conv.ScaledStdConv2d(3, 4, 3), nn.ReLU(), std_conv.StdConv2d(4, 4, 3),
            nn.Flatten(), nn.Linear(288, 3),
        )  # fmt: skip
        apical.convert(model, name, example=x)
        model(x).square().sum().backward()
        assert all(p.grad is not None and p.grad.any() for p in own(model).values())


def test_the_remedy_for_tied_weights_works() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.hidden = nn.Embedding(9, 4), nn.Linear(4, 4)
            self.head = nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(self.hidden(self.embed(x))))

    with pytest.raises(ValueError, match=r"head \(Linear\): shares its weight") as raised:
        apical.convert(Tied(), "kp")
    assert "{'head': 'fa', '*': ...}" in str(raised.value)
    assert "both layers" not in str(raised.value)  # an embedding has no rule
    model = apical.convert(Tied(), {"head": "fa", "*": "kp"})
    assert len(list(converted_layers(model))) == 2
    kept = apical.plan(Tied(), "kp", on_unsupported="keep")
    assert not kept.problems
    assert {r.layer: r.action for r in kept.rows}["head"] == "keep"
    assert "kept knowingly: shares its weight" in str(kept)
    for made in (model, apical.convert(Tied(), "kp", on_unsupported="keep")):
        made(Y).sum().backward()
        assert made.hidden.feedback.matrix.grad.any()


def test_the_remedy_for_a_parametrized_library_model_works() -> None:
    model = net()
    parametrizations.weight_norm(model[2])
    with pytest.raises(ValueError) as raised:
        apical.convert(model, "fa")
    lines = str(raised.value).splitlines()[1:]
    assert len(lines) == 1  # not its originals too
    assert "parametrized (weight by _WeightNorm)" in lines[0]
    assert "remove_parametrizations(layer, 'weight')" in lines[0]
    parametrize.remove_parametrizations(model[2], "weight")
    apical.convert(model, "fa")
    parametrizations.weight_norm(model[2])
    model(X[:, 0].float()).sum().backward()
    assert model[2].parametrizations.weight.original1.grad.any()


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("name", ["fa", "dfa", "kp"])
def test_scripting_is_refused_with_what_to_use(name: str) -> None:
    model = apical.convert(net(), name)
    with pytest.raises(ValueError, match=r"0: torch.jit.script.*torch.export.*revert"):
        torch.jit.script(model)
    torch.jit.script(apical.revert(model))


@pytest.mark.parametrize("name", ["fa", "dfa", "kp"])
def test_tensor_parallelism_is_refused_before_and_after(name: str) -> None:
    from torch import distributed
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        mesh = init_device_mesh("cpu", (1,))
        styles = {"0": ColwiseParallel(), "2": RowwiseParallel()}
        with pytest.raises(ValueError, match=r"0 \(Linear\): its weight is a DTensor.*FSDP2"):
            apical.convert(parallelize_module(net(), mesh, styles), name)
        model = apical.convert(net(), name)
        with pytest.raises((ValueError, AttributeError), match="parallelize_module.*fully_shard"):
            parallelize_module(model, mesh, styles)
    finally:
        distributed.destroy_process_group()


def test_libraries_are_not_imported_before_their_layers_are_used() -> None:
    code = (
        "import sys, apical; from torch import nn; apical.adapters;"
        "apical.convert(nn.Sequential(nn.Linear(2, 2), nn.LSTM(2, 2)), 'fa');"
        "found = {'timm', 'transformers', 'torch_geometric', 'spikingjelly'} & set(sys.modules);"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
