"""Nothing depends on the size of a gradient: neither what attacks find nor what is said of it."""

import copy
from functools import cache

import pytest
import torch
from torch import Tensor, nn

import apical
from apical import attacks
from apical.attacks.ball import unit
from apical.attacks.losses import dlr, targeted_dlr
from apical.retrieval.attacks.attack import HAG
from victims import digits, trained

X, Y = digits()[0][1300:1364], digits()[1][1300:1364]
SCALES = [1e-38, 1e-30, 1e-10, 1e30]

FOLLOWING = {
    "fgsm": attacks.FGSM(0.1),
    "fgsm l2": attacks.FGSM(0.5, "l2"),
    "pgd": attacks.PGD(0.1, steps=6, stop_when_broken=True),
    "pgd l2": attacks.PGD(0.5, steps=6, norm="l2"),
    "pgd margin l2": attacks.PGD(0.5, steps=6, norm="l2", loss="margin", restarts=2),
    "tpgd": attacks.TPGD(0.1, steps=4),
    "apgd": attacks.APGD(0.1, 6, loss="dlr"),
    "apgd l2": attacks.APGD(0.5, 6, "l2"),
    "apgd targeted l2": attacks.APGD(0.5, 6, "l2", loss="dlr-targeted", targets=2),
    "fgsm l1": attacks.FGSM(1.5, "l1"),
    "pgd l1": attacks.PGD(1.5, steps=6, norm="l1"),
    "apgd l1": attacks.APGD(1.5, 8, "l1", loss="dlr"),
    "eot": attacks.EOT(attacks.PGD(0.5, steps=3, norm="l2"), 2),
    "hag": HAG(0.1, 6),
    "hag l2": HAG(0.5, 6, "l2"),
    "hag l1": HAG(2.0, 10, "l1"),
}


@cache
def net() -> nn.Module:
    return trained()


class _Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor, scale: float) -> Tensor:
        ctx.scale = scale  # type: ignore[attr-defined]
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.scale, None  # type: ignore[attr-defined]


class Rescaled(nn.Module):
    """A net whose gradient in its input is multiplied by a number, while its scores stay."""

    def __init__(self, net: nn.Module, scale: float) -> None:
        super().__init__()
        self.net, self.scale = net, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.net(_Scaled.apply(x, self.scale))


def test_a_power_of_two_changes_no_bit() -> None:
    for name in FOLLOWING:
        attack = FOLLOWING[name]
        plain = attack(net(), X, Y)
        for exponent in (-60, -20, 40):  # with any of them no entry of these gradients underflows
            assert torch.equal(attack(Rescaled(net(), 2.0**exponent).eval(), X, Y), plain)


def test_every_attack_finds_the_same_images() -> None:
    for scale in SCALES:
        for name in FOLLOWING:
            attack = FOLLOWING[name]
            with torch.no_grad():
                found = [
                    net()(attack(m, X, Y)).argmax(1) != Y
                    for m in (net(), Rescaled(net(), scale).eval())
                ]
            assert 3 < found[0].sum() < len(X)
            # 1e-38 leaves the smallest entries of a gradient no digit: that may decide one image.
            assert (found[0] != found[1]).sum() <= (1 if scale == 1e-38 else 0)


def test_an_audit_says_the_same() -> None:
    for scale in (1e-38, 1e-30, 1e30):
        plain, found = (attacks.audit(m, X, Y) for m in (net(), Rescaled(net(), scale).eval()))
        assert found.passed and plain.passed
        assert found.rising == plain.rising
        assert found.cosine == pytest.approx(plain.cosine, abs=1e-6)
        assert found.agreement == pytest.approx(plain.agreement, abs=1e-4)


def test_the_size_of_feedback_is_not_its_direction() -> None:
    """Feedback that is the weights times 1e-5 gives the true direction."""
    model = apical.convert(apical.revert(copy.deepcopy(net())), "fa")
    weights = [p for p in model.parameters() if p.dim() > 1]
    feedback = [b for b in model.buffers() if b.dim() > 1]
    for buffer, weight in zip(feedback, weights, strict=True):
        buffer.copy_(weight.detach() * 1e-5)
    attack = attacks.PGD(0.5, steps=6, norm="l2", loss="margin")
    own, exact = (attack(model, X, Y, gradient=source) for source in ("own", "exact"))
    with torch.no_grad():
        assert torch.equal(model(own).argmax(1), model(exact).argmax(1))
        assert (model(own).argmax(1) != Y).any()


def test_units_of_tiny_and_huge_vectors() -> None:
    for size in (1e-44, 1e-38, 1e-20, 1.0, 1e20, 3e38):
        vector = torch.tensor([[3.0, -4.0], [0.0, 0.0]]) / 4 * size
        # A number of 1e-44 has three binary digits: the direction is then as good as they are.
        room = 0.1 if size == 1e-44 else 1e-6
        expected = torch.tensor([[0.6, -0.8], [0.0, 0.0]])
        torch.testing.assert_close(unit(vector, "l2"), expected, rtol=0, atol=room)
        torch.testing.assert_close(unit(vector, "linf"), expected / 0.8, rtol=0, atol=room)


def test_ratios_of_scores_do_not_depend_on_their_size() -> None:
    scores, labels = torch.tensor([[4.0, 2.0, 0.0, -1.0]]), torch.tensor([0])
    for exponent in (-120, -40, 0, 100):
        small = scores * 2.0**exponent
        assert dlr(small, labels).item() == -0.5
        assert targeted_dlr(small, labels, torch.tensor([1])).item() == pytest.approx(-2 / 4.5)
    level = torch.zeros(1, 4, requires_grad=True)
    dlr(level, labels).sum().backward()
    assert level.grad is not None and level.grad.isfinite().all()
