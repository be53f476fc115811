"""The nearest misclassified points: projections, minimum norms, radii that break."""

import math

import pytest
import torch
from torch import Tensor, nn

from apical import attacks
from apical.attacks.fab import nearest
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


@pytest.mark.parametrize(("norm", "dual"), [("linf", 1), ("l2", 2)])
def test_of_a_linear_net_the_norm_is_known(norm: str, dual: int) -> None:
    """The distance from a plane is the score over the dual norm of its normal."""
    torch.manual_seed(0)
    net = nn.Linear(20, 2).double().eval()
    x = 0.5 + 0.01 * torch.randn(30, 20).double()
    scores = net(x).detach()
    weight = net.weight.detach()
    wanted = (scores[:, 0] - scores[:, 1]).abs() / (weight[0] - weight[1]).norm(dual)
    found = attacks.minimum_norms(net, x, scores.argmax(1), norm=norm, steps=20)
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
