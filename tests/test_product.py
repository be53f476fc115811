"""Product feedback: B = R A follows W by the law of Kolen-Pollack although neither factor does."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical.rules import KolenPollack, ProductFeedback


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, groups=2), nn.Tanh(), nn.ConvTranspose2d(4, 3, 2), nn.Tanh(),
        nn.Flatten(), nn.Linear(75, 3),
    ).double()  # fmt: skip


def layers(model: nn.Module) -> list[Any]:
    return [model[0], model[2], model[5]]


def product(layer: Any) -> Tensor:
    return torch.tensordot(layer.feedback.mixing, layer.feedback.factor, 1).detach()


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        x = torch.randn(6, 2, 6, 6, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(6) % 3).backward()
        optimizer.step()


@pytest.mark.parametrize("expansion", [1.0, 2.5])
def test_the_product_obeys_the_law(expansion: float) -> None:
    model = apical.convert(net(), ProductFeedback(expansion=expansion, decay=0.01))
    for layer in layers(model):
        r = layer.feedback.mixing
        assert r.shape == (len(layer.weight), round(expansion * len(layer.weight)))
        assert_close(r @ r.T, torch.eye(len(r)).double(), rtol=0, atol=1e-12)
    start = [product(layer) - layer.weight.detach() for layer in layers(model)]
    train(model, torch.optim.SGD(model.parameters(), 0.05, momentum=0.9), 25)
    for layer, gap in zip(layers(model), start, strict=True):
        left = product(layer) - layer.weight.detach()
        assert_close(left, 0.99**25 * gap, rtol=0, atol=1e-12)


def test_it_learns_as_kolen_pollack_from_the_same_start() -> None:
    kp = apical.convert(net(), KolenPollack(decay=0.01))
    pfa = apical.convert(net(), ProductFeedback(decay=0.01))
    with torch.no_grad():
        for a, b in zip(layers(kp), layers(pfa), strict=True):
            b.feedback.factor.copy_(torch.tensordot(b.feedback.mixing.T, a.feedback.matrix, 1))
    for model in (kp, pfa):
        train(model, torch.optim.SGD(model.parameters(), 0.05), 5)
    for a, b in zip(layers(kp), layers(pfa), strict=True):
        assert_close(b.weight, a.weight, rtol=0, atol=1e-12)
        assert_close(product(b), a.feedback.matrix.detach(), rtol=0, atol=1e-12)


WIDE: list[tuple[nn.Module, tuple[int, ...], bool]] = [
    (nn.Conv2d(4, 32, 3), (2, 4, 3, 3), True),
    (nn.Conv2d(4, 32, 3, groups=2), (2, 4, 3, 3), False),
    (nn.ConvTranspose2d(32, 4, 2), (2, 32, 1, 1), False),
    (nn.Linear(40, 36), (3, 40), True),
]


@pytest.mark.parametrize(("layer", "shape", "thin"), WIDE, ids=lambda v: str(v)[:24])
def test_few_samples_pass_the_factors_in_turn_where_that_is_the_same(
    layer: nn.Module, shape: tuple[int, ...], thin: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model: Any = apical.convert(copy.deepcopy(layer).double(), "pfa")
    formed, x = [], torch.linspace(-1, 1, torch.Size(shape).numel()).double().view(shape)
    matrix = ProductFeedback.matrix

    def counted(self: Any, *tensors: Tensor) -> Tensor:
        formed.append(1)
        return matrix(self, *tensors)

    monkeypatch.setattr(ProductFeedback, "matrix", counted)
    seen, y = x.clone().requires_grad_(), None
    y = model(seen)
    y.sin().sum().backward()
    assert (not formed) is thin
    expected = torch.tensordot(model.feedback.mixing.T, model.weight.grad, 1)
    assert_close(model.feedback.factor.grad, expected, rtol=0, atol=1e-12)
    weight, upstream = product(model), y.detach().cos()
    probe = x.clone().requires_grad_()
    through = torch.func.functional_call(apical.revert(model), {"weight": weight}, (probe,))
    through.backward(upstream)
    assert_close(seen.grad, probe.grad, rtol=0, atol=1e-12)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"expansion=0.5 is below 1.*R R\^T = I"):
        ProductFeedback(expansion=0.5)
    with pytest.raises(ValueError, match="decay=1"):
        ProductFeedback(decay=1.0)
    model = apical.convert(net(), "pfa")
    with pytest.warns(UserWarning, match="Adam is not linear in the gradient"):
        train(model, torch.optim.Adam(model.parameters(), 0.01), 1)
    frozen = net()
    frozen[2].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=r"2 \(ConvTranspose2d\): its weight is frozen"):
        apical.convert(frozen, "pfa")
