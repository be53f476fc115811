"""Angles and ratios: numbers written out, floors, and a model left as it was."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical.measure import probes
from apical.rules import BP, FA, RULES, SignSymmetric


def numbers(shape: tuple[int, ...], k: int) -> Tensor:
    """t[i] = ((7 i + 3 k) mod 11) - 5 over the flat index i."""
    flat = [(7 * i + 3 * k) % 11 - 5 for i in range(torch.Size(shape).numel())]
    return torch.tensor(flat, dtype=torch.float64).view(shape)


def one_layer(weight: Tensor, matrix: Tensor) -> nn.Module:
    layer = nn.Linear(*reversed(weight.shape)).double()
    with torch.no_grad():
        layer.weight.copy_(weight)
    apical.convert(layer, "fa")
    layer.feedback.matrix.copy_(matrix)
    return layer


def test_angle_and_ratio_by_hand() -> None:
    for matrix, angle, ratio in (
        (numbers((2, 3), 4), 37.8182, 1.035725),
        (numbers((2, 3), 1), 0.0, 1.0),
        (-2 * numbers((2, 3), 1), 180.0, 2.0),
        (torch.tensor([[5.0, 2, 0], [0, 0, 0]]), 90.0, None),
    ):
        weight = numbers((2, 3), 1)
        assert weight.flatten().tolist() == [-2, 5, 1, -3, 4, 0]
        found = probes.alignment(one_layer(weight, matrix))[""]
        assert found["angle_deg"] == pytest.approx(angle, abs=1e-4)
        norms = matrix.double().norm() / math.sqrt(4 + 25 + 1 + 9 + 16)
        assert found["norm_ratio"] == pytest.approx(norms.item(), rel=1e-12)
        if ratio is not None:
            assert found["norm_ratio"] == pytest.approx(ratio, abs=1e-6)


def test_constants_of_uniform_laws() -> None:
    """cos = sqrt(3)/2 for uSF, 3/4 for brSF and frSF, 0 for FA, at uniform weights."""
    for name, degrees, tolerance in (
        ("usf", 30.0, 0.3),
        ("brsf", 41.41, 0.4),
        ("frsf", 41.41, 0.4),
        ("fa", 90.0, 1.0),
    ):
        model = nn.Sequential(nn.Linear(300, 200), nn.Conv2d(16, 32, 5))
        torch.manual_seed(0)
        for layer in model:
            nn.init.xavier_uniform_(layer.weight)
        apical.convert(model, name)
        for row in probes.alignment(model).values():
            assert row["angle_deg"] == pytest.approx(degrees, abs=tolerance)
            assert row["norm_ratio"] == pytest.approx(1.0, abs=0.02)


def test_a_weight_copied_after_conversion_is_seen_at_once() -> None:
    """The sign is that of the current weight, before any forward pass."""
    model = apical.convert(nn.Linear(100, 100), "usf")
    with torch.no_grad():
        model.weight.copy_(torch.empty(100, 100).uniform_(-1, 1))
    assert probes.alignment(model)[""]["angle_deg"] == pytest.approx(30, abs=0.6)


def test_an_angle_to_nothing_is_left_out() -> None:
    weight, matrix = numbers((2, 3), 1), numbers((2, 3), 4)
    assert probes.alignment(one_layer(weight * 0, matrix))[""] == {}
    assert probes.alignment(one_layer(weight, matrix * 0))[""] == {"norm_ratio": 0.0}
    tiny = one_layer(weight, matrix * 1e-14)
    assert set(probes.alignment(tiny)[""]) == {"norm_ratio"}
    above = one_layer(weight, matrix * 1e-10)
    assert probes.alignment(above)[""]["angle_deg"] == pytest.approx(37.8182, abs=1e-4)


def test_only_transport_rules_have_a_matrix_to_compare() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    apical.convert(model, {"0": "fa", "1": "dfa", "2": "bp"})
    assert list(probes.alignment(model)) == ["0"]
    assert probes.alignment(nn.Linear(2, 2)) == {}


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Dropout(0.3), nn.Linear(5, 6),
        nn.Tanh(), nn.Linear(6, 3),
    ).double()  # fmt: skip


X, Y = torch.linspace(-1, 1, 32, dtype=torch.float64).view(8, 4).sin(), torch.arange(8) % 3


def test_gradient_alignment_by_hand() -> None:
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    model = apical.convert(copy.deepcopy(plain), "fa")
    for m in (plain, model):
        F.cross_entropy(m(X), Y).backward()
    a, b = model[0].weight.grad, plain[0].weight.grad
    cosine = (a * b).sum() / (a.norm() * b.norm())
    found = probes.gradient_alignment(model, F.cross_entropy, X, Y)
    assert found["0"]["angle_deg"] == pytest.approx(math.degrees(math.acos(cosine)), abs=1e-9)
    assert found["0"]["norm_ratio"] == pytest.approx((a.norm() / b.norm()).item(), rel=1e-12)
    hidden = torch.tanh(plain[0](X))
    assert found["2"] == {
        "angle_deg": pytest.approx(0, abs=1e-5),
        "norm_ratio": pytest.approx(1),
        "reference_norm": pytest.approx(plain[2].weight.grad.norm().item()),
        "growth": pytest.approx(
            (plain[2](hidden).square().mean() / hidden.square().mean()).sqrt().item()
        ),
    }


def test_gradient_alignment_leaves_the_model_and_the_generator_as_they_were() -> None:
    for name in ("brsf", "dfa", "fa", "frsf", "usf"):
        model = apical.convert(net(), name, example=X)
        F.cross_entropy(model(X), Y).backward()
        state = copy.deepcopy(model.state_dict())
        grads = {n: p.grad.clone() for n, p in model.named_parameters()}
        rng = torch.get_rng_state()
        found = probes.gradient_alignment(model, F.cross_entropy, X, Y)
        assert list(found) == ["0", "4", "6"]
        assert 1 < found["0"]["angle_deg"] < 180
        assert found["6"]["angle_deg"] < 1e-5  # the same dropout mask in both passes
        assert torch.equal(torch.get_rng_state(), rng)
        assert_close(dict(model.state_dict()), dict(state), rtol=0, atol=0)
        assert_close({n: p.grad for n, p in model.named_parameters()}, grads, rtol=0, atol=0)
        assert model.training


def test_frozen_layers_and_vanishing_gradients_are_left_out() -> None:
    model = apical.convert(net(), "fa")
    model[4].requires_grad_(False)
    assert list(probes.gradient_alignment(model, F.cross_entropy, X, Y)) == ["0", "6"]
    flat = probes.gradient_alignment(model, lambda y, _: 0 * y.sum(), X, Y)
    for layer in ("0", "6"):
        assert flat[layer].keys() == {"reference_norm", "growth"}  # no angle to nothing
        assert flat[layer]["reference_norm"] == 0
    for measure in (probes.gradient_alignment, probes.delta_alignment):  # exploding ones
        rows = measure(model.float(), lambda y, t: 1e38 * F.cross_entropy(y, t), X.float(), Y)
        assert rows and all(r.keys().isdisjoint({"angle_deg", "norm_ratio"}) for r in rows.values())


@pytest.mark.parametrize("name", ["bp", "brsf", "fa", "frsf", "kp", "usf"])
def test_an_aligned_matrix_gives_aligned_gradients(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(RULES[name]), "matrix", lambda self, weight, *memory: weight)
    model = apical.convert(net(), name)
    found = probes.gradient_alignment(model, F.cross_entropy, X, Y)
    assert (name == "bp") == (found == {})
    for row in found.values():
        assert row["angle_deg"] == pytest.approx(0, abs=1e-5)
        assert row["norm_ratio"] == pytest.approx(1, rel=1e-12)


def test_attention_has_a_row_for_each_projection() -> None:
    model = apical.convert(nn.MultiheadAttention(4, 2), SignSymmetric("fixed"))
    assert list(probes.alignment(model)) == ["q", "k", "v", "out"]


def test_a_constrained_but_exact_layer_is_aligned() -> None:
    model = apical.convert(nn.Linear(3, 3), BP(constrain_weights=True))
    assert probes.alignment(model)[""]["angle_deg"] == pytest.approx(0, abs=1e-3)
    assert probes.alignment(apical.convert(nn.Linear(3, 3), FA(scale="norm")))[""][
        "norm_ratio"
    ] == pytest.approx(1, rel=1e-6)
