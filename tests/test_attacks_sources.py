"""Gradient sources: what direction they give, and that asking leaves no trace."""

import copy
import random

import numpy
import pytest
import torch
from torch import Tensor, nn

import apical
from apical import attacks, rules
from apical.attacks import losses, twins
from apical.attacks.isolation import undisturbed
from apical.rules import KolenPollack, SignSymmetric
from victims import convolutional, correct, digits, trained

X, Y = digits()[0][1300:1308], digits()[1][1300:1308]
RULES = list(rules.RULES)
SENDING = [name for name, rule in rules.RULES.items() if not rule.sends_nothing]


def gradient_of(net: nn.Module, source: object, loss: str = "ce") -> Tensor:
    with attacks.source(source).open(net) as oracle, undisturbed(net, *oracle.others):
        return oracle.ask(X, Y, losses.against(Y, loss)).gradient


def plainly(net: nn.Module) -> Tensor:
    x = X.clone().requires_grad_()
    with apical.labels(net, Y):
        loss = nn.functional.cross_entropy(net(x), Y, reduction="sum")
        return torch.autograd.grad(loss, x)[0]


def cosine(a: Tensor, b: Tensor) -> float:
    return torch.cosine_similarity(a.flatten(1), b.flatten(1)).mean().item()


@pytest.fixture(params=RULES)
def net(request: pytest.FixtureRequest) -> nn.Module:
    return apical.convert(convolutional(), request.param, example=X)


def test_exact_is_the_gradient_of_the_plain_model(net: nn.Module) -> None:
    plain = apical.revert(copy.deepcopy(net))
    torch.testing.assert_close(gradient_of(net, "exact"), plainly(plain), rtol=0, atol=0)


@pytest.mark.parametrize("net", SENDING, indirect=True)
def test_own_is_the_gradient_of_the_rule(net: nn.Module) -> None:
    torch.testing.assert_close(gradient_of(net, "own"), plainly(net), rtol=0, atol=0)


def test_the_gradient_of_a_rule_on_other_weights() -> None:
    for rule in SENDING:
        backprop = trained(steps=20)
        converted = apical.convert(apical.revert(copy.deepcopy(backprop)), rule, example=X)
        torch.testing.assert_close(gradient_of(backprop, f"rule:{rule}"), plainly(converted))
        on_another = apical.convert(apical.revert(copy.deepcopy(backprop)), "fa", seed=7)
        torch.testing.assert_close(gradient_of(on_another, f"rule:{rule}"), plainly(converted))


def test_a_frozen_net_has_no_gradient_of_its_own_to_follow() -> None:
    net = apical.convert(convolutional(), "frozen")
    with pytest.warns(attacks.sources.NoGradientWarning):
        assert not gradient_of(net, "own").any()
    assert gradient_of(net, "exact").any()


def test_own_averaged_tends_to_the_uniform_sign_rule_not_to_the_exact_gradient() -> None:
    net = apical.convert(trained(steps=60), SignSymmetric("fresh"))
    uniform = gradient_of(net, "rule:usf")
    few, many = gradient_of(net, "own-averaged:1"), gradient_of(net, "own-averaged:300")
    assert cosine(few, uniform) < cosine(many, uniform)
    assert cosine(many, uniform) > 0.97
    assert cosine(many, gradient_of(net, "exact")) < 0.95
    # The backward pass is multilinear in three layers, and E|M| / s is sqrt(3) / 2 in each.
    ratio = (many.flatten().dot(uniform.flatten()) / uniform.square().sum()).item()
    assert ratio == pytest.approx(0.75**1.5, rel=0.15)


def test_finite_differences_agree_with_the_exact_gradient() -> None:
    net = trained("fa", steps=60).double()
    x, loss = X.double(), losses.against(Y, "margin")
    with attacks.FiniteDifference(step=1e-6).open(net) as oracle:
        estimate = oracle.ask(x, Y, loss).gradient
    with attacks.FiniteDifference(directions=500, step=1e-6).open(net) as oracle:
        sampled = oracle.ask(x, Y, loss).gradient
    with attacks.Exact().open(net) as oracle:
        exact = oracle.ask(x, Y, loss).gradient
    with attacks.Own().open(net) as oracle:
        own = oracle.ask(x, Y, loss).gradient
    torch.testing.assert_close(estimate, exact, rtol=1e-5, atol=1e-6)
    assert cosine(sampled, exact) > 0.9
    assert cosine(own, exact) < 0.5


def test_from_gives_the_direction_of_the_other_and_the_scores_of_this_model() -> None:
    one, other = trained(steps=20), trained("fa", steps=30, seed=1)
    loss = losses.against(Y, "ce")
    with attacks.From(other).open(one) as oracle:
        answer = oracle.ask(X, Y, loss)
    torch.testing.assert_close(answer.gradient, gradient_of(other, "exact"))
    torch.testing.assert_close(answer.scores, one(X).detach(), rtol=0, atol=0)
    torch.testing.assert_close(answer.losses, loss(one(X)).detach(), rtol=0, atol=0)
    points = [
        attacks.FGSM(0.1)(one, X, Y, gradient=attacks.From(other, name=name))
        for name in ("transfer", "none")
    ]
    assert torch.equal(*points)


SOURCES = ["own", "exact", "rule:usf", "rule:dfa", "finite-difference:3", "own-averaged:2"]


def test_scores_are_bitwise_those_of_the_model() -> None:
    for source in SOURCES:
        net = apical.convert(convolutional(), "brsf")
        with attacks.source(source).open(net) as oracle, undisturbed(net, *oracle.others):
            answer = oracle.ask(X, Y, losses.against(Y, "ce"))
        if "averaged" in source:  # a mean of equal numbers, which may round
            torch.testing.assert_close(answer.scores, net(X).detach())
        else:
            assert torch.equal(answer.scores, net(X).detach())


class Trace:
    """Everything an attack must leave as it was."""

    def __init__(self, net: nn.Module) -> None:
        self.buffers = {name: b.clone() for name, b in net.named_buffers()}
        self.parameters = {
            name: (id(p), p.requires_grad, p.detach().clone(), p.grad.clone())
            for name, p in net.named_parameters()
            if p.grad is not None
        }
        self.modes = [module.training for module in net.modules()]
        self.torch, self.python = torch.get_rng_state(), random.getstate()
        self.numpy = numpy.random.get_state()[1].copy()
        self.heard = [f.history.took_part for f in net.modules() if hasattr(f, "history")]

    def same(self, other: "Trace") -> None:
        for name, (identity, required, value, grad) in self.parameters.items():
            assert (identity, required) == other.parameters[name][:2]
            assert torch.equal(value, other.parameters[name][2])
            assert torch.equal(grad, other.parameters[name][3])
        assert all(torch.equal(b, other.buffers[name]) for name, b in self.buffers.items())
        assert self.buffers.keys() == other.buffers.keys()
        assert (self.modes, self.heard) == (other.modes, other.heard)
        assert torch.equal(self.torch, other.torch)
        assert self.python == other.python
        assert (self.numpy == other.numpy).all()


def after_a_backward_pass(rule: object) -> nn.Module:
    net = apical.convert(
        nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10)
        ),
        rule,
        example=X,
    )
    with apical.labels(net, Y):
        nn.functional.cross_entropy(net(X), Y).backward()
    net[0].weight.requires_grad_(False)
    return net.eval()


def test_attacks_leave_no_trace() -> None:
    for source in SOURCES:
        net = after_a_backward_pass("brsf")
        before = Trace(net)
        attacks.PGD(0.1, steps=2)(net, X, Y, gradient=source)
        before.same(Trace(net))


def test_own_attacks_leave_no_trace_whatever_the_rule() -> None:
    for rule in SENDING:
        net = after_a_backward_pass(rule)
        before = Trace(net)
        attacks.APGD(0.1, steps=3)(net, X, Y, gradient="own")
        before.same(Trace(net))


class Chance(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        noise = torch.rand_like(x) + random.random() + float(numpy.random.rand())
        return (x + 0.01 * noise).flatten(1)[:, :10]


def test_a_model_that_draws_leaves_the_generators_alone_and_repeats() -> None:
    net = Chance().eval()
    before = Trace(net)
    attack = attacks.EOT(attacks.PGD(0.1, steps=2), samples=2)
    first = attack(net, X, Y)
    before.same(Trace(net))
    assert torch.equal(first, attack(net, X, Y))


class Counts(nn.Module):
    """Counts its calls in a buffer, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x.flatten(1)[:, :10]


@pytest.mark.parametrize("attack", [attacks.PGD(0.1, steps=2), attacks.Square(0.1, queries=2)])
def test_buffers_are_put_back(attack: attacks.Attack) -> None:
    net = Counts().eval()
    calls = net.calls
    attack(net, X, Y)
    assert net.calls is calls and calls == 0


def test_an_exception_restores_everything() -> None:
    class Fails(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner, self.left = inner, 5

        def forward(self, x: Tensor) -> Tensor:
            self.left -= 1
            torch.rand(1)
            if not self.left:
                raise KeyboardInterrupt
            return self.inner(x)

    net = Fails(after_a_backward_pass("fa")).eval()
    before = Trace(net)
    with pytest.raises(KeyboardInterrupt):
        attacks.PGD(0.1, steps=9)(net, X, Y)
    before.same(Trace(net))
    exact = [f.exact for f in net.modules() if hasattr(f, "exact")]
    assert exact == [0, 0]


def test_a_twin_that_is_still_alive_does_not_hear_of_updates() -> None:
    def stepped(*, watching: bool) -> list[Tensor]:
        net = apical.convert(convolutional(), KolenPollack(decay=0.5))
        optimizer = torch.optim.SGD(net.parameters(), 0.1)
        nn.functional.cross_entropy(net(X), Y).backward()
        alive = [twins.with_rule(net, KolenPollack(decay=0.5), 0), twins.sharing_parameters(net)]
        for twin in alive if watching else ():
            plainly(twin)  # from now on its rule would have something to do
        optimizer.step()
        assert len(alive) == 2
        return [p.detach() for p in net.parameters()]

    for watched, alone in zip(stepped(watching=True), stepped(watching=False), strict=True):
        assert torch.equal(watched, alone)


def test_twins_share_parameters_but_not_feedback() -> None:
    net = apical.convert(convolutional(), "brsf")
    buffers = {b.data_ptr() for b in net.buffers()}
    for twin in (twins.sharing_parameters(net), twins.with_rule(net, "fa", 0)):
        pairs = zip(net.parameters(), twin.parameters(), strict=True)
        assert all(own is shared for own, shared in pairs)
        assert not buffers & {b.data_ptr() for b in twin.buffers()}


def test_parameters_get_no_gradient_while_attacking(monkeypatch: pytest.MonkeyPatch) -> None:
    needs = []
    original = apical.rules.ops.ConvOp.backward

    def spy(self: object, grad: Tensor, x: Tensor, matrix: Tensor, wanted: object) -> object:
        needs.append(tuple(wanted))
        return original(self, grad, x, matrix, wanted)

    monkeypatch.setattr(apical.rules.ops.ConvOp, "backward", spy)
    net = apical.convert(convolutional(), "fa")
    attacks.PGD(0.1, steps=1)(net, X, Y, gradient="own")
    assert needs == [(True, False, False)] * 2


def test_attacks_work_where_the_caller_has_switched_gradients_off() -> None:
    net = trained(steps=60)
    expected = attacks.PGD(0.1)(net, X, Y)
    with torch.no_grad():
        assert torch.equal(attacks.PGD(0.1)(net, X, Y), expected)
    with torch.inference_mode():
        x, y = X.clone(), Y.clone()
        assert torch.equal(attacks.PGD(0.1)(net, x, y), expected)
    assert not correct(net, expected, Y).all()


def test_names_that_cannot_be_meant() -> None:
    for name, message in (
        ("exakt", "unknown gradient source 'exakt'; did you mean 'exact'"),
        ("rule:fan", "unknown rule 'fan'"),
        ("rule", "needs the rule's name"),
        ("own:3", "a number after the colon"),
        ("own-averaged:many", "a number after the colon"),
        ("own-averaged:0", "redraws=0 must be at least 1"),
        ("transfer", "attacks.From"),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.source(name)


def test_names_and_sources_are_one() -> None:
    for name in [*SOURCES, "none", "finite-difference"]:
        assert str(attacks.source(name)) == name
        assert attacks.source(attacks.source(name)) == attacks.source(name)


def test_feedback_drawn_again_inside_another_rule_is_averaged_too() -> None:
    net = apical.convert(convolutional(), rules.build("sparse(fa)", inner="brsf"))
    few, many = (gradient_of(net, f"own-averaged:{count}") for count in (1, 3))
    assert not torch.equal(few, many)
    assert torch.equal(gradient_of(net, "own"), gradient_of(net, "own"))


def test_averaging_what_never_changes_is_refused() -> None:
    with pytest.raises(ValueError, match="no rule of this model draws its feedback again"):
        attacks.PGD(0.1)(apical.convert(convolutional(), "fa"), X, Y, gradient="own-averaged")


def test_no_gradient_warns() -> None:
    class Blocked(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.detach().flatten(1)[:, :10]

    with pytest.warns(attacks.NoGradientWarning, match="no gradient reaches its input"):
        points = attacks.FGSM(0.1)(Blocked().eval(), X, Y)
    assert torch.equal(points, X)
