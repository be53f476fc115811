"""What rules say they need, against what they do."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.core.adapters import parts
from apical.core.layers import converted_layers
from apical.rules import (
    DRTP,
    RULES,
    AlignmentLoss,
    DirectLowDimensional,
    Needs,
    Rule,
    TransportRule,
)
from apical.rules.ops import LinearOp, Local

CASES: dict[str, Rule] = {
    **RULES,
    "drtp one": DRTP(magnitude="one"),
    "dldfa labels": DirectLowDimensional(projection="labels"),
    "mirror loss": AlignmentLoss("mirror"),
    "sparse(usf)": apical.rules.build("sparse(usf)"),
}
X = torch.randn(6, 5, generator=torch.Generator().manual_seed(0)).double()
Y = torch.arange(6) % 3


class Sign(nn.Module):
    """An activation through whose derivative nothing passes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sign()


def net(rule: Rule, activation: nn.Module) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), activation, nn.Linear(8, 3)
        ).double()
    return apical.convert(model, rule, example=X)


def first_gradient(model: nn.Module, scale: float = 1.0) -> Tensor:
    model.zero_grad()
    with apical.labels(model, Y):
        (scale * F.cross_entropy(model(X), Y)).backward()
    gradient = model[0].weight.grad
    return torch.zeros_like(model[0].weight) if gradient is None else gradient.clone()


def needs(rule: Rule) -> Needs:
    assert rule.needs is not None
    return rule.needs


def test_every_rule_of_the_library_says_what_it_needs() -> None:
    for name in RULES:
        assert isinstance(RULES[name].needs, Needs)
        assert "needs" in {key for kind in type(RULES[name]).__mro__[:-3] for key in vars(kind)}


def test_what_hidden_layers_wait_for() -> None:
    """Whether a layer above can silence the first one, and the size of the error move it."""
    for name in CASES:
        rule = CASES[name]
        through = first_gradient(net(rule, Sign())).abs().max() > 0
        model = net(rule, nn.Tanh())
        follows = not torch.equal(first_gradient(model), first_gradient(model, scale=3.0))
        seen = {(False, True): "layers above", (True, True): "output", (True, False): "nothing"}
        seen[False, False] = "nothing"  # frozen: hidden layers do not learn at all
        assert seen[bool(through), follows] == needs(rule).waits_for


def test_labels() -> None:
    for rule in CASES.values():
        model = net(rule, nn.Tanh())
        if needs(rule).labels:
            with pytest.raises(ValueError, match="learns from labels"):
                F.cross_entropy(model(X), Y).backward()
        else:
            F.cross_entropy(model(X), Y).backward()


def test_what_is_read_of_the_weights() -> None:
    """Other weights with the same signs, and with others, under the same memory; and weights that
    respond in the same way, for feedback that learns by a gradient."""
    for name in [n for n, rule in CASES.items() if isinstance(rule, TransportRule)]:
        rule: Any = CASES[name]
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(4, 12, generator=generator).double()
        memory = [tensor.detach() for tensor in rule.create(weight, generator).values()]
        matrix = rule.matrix(weight, *memory)
        reads = {
            "values": not torch.equal(rule.matrix(weight * weight.abs(), *memory), matrix),
            "signs": not torch.equal(rule.matrix(-weight, *memory), matrix),
        }
        x = torch.randn(
            3, 12, generator=generator
        ).double()  # fewer than the inputs: W + D responds
        signal = torch.randn(3, 4, generator=generator).double()  # as W does, where D x = 0
        unseen = torch.linalg.qr(x.t(), mode="complete").Q[:, 3:]
        other = weight + torch.randn(4, 9, generator=generator).double() @ unseen.t()
        learned = [
            rule.memory_gradients(Local(LinearOp(), x, signal, w, signal.t() @ x), *memory)
            for w in (weight, other)
        ]
        for one, two in zip(*learned, strict=True):
            reads["values"] |= one is not None and not torch.allclose(one, two, rtol=0, atol=1e-12)
        expected = needs(rule).weights
        assert reads["values"] == (expected == "values")
        assert (reads["signs"] or reads["values"]) == (expected != "nothing")


class Listening(LinearOp):
    """Counts how often the layer is made to respond."""

    responses = 0

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        Listening.responses += 1
        return super().forward(x, weight, bias)


def test_a_phase_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether layers respond to anything after an update, when no training pass runs."""
    for rule in CASES.values():
        model = net(rule, nn.Tanh())
        first_gradient(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _, layer in converted_layers(model):
            made = {name: part._replace(op=Listening()) for name, part in parts(layer).items()}
            monkeypatch.setattr(layer, "_apical_parts", lambda made=made: made)
        before = Listening.responses
        optimizer.step()
        assert (Listening.responses > before) == needs(rule).phase


def test_rules_of_others_need_not_say() -> None:
    class Quiet(TransportRule):
        reference = ""

        def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return {}

        def matrix(self, weight: Tensor, *memory: Tensor) -> Tensor:
            return weight

    assert Quiet().needs is None
