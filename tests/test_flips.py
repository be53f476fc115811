"""Flips of binary events: what is flipped, against arithmetic; and whole evaluations by flips."""

import pytest
import torch
from torch import Tensor, nn

import apical
from apical import attacks
from apical.attacks import Effort, Flips, GreedyFlips, RandomFlips, robust_report
from apical.attacks.ball import FewFlips
from apical.attacks.pictures import laid_out
from apical.bench.evaluate.robustness import Evaluation

VALUES = 6


class Line(nn.Module):
    """Scores (w x, 0): the gradient of the loss of class 0 is against w."""

    def __init__(self, *weights: float) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor(weights))

    def forward(self, x: Tensor) -> Tensor:
        score = x.flatten(1) @ self.w
        return torch.stack([score, torch.zeros_like(score)], 1)


WEIGHTS = (4.0, -3.0, 2.0, 1.0, -5.0, 0.5)
X = torch.tensor([[1.0, 1, 0, 1, 0, 1]])
Y = torch.tensor([0])  # scores 2.5: right


def flipped(attack: attacks.Attack, x: Tensor = X, y: Tensor = Y) -> list[int]:
    points = attack(Line(*WEIGHTS).eval(), x, y)
    return (points != x)[0].nonzero().flatten().tolist()


def test_the_flips_of_largest_gain_are_made() -> None:
    # gains w (2x - 1) of falling scores: 4, -3, -2, 1, 5, 0.5
    assert flipped(Flips(1)) == [4]
    assert flipped(Flips(2)) == [0, 4]
    assert flipped(Flips(4)) == [0, 3, 4, 5]


def test_a_flip_without_gain_is_not_made() -> None:
    assert flipped(Flips(6)) == [0, 3, 4, 5]


def test_rounds_share_the_flips_and_stop_when_broken() -> None:
    assert flipped(Flips(4, 4, stop_when_broken=False)) == [0, 3, 4, 5]
    assert flipped(Flips(4, 4)) == [4]  # 2.5 - 5 < 0: broken after the first
    assert flipped(Flips(3, 2)) == [4]  # one, then two


def test_rounds_follow_the_gradient_where_it_changes() -> None:
    class Both(nn.Module):
        """1 - x0 x1: only both together matter, x2 leads astray at first."""

        def forward(self, x: Tensor) -> Tensor:
            a, b, c = x.unbind(1)
            score = 1.5 - (0.5 + a) * (0.5 + 3 * b) - 0.6 * c
            return torch.stack([score, torch.zeros_like(score)], 1)

    x, y = torch.zeros(1, 3), torch.tensor([0])
    model = Both().eval()
    assert Flips(2)(model, x, y).tolist() == [[0, 1, 1]]  # gains 0.5, 1.5, 0.6
    assert Flips(2, 2)(model, x, y).tolist()[0][1] == 1


def test_no_value_is_flipped_back() -> None:
    class Valley(nn.Module):
        """Its first value lies on either side of a minimum: both ways seem to gain."""

        def forward(self, x: Tensor) -> Tensor:
            score = 3 + 4 * (x[:, 0] - 0.5) ** 2 - 0.1 * x[:, 1]
            return torch.stack([score, torch.zeros_like(score)], 1)

    x, y = torch.zeros(1, 2), torch.tensor([0])
    assert Flips(2, 2)(Valley().eval(), x, y).tolist() == [[1, 1]]


class Counts(nn.Module):
    """Scores that are rounded: no gradient, and most single flips change nothing."""

    def forward(self, x: Tensor) -> Tensor:
        score = (x.flatten(1) @ torch.tensor(WEIGHTS) / 3).round()
        return torch.stack([score, torch.full_like(score, 0.5)], 1)


def test_greedy_flips_need_no_gradient() -> None:
    # 2.5 / 3 rounds to 1; without value 0, -1.5 / 3, or with value 4, -2.5 / 3, it falls below
    (flipped_at,) = (GreedyFlips(1)(Counts().eval(), X, Y) != X)[0].nonzero().flatten().tolist()
    assert flipped_at in (0, 4)
    assert torch.equal(Flips(1)(Counts().eval(), X, Y), X)
    assert flipped(GreedyFlips(1)) == [4] and flipped(GreedyFlips(2)) == [4]


def test_greedy_flips_keep_to_their_queries() -> None:
    for queries, most in [(0, 2 * VALUES), (2, 2), (7, 6)]:
        attack, model = (
            GreedyFlips(2, queries),
            Line(
                *WEIGHTS,
            ).eval(),
        )
        with attack.source(None).open(model) as oracle:
            points = attack.perturb(oracle, X, Y)
        assert oracle.passes <= most
        assert 1 <= (points != X).sum() <= 2
    with pytest.raises(ValueError, match="at least count=2"):
        GreedyFlips(2, 1)


def test_the_last_flip_may_be_chosen_by_scores() -> None:
    class Far(nn.Module):
        """The gradient says value 0, but a whole flip of value 1 is worth more."""

        def forward(self, x: Tensor) -> Tensor:
            score = 1 - 0.5 * x[:, 0] - 0.1 * x[:, 1] - 2 * x[:, 1] ** 4
            return torch.stack([score, torch.zeros_like(score)], 1)

    x, y = torch.zeros(1, 2), torch.tensor([0])
    assert Flips(1)(Far().eval(), x, y).tolist() == [[1, 0]]
    assert Flips(1, finish=2)(Far().eval(), x, y).tolist() == [[0, 1]]
    assert Flips(1, finish=1)(Far().eval(), x, y).tolist() == [[1, 0]]


def test_random_flips_are_as_many_and_repeat_with_the_seed() -> None:
    x = torch.randint(2, (5, 2, 3, 3), generator=torch.Generator().manual_seed(0)).float()
    model = nn.Sequential(nn.Flatten(), nn.Linear(18, 3)).eval()
    y = torch.zeros(5, dtype=torch.int64)
    points = RandomFlips(4)(model, x, y)
    assert (points != x).flatten(1).sum(1).tolist() == [4] * 5
    assert torch.equal(points, RandomFlips(4)(model, x, y))
    assert not torch.equal(points, RandomFlips(4, seed=1)(model, x, y))


def test_points_beyond_the_budget_or_between_the_values_stray() -> None:
    ball, x = FewFlips(1), torch.zeros(3, 4)
    points = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0.5, 0, 0, 0]])
    assert ball.strays(points, x).tolist() == [False, True, True]


def test_inputs_that_are_not_binary_are_refused() -> None:
    for attack, x, told in (
        (Flips(1), X / 2, "4 values are neither 0 nor 1, the first is 0.5; it flips binary events"),
        (RandomFlips(1), X / 2, "neither 0 nor 1"),
        (Flips(7), X, "an example has 6 values only"),
    ):
        with pytest.raises(ValueError, match=told):
            attack(Line(*WEIGHTS).eval(), x, Y)


def test_settings_that_cannot_be_meant_are_refused() -> None:
    for options in (
        {"count": 0},
        {"count": 1.5},
        {"count": 2, "steps": 3},
        {"count": 2, "steps": 0},
    ):
        with pytest.raises(ValueError, match="Flips"):
            Flips(**options)


def victim() -> tuple[nn.Module, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(2, (40, 4, 3, 3), generator=generator).float()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 20), nn.ReLU(), nn.Linear(20, 4)).eval()
    return model, x, model(x).argmax(1)


def test_an_evaluation_by_flips() -> None:
    model, x, y = victim()
    apical.convert(model, {"1": "bp", "3": "fa"})
    effort = Effort(steps=3)
    report = robust_report(
        model, x, y, eps=(2, 5), norm="flips", effort=effort, surrogates={"self": model}
    )
    assert {t.group for t in report.trials} == {"black box", "exact", "noise", "own", "transfer"}
    assert {t.eps for t in report.trials} == {2, 5, 18}  # the last: half of all values
    assert not any(t.strays for t in report.trials)
    small, large = (worst.accuracy for worst in report.worst)
    assert 1 > small > large
    assert report.rows()[0]["norm"] == "flips"
    with pytest.raises(ValueError, match="whole number of flips"):
        robust_report(model, x, y, eps=(2.5,), norm="flips")
    with pytest.raises(ValueError, match="binary events"):
        robust_report(model, x * 0.5, y, eps=(2,), norm="flips")


def test_an_evaluation_counts_flips() -> None:
    assert Evaluation(eps=(10, 20), norm="flips").eps == (10, 20)
    with pytest.raises(ValueError, match="whole numbers of flips"):
        Evaluation(eps=(8 / 255,), norm="flips")


def test_noise_of_random_signs_moves_every_value_by_the_radius() -> None:
    model, x, y = victim()
    middle = torch.full_like(x, 0.5)
    points = attacks.Noise(0.2, kind="sign")(model, middle, y)
    assert (
        torch.equal((points - middle).abs().unique(), torch.tensor(0.2).view(1))
        or ((points - middle).abs() - 0.2).abs().max() < 1e-6
    )
    assert 0.4 < (points > middle).float().mean() < 0.6
    with pytest.raises(ValueError, match="kind='sign' is for norm='linf'"):
        attacks.Noise(0.2, norm="l2", kind="sign")


def test_frames_are_laid_out_in_reading_order() -> None:
    frames = torch.zeros(1, 3, 2, 1, 1)  # 3 steps of one pixel
    frames[0, 0, 0] = 1  # ON
    frames[0, 1, 1] = 1  # OFF
    picture = laid_out(frames.flatten(1, 2))
    assert picture.shape == (1, 3, 3, 3)  # 2 by 2 frames with a line between
    assert picture[0, :, 0, 0].tolist() == [1, 0, 0]  # red
    assert picture[0, :, 0, 2].tolist() == [0, 0, 1]  # blue
    assert picture[0, :, 2, 0].tolist() == [1, 1, 1]  # nothing


def test_a_substitute_learns_the_answers_and_its_attack_transfers() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(300, 8, generator=generator)
    model = nn.Sequential(nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1.0, -1.0] * 4, [-1.0, 1.0] * 4]))
        model[0].bias.zero_()
    torch.manual_seed(1)
    substitute = attacks.imitate(model, nn.Linear(8, 2), x[:250], epochs=30, lr=0.02)
    held_out, y = x[250:], model(x[250:]).argmax(1)
    assert (substitute(held_out).argmax(1) == y).float().mean() > 0.9
    assert not substitute.training
    black = attacks.Transfer(attacks.FGSM(0.3), substitute)(model, held_out, y)
    noise = attacks.Noise(0.3, kind="sign")(model, held_out, y)
    left = [(model(points).argmax(1) == y).float().mean() for points in (black, noise)]
    assert left[0] < 0.2 < 0.5 < left[1]
    with pytest.raises(ValueError, match="training mode"):
        attacks.imitate(model.train(), substitute, x)
