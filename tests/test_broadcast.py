"""Broadcast rules: slow references of every layout, theorems, samples, and models' outputs."""

import copy
import math
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical.rules import DFA
from three_layers import X, Y, gradients, mlp


def test_direct_feedback_alignment_by_hand() -> None:
    model = apical.convert(mlp(), "dfa", example=X)
    loss = 0.5 * (model(X) - F.one_hot(Y).double()).square().sum()
    loss.backward()
    (w1, c1), (w2, c2), (w3, c3) = ((model[i].weight, model[i].bias) for i in (0, 2, 4))
    h1 = torch.tanh(X @ w1.T + c1)
    h2 = torch.tanh(h1 @ w2.T + c2)
    e = h2 @ w3.T + c3 - F.one_hot(Y)
    d2 = (e @ model[4].feedback.matrix) * (1 - h2**2)
    d1 = (e @ model[2].feedback.matrix) * (1 - h1**2)
    assert_close(w3.grad, e.T @ h2)
    assert_close(w2.grad, d2.T @ h1)
    assert_close(w1.grad, d1.T @ X)
    assert_close(c1.grad, d1.sum(0))


def test_theorem_the_last_layer_is_backprop() -> None:
    plain, model = mlp(), apical.convert(mlp(), "dfa", example=X)
    for net in (plain, model):
        F.cross_entropy(net(X), Y).backward()
    seen, exact = gradients(model), gradients(plain)
    assert torch.equal(seen["4.weight"], exact["4.weight"])
    assert torch.equal(seen["4.bias"], exact["4.bias"])
    assert not torch.allclose(seen["2.weight"], exact["2.weight"])


def test_theorem_one_hidden_layer_makes_dfa_and_fa_the_same() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    fa, dfa = apical.convert(copy.deepcopy(net), "fa"), apical.convert(net, "dfa", example=X)
    dfa[2].feedback.matrix.copy_(fa[2].feedback.matrix)
    for model in (fa, dfa):
        F.cross_entropy(model(X), Y).backward()
    assert_close(gradients(dfa), gradients(fa), rtol=1e-12, atol=1e-15)


def test_theorem_products_of_weights_make_a_linear_net_learn_by_backprop() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 5), nn.Linear(5, 6), nn.Linear(6, 3)).double()
    model = apical.convert(copy.deepcopy(plain), "dfa", example=X)
    with torch.no_grad():
        model[2].feedback.matrix.copy_(plain[2].weight)
        model[1].feedback.matrix.copy_(plain[2].weight @ plain[1].weight)
    for net in (plain, model):
        F.cross_entropy(net(X), Y).backward()
    assert_close(gradients(model), gradients(plain), rtol=1e-12, atol=1e-15)


# Layouts against slow references -------------------------------------------------------------

GEOMETRIES: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "plain": (nn.Conv2d(3, 4, 3, padding=1), (3, 6, 5)),
    "no-padding": (nn.Conv2d(3, 4, 3), (3, 6, 5)),
    "stride": (nn.Conv2d(3, 4, 3, stride=2, padding=1), (3, 7, 6)),
    "stride-leaves-a-rest": (nn.Conv2d(3, 4, 2, stride=3), (3, 7, 6)),
    "dilation": (nn.Conv2d(3, 4, (3, 2), dilation=(2, 3), padding=(2, 1)), (3, 7, 6)),
    "wide-padding": (nn.Conv2d(3, 4, 3, padding=4), (3, 5, 5)),
    "groups": (nn.Conv2d(4, 6, 3, padding=1, groups=2), (4, 5, 5)),
    "depthwise": (nn.Conv2d(4, 4, 3, groups=4), (4, 5, 5)),
    "1x1": (nn.Conv2d(3, 4, 1), (3, 4, 4)),
    "1d": (nn.Conv1d(3, 4, 3, stride=2, padding=2), (3, 9)),
    "3d": (nn.Conv3d(2, 3, (2, 3, 2), stride=(1, 2, 1), padding=(0, 1, 1)), (2, 4, 5, 3)),
    "same-odd": (nn.Conv2d(3, 4, 3, padding="same", dilation=2), (3, 6, 5)),
    "same-even": (nn.Conv2d(3, 4, (4, 2), padding="same"), (3, 6, 5)),
    "circular": (nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="circular"), (3, 6, 5)),
    "reflect": (nn.Conv2d(3, 4, 3, padding=(2, 1), stride=2, padding_mode="reflect"), (3, 6, 5)),
    "replicate": (nn.Conv2d(3, 4, 3, padding=(2, 1), padding_mode="replicate"), (3, 6, 5)),
    "circular-same": (nn.Conv1d(3, 4, 4, padding="same", padding_mode="circular"), (3, 8)),
    "transpose": (nn.ConvTranspose2d(3, 4, 3, stride=2, padding=1, output_padding=1), (3, 3, 4)),
    "transpose-1d": (nn.ConvTranspose1d(4, 6, 3, dilation=2, groups=2), (4, 5)),
}


class Tapped(nn.Module):
    """An input layer without weights that lets the convolution be tapped, and a linear readout."""

    def __init__(self, conv: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.conv = conv
        outputs = conv(torch.zeros(1, *shape, dtype=torch.float64))
        self.readout = nn.Linear(outputs[0].numel(), 3).double()

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.conv(x).tanh().flatten(1))


def tapped(conv: nn.Module, shape: tuple[int, ...], rule: DFA) -> tuple[nn.Module, Tensor, Tensor]:
    """Model, what the convolution's input received, and the error at the output."""
    torch.manual_seed(0)
    model = Tapped(copy.deepcopy(conv).double(), shape)
    apical.convert(model, {"conv": rule, "readout": rule}, example=torch.zeros(1, *shape).double())
    x = torch.randn(2, *shape, dtype=torch.float64, requires_grad=True)
    y = model(x)
    y.retain_grad()
    F.cross_entropy(y, torch.tensor([0, 2])).backward()
    return model, x.grad, y.grad


def by_repeated_error(conv: Any, matrix: Tensor, error: Tensor, shape: tuple[int, ...]) -> Tensor:
    """BioTorch's form: the error at every output position, pulled back through the kernel.

    Each error unit is one channel of an output of the same size as the layer's; autograd of a
    convolution with B (E, C, *kernel) in the place of the weight gives its transpose.
    """
    kind = type(conv)
    kind = kind.plain_class if hasattr(kind, "plain_class") else kind
    options = {k: getattr(conv, k) for k in ("kernel_size", "stride", "padding", "dilation")}
    transposed = "Transpose" in kind.__name__
    if transposed:
        options["output_padding"] = conv.output_padding
    else:
        options["padding_mode"] = conv.padding_mode
    whole = kind(shape[0], len(error.t()), bias=False, **options).double()
    weight = matrix.transpose(0, 1) if transposed else matrix  # a transposed layer: (in, out)
    with torch.no_grad():
        whole.weight.copy_(weight)
    x = torch.zeros(len(error), *shape, dtype=torch.float64, requires_grad=True)
    y = whole(x)
    repeated = error.view(*error.shape, *(1 for _ in y.shape[2:])).expand_as(y)
    return torch.autograd.grad(y, x, repeated)[0]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_kernel_layout_is_the_repeated_error_through_the_kernel() -> None:
    for conv, shape in GEOMETRIES.values():
        model, received, error = tapped(conv, shape, DFA(layout="kernel"))
        matrix = model.conv.feedback.matrix
        assert matrix.shape == (3, shape[0], *conv.kernel_size)
        expected = by_repeated_error(model.conv, matrix, error, shape)
        assert_close(received, expected, rtol=1e-12, atol=1e-14)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_full_and_channel_layouts() -> None:
    for conv, shape in GEOMETRIES.values():
        model, received, error = tapped(conv, shape, DFA(layout="full"))
        matrix = model.conv.feedback.matrix
        assert matrix.shape == (3, *shape)
        assert_close(received, torch.einsum("ne,e...->n...", error, matrix), rtol=1e-12, atol=1e-15)
        model, received, error = tapped(conv, shape, DFA(layout="channel"))
        matrix = model.conv.feedback.matrix
        assert matrix.shape == (3, shape[0], *(1 for _ in shape[1:]))
        one = torch.einsum("ne,e...->n...", error, matrix)
        assert_close(received, one.expand(-1, *shape), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("layout", ["full", "kernel", "channel"])
def test_channels_last_signals_are_the_same(layout: Any) -> None:
    def run(memory_format: torch.memory_format) -> list[Tensor]:
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Conv2d(4, 5, 3, padding=1, stride=2), nn.Flatten(),
            nn.Linear(20, 3),
        ).double().to(memory_format=memory_format)  # fmt: skip
        x = torch.randn(2, 3, 6, 6).double().contiguous(memory_format=memory_format)
        apical.convert(net, DFA(layout=layout), example=x)
        net(x).square().sum().backward()
        return list(gradients(net).values())

    assert_close(run(torch.channels_last), run(torch.contiguous_format), rtol=1e-12, atol=1e-14)


def test_laws_of_the_matrices() -> None:
    """Fans of B's own shape: Linear std sqrt(2 / (in + E)), kernel sqrt(2 / ((C + E) k^2))."""
    linear = nn.Sequential(nn.Linear(4, 300), nn.Linear(300, 10))
    apical.convert(linear, DFA(layout="kernel"), example=torch.zeros(1, 4))
    assert linear[1].feedback.matrix.std().item() == pytest.approx(0.0803, rel=0.05)
    conv = nn.Sequential(nn.Conv2d(16, 16, 3), nn.Flatten(), nn.Linear(16, 10))
    apical.convert(conv, DFA(layout="kernel"), example=torch.zeros(1, 16, 3, 3))
    assert conv[0].feedback.matrix.shape == (10, 16, 3, 3)
    assert conv[0].feedback.matrix.std().item() == pytest.approx(0.0925, rel=0.05)
    for init, half_width in (("kaiming", 300**-0.5), ("noekland", 10**-0.5)):
        apical.revert(linear)
        apical.convert(linear, DFA(init=init), example=torch.zeros(1, 4))
        largest = linear[1].feedback.matrix.abs().max().item()
        assert 0.99 * half_width < largest <= half_width


def test_a_shared_matrix_is_stored_once_and_sliced() -> None:
    model = apical.convert(mlp(), DFA(shared=True), example=X)
    pointers = {model[i].feedback.shared.untyped_storage().data_ptr() for i in (0, 2, 4)}
    assert len(pointers) == 1
    assert torch.equal(model[2].feedback.shared, model[4].feedback.shared[:5])
    assert apical.describe(model).feedback_bytes < 8 * (6 * 3 + 10)
    y = model(X)
    y.retain_grad()
    y.square().sum().backward()
    b4 = model[4].feedback.shared.T * math.sqrt(6 / (6 + 3))
    with apical.exact_gradients(model):
        h = model[:4](X)
    assert_close(model[2].bias.grad, ((y.grad @ b4) * (1 - h**2)).sum(0))


def test_a_shared_matrix_stays_shared() -> None:
    for change in (
        lambda model: model.float(),
        lambda model: model.to(torch.bfloat16),
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: _loaded(model.state_dict()),
    ):
        model = apical.convert(mlp(), DFA(shared=True), example=X)
        before = {i: model[i].feedback.shared.clone() for i in (0, 2, 4)}
        changed = change(model)
        changed(
            X.to(changed[0].weight.dtype)
        )  # a forward pass shares again what was moved or copied
        kept = [changed[i].feedback.shared for i in (0, 2, 4)]
        assert len({matrix.untyped_storage().data_ptr() for matrix in kept}) == 1
        assert_close(
            dict(zip(before, kept, strict=True)), before, check_dtype=False, rtol=1e-2, atol=0
        )


def _loaded(state: dict[str, Tensor]) -> nn.Module:
    model = apical.convert(mlp(), DFA(shared=True))
    model.load_state_dict(state)
    model(X)
    return model


# Samples ---------------------------------------------------------------------------------------


class TimeFirst(nn.Module):
    """Works on (time, samples, features) inside, returns (samples, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.layer, self.readout = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(self.below(x).tanh().transpose(0, 1))
        return self.readout(h.mean(0))


def test_another_sample_axis() -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4).double()
    rules = {"layer": DFA(sample_axis=1), "*": DFA()}
    model = apical.convert(TimeFirst().double(), rules, example=x)
    assert model.layer.feedback.matrix.shape == (3, 6, 5)  # one column per time and feature
    for _ in range(2):
        y = model(x)
        y.retain_grad()
        y.square().sum().backward()
        h = torch.tanh(x @ model.below.weight.T + model.below.bias)
        received = torch.einsum("ne,etf->ntf", y.grad, model.layer.feedback.matrix)
        delta = received * (1 - h**2)
        assert_close(model.below.bias.grad, delta.sum((0, 1)), rtol=1e-12, atol=1e-14)
        model.zero_grad()
    batch = torch.randn(5, 6, 4).double()
    assert model(batch).shape == (5, 3)


def test_a_sample_axis_that_does_not_fit_is_refused_with_the_remedy() -> None:
    model = apical.convert(TimeFirst().double(), "dfa")
    with pytest.raises(ValueError, match=r"layer: its input counts 6 samples, .* 2.*sample_axis"):
        model(torch.randn(2, 6, 4).double())


class Windows(nn.Module):
    """Two rows per sample, one sample after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.layer, self.readout = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.layer(self.below(x).tanh().reshape(-1, 5))
        return self.readout(h.reshape(len(x), 10))


def test_rows_folded_into_samples() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 2, 4).double()
    rules = {"layer": DFA(sample_axis="folded"), "*": DFA()}
    model = apical.convert(Windows().double(), rules, example=x)
    assert model.layer.feedback.matrix.shape == (3, 2, 5)
    y = model(x)
    y.retain_grad()
    y.square().sum().backward()
    h = torch.tanh(x @ model.below.weight.T + model.below.bias)
    received = torch.einsum("ne,ewf->nwf", y.grad, model.layer.feedback.matrix)
    assert_close(model.below.bias.grad, (received * (1 - h**2)).sum((0, 1)))
    with pytest.raises(ValueError, match="sample_axis"):
        apical.convert(Windows().double(), "dfa", example=x)


def test_sequences_keep_a_column_per_position_and_batches_vary() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 5), nn.Flatten(), nn.Linear(15, 2)
    )
    apical.convert(model, "dfa", example=torch.zeros(2, 3, 4))
    assert model[2].feedback.matrix.shape == (2, 3, 5)
    for count in (1, 4, 2):
        model(torch.randn(count, 3, 4)).sum().backward()


# Several forwards, scaled and summed losses ----------------------------------------------------


def twice(make_loss: Callable[[nn.Module], Tensor]) -> dict[str, Tensor]:
    model = apical.convert(mlp(), "dfa", example=X)
    make_loss(model).backward()
    return gradients(model)


def test_two_forwards_before_one_backward_are_two_backwards() -> None:
    a, b = (X[:3], Y[:3]), (X[3:], Y[3:])
    one = twice(lambda m: F.cross_entropy(m(a[0]), a[1]))
    two = twice(lambda m: F.cross_entropy(m(b[0]), b[1]))
    both = twice(lambda m: F.cross_entropy(m(a[0]), a[1]) + F.cross_entropy(m(b[0]), b[1]))
    assert_close(both, {name: one[name] + two[name] for name in one}, rtol=1e-12, atol=1e-15)


def test_a_siamese_loss_gives_each_branch_its_own_error() -> None:
    model = apical.convert(mlp(), "dfa", example=X)
    left, right = model(X), model(-X)
    left.retain_grad(), right.retain_grad()
    F.cosine_similarity(left, right).sum().backward()
    errors, seen = (left.grad, right.grad), gradients(model)
    expected = 0
    for x, error in zip((X, -X), errors, strict=True):
        h = torch.tanh(x @ model[0].weight.T + model[0].bias)
        expected += ((error @ model[2].feedback.matrix) * (1 - h**2)).sum(0)
    assert_close(seen["0.bias"], expected, rtol=1e-12, atol=1e-15)


def test_scaled_losses_scale_every_gradient() -> None:
    small = twice(lambda m: F.cross_entropy(m(X), Y))
    large = twice(lambda m: 1000 * F.cross_entropy(m(X), Y))
    assert_close(large, {name: 1000 * g for name, g in small.items()}, rtol=1e-12, atol=0)


def test_an_auxiliary_loss_on_the_output_is_part_of_the_error() -> None:
    main = twice(lambda m: F.cross_entropy(m(X), Y))
    penalty = twice(lambda m: m(X).square().mean())

    def summed(model: nn.Module) -> Tensor:
        y = model(X)
        return F.cross_entropy(y, Y) + y.square().mean()

    assert_close(twice(summed), {n: main[n] + penalty[n] for n in main}, rtol=1e-12, atol=1e-15)


def test_a_loss_on_hidden_activity_flows_as_autograd_says() -> None:
    """What leaves the model beside its output has an ordinary gradient down to the next tap."""
    model = apical.convert(mlp(), "dfa", example=X)
    hidden = []
    model[1].register_forward_hook(lambda _m, _i, out: hidden.append(out))
    model(X)
    hidden[0].square().sum().backward()
    h = torch.tanh(X @ model[0].weight.T + model[0].bias)
    assert_close(model[0].bias.grad, (2 * h * (1 - h**2)).sum(0))
    assert model[2].weight.grad is None or not model[2].weight.grad.any()


def test_skip_connections_carry_their_own_gradient_past_the_taps() -> None:
    """Two blocks h + f(h): the trunk receives a signal from every later block, as in BioTorch."""

    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Linear(4, 4) for _ in range(3))
            self.out = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            h = h + self.b(h)
            h = h + self.c(h)
            return self.out(h)

    torch.manual_seed(0)
    model = apical.convert(Residual().double(), "dfa", example=X)
    y = model(X)
    y.retain_grad()
    y.square().sum().backward()
    b, c, out = (layer.feedback.matrix for layer in (model.b, model.c, model.out))
    assert_close(model.a.bias.grad, (y.grad @ (b + c + out)).sum(0))
    assert_close(model.b.bias.grad, (y.grad @ (c + out)).sum(0))
