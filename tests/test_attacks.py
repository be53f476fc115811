"""What holds for every attack: it stays in its ball, repeats, and breaks what can be broken."""

import math
from dataclasses import replace

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from apical import attacks
from apical.attacks import losses
from apical.attacks.ball import Ball, FewPixels
from victims import convolutional, correct, digits, trained

X, Y = digits()[0][1300:1340], digits()[1][1300:1340]
OTHER = convolutional(4)
EPS = 0.1


def foreign(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    nn.functional.cross_entropy(model(x), y).backward()
    return (x + EPS * x.grad.sign()).clamp(0, 1).detach()


EVERY = {
    "apgd": attacks.APGD(EPS, steps=6),
    "apgd dlr-targeted": attacks.APGD(EPS, steps=3, loss="dlr-targeted", targets=2),
    "apgd l2": attacks.APGD(0.5, steps=6, norm="l2", restarts=2, loss="margin"),
    "apgd l1": attacks.APGD(1.5, steps=7, norm="l1", stop_when_broken=True),
    "apgd dlr-targeted l1": attacks.APGD(1.5, 4, "l1", loss="dlr-targeted", targets=2),
    "eot": attacks.EOT(attacks.PGD(EPS, steps=2), samples=2),
    "fab": attacks.FAB(EPS, steps=6, targets=2),
    "fab l2": attacks.FAB(0.5, steps=4, norm="l2", restarts=2),
    "fab l1": attacks.FAB(1.5, steps=4, norm="l1", restarts=2, targets=2),
    "few-pixel": attacks.FewPixel(2, steps=2, population=10),
    "fgsm": attacks.FGSM(EPS),
    "fgsm l2": attacks.FGSM(0.5, norm="l2", loss="dlr"),
    "fgsm l1": attacks.FGSM(1.5, norm="l1"),
    "noise gaussian l1": attacks.Noise(1.5, "l1", "gaussian"),
    "noise gaussian l2": attacks.Noise(0.5, "l2", "gaussian", draws=3),
    "noise gaussian": attacks.Noise(EPS, kind="gaussian"),
    "noise": attacks.Noise(EPS, draws=3),
    "noise l2": attacks.Noise(0.5, "l2"),
    "noise l1": attacks.Noise(1.5, "l1"),
    "noise sign": attacks.Noise(EPS, kind="sign"),
    "pgd": attacks.PGD(EPS, steps=4, restarts=2, stop_when_broken=True),
    "pgd l2": attacks.PGD(0.5, steps=4, norm="l2"),
    "pgd l1": attacks.PGD(1.5, steps=4, norm="l1"),
    "plugin": attacks.Plugin(foreign, "foreign FGSM", EPS),
    "square": attacks.Square(EPS, queries=20),
    "square l2": attacks.Square(0.5, queries=20, norm="l2"),
    "square l1": attacks.Square(1.5, queries=20, norm="l1"),
    "tpgd": attacks.TPGD(EPS, steps=2),
    "tpgd unclamped": attacks.TPGD(EPS, steps=2, start="unclamped"),
    "transfer": attacks.Transfer(attacks.PGD(EPS, steps=3), OTHER),
}


@pytest.fixture(scope="module")
def net() -> nn.Module:
    return trained()


@pytest.fixture(params=EVERY)
def attack(request: pytest.FixtureRequest) -> attacks.Attack:
    return EVERY[request.param]


def test_every_attack_of_the_table_is_tried_here() -> None:
    of_events = {
        attacks.Flips,
        attacks.GreedyFlips,
        attacks.RandomFlips,
    }  # binary inputs only: see test_flips.py
    assert {type(attack) for attack in EVERY.values()} | of_events == set(attacks.ATTACKS.values())


def test_points_lie_in_the_ball_and_repeat(attack: attacks.Attack, net: nn.Module) -> None:
    points = attack(net, X, Y)
    assert points.shape == X.shape and points.dtype == X.dtype and not points.requires_grad
    assert points.min() >= 0 and points.max() <= 1
    if attack.ball is not None:
        assert not attack.ball.strays(points, X).any()
        assert not torch.equal(points, X)
    assert torch.equal(attack(net, X, Y), points)


def test_it_breaks_more_than_nothing(attack: attacks.Attack, net: nn.Module) -> None:
    if isinstance(attack, attacks.Noise | attacks.FewPixel | attacks.Transfer | attacks.TPGD):
        return  # no adversary, or one too weak for so few steps
    assert correct(net, attack(net, X, Y), Y).sum() < correct(net, X, Y).sum()


def test_it_takes_no_more_passes_than_it_says(attack: attacks.Attack, net: nn.Module) -> None:
    if isinstance(attack, attacks.Plugin):
        return  # what others do is not known
    model = OTHER if isinstance(attack, attacks.Transfer) else net
    with attack.source(None).open(model) as oracle:
        attack.perturb(oracle, X[:6], Y[:6])
        spent = oracle.passes * (attack.samples if isinstance(attack, attacks.EOT) else 1)
    beside = 1 + getattr(attack, "steps", 0) * isinstance(attack, attacks.FewPixel)
    checks = 2 * getattr(attack, "restarts", 1)  # of points, between runs
    assert 0 <= spent <= 6 * (attack.passes(10) + beside + checks)
    assert attack.passes(10) > 0


def test_an_empty_batch_stays_empty(attack: attacks.Attack, net: nn.Module) -> None:
    assert attack(net, X[:0], Y[:0]).shape == (0, 1, 8, 8)


def test_without_a_radius_nothing_changes(attack: attacks.Attack, net: nn.Module) -> None:
    if attack.ball is not None and hasattr(attack, "eps"):
        assert torch.equal(replace(attack, eps=0.0)(net, X, Y), X)


@settings(deadline=None, max_examples=30, derandomize=True)
@given(
    name=st.sampled_from(sorted(name for name in EVERY if hasattr(EVERY[name], "eps"))),
    eps=st.floats(1e-6, 0.9),
    low=st.floats(-3, 3),
    width=st.floats(0.95, 5),
    seed=st.integers(0, 2**40),
)
def test_no_attack_leaves_ball_range_or_model(
    name: str, eps: float, low: float, width: float, seed: int
) -> None:
    if name == "plugin":  # what others return is reported, not repaired
        return
    net, bounds = convolutional(4), (low, low + width)
    attack = replace(EVERY[name], eps=eps, bounds=bounds, seed=seed)
    x = (low + width * X[:4]).clamp(*bounds)
    weights = [p.clone() for p in net.parameters()]
    points = attack(net, x, Y[:4])
    assert points.min() >= torch.tensor(low) and points.max() <= torch.tensor(low + width)
    assert not Ball(eps, getattr(attack, "norm", "linf"), *bounds).strays(points, x).any()
    assert all(torch.equal(p, w) for p, w in zip(net.parameters(), weights, strict=True))


def test_strays_are_those_outside_ball_or_range_or_not_finite() -> None:
    x = torch.full((6, 1, 2, 2), 0.5)
    points = x.clone()
    points[1, 0, 0, 0] += 0.1
    points[2, 0, 0, 0] += 0.1001
    points[3] += 0.09
    points[4, 0, 0, 0] = float("nan")
    points[5, 0, 0, 0] = float("inf")
    assert Ball(0.1, "linf").strays(points, x).tolist() == [False, False, True, False, True, True]
    assert Ball(0.1, "l2").strays(points, x).tolist() == [False, False, True, True, True, True]
    points[3, 0, 0, 1:], points[3, 0, 1, 0] = 0.5, 0.5
    points[2, 0, 0, 0], points[2, 0, 1, 1] = 0.45, 0.5501
    assert Ball(0.1, "l1").strays(points, x).tolist() == [False, False, True, True, True, True]
    edge = torch.full((1, 1, 2, 2), 0.97)
    assert Ball(0.1, "linf").strays(edge + 0.05, edge).all()


def test_strays_of_few_pixels_are_those_that_changed_more() -> None:
    x = torch.full((5, 2, 3, 3), 0.5)
    points = x.clone()
    points[1, :, 0, 0] = 1.0
    points[2, 0, 0, 0], points[2, 1, 2, 2] = 0.4, 0.6
    points[3, 0, 1, 1] = 1.1
    points[4, 0, 1, 1] = float("nan")
    assert FewPixels(1).strays(points, x).tolist() == [False, False, True, True, True]
    assert FewPixels(2).strays(points, x).tolist() == [False, False, False, True, True]


def test_few_pixels_change_few_pixels(net: nn.Module) -> None:
    for pixels in (1, 3):
        points = attacks.FewPixel(pixels, steps=3, population=40)(net, X, Y)
        changed = (points != X).any(1).flatten(1).sum(1)
        assert changed.max() <= pixels and changed.max() > 0


def test_pgd_that_stops_breaks_at_least_as_many_for_less(net: nn.Module) -> None:
    last = attacks.PGD(0.07, steps=10)
    first = replace(last, stop_when_broken=True)
    passes = {}
    for attack in (last, first):
        with attacks.Exact().open(net) as oracle:
            passes[attack] = attack.perturb(oracle, X, Y), oracle.passes
    assert not (correct(net, passes[first][0], Y) & ~correct(net, passes[last][0], Y)).any()
    assert passes[first][1] < passes[last][1] == 10 * len(X)


def test_restarts_repeat_only_what_is_not_broken(net: nn.Module) -> None:
    one = attacks.PGD(0.3, steps=1, step_size=0.03, loss="margin")
    many = replace(one, restarts=4)
    broken = [~correct(net, attack(net, X, Y), Y) for attack in (one, many)]
    assert not (broken[0] & ~broken[1]).any()
    scores = [losses.margin(net(attack(net, X, Y)), Y).detach() for attack in (one, many)]
    assert (scores[1] >= scores[0] - 1e-6)[~broken[1]].all()
    passes, standing = {}, {}
    for restarts in (2, 3):
        attack = replace(one, restarts=restarts)
        standing[restarts] = int(correct(net, attack(net, X, Y), Y).sum())
        with attacks.Exact().open(net) as oracle:
            attack.perturb(oracle, X, Y)
        passes[restarts] = oracle.passes
    assert 0 < standing[2] < int((~broken[0]).sum()), "else this shows nothing"
    assert passes[3] - passes[2] == (1 + 1) * standing[2]


def test_apgd_that_stops_breaks_the_same(net: nn.Module) -> None:
    attack = attacks.APGD(0.06, steps=30)
    stopping = replace(attack, stop_when_broken=True)
    broken = [~correct(net, a(net, X, Y), Y) for a in (attack, stopping)]
    assert torch.equal(*broken) and broken[0].any() and not broken[0].all()


def test_the_two_starts_of_tpgd_differ_where_noise_leaves_the_range(net: nn.Module) -> None:
    points = {}
    for start in ("clamped", "unclamped"):
        with attacks.Exact().open(net) as oracle:
            seen = []
            ask = oracle.answer
            oracle.answer = lambda x, y, loss, ask=ask, seen=seen: (
                seen.append(x),
                ask(x, y, loss),
            )[1]
            attacks.TPGD(0.1, steps=1, start=start).perturb(oracle, X, Y)
            points[start] = seen[0]
    assert points["clamped"].min() == 0 and points["unclamped"].min() < 0
    torch.testing.assert_close(points["unclamped"].clamp(0, 1), points["clamped"])


def test_square_spends_nothing_on_what_is_broken(net: nn.Module) -> None:
    with attacks.NoGradient().open(net) as oracle:
        attacks.Square(0.5, queries=500).perturb(oracle, X, Y)
    assert oracle.passes < 100 * len(X)


def test_sizes_of_squares_shrink_on_the_published_schedule() -> None:
    attack = attacks.Square(0.1, queries=10000)
    sides = [attack.side(query, 32, 32) for query in (0, 11, 51, 201, 501, 1001, 8001, 9999)]
    shares = [0.8, 0.4, 0.2, 0.1, 0.05, 0.025, 0.8 / 512, 0.8 / 512]
    assert sides == [max(1, round(math.sqrt(share) * 32)) for share in shares]


def test_transfer_attacks_the_other_model(net: nn.Module) -> None:
    inner = attacks.PGD(EPS, steps=3)
    points = attacks.Transfer(inner, OTHER)(net, X, Y)
    assert torch.equal(points, inner(OTHER, X, Y))


def test_eot_of_a_repeatable_model_is_the_attack_itself(net: nn.Module) -> None:
    inner = attacks.FGSM(EPS)
    averaged = attacks.EOT(inner, samples=4)(net, X, Y)
    assert torch.equal(averaged, inner(net, X, Y))


def test_eot_sees_through_noise_that_hides_the_gradient(net: nn.Module) -> None:
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x + torch.randn_like(x))

    noisy, losses_met = Noisy().eval(), {}
    for samples in (1, 30):
        points = attacks.EOT(attacks.FGSM(0.1), samples)(noisy, X, Y)
        losses_met[samples] = losses.margin(net(points), Y).mean().item()
    assert losses_met[30] > losses_met[1] + 0.5


def test_a_plugin_follows_the_source(net: nn.Module) -> None:
    plugin, own = attacks.Plugin(foreign, "foreign FGSM", EPS), attacks.FGSM(EPS)
    for source in ("exact", "rule:fa"):
        assert torch.equal(plugin(net, X, Y, gradient=source), own(net, X, Y, gradient=source))
    assert all(p.grad is None for p in net.parameters() if not p.requires_grad)
    for make, message in (
        (lambda: attacks.EOT(attacks.PGD), "EOT: attack=.* must be an attack, as PGD"),
        (lambda: attacks.EOT("pgd"), "EOT: attack='pgd' must be an attack, as PGD"),
        (lambda: attacks.Transfer(attacks.PGD(0.1), "net"), "must be a torch.nn.Module, not str"),
        (lambda: attacks.From("net"), "From: model='net' must be a torch.nn.Module"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    with pytest.raises(ValueError, match="calls backward itself"):
        plugin(net, X, Y, gradient="finite-difference")


def test_losses_with_numbers() -> None:
    scores = torch.tensor([[4.0, 2.0, 1.0, 0.0], [1.0, 3.0, 3.0, 0.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0])
    exponentials = scores.exp()
    expected = (exponentials.sum(1) / exponentials[:, 0]).log()
    torch.testing.assert_close(losses.cross_entropy(scores, labels), expected)
    assert losses.margin(scores, labels).tolist() == [-2, 2]
    torch.testing.assert_close(losses.dlr(scores, labels), torch.tensor([-2 / 3, 1.0]).double())
    targeted = losses.targeted_dlr(scores, labels, torch.tensor([1, 3]))
    expected = torch.tensor([-2 / (4 - 0.5), -1 / (3 - 0.5)], dtype=torch.float64)
    torch.testing.assert_close(targeted, expected)
    p, q = scores.softmax(1), scores.flip(0).softmax(1)
    kl = (q * (q / p).log()).sum(1)
    torch.testing.assert_close(losses.divergence(scores, scores.flip(0)), kl)
    assert losses.broken(torch.tensor([[float("nan"), 0.0]]), torch.tensor([0])).all()


def test_normalised_takes_pixels() -> None:
    seen = []
    inner = nn.Flatten()
    inner.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    model = attacks.Normalised(inner, (0.5, 0.2), (0.25, 2.0))
    model(torch.tensor([[[[1.0]], [[1.0]]]]))
    assert seen[0].flatten().tolist() == pytest.approx([2.0, 0.4])
    assert attacks.Normalised(nn.Flatten().eval(), (0.5,), (1.0,)).training is False
    with pytest.raises(ValueError, match=r"expected \(N, 2, ...\)"):
        model(torch.zeros(1, 3, 2, 2))
    with pytest.raises(ValueError, match="1 means and 2 standard deviations"):
        attacks.Normalised(inner, (0.5,), (1.0, 1.0))
    with pytest.raises(ValueError, match="must be above 0"):
        attacks.Normalised(inner, (0.5,), (0.0,))
    with pytest.raises(ValueError, match="must be above 0"):
        attacks.Normalised(inner, (0.5, 0.5), (1.0, float("nan")))
