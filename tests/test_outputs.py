"""Which tensor of a model's output carries the error, and outputs that cannot."""

from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical.rules import FA
from three_layers import X, Y, gradients, mlp


@dataclass
class Prediction:
    logits: Tensor
    features: Tensor


class ModelOutput(dict):
    """As Hugging Face's: a dictionary whose keys are attributes too."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


Pair = namedtuple("Pair", ["logits", "features"])


class Returns(nn.Module):
    def __init__(self, wrap: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.wrap = mlp(), wrap

    def forward(self, x: Tensor) -> Any:
        h = self.body[:4](x)
        return self.wrap(self.body[4](h), h)


def as_dict(y: Tensor, h: Tensor) -> dict[str, Tensor]:
    return {"logits": y, "features": h}


def as_output(y: Tensor, h: Tensor) -> ModelOutput:
    return ModelOutput(logits=y, features=h)


def as_list(y: Tensor, h: Tensor) -> list[Tensor]:
    return [h, y]


def test_the_tensor_that_carries_the_error_can_be_named() -> None:
    for wrap, key in (
        (as_dict, "logits"),
        (as_output, "logits"),
        (Pair, 0),
        (as_list, 1),
        (lambda y, h: (h, y), 1),
        (Prediction, "logits"),
    ):
        bare = apical.convert(mlp(), "dfa", example=X)
        F.cross_entropy(bare(X), Y).backward()
        model = apical.convert(Returns(wrap), "dfa", output=key, example=X)
        for i in (0, 2, 4):
            model.body[i].feedback.matrix.copy_(bare[i].feedback.matrix)
        for _ in range(2):
            output = model(X)
            assert type(output) is type(wrap(X, X))
            y = output[key] if not isinstance(output, Prediction) else output.logits
            F.cross_entropy(y, Y).backward()
            seen = {name.removeprefix("body."): g for name, g in gradients(model).items()}
            expected = {name: p.grad for name, p in bare.named_parameters()}
            assert_close(seen, expected, rtol=1e-12, atol=1e-15)


def test_a_single_tensor_among_other_things_needs_no_name() -> None:
    model = apical.convert(Returns(lambda y, h: (y, "a note", None)), "dfa")
    F.cross_entropy(model(X)[0], Y).backward()
    assert model.body[0].weight.grad.any()


def test_outputs_that_cannot_carry_the_error_are_refused() -> None:
    for wrap, key, text in (
        (as_dict, None, "say which one carries the error.*'logits'.*'features'"),
        (as_dict, "logit", "output='logit' is not in the model's output: 'logits'"),
        (lambda y, h: y, "logits", "output='logits' names nothing"),
        (lambda y, h: {"loss": y.square().mean(), "logits": y}, "logits", "computes a loss inside"),
        (lambda y, h: (y.mean(), y), 1, "computes a loss inside"),
        (lambda y, h: y.mean(), None, "single number"),
        (lambda y, h: "text", None, "returns str, in which no tensor"),
    ):
        model = apical.convert(Returns(wrap), "dfa", output=key)
        for _ in range(2):
            with pytest.raises(ValueError, match=text):
                model(X)


def test_a_model_may_return_the_named_tensor_alone_in_evaluation() -> None:
    """As Inception, which has a second head in training only; under attack taps are needed."""

    class Inception(Returns):
        def forward(self, x: Tensor) -> Any:
            both = super().forward(x)
            return both if self.training else both[0]

    model = apical.convert(Inception(lambda y, h: (y, h)), "dfa", output=0, example=X)
    expected = []
    for mode in (True, False, True):
        x = X.clone().requires_grad_()
        output = model.train(mode)(x)
        F.cross_entropy(output[0] if mode else output, Y).backward()
        expected.append(x.grad)
    assert torch.equal(expected[0], expected[1]) and torch.equal(expected[0], expected[2])
    assert expected[0].any()


def test_an_output_name_without_a_broadcast_rule_is_refused() -> None:
    with pytest.raises(ValueError, match="output='logits' has no effect"):
        apical.convert(mlp(), FA(), output="logits")


def test_outputs_of_more_than_two_axes() -> None:
    """Dense predictions: every output unit is an error unit."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.ReLU(), nn.Conv2d(3, 2, 1)).double()
    x = torch.randn(2, 2, 4, 4).double()
    apical.convert(model, "dfa", example=x)
    assert model[2].feedback.matrix.shape == (2 * 4 * 4, 3, 4, 4)
    y = model(x)
    y.retain_grad()
    y.square().sum().backward()
    received = torch.einsum("ne,ecij->ncij", y.grad.flatten(1), model[2].feedback.matrix)
    passed = F.conv2d(x, model[0].weight, model[0].bias, padding=1) > 0
    assert_close(model[0].bias.grad, (received * passed).sum((0, 2, 3)))


def test_an_output_that_changes_its_size_is_refused() -> None:
    model = apical.convert(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), "dfa")
    model(torch.ones(2, 4)).sum().backward()
    model[2].weight.data, model[2].bias.data = torch.ones(2, 5), torch.ones(2)
    with pytest.raises(ValueError, match=r"changed from \(3,\) to \(2,\)"):
        model(torch.ones(2, 4))


def test_one_tensor_under_two_names_carries_the_error_under_both() -> None:
    for wrap in (
        lambda y, h: (y, y),
        lambda y, h: {"a": y, "b": [y]},
        lambda y, h: (y, {"again": y}),
    ):
        key = "a" if isinstance(wrap(0, 0), dict) else 0
        model = apical.convert(Returns(wrap), "dfa", output=key)
        output = model(X)
        first = output[key]
        other = output["b"][0] if key == "a" else output[1]
        other = other["again"] if isinstance(other, dict) else other
        expected = torch.autograd.grad(first.sum(), list(model.parameters()), retain_graph=True)
        actual = torch.autograd.grad(other.sum(), list(model.parameters()))
        assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_a_gradient_to_an_output_in_a_container_is_warned_of() -> None:
    for wrap, reach, name in (
        (lambda y, h: (y, {"aux": h * 2}), lambda out: out[1]["aux"], r"1\['aux'\]"),
        (lambda y, h: (y, [h, (h * 2,)]), lambda out: out[1][1][0], r"1\[1\]\[0\]"),
        (lambda y, h: ModelOutput(a=y, deep=Pair(h * 2, h)), lambda out: out["deep"][0], "deep"),
    ):
        key = "a" if name == "deep" else 0
        model = apical.convert(Returns(wrap), "dfa", output=key)
        output = model(X)
        with pytest.warns(UserWarning, match=f"{name}.*reaches no hidden layer"):
            reach(output).sum().backward()
