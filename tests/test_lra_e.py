"""LRA-E against its equations, and against backpropagation. All in float64."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical import learners, nets
from apical.learners import LRAE, Backprop

N, WIDTHS, OUTPUTS = 6, [5, 4, 3], 3


def net(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Flatten()]
    for fan_in, fan_out in zip([8, *WIDTHS], [*WIDTHS, OUTPUTS], strict=True):
        layers += [nn.Linear(fan_in, fan_out), activation()]
    return nn.Sequential(*layers[:-1]).double()


def batch() -> tuple[Tensor, Tensor]:
    x = torch.randn(N, 2, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return x, torch.tensor([0, 1, 2, 2, 1, 0])


def taught(model: nn.Module, learner: Any) -> dict[str, Tensor]:
    model.zero_grad()
    learner.gradients(model, batch())
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def aligned(model: nn.Sequential) -> None:
    """Error weights as the weights."""
    for number, layer in enumerate([m for m in model if isinstance(m, nn.Linear)][1:], 2):
        model.learner.get_parameter(f"error{number}").data.copy_(layer.weight.data)  # type: ignore[operator,union-attr]


def test_it_is_what_its_equations_say() -> None:
    model, (x, y) = net(), batch()
    learner = LRAE(beta=0.3, gamma=0.5)
    learners.attach(model, learner, seed=2)
    e2, e3, e4 = (model.learner.get_parameter(f"error{n}").detach() for n in (2, 3, 4))
    seen = taught(model, learner)
    w = [model[n].weight.detach() for n in (1, 3, 5, 7)]
    b = [model[n].bias.detach() for n in (1, 3, 5, 7)]
    z0 = x.flatten(1)
    h1 = z0 @ w[0].T + b[0]
    h2 = torch.tanh(h1) @ w[1].T + b[1]
    h3 = torch.tanh(h2) @ w[2].T + b[2]
    top = torch.softmax(torch.tanh(h3) @ w[3].T + b[3], 1) - F.one_hot(y, OUTPUTS)
    third = torch.tanh(h3) - torch.tanh(h3 - 0.3 * (top @ e4))
    second = torch.tanh(h2) - torch.tanh(h2 - 0.3 * (third @ e3))
    first = torch.tanh(h1) - torch.tanh(h1 - 0.3 * (second @ e2))
    assert_close(seen["7.weight"], top.T @ torch.tanh(h3) / N, rtol=1e-12, atol=0)
    assert_close(seen["5.weight"], third.T @ torch.tanh(h2) / N, rtol=1e-12, atol=1e-18)
    assert_close(seen["3.weight"], second.T @ torch.tanh(h1) / N, rtol=1e-12, atol=1e-18)
    assert_close(seen["1.weight"], first.T @ z0 / N, rtol=1e-12, atol=1e-18)
    assert_close(seen["1.bias"], first.mean(0), rtol=1e-12, atol=1e-18)
    assert_close(seen["learner.error2"], 0.5 * seen["3.weight"])
    assert_close(seen["learner.error4"], 0.5 * seen["7.weight"])


def test_linear_with_aligned_error_weights_it_is_backprop_times_a_power_of_beta() -> None:
    model, learner = net(nn.Identity), LRAE(beta=0.3)
    exact = taught(model, Backprop())
    learners.attach(model, learner)
    aligned(model)
    seen = taught(model, learner)
    for depth, place in enumerate((7, 5, 3, 1)):
        for kind in ("weight", "bias"):
            name = f"{place}.{kind}"
            assert_close(seen[name], 0.3**depth * exact[name], rtol=1e-12, atol=1e-15)


def test_small_steps_go_along_the_gradient_of_any_net_with_aligned_error_weights() -> None:
    model, beta = net(), 1e-5
    exact = taught(model, Backprop())
    learner = LRAE(beta=beta)
    learners.attach(model, learner)
    aligned(model)
    seen = taught(model, learner)
    # what is left out is of the order of beta, and of rounding, 1e-16 / beta
    assert_close(seen["5.weight"] / beta, exact["5.weight"], rtol=1e-3, atol=1e-6)


def test_with_gamma_one_error_weights_move_as_the_weights_do() -> None:
    model, learner = net(), LRAE(gamma=1.0)
    learners.attach(model, learner)
    apart = model.learner.error3.detach() - model[5].weight.detach()  # type: ignore[union-attr]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        learner.gradients(model, batch())
        optimizer.step()
    assert_close(model.learner.error3 - model[5].weight, apart)  # type: ignore[union-attr]


def test_the_net_computes_the_same_with_the_memory_attached() -> None:
    model, (x, _) = net(), batch()
    before = model(x)
    learners.attach(model, LRAE())
    assert torch.equal(model(x), before)


def test_activations_in_place_change_nothing() -> None:
    found = []
    for in_place in (False, True):
        model = net(nn.ReLU)
        for module in model:
            if isinstance(module, nn.ReLU):
                module.inplace = in_place
        learners.attach(model, LRAE(beta=0.3), seed=2)
        found.append(taught(model, LRAE(beta=0.3)))
    assert all(torch.equal(seen, found[0][name]) for name, seen in found[1].items())


def test_nets_it_cannot_teach_are_refused_with_the_remedy() -> None:
    for model, told in (
        (nets.Recurrent(nets.SRN(3, 4), 2), "not Recurrent"),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(4, 2)), "Sequential of Linear"),
        (nn.Sequential(nn.Linear(4, 2), nn.Tanh()), "Sequential of Linear"),
        (
            apical.convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "fa"),
            "revert",
        ),
    ):
        with pytest.raises(ValueError, match=f"LRAE: .*{told}"):
            learners.attach(model, LRAE())


def test_values_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="beta=0.0 and spread=1.0 must be above 0, gamma=-1.0"):
        LRAE(beta=0.0, gamma=-1.0)
    with pytest.raises(ValueError, match="attach"):
        LRAE().gradients(net(), batch())
