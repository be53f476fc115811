"""The gradient audit: right verdicts for honest, misled, vanishing and random gradients."""

import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType

import pytest
import torch
from torch import Tensor, nn

import apical
import zoo
from apical import attacks
from apical.attacks.audit import Limits
from unusual_nets import Detached, Noisy, Quantised, Rounded, Scaled, Stepped, Wrapped
from victims import convolutional, digits, perceptron, trained

X, Y = digits()[0][1300:1364], digits()[1][1300:1364]


@cache
def net(rule: str) -> nn.Module:
    return trained(rule, steps=150)


@pytest.mark.parametrize("rule", ["fa", "dfa"])
def test_feedback_alignment_is_masked(rule: str) -> None:
    found = attacks.audit(net(rule), X, Y)
    assert found.verdict == "masked"
    assert found.cosine < 0.3 and found.agreement < 0.3 and found.rising < 0.9
    assert found.zero < 0.1
    assert attacks.audit(net(rule), X, Y, gradient="exact").passed


def test_backprop_passes_and_only_attacks_can_call_it_faithful() -> None:
    found = attacks.audit(net("bp"), X, Y)
    assert found.passed and found.verdict == "undecided"
    assert found.reasons[-1] == "whether it is faithful attacks decide: attacks.robust_report"
    assert found.rising > 0.95 and found.rising_low < found.rising
    assert found.rising_high == pytest.approx(1)
    assert found.slope_ratio == pytest.approx(1, abs=0.02)
    assert found.agreement > 0.98 and found.cosine == pytest.approx(1)
    assert found.examples == 64 and found.loss == "dlr" and found.repeat == pytest.approx(1)


def test_sign_symmetry_points_up_the_loss_but_elsewhere() -> None:
    found = attacks.audit(net("frsf"), X, Y)
    assert found.rising > 0.95 and 0.4 < found.cosine < 0.9
    assert found.agreement == pytest.approx(found.cosine, abs=0.15)
    assert found.verdict == "masked" and "weaker than they could be" in found.reasons[0]
    mild = attacks.audit(net("frsf"), X, Y, limits=Limits(cosine=0.3))
    assert mild.verdict == "undecided" and not mild.passed
    assert attacks.audit(
        net("frsf"), X, Y, limits=Limits(cosine=0.3, alike=0.3, agreement=0.3)
    ).passed


def test_unusual_nets_of_any_origin() -> None:
    for kind, verdict, reason in (
        (Quantised, "undecided", "raise the loss"),
        (Rounded, "vanishing", "zero for 100%"),
        (Stepped, "vanishing", "zero for 100%"),
        (Detached, "vanishing", "zero for 100%"),
        (Noisy, "random", "two forward passes on the same inputs differ"),
        (Scaled, "undecided", "gradient of the ce loss is exactly zero"),
    ):
        found = attacks.audit(kind().eval(), X, Y)
        assert found.verdict == verdict
        assert found.passed == (verdict == "undecided")
        assert any(reason in text for text in found.reasons)


def test_a_random_gradient_with_steady_scores_is_random() -> None:
    model = Wrapped()
    hook = lambda grad: grad * torch.rand_like(grad).round()  # noqa: E731
    inner = net("bp")  # trained now: inside an audit nothing can be
    model.forward = lambda x: inner(_hooked(x, hook))
    found = attacks.audit(model.eval(), X, Y)
    assert found.verdict == "random" and found.repeat < 0.9
    assert "two gradients of the same inputs differ" in found.reasons[0]


def test_a_wrong_gradient_of_a_model_made_elsewhere_is_masked() -> None:
    """No exact gradient is known here: only differences of the loss show it."""
    shuffled = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    model, inner = Wrapped(), net("bp")  # trained now: inside an audit nothing can be
    model.forward = lambda x: inner(
        _hooked(x, lambda grad: grad.flatten(1)[:, shuffled].view_as(grad))
    )
    found = attacks.audit(model.eval(), X, Y)
    assert found.verdict == "masked"
    assert found.cosine == pytest.approx(1) and found.agreement < 0.3


@pytest.mark.parametrize("change", [torch.zeros_like, lambda gradient: gradient.roll(1, 3)])
def test_a_gradient_that_is_wrong_for_few_examples_is_not_faithful(
    change: Callable[[Tensor], Tensor],
) -> None:
    """Nine of 100: a mean over examples, or the share of zero gradients, would pass."""
    x, y, model, inner = digits()[0][1300:1400], digits()[1][1300:1400], Wrapped(), net("bp")
    wrong = torch.arange(100)[:, None, None, None] < 9
    model.forward = lambda x: inner(_hooked(x, lambda g: g.where(~wrong[: len(g)], change(g))))
    assert attacks.audit(model.eval(), x, y, limits=Limits(apart=0.1)).passed
    found = attacks.audit(model, x, y)
    assert found.zero < 0.1 and found.agreement > 0.95
    assert found.verdict == "undecided" and not found.passed
    count = round(found.apart * found.derived)  # at a kink of the net there is no derivative
    assert 7 <= count <= 9 and found.derived > 90
    assert f"the gradient of {count} ({found.apart:.0%}) disagrees" in found.reasons[0]


def test_a_model_need_not_be_defined_outside_the_range() -> None:
    model, inner = Wrapped(), net("bp")
    model.forward = lambda x: inner(torch.where((x < 0) | (x > 1), torch.nan, x))
    found = attacks.audit(model.eval(), X, Y)
    assert found.passed and found.agreement > 0.98 and found.rising > 0.95
    assert found.slope_ratio == pytest.approx(1, abs=0.02)


def test_a_gradient_that_vanishes_alone_is_masked() -> None:
    """That of frozen layers is zero, the exact one is not: an attacker who follows it is misled."""
    found = attacks.audit(net("frozen"), X, Y)
    assert found.verdict == "masked" and found.zero == 1
    assert "the exact gradient of the same weights for 0%" in found.reasons[0]


def test_of_a_coarsely_quantised_net_attacks_decide() -> None:
    model, inner = Wrapped(), net("bp")
    model.forward = lambda x: inner(x + ((x * 3).round() / 3 - x).detach())
    found = attacks.audit(model.eval(), X, Y)
    assert found.agreement < 0.5 and found.rising > 0.75
    assert found.verdict == "undecided" and not found.passed


def test_a_backward_pass_that_skips_a_purifier_is_not_faithful() -> None:
    """Its loss has jumps, but longer steps agree no better, as they would on a quantised net."""
    model = zoo.Function(net("bp"), zoo.purified)
    found = attacks.audit(model.eval(), X, Y)
    assert 0.5 < found.agreement < 0.9 and found.rising > 0.9
    assert found.verdict == "undecided" and not found.passed


def _hooked(x: Tensor, hook: object) -> Tensor:
    y = x * 1
    if y.requires_grad:
        y.register_hook(hook)
    return y


def test_what_the_checks_of_autoattack_let_through(torchvision: ModuleType) -> None:
    """A gradient that is not zero, of a model that is not random, but points elsewhere."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from pyautoattack import checks
        from pyautoattack.autopgd_base import APGDAttack
    model = net("fa")
    gradient = attacks.source("own")
    with gradient.open(model) as oracle:
        rows = oracle.ask(X, Y, lambda z: attacks.losses.dlr(z, Y)).gradient.abs().flatten(1).any(1)
    x, y = X[rows], Y[rows]
    assert len(x) > 55
    with warnings.catch_warnings():  # a flag would be a warning, and an error
        warnings.simplefilter("error")
        checks.check_randomized(model, x, y)
        assert checks.check_range_output(model, x) == 10
        with torch.random.fork_rng():
            APGDAttack(model, n_iter=10, norm="Linf", eps=0.1, loss="dlr").perturb(x, y)
    assert attacks.audit(model, x, y).verdict == "masked"


def test_saturated_feedback_alignment_is_masked_and_vanishes() -> None:
    found = attacks.audit(perceptron("fa", steps=800, seed=1), X, Y)
    assert found.verdict == "masked"
    assert found.zero_loss == "ce" and found.zero > 0.1 and found.saturated > 0.3
    assert any("gradient of the ce loss" in reason for reason in found.reasons)


def test_an_audit_leaves_no_trace_and_is_a_record() -> None:
    model = net("fa")
    state, weights = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    first = attacks.audit(model, X[:8], Y[:8], directions=2)
    assert first == attacks.audit(model, X[:8], Y[:8], directions=2)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad for p in model.parameters())
    row = first.row()
    assert row["kind"] == "audit" and row["verdict"] == first.verdict
    assert all(isinstance(value, str | int | float | list) for value in row.values())


def test_two_classes_take_the_margin() -> None:
    model = convolutional(classes=2)
    assert attacks.audit(model, X[:8], Y[:8] % 2, directions=1).loss == "margin"


def test_bad_input() -> None:
    model = convolutional()
    with pytest.raises(ValueError, match="no examples"):
        attacks.audit(model, X[:0], Y[:0])
    with pytest.raises(ValueError, match="directions=0"):
        attacks.audit(model, X, Y, directions=0)
    with pytest.raises(ValueError, match="unknown loss of an audit 'ce'.* Allowed: dlr, margin"):
        attacks.audit(model, X, Y, loss="ce")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="audit: loss='dlr' needs 3 classes, the model has 2"):
        attacks.audit(convolutional(classes=2), X, Y % 2, loss="dlr")
    with pytest.raises(ValueError, match=r"labels of type torch.float32"):
        attacks.audit(model, X, Y.float())
    with pytest.raises(ValueError, match="labels of shape"):
        attacks.audit(model, X, Y[:3])
    with pytest.raises(ValueError, match="outside the stated range"):
        attacks.audit(model, X * 2, Y)
    with pytest.raises(ValueError, match="in training mode"):
        attacks.audit(apical.convert(convolutional(), "fa").train(), X, Y)


def test_a_label_in_third_place_is_no_vanishing_gradient() -> None:
    """DLR is constant there by its formula; an honest net that is often wrong passes."""
    torch.manual_seed(5)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).eval()
    x = torch.rand(40, 1, 8, 8)
    third = model(x).topk(3).indices[:, 2]
    found = attacks.audit(model, x, torch.where(torch.arange(40) < 20, third, model(x).argmax(1)))
    assert found.zero == 0 and found.passed
