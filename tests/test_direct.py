"""DFA's relatives: signals written out, feedback that learns, labels."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical.rules import DFA, DRTP, DirectKolenPollack, DirectLowDimensional, SignDFA, oja
from three_layers import mlp


def numbers(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y = numbers(7, 4), torch.arange(7) % 3


def convnet() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(45, 3),
    ).double()  # fmt: skip


def binary_loss(model: nn.Module) -> Tensor:
    """Sigmoid outputs: e = (p - t) / N, so sign(e) = 1 - 2t."""
    output = model(X)
    target = F.one_hot(Y, 3).double()
    return F.binary_cross_entropy_with_logits(output, target, reduction="sum") / len(X)


def hidden(model: nn.Module) -> list[Tensor]:
    """The teaching signals of both taps, and the error."""
    h1 = torch.tanh(model[0](X)).detach().requires_grad_()
    h2 = torch.tanh(F.linear(h1, model[2].weight, model[2].bias)).detach()
    error = torch.sigmoid(F.linear(h2, model[4].weight, model[4].bias)) - F.one_hot(Y, 3)
    return [h1.detach(), h2, (error / len(X)).detach()]


def by_hand(model: nn.Module, signal: Tensor) -> list[Tensor]:
    """Weight gradients of the hidden layers where `signal B` comes to their outputs."""
    h1, h2, _ = hidden(model)
    d2 = signal @ model[4].feedback.matrix * (1 - h2**2)
    d1 = signal @ model[2].feedback.matrix * (1 - h1**2)
    return [d1.T @ X, d2.T @ h1]


def test_sign_dfa_by_hand() -> None:
    model = apical.convert(mlp(), "sdfa", example=X)
    binary_loss(model).backward()
    error = hidden(model)[2]
    expected = by_hand(model, error.sign() * error.abs().mean())
    assert_close([model[0].weight.grad, model[2].weight.grad], expected, rtol=0, atol=1e-12)
    assert_close(model[4].weight.grad, error.T @ hidden(model)[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("magnitude", ["error", "one"])
def test_random_target_projection_by_hand(magnitude: Any) -> None:
    model = apical.convert(mlp(), DRTP(magnitude=magnitude), example=X)
    with apical.labels(model, Y):
        binary_loss(model).backward()
    scale = hidden(model)[2].abs().mean() if magnitude == "error" else 1 / 7
    expected = by_hand(model, scale * F.one_hot(Y, 3).double())
    assert_close([model[0].weight.grad, model[2].weight.grad], expected, rtol=0, atol=1e-12)


def test_sign_dfa_is_a_constant_less_twice_the_target_projection() -> None:
    """sign(y - t) = 1 - 2t, so its signal is 1 B - 2 t B, at one magnitude."""
    sign, target = (apical.convert(mlp(), name, example=X) for name in ("sdfa", "drtp"))
    for a, b in zip((sign[2], sign[4]), (target[2], target[4]), strict=True):
        assert torch.equal(a.feedback.matrix, b.feedback.matrix)
    binary_loss(sign).backward()
    with apical.labels(target, Y):
        binary_loss(target).backward()
    scale = hidden(sign)[2].abs().mean()
    constant = by_hand(sign, scale * torch.ones(7, 3).double())
    for i, ones in zip((0, 2), constant, strict=True):
        assert_close(sign[i].weight.grad, ones - 2 * target[i].weight.grad, rtol=0, atol=1e-12)


def test_labels_missing_or_wrong_are_told_of() -> None:
    model = apical.convert(mlp(), "drtp", example=X)
    with pytest.raises(ValueError, match=r"2: DRTP learns from labels.*apical\.labels\(model"):
        model(X)
    with torch.no_grad():
        model(X)
    with apical.exact_gradients(model):
        model(X).sum().backward()
    with (
        pytest.raises(ValueError, match="labels run from 0 to 9"),
        apical.labels(model, 9 * Y // 2),
    ):
        model(X)
    with apical.labels(model, Y), pytest.raises(ValueError, match="labels are"):
        model(X[:5])


# Feedback that learns ---------------------------------------------------------------------------


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with apical.labels(model, y):
        return F.cross_entropy(model(x), y)


def error_and_inputs(model: nn.Module, x: Tensor, y: Tensor) -> tuple[Tensor, dict[int, Tensor]]:
    """The error, and what each converted layer reads."""
    seen: dict[int, Tensor] = {}
    places = [i for i, layer in enumerate(model) if hasattr(layer, "feedback")]
    handles = [
        model[i].register_forward_pre_hook(lambda _, args, i=i: seen.update({i: args[0].detach()}))
        for i in places
    ]
    with torch.no_grad():
        output = model(x)
    for handle in handles:
        handle.remove()
    return (output.softmax(1) - F.one_hot(y, 3)) / len(x), seen


@pytest.mark.parametrize("layout", ["full", "channel"])
def test_feedback_learns_by_error_times_activity(layout: Any) -> None:
    model, x = convnet(), numbers(6, 2, 5, 5)
    y = torch.arange(6) % 3
    apical.convert(model, DirectKolenPollack(layout=layout), example=x)
    error, seen = error_and_inputs(model, x, y)
    loss(model, x, y).backward()
    conv, linear = model[2].feedback.matrix, model[5].feedback.matrix
    activity = seen[2] if layout == "full" else seen[2].sum((2, 3), keepdim=True)
    expected = torch.einsum("ne,nchw->echw", error, activity)
    assert_close(conv.grad, expected.view_as(conv), rtol=0, atol=1e-12)
    assert_close(linear.grad, error.T @ seen[5], rtol=0, atol=1e-12)
    assert_close(linear.grad, model[5].weight.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("sample_axis", [1, "folded"])
def test_activity_is_gathered_along_the_axis_of_samples(sample_axis: Any) -> None:
    rule = DirectKolenPollack(layout="channel", sample_axis=sample_axis)
    layer = nn.Linear(4, 2)
    taps = DFA(layout="channel", sample_axis=sample_axis)
    samples, positions = 3, 5
    x = numbers(samples, positions, 4)
    given = x.transpose(0, 1) if sample_axis == 1 else x.reshape(-1, 4)
    geometry = apical.rules.base.Geometry(
        given.shape, samples, layer.weight.shape, apical.rules.ops.LinearOp()
    )
    error = numbers(samples, 2, seed=3)
    matrix = rule.create(geometry, 2, torch.Generator().manual_seed(0))["matrix"]
    (seen,) = rule.memory_gradients(error, given, geometry, matrix)
    assert_close(seen.view(2, 4), error.T @ x.sum(1), rtol=0, atol=1e-12)
    sent = taps.signal(error, geometry, matrix)  # gathering is the transpose of sending
    assert_close((sent * given).sum(), (matrix * seen).sum(), rtol=1e-12, atol=0)


def test_feedback_of_the_output_layer_obeys_the_law_of_kolen_pollack() -> None:
    model = apical.convert(mlp(), "dkp", example=X)
    gap = (model[4].feedback.matrix - model[4].weight).detach().clone()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, weight_decay=0.2)
    for _ in range(20):
        optimizer.zero_grad()
        loss(model, X, Y).backward()
        optimizer.step()
    left = model[4].feedback.matrix - model[4].weight
    assert_close(left.detach(), 0.98**20 * gap, rtol=0, atol=1e-12)


def test_a_projection_of_one_is_direct_kolen_pollack() -> None:
    full = apical.convert(mlp(), "dkp", example=X)
    low = apical.convert(mlp(), DirectLowDimensional(rank=3, projection="fixed"), example=X)
    with torch.no_grad():
        for i in (0, 2, 4):
            low[i].feedback.projection.copy_(torch.eye(3))
            low[i].feedback.factor.copy_(full[i].feedback.matrix)
    for model in (full, low):
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
        for _ in range(4):
            optimizer.zero_grad()
            loss(model, X, Y).backward()
            optimizer.step()
    for i in (0, 2, 4):
        assert_close(low[i].weight, full[i].weight, rtol=0, atol=1e-12)
        assert_close(low[i].feedback.factor, full[i].feedback.matrix, rtol=0, atol=1e-12)


def test_a_step_through_a_bottleneck_written_out() -> None:
    for projection in ("fixed", "oja", "labels"):
        rule = DirectLowDimensional(rank=2, projection=projection)
        model = apical.convert(mlp(), rule, example=X)
        error, seen = error_and_inputs(model, X, Y)
        p, q = (getattr(model[2].feedback, n).detach().clone() for n in ("projection", "factor"))
        optimizer = torch.optim.SGD(model.parameters(), 0.5)
        loss(model, X, Y).backward()
        assert_close(model[2].feedback.factor.grad, p @ error.T @ seen[2], rtol=0, atol=1e-12)
        d1 = error @ p.T @ q * (1 - seen[2] ** 2)
        assert_close(model[0].weight.grad, d1.T @ X, rtol=0, atol=1e-12)
        optimizer.step()
        source = {"fixed": None, "oja": error, "labels": F.one_hot(Y, 3).double()}[projection]
        if source is not None:
            c = source.T @ source / source.square().sum()
            p = p + 0.1 * (p @ c - p @ c @ p.T @ p)
        assert_close(model[2].feedback.projection, p, rtol=0, atol=1e-12)


def test_a_projection_on_labels_ends_at_the_commonest_classes() -> None:
    model = apical.convert(mlp(), DirectLowDimensional(rank=2, projection="labels"), example=X)
    y = torch.tensor([0, 0, 0, 0, 2, 2, 1])
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for _ in range(600):
        optimizer.zero_grad()
        loss(model, X, y).backward()
        optimizer.step()
    rows = model[4].feedback.projection
    assert_close(rows.T @ rows, torch.tensor([1.0, 0, 1]).double().diag(), rtol=0, atol=1e-3)


# Bad input --------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"DirectKolenPollack: layout='kernel' has no learning"):
        DirectKolenPollack(layout="kernel")
    with pytest.raises(ValueError, match="sample_axis=-1"):
        SignDFA(sample_axis=-1)
    with pytest.raises(ValueError, match="rate has no effect with projection='fixed'"):
        DirectLowDimensional(projection="fixed", rate=0.2)
    model = mlp()
    with pytest.raises(ValueError, match="rank=4 is above 3, the number of the model's outputs"):
        apical.convert(model, DirectLowDimensional(rank=4), example=X)
    assert oja.dimensions(0.01, 3) == 1


def test_an_optimizer_built_before_the_feedback_has_its_size_is_told_of() -> None:
    model = apical.convert(mlp(), "dkp")
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        loss(model, X, Y).backward()
        optimizer.step()
    with pytest.warns(UserWarning, match=r"4\.feedback\.matrix"):
        optimizer.step()


def test_layouts_agree_with_dfa() -> None:
    x = numbers(6, 2, 5, 5)
    for layout in ("full", "kernel", "channel"):
        plain = convnet()
        dfa = apical.convert(copy.deepcopy(plain), DFA(layout=layout), example=x)
        sign = apical.convert(plain, SignDFA(layout=layout), example=x)
        assert torch.equal(dfa[2].feedback.matrix, sign[2].feedback.matrix)
        e = torch.full((6, 3), 0.25, dtype=torch.float64)
        for model in (dfa, sign):
            model(x).backward(e)
        assert_close(sign[0].weight.grad, dfa[0].weight.grad, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["drtp", "dldfa"])
def test_labels_and_notes_pass_through_one_compiled_graph(name: str) -> None:
    models = [apical.convert(mlp(), name, example=X) for _ in range(2)]
    called = [models[0], torch.compile(models[1], backend="aot_eager", fullgraph=True)]
    for model, call in zip(models, called, strict=True):
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        for _ in range(2):
            optimizer.zero_grad()
            with apical.labels(model, Y):
                F.cross_entropy(call(X), Y).backward()
            optimizer.step()
    assert_close(dict(models[1].state_dict()), dict(models[0].state_dict()), rtol=0, atol=1e-12)
