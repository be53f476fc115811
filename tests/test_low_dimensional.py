"""Low-dimensional feedback: what Q P is and sends, the laws of Q, and Oja's rule for P."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical.core.adapters import parts
from apical.rules import KolenPollack, LowDimensional, Sparse, oja
from apical.rules.ops import Local

STEPS = 25
LR, DECAY = 0.05, 0.3


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 8), nn.Tanh(), nn.Linear(8, 3)
    ).double()


def layers(model: nn.Module) -> list[Any]:
    return [layer for layer in model.modules() if hasattr(layer, "feedback")]


def gradients(model: nn.Module, x: Tensor) -> list[Tensor]:
    weights = list(apical.forward_parameters(model))
    return list(torch.autograd.grad(F.cross_entropy(model(x), torch.arange(len(x)) % 3), weights))


def gaps(model: nn.Module) -> list[Tensor]:
    """Q - P W of every layer."""
    return [
        (f.factor - torch.tensordot(f.projection, layer.weight, 1)).detach().clone()
        for layer in layers(model)
        for f in (layer.feedback,)
    ]


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = STEPS) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(6, 2, 6, 6, dtype=torch.float64, generator=generator)
        y = torch.randint(3, (6,), generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def follow(model: nn.Module, bases: dict[Any, Tensor] | None = None) -> nn.Module:
    """P from `bases` where given, and Q = P W: feedback that has arrived."""
    with torch.no_grad():
        for layer in layers(model):
            memory = layer.feedback
            if bases is not None and layer in bases:
                memory.projection.copy_(bases[layer])
            memory.factor.copy_(torch.tensordot(memory.projection, layer.weight, 1))
    return model


# What is sent ---------------------------------------------------------------------------------


def test_full_rank_that_has_arrived_is_backprop() -> None:
    plain, x = net(), numbers(6, 2, 6, 6)
    model = follow(apical.convert(copy.deepcopy(plain), LowDimensional(rank=1.0)))
    for layer in layers(model):
        memory = layer.feedback
        matrix = memory.rule.matrix(layer.weight, *memory.memory())
        assert_close(matrix, layer.weight, rtol=0, atol=1e-10)
    assert_close(gradients(model, x), gradients(plain, x), rtol=0, atol=1e-12)


def test_a_rank_of_the_dimension_of_the_error_is_backprop_and_one_less_is_not() -> None:
    """In a linear net every delta lies in the image of the 3 outputs, whatever the widths."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(5, 9), nn.Linear(9, 7), nn.Linear(7, 3)).double()
    x = numbers(12, 5)
    image = torch.eye(3, dtype=torch.float64)
    images = {}
    for place in (2, 1, 0):
        images[place] = image
        image = plain[place].weight.detach().T @ image
    for rank, exact in ((3, True), (2, False)):
        model = apical.convert(copy.deepcopy(plain), LowDimensional(rank=rank))
        bases = {model[i]: oja.orthonormalised(images[i].T[:rank]) for i in range(3)}
        seen, expected = gradients(follow(model, bases), x), gradients(plain, x)
        worst = max((a - b).abs().max().item() for a, b in zip(seen, expected, strict=True))
        assert (worst < 1e-9) is exact and (worst > 1e-3) is not exact


CONVOLUTIONS = [
    (nn.Conv2d(5, 32, 3, stride=2, padding=1), (2, 5, 7, 6)),
    (nn.Conv2d(5, 32, 3, dilation=2, padding="same", padding_mode="circular"), (2, 5, 7, 6)),
    (nn.Conv1d(5, 40, 4, padding="same"), (2, 5, 9)),
    (nn.Conv3d(3, 32, 2), (2, 3, 3, 4, 3)),
    (nn.Linear(7, 9), (2, 3, 7)),
]


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("scale", ["init", "norm"])
@pytest.mark.parametrize(("layer", "shape"), CONVOLUTIONS, ids=lambda v: str(v)[:24])
def test_two_thin_steps_are_one_through_the_matrix(
    layer: nn.Module, shape: tuple[int, ...], scale: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    rule = LowDimensional(rank=3, scale=scale)
    layer = apical.convert(copy.deepcopy(layer).double(), rule)
    weight, memory = layer.weight.detach(), layer.feedback.memory()
    expected_matrix = torch.tensordot(memory[0].T, memory[1].detach(), 1)
    if scale == "norm":
        expected_matrix *= weight.norm() / expected_matrix.norm()
        assert_close(rule.matrix(weight, *memory).norm(), weight.norm(), rtol=1e-12, atol=0)
    assert_close(rule.matrix(weight, *memory), expected_matrix, rtol=1e-12, atol=1e-14)
    x = numbers(*shape).requires_grad_()
    calls = []
    with monkeypatch.context() as patch:
        patch.setattr(LowDimensional, "matrix", lambda *_: calls.append(1))
        (thin,) = torch.autograd.grad(layer(x).sin().sum(), x)
    assert not calls  # the whole of B was not formed
    plain = apical.revert(layer)
    through_b = torch.func.functional_call(plain, {"weight": expected_matrix}, (x,))
    upstream = plain(x).cos().detach()
    (expected,) = torch.autograd.grad(through_b, x, upstream)
    assert_close(thin, expected, rtol=0, atol=1e-10)


def test_large_ranks_and_few_channels_go_through_the_matrix() -> None:
    for layer, rank, shape, thin in (
        (nn.Conv2d(4, 32, 3), 9, (2, 4, 20, 20), False),  # a large rank
        (nn.Conv2d(4, 32, 3), 8, (2, 4, 20, 20), True),
        (nn.Conv2d(4, 32, 3), 9, (2, 4, 4, 4), True),  # so few positions that forming B costs more
        (nn.Conv2d(4, 16, 3), 1, (2, 4, 4, 4), False),  # few channels
        (nn.Linear(8, 8), 5, (50, 8), False),
        (nn.Linear(8, 8), 5, (3, 8), True),
    ):
        rule = LowDimensional(rank=rank)
        model: Any = apical.convert(copy.deepcopy(layer), rule)
        x = torch.ones(shape)
        local = Local(parts(model)[""].op, x, model(x).detach(), model.weight.detach())
        assert (rule.send(local, *model.feedback.memory()) is not None) is thin


def test_every_projection_of_attention_has_its_own_bottleneck() -> None:
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).double()
    apical.convert(attention, LowDimensional(rank=2))
    assert [f.projection.shape for f in attention.feedback.values()] == [(2, 8)] * 4
    x = numbers(2, 3, 8).requires_grad_()
    attention(x, x, x)[0].square().sum().backward()
    assert torch.linalg.matrix_rank(x.grad.flatten(0, 1)) <= 6
    for name, slot in attention.feedback.items():
        assert slot.factor.grad.any(), name


# How Q learns ---------------------------------------------------------------------------------


def heavy_ball(momentum: float) -> float:
    gap, velocity = 1.0, 0.0
    for _ in range(STEPS):
        velocity = momentum * velocity + DECAY * gap
        gap -= LR * velocity
    return gap


LAWS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], LowDimensional, float]] = {
    "sgd": (
        lambda p: torch.optim.SGD(p, LR, weight_decay=DECAY),
        LowDimensional(projection="fixed", decay=0),
        (1 - LR * DECAY) ** STEPS,
    ),
    "momentum": (
        lambda p: torch.optim.SGD(p, LR, momentum=0.9, weight_decay=DECAY),
        LowDimensional(projection="fixed", decay=0),
        heavy_ball(0.9),
    ),
    "the rule's own decay": (
        lambda p: torch.optim.SGD(p, LR, momentum=0.9),
        LowDimensional(projection="fixed", decay=0.01, rank=2),
        0.99**STEPS,
    ),
    "updates, adam": (
        lambda p: torch.optim.Adam(p, 0.01),
        LowDimensional(projection="fixed", decay=0.01, follows="update"),
        0.99**STEPS,
    ),
    "updates, adamw": (
        lambda p: torch.optim.AdamW(p, 0.01, weight_decay=0),
        LowDimensional(projection="fixed", decay=0, follows="update"),
        1.0,
    ),
}


def test_what_q_lacks_decays_by_law() -> None:
    for law in LAWS:
        build, rule, left = LAWS[law]
        model = apical.convert(net(), rule)
        model[0].requires_grad_(True)
        start = gaps(model)[1:]  # with follows="update" no layer uses the first layer's feedback
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            train(model, build(model.parameters()))
        for gap, first in zip(gaps(model)[1:], start, strict=True):
            assert_close(gap, left * first, rtol=0, atol=1e-12)


def wide() -> nn.Sequential:
    """A convolution with so few positions that Q learns without use of dW."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 32, 3), nn.Tanh(), nn.Conv2d(32, 40, 3, padding=1), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(40, 3),
    ).double()  # fmt: skip


@pytest.mark.parametrize(("make", "side"), [(net, 6), (wide, 3)])
def test_the_gradient_of_q_is_p_times_that_of_w(make: Callable[[], nn.Module], side: int) -> None:
    model = apical.convert(make(), LowDimensional(rank=3))
    F.cross_entropy(model(numbers(6, 2, side, side)), torch.arange(6) % 3).backward()
    for layer in layers(model):
        expected = torch.tensordot(layer.feedback.projection, layer.weight.grad, 1)
        assert_close(layer.feedback.factor.grad, expected, rtol=0, atol=1e-12)


def test_p_of_one_is_kolen_pollack_step_by_step() -> None:
    kp = apical.convert(net(), KolenPollack(decay=0.01))
    low = apical.convert(net(), LowDimensional(rank=1.0, projection="fixed", decay=0.01))
    with torch.no_grad():
        for a, b in zip(layers(kp), layers(low), strict=True):
            b.feedback.projection.copy_(torch.eye(len(b.weight)))
            b.feedback.factor.copy_(a.feedback.matrix)
    optimizers = [torch.optim.SGD(m.parameters(), LR, momentum=0.9) for m in (kp, low)]
    for step in range(5):
        for model, optimizer in zip((kp, low), optimizers, strict=True):
            train(model, optimizer, steps=1)
        for a, b in zip(layers(kp), layers(low), strict=True):
            assert_close(a.weight, b.weight, rtol=0, atol=1e-12, msg=f"step {step}")
            assert_close(a.feedback.matrix, b.feedback.factor, rtol=0, atol=1e-12)


def test_adam_on_the_factor_warns_and_names_the_remedy() -> None:
    model = apical.convert(net(), LowDimensional())
    with pytest.warns(UserWarning, match=r"AdamW is not linear.*follows='update'"):
        train(model, torch.optim.AdamW(model.parameters(), 0.01), steps=1)


# How P learns ---------------------------------------------------------------------------------


def second_moment(size: int) -> tuple[Tensor, Tensor, Tensor]:
    """A second moment of trace 1, its eigenvalues from the largest, its eigenvectors as rows."""
    values = torch.tensor([5.0, 4, 3, 2, 1, 0.5])[:size].double()
    values = values / values.sum()
    vectors = torch.linalg.qr(numbers(size, size))[0].T
    return vectors.T @ values.diag() @ vectors, values, vectors


def converge(rows: Tensor, moment: Tensor, *, decay: float, steps: int = 6000) -> Tensor:
    power = moment.trace()
    for _ in range(steps):
        change = rows @ moment - rows @ moment @ rows.T @ rows
        oja.turn(rows, 7 * change, 7 * power, rate=0.1, decay=decay)
    return rows


def test_oja_ends_at_orthonormal_rows_that_span_the_leading_directions() -> None:
    moment, _, vectors = second_moment(6)
    rows = converge(numbers(3, 6, seed=5) / 3, moment, decay=0.0)
    assert_close(rows @ rows.T, torch.eye(3).double(), rtol=0, atol=1e-6)
    assert_close(rows.T @ rows, vectors[:3].T @ vectors[:3], rtol=0, atol=1e-6)


def test_oja_with_decay_ends_at_the_gains_of_its_law() -> None:
    moment, values, vectors = second_moment(6)
    decay = 0.1 * 0.15  # directions with less than 15 % of the power die
    rows = converge(
        oja.orthonormal_rows(4, 6, torch.Generator().manual_seed(2)), moment, decay=decay
    )
    gains = (1 - decay / (0.1 * values[:4])).clamp_min(0)
    assert int((gains > 0).sum()) == 3
    expected = vectors[:4].T @ gains.diag() @ vectors[:4]
    assert_close(rows.T @ rows, expected, rtol=0, atol=1e-6)


def test_p_turns_by_the_deltas_of_the_step_written_out() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    apical.convert(model, LowDimensional(rank=2, rate=0.2, decay=0.0))
    before = [layer.feedback.projection.clone() for layer in layers(model)]
    x, t = numbers(7, 4).requires_grad_(), numbers(7, 3, seed=3)
    h = torch.tanh(F.linear(x, model[0].weight, model[0].bias))
    d2 = (F.linear(h, model[2].weight, model[2].bias) - t).detach()
    d1 = (d2 @ before[1].T @ model[2].feedback.factor * (1 - h**2)).detach()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for part in (slice(3), slice(3, None)):  # accumulated
        (0.5 * (model(x[part]) - t[part]).square().sum()).backward()
    optimizer.step()
    for p, delta, layer in zip(before, (d1, d2), layers(model), strict=True):
        c = delta.T @ delta / (delta.T @ delta).trace()
        expected = p + 0.2 * (p @ c - p @ c @ p.T @ p)
        assert_close(layer.feedback.projection, expected, rtol=0, atol=1e-12)
        assert not any(note.any() for note in layer.feedback.notes)


@pytest.mark.parametrize("within", [lambda rule: rule, Sparse], ids=["plain", "sparse"])
def test_p_turns_every_few_updates_by_the_passes_before_its_own(within: Any) -> None:
    model, always = (
        apical.convert(net(), within(LowDimensional(rank=2, every=every))) for every in (3, 1)
    )
    pairs = list(zip(layers(model), layers(always), strict=True))
    optimizers = [torch.optim.SGD(each.parameters(), 0.0) for each in (model, always)]
    for step in range(1, 8):
        kept = [one.feedback.projection.clone() for one, _ in pairs]
        for each, optimizer in zip((model, always), optimizers, strict=True):
            optimizer.zero_grad()
            x = numbers(6, 2, 6, 6, seed=step)
            F.cross_entropy(each(x), torch.arange(6) % 3).backward()
            optimizer.step()
        for (one, other), before in list(zip(pairs, kept, strict=True))[1:]:
            turned = step in (1, 4, 7)
            assert torch.equal(one.feedback.projection, before) is not turned
            if step == 1:
                assert_close(one.feedback.projection, other.feedback.projection, rtol=0, atol=0)
            assert not any(note.any() for note in one.feedback.notes)


def test_p_of_a_convolution_sees_every_position_as_a_sample() -> None:
    layer = apical.convert(nn.Conv2d(2, 4, 1).double(), LowDimensional(rank=2))
    x, upstream = numbers(3, 2, 5, 4).requires_grad_(), numbers(3, 4, 5, 4, seed=2)
    delta = upstream.movedim(1, -1).reshape(-1, 4)
    change, power = layer.feedback.notes
    rows = layer.feedback.projection
    for layout in (torch.contiguous_format, torch.channels_last):
        layer(x).backward(upstream.to(memory_format=layout))
        moment = delta.T @ delta
        expected = rows @ moment - rows @ moment @ rows.T @ rows
        assert_close(change, expected, rtol=1e-12, atol=1e-12)
        assert_close(power, delta.square().sum(), rtol=1e-12, atol=0)
        change.zero_(), power.zero_()


@pytest.mark.parametrize("samples", [3, 12])
def test_what_oja_collects_of_few_and_many_samples_is_the_same_sum(samples: int) -> None:
    rows, signal = numbers(3, 6, seed=5), numbers(samples, 6)
    moment = signal.T @ signal
    expected = rows @ moment - rows @ moment @ rows.T @ rows
    for low in (None, signal @ rows.T):
        change, power = torch.zeros(3, 6).double(), torch.zeros(()).double()
        oja.collect(rows, signal, change, power, low)
        assert_close(change, expected, rtol=1e-12, atol=1e-12)
        assert_close(power, moment.trace(), rtol=1e-12, atol=0)


def test_rows_are_made_orthonormal_every_few_updates() -> None:
    model = apical.convert(net(), LowDimensional(rank=2, rate=1.0, orthonormalise=3))
    optimizer = torch.optim.SGD(model.parameters(), 0.5)
    worst = []
    for _ in range(3):
        train(model, optimizer, steps=1)
        products = [f.projection @ f.projection.T for f in (e.feedback for e in layers(model))]
        worst.append(max((p - torch.eye(2)).abs().max().item() for p in products))
    assert worst[1] > 1e-6 and worst[2] < 1e-12


def test_rows_are_orthonormalised_in_half_precision_too() -> None:
    model = apical.convert(net().bfloat16(), LowDimensional(rank=2, orthonormalise=1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    F.cross_entropy(model(numbers(3, 2, 6, 6).bfloat16()), torch.arange(3)).backward()
    optimizer.step()
    for layer in layers(model):
        rows = layer.feedback.projection.float()
        assert_close(rows @ rows.T, torch.eye(2), rtol=0, atol=2**-6)  # bfloat16 has 8 bits


def test_passes_in_evaluation_and_probes_leave_no_note() -> None:
    model = apical.convert(net().eval(), LowDimensional())
    x = numbers(6, 2, 6, 6).requires_grad_()
    torch.autograd.grad(model(x).square().sum(), x)
    model.train()
    apical.probes.gradient_alignment(model, F.cross_entropy, x, torch.arange(6) % 3)
    assert not any(note.any() for layer in layers(model) for note in layer.feedback.notes)


def test_an_overflow_leaves_p_as_it_is() -> None:
    rows = oja.orthonormal_rows(2, 4, torch.Generator().manual_seed(0))
    kept, projected = rows.clone(), torch.full((2, 4), float("inf"), dtype=torch.float64)
    power = torch.tensor(float("inf"), dtype=torch.float64)
    oja.turn(rows, projected, power, rate=0.1, decay=0.0)
    assert torch.equal(rows, kept) and not projected.any() and not power.any()


@pytest.mark.parametrize("name", ["ldfa", "dldfa"])
@pytest.mark.parametrize("scale", [1e-19, 1e-20, 1e-24])
def test_signals_that_vanish_leave_p_as_it_is(name: str, scale: float) -> None:
    """In float32 the squares of their entries are no normal numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    x = torch.randn(6, 4)
    apical.convert(model, name, example=x)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        (scale * F.cross_entropy(model(x), torch.arange(6) % 3)).backward()
        optimizer.step()
    for tensor in model.state_dict().values():
        assert tensor.isfinite().all()


# Bad input ------------------------------------------------------------------------------------


def test_values_out_of_range_are_refused() -> None:
    for options, text in (
        ({"rank": 0}, "rank=0 must be at least 1"),
        ({"rank": 1.5}, r"rank=1.5 is outside \(0, 1\]"),
        ({"rank": True}, "rank=True is not a finite number"),
        ({"decay": 1.0}, r"decay=1.0 is outside \[0, 1\)"),
        ({"rate": 3.0}, r"rate=3.0 is outside \(0, 1\]"),
        ({"projection_decay": -0.1}, "projection_decay=-0.1"),
        ({"orthonormalise": -1}, "must count updates"),
        ({"every": 0}, "every=0 must count updates, at least 1"),
        ({"projection": "fixed", "every": 2}, "no effect with projection='fixed'"),
        ({"projection": "fixed", "rate": 0.2}, "no effect with projection='fixed'"),
        ({"projection": "pca"}, "not one of 'oja', 'fixed'"),
    ):
        with pytest.raises(ValueError, match=text):
            LowDimensional(**options)


def test_layers_that_cannot_are_refused_with_the_remedy() -> None:
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3, groups=2), nn.ConvTranspose2d(8, 8, 3), nn.Flatten(), nn.Linear(8, 3)
    )
    with pytest.raises(ValueError) as raised:
        apical.convert(model, LowDimensional(rank=5))
    text = str(raised.value)
    assert "0 (Conv2d): is a grouped convolution" in text and "by name" in text
    assert "1 (ConvTranspose2d): is a transposed convolution" in text
    assert "3 (Linear): rank=5 is above 3" in text and "LowDimensional(rank=3)" in text
    frozen = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    frozen[1].requires_grad_(False)
    with pytest.raises(ValueError, match=r"1 \(Linear\): its weight is frozen"):
        apical.convert(frozen, "ldfa")
