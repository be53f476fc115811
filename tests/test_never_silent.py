"""What would otherwise be a wrong gradient without a word: each case is refused, or computed right."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import apical
from apical.rules import RULES

SENDING = [name for name in RULES if name not in ("bp", "frozen")]


def net(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)
    ).double()


X = torch.randn(6, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def penalty(model: nn.Module, x: Tensor) -> Tensor:
    """A gradient penalty, as in R1."""
    x = x.detach().requires_grad_()
    (slope,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    return slope.square().sum()


def residual(model: nn.Module, x: Tensor) -> Tensor:
    """The residual of u'' = u, as in physics-informed nets."""
    x = x.detach().requires_grad_()
    u = model(x)[:, 0]
    (first,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    return (second.sum(1) - u).square().sum()


def hessian(model: nn.Module, x: Tensor) -> Tensor:
    def loss(weight: Tensor) -> Tensor:
        return torch.func.functional_call(model, {"2.weight": weight}, (x,)).square().sum()

    return torch.autograd.functional.hessian(loss, model[2].weight, create_graph=True).sum()


def nested(model: nn.Module, x: Tensor) -> Tensor:
    slope = torch.func.grad(lambda x: model(x).square().sum())
    return torch.func.grad(lambda x: slope(x).square().sum())(x).sum()


def tangent(model: nn.Module, x: Tensor) -> Tensor:
    return torch.func.jvp(model, (x,), (torch.ones_like(x),))[1].sum()


SECOND_ORDER = [penalty, residual, hessian, nested, tangent]


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch.func.jvp imports it
@pytest.mark.parametrize("name", SENDING)
@pytest.mark.parametrize("measure", SECOND_ORDER)
def test_recorded_gradients_are_refused_and_exact_inside_exact_gradients(
    name: str, measure: Any
) -> None:
    model = apical.convert(net(), name, example=X, on_unsupported="keep")
    with apical.labels(model, Y), pytest.raises(RuntimeError) as caught:
        measure(model, X)
    assert str(caught.value)[:3] in ("0: ", "2: ", "4: ")
    assert "exact_gradients" in str(caught.value)
    with apical.exact_gradients(model):
        seen = measure(model, X)
    expected = measure(net(), X)
    torch.testing.assert_close(seen, expected, rtol=1e-12, atol=0)
    if seen.requires_grad:
        with apical.exact_gradients(model):
            got = torch.autograd.grad(measure(model, X), model[2].weight, allow_unused=True)[0]
        plain = net()
        wanted = torch.autograd.grad(measure(plain, X), plain[2].weight, allow_unused=True)[0]
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["fa", "dfa"])
def test_forward_mode_differentiation_is_refused_also_without_a_graph(name: str) -> None:
    model = apical.convert(net(), name, example=X)
    with torch.no_grad(), torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        with pytest.raises(RuntimeError, match="0: .*forward-mode.*exact_gradients"):
            model(dual)
