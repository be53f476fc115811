"""The nearest misclassified points: projections, minimum norms, radii that break."""

import math

import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor, nn

from apical import attacks
from apical.attacks.ball import Ball
from apical.attacks.fab import nearest
from apical.attacks.losses import margin
from victims import correct, digits, trained

X, Y = digits()[0][1300:1340], digits()[1][1300:1340]


def brute(x: Tensor, normal: Tensor, rise: Tensor, norm: str) -> Tensor:
    """By bisection over t: every coordinate moves t, or t |normal|, until it meets the range."""
    upward = normal * rise.sign()[:, None]
    room = torch.where(upward > 0, 1 - x, x) * (upward != 0)
    low, high = torch.zeros(len(x), 1).double(), torch.full((len(x), 1), 1e6).double()
    for _ in range(200):
        middle = (low + high) / 2
        speed = upward.abs() if norm == "l2" else torch.ones_like(x)
        change = torch.minimum(middle * speed, room) * upward.sign()
        enough = (change * upward).sum(1, keepdim=True) >= rise.abs()[:, None]
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return change


def test_the_nearest_point_of_a_plane() -> None:
    for norm in ("linf", "l2"):
        for scale in (1.0, 1e-30, 1e25):
            generator = torch.Generator().manual_seed(0)
            x = torch.rand(100, 12, generator=generator).double()
            normal = torch.randn(100, 12, generator=generator).double()
            normal[:, 3] = 0
            rise = 2 * torch.randn(100, generator=generator).double()
            found = nearest(x, normal * scale, rise * scale, norm=norm, low=0.0, high=1.0)
            assert ((x + found >= -1e-12) & (x + found <= 1 + 1e-12)).all()
            torch.testing.assert_close(found, brute(x, normal, rise, norm), rtol=0, atol=1e-9)
            assert not nearest(x, normal * 0, rise, norm=norm, low=0.0, high=1.0).any()


def corners() -> tuple[Tensor, Tensor]:
    """Inputs, some at the ends of the range, and points and gradients with zeros and ties."""
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(60, 12, generator=generator).double()
    x[:, :4] = x[:, :4].round()
    change = torch.randn(60, 12, generator=generator).double()
    change[:, 5:7], change[:20, 8] = 0.5, 0
    change[0] = 0
    return x, change


def test_the_nearest_point_of_ball_and_range_in_l1() -> None:
    """By bisection over the amount by which every change is shortened."""
    x, change = corners()
    size = torch.tensor([1e-3, 1.0, 1e3]).double().repeat(20)[:, None]
    for eps in (0.0, 1e-4, 0.5, 1.0, 2.0, 3.0, 100.0):
        point = x + size * change
        room = torch.where(change > 0, 1 - x, x)
        low, high = torch.zeros(60, 1).double(), (size * change.abs()).amax(1, keepdim=True)
        for _ in range(100):
            middle = (low + high) / 2
            kept = torch.minimum((size * change.abs() - middle).clamp(min=0), room)
            inside = kept.sum(1, keepdim=True) <= eps
            low, high = torch.where(inside, low, middle), torch.where(inside, middle, high)
        kept = torch.minimum((size * change.abs() - high).clamp(min=0), room)
        found = Ball(eps, "l1").project(point, x)
        torch.testing.assert_close(found, x + kept * change.sign(), rtol=0, atol=1e-12)
        assert not Ball(eps, "l1").strays(found, x).any()
        single = Ball(eps, "l1").project(point.float(), x.float())
        assert not Ball(eps, "l1").strays(single, x.float()).any()
        # what is naive, the ball first and then the range, is farther away
        if eps == 1.0:
            bare = Ball(eps, "l1", -1e9, 1e9).project(point, x).clamp(0, 1)
            assert ((bare - point).norm(dim=1) > (found - point).norm(dim=1) + 1e-3).sum() > 20


def linear_program(x: Tensor, gradient: Tensor, *, eps: float, rise: float) -> float:
    """The largest rise of a linear function within `eps` (rise = inf), or the smallest change in L1
    for a rise (eps = inf), within [0, 1]; of the rising and the falling part of each value."""
    slopes = torch.cat([gradient, -gradient]).numpy()
    bounds = [(0, float(room)) for room in torch.cat([1 - x, x])]
    ones = [[1.0] * len(slopes)]
    if rise == math.inf:
        return -linprog(-slopes, A_ub=ones, b_ub=[eps], bounds=bounds).fun
    return float(linprog(ones[0], A_ub=-slopes[None], b_ub=[-rise], bounds=bounds).fun)


def test_sparse_steps_against_a_linear_program() -> None:
    x, gradient = corners()
    rise = torch.linspace(0.01, 0.9, 60).double()
    shortest = nearest(x, gradient, -rise, norm="l1", low=0.0, high=1.0)
    for i in range(0, 60, 6):
        for eps in (0.3, 2.0, 20.0):
            change = Ball(eps, "l1").furthest(x, gradient)[i] - x[i]
            most = linear_program(x[i], gradient[i], eps=eps, rise=math.inf)
            assert (change * gradient[i]).sum() == pytest.approx(most, abs=1e-9)
        if i:
            assert (shortest[i] * gradient[i]).sum() == pytest.approx(-rise[i].item())
            least = linear_program(x[i], -gradient[i], eps=math.inf, rise=rise[i].item())
            assert shortest[i].abs().sum() == pytest.approx(least, abs=1e-9)


def test_attacks_in_l1_find_what_greedy_search_finds() -> None:
    """Which moves, while the radius lasts, the value with the largest gradient to its end. Of one
    image rounding may decide."""
    net, eps = trained(), 1.5
    x, left = X.clone(), torch.full((len(X), 1), eps)
    for _ in range(12):
        inputs = x.clone().requires_grad_()
        margin(net(inputs), Y).sum().backward()
        gradient = inputs.grad.flatten(1)
        room = torch.where(gradient > 0, 1 - x.flatten(1), x.flatten(1))
        place = (gradient.abs() * (room > 0)).argmax(1, keepdim=True)
        step = torch.minimum(room.gather(1, place), left)
        left = left - step
        moved = torch.zeros_like(room).scatter(1, place, step * gradient.gather(1, place).sign())
        x = x + moved.view_as(x)
    greedy = correct(net, x, Y)
    assert greedy.sum() < correct(net, X, Y).sum() - 10
    for attack in (
        attacks.PGD(eps, norm="l1", loss="margin"),
        attacks.APGD(eps, 40, "l1", loss="margin"),
        attacks.FAB(eps, 20, "l1", targets=3),
    ):
        assert correct(net, attack(net, X, Y), Y).sum() <= greedy.sum() + 1


def test_a_step_in_l1_uses_its_whole_length() -> None:
    """At a radius of half the range, 20 steps reach it, so that accuracy can fall to chance."""
    attack = attacks.PGD(32.0, norm="l1", loss="margin", random_start=False)
    change = attack(trained(), X, Y) - X
    assert change.abs().flatten(1).sum(1).median() > 16
    assert not correct(trained(), X + change, Y).any()


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2), ("l1", math.inf)])
def test_of_a_linear_net_the_norm_is_known(norm: str, dual: int) -> None:
    """The distance from a plane is the score over the dual norm of its normal."""
    torch.manual_seed(0)
    net = nn.Linear(20, 2).double().eval()
    x = 0.5 + 0.01 * torch.randn(30, 20).double()
    scores = net(x).detach()
    weight = net.weight.detach()
    wanted = (scores[:, 0] - scores[:, 1]).abs() / (weight[0] - weight[1]).norm(dual)
    wide = (-10.0, 11.0)  # in "l1" a single value moves
    found = attacks.minimum_norms(net, x, scores.argmax(1), norm=norm, steps=20, bounds=wide)
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=0)
    assert not attacks.minimum_norms(net, x, scores.argmin(1), norm=norm).any()


def test_norms_are_a_curve_of_robust_accuracy() -> None:
    net = trained()
    norms = attacks.minimum_norms(net, X, Y, steps=10)
    right = correct(net, X, Y)
    assert (norms[~right] == 0).all() and (norms[right] > 0).all()
    for eps in (0.05, 0.1):  # as strong as PGD, to one image
        left = correct(net, attacks.PGD(eps, 10, loss="margin")(net, X, Y), Y)
        assert (norms > eps).sum() <= left.sum() + 1
    constant = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(constant[1].weight)
    unmoved = attacks.minimum_norms(constant.eval(), X, constant(X).argmax(1), steps=2)
    assert unmoved.isinf().all()


def test_a_report_says_at_which_radius_each_example_breaks() -> None:
    quick = attacks.Effort(steps=3, adaptive_steps=0, queries=0, boundary_steps=3)
    report = attacks.robust_report(trained(), X, Y, eps=(0.05, 0.1), effort=quick)
    found = report.breaking_radii()
    assert set(found) <= {0.0, 0.05, 0.1, math.inf}
    assert [eps > 0.05 for eps in found] == list(report.worst[0].robust)
    assert [eps > 0.1 for eps in found] == list(report.worst[1].robust)
    assert "FAB-3" in {trial.attack for trial in report.trials}


def test_refusals() -> None:
    for options, told in (
        ({"steps": 0}, "FAB: steps=0 must be at least 1"),
        ({"targets": -1}, "FAB: targets=-1 must be at least 0"),
        ({"eps": 8.0}, "did you mean 8/255"),
        ({"norm": "l0"}, "norm='l0' is not one of"),
    ):
        with pytest.raises(ValueError, match=told):
            attacks.FAB(**options)
        with pytest.raises(ValueError, match="targets=10, but 10 classes leave 9"):
            attacks.FAB(0.1, targets=10)(trained(), X, Y)
