"""Weight mirror: the identities of its noise phase, with given noise where they are exact."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.rules import WeightMirror
from apical.rules.base import Update
from apical.rules.mirror import RELEASED, mirrored, unpadded
from apical.rules.ops import ConvOp, LinearOp


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _update(weight: Tensor, number: int = 1, op: LinearOp | ConvOp | None = None) -> Update:
    return Update(
        weight, None, op or LinearOp(), number, lambda: torch.Generator().manual_seed(number)
    )


def _conv(padding: int, stride: int = 1, groups: int = 1, transposed: bool = False) -> ConvOp:
    return ConvOp((stride,) * 2, (padding,) * 2, (1, 1), transposed, (0, 0), groups)


def _basis(channels: int, side: int) -> Tensor:
    """One image per pixel and channel: 1 there, 0 elsewhere."""
    return torch.eye(channels * side**2, dtype=torch.float64).view(-1, channels, side, side)


def test_whitened_noise_shows_the_weight_exactly() -> None:
    rate, sigma = 0.3, 0.7
    weight, before = _random(5, 8), _random(5, 8, seed=1)
    rule = WeightMirror(rate=rate, sigma=sigma, decay=0.0, samples=11, whiten=True)
    matrix = before.clone()
    rule.after_update(_update(weight), matrix)
    torch.testing.assert_close(matrix - before, rate * sigma**2 * weight, rtol=0, atol=1e-12)


def test_the_default_decay_leads_to_the_weight_itself() -> None:
    weight, start = _random(4, 6), _random(4, 6, seed=1)
    rule = WeightMirror(rate=0.05, sigma=1.4, samples=9, whiten=True)
    matrix = start.clone()
    for number in range(1, 31):
        rule.after_update(_update(weight, number), matrix)
    left = (1 - 0.05 * 1.4**2) ** 30
    torch.testing.assert_close(matrix - weight, left * (start - weight), rtol=0, atol=1e-12)


def test_another_decay_leads_to_the_weight_at_another_scale() -> None:
    weight, matrix = _random(4, 6), _random(4, 6, seed=1)
    rule = WeightMirror(rate=0.05, sigma=1.4, decay=0.2, samples=9, whiten=True)
    for number in range(1, 151):
        rule.after_update(_update(weight, number), matrix)
    torch.testing.assert_close(matrix, 0.05 * 1.4**2 / 0.2 * weight, rtol=0, atol=1e-9)


def test_small_noise_through_tanh_shows_the_weight_times_its_slope() -> None:
    weight, bias, sigma = _random(5, 8), _random(5, seed=1), 1e-4
    orthogonal = torch.linalg.qr(_random(16, 8, seed=2)).Q * sigma * 4
    noise = torch.cat([orthogonal, -orthogonal])  # odd moments vanish
    seen = mirrored(LinearOp(), noise, weight, bias, "tanh") / sigma**2
    slope = 1 - torch.tanh(bias) ** 2
    torch.testing.assert_close(seen, slope[:, None] * weight, rtol=0, atol=1e-5)


def test_noise_with_a_mean_shows_the_bias_instead() -> None:
    weight, bias, mean = 0.01 * _random(5, 8), _random(5, seed=1), 3.0
    noise = mean + 0.01 * _random(500, 8, seed=2)
    seen = mirrored(LinearOp(), noise, weight, bias, "sigmoid")
    of_bias = (torch.sigmoid(bias) * mean)[:, None].expand(5, 8)
    assert torch.linalg.vector_norm(seen - of_bias) < 0.06 * torch.linalg.vector_norm(of_bias)
    assert F.cosine_similarity(seen.flatten(), weight.flatten(), dim=0).abs() < 0.5


def test_padding_weakens_the_taps_at_the_rim() -> None:
    weight, side = _random(3, 2, 3, 3), 6
    met = torch.tensor([[25.0, 30, 25], [30, 36, 30], [25, 30, 25]], dtype=torch.float64)
    noise = _basis(2, side)
    total = mirrored(_conv(1), noise, weight) * len(noise) * side**2
    torch.testing.assert_close(total, met * weight, rtol=0, atol=1e-10)


def test_without_padding_every_tap_is_shown_alike() -> None:
    for transposed in (False, True):
        for stride, groups in ((1, 1), (2, 1), (2, 2)):
            op = unpadded(_conv(1, stride, groups, transposed))
            assert op.padding == (0, 0)
            channels, side = 4, 5
            inside = channels if transposed else channels // groups
            weight = (
                _random(6, inside, 3, 3) if not transposed else _random(inside, 6 // groups, 3, 3)
            )
            noise = _basis(channels, side)
            outputs = side**2 if transposed else ((side - 3) // stride + 1) ** 2
            positions = (
                len(noise) * outputs
            )  # each entry of the weight meets its input once per position
            total = mirrored(op, noise, weight) * positions
            torch.testing.assert_close(total, outputs * weight, rtol=0, atol=1e-10)


def test_uneven_and_reflected_padding_are_left_out_too() -> None:
    op = _conv(0)._replace(pad=(1, 0, 1, 0), pad_mode="reflect")
    assert unpadded(op) == _conv(0)


@pytest.mark.parametrize("noise", ["normal", "uniform"])
def test_the_noise_has_its_mean_and_variance(noise: str) -> None:
    rule = WeightMirror(sigma=0.3, samples=2000, noise=noise)  # type: ignore[arg-type]
    x = rule.draw(LinearOp(), _random(3, 50), torch.Generator().manual_seed(0))
    assert abs(x.mean().item()) < 5 * 0.3 / math.sqrt(x.numel())
    torch.testing.assert_close(x.std().item(), 0.3, rtol=0.01, atol=0)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(40, 9),
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2),
        nn.Conv1d(5, 4, 3, padding="same", dilation=2),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_the_angle_settles_where_the_docstring_says(layer: nn.Module) -> None:
    """Random noise through a converted layer: B arrives at W, scale included."""
    model = apical.convert(nn.Sequential(nn.Identity(), layer).double(), WeightMirror(rate=0.05))
    feedback = model[1].feedback
    for _ in range(200):
        feedback.history.took_part = True
        apical.learn(model)
    seen = apical.probes.alignment(model)["1"]
    assert seen["norm_ratio"] == pytest.approx(1, abs=0.1)
    if isinstance(layer, nn.Linear):
        expected = math.degrees(math.atan(math.sqrt(0.05 * 40 / (2 * 128))))  # 5.05
        assert seen["angle_deg"] == pytest.approx(expected, abs=1)
    assert seen["angle_deg"] < 15


def test_phases_come_as_often_and_last_as_long_as_asked() -> None:
    weight = _random(4, 6)
    rule = WeightMirror(decay=0.5, rate=1e-30, batches=2, initial=3, every=4)
    matrix, sizes = torch.ones(4, 6, dtype=torch.float64), []
    for number in range(1, 7):
        rule.after_update(_update(weight, number), matrix)
        sizes.append(round(-math.log2(matrix[0, 0].item())))  # halvings so far
    assert sizes == [5, 5, 5, 5, 7, 7]


def test_the_released_mirror_is_the_arithmetic_of_the_released_code() -> None:
    weight, bias = _random(5, 8), _random(5, seed=1)
    noise = 0.1 * (torch.rand(128, 8, dtype=torch.float64) - 0.5)
    added = 0.01 * torch.sigmoid(noise @ weight.T + bias).T @ noise
    seen = RELEASED.rate * mirrored(LinearOp(), noise, weight, bias, RELEASED.activation)
    torch.testing.assert_close(seen, added, rtol=0, atol=1e-12)
    assert (RELEASED.share, RELEASED.bias, RELEASED.samples) == (0, True, 128)
    x = RELEASED.draw(LinearOp(), weight, torch.Generator().manual_seed(0))
    assert 0.0499 < x.abs().max() <= 0.05


def test_it_learns_in_training_without_a_line_in_the_loop() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3)).double()
    apical.convert(model, WeightMirror(rate=0.1))
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    first = model[0].feedback.matrix.clone()
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(_random(6, 6)), torch.arange(6) % 3).backward()
        optimizer.step()
    angles = apical.probes.alignment(model)
    assert angles["2"]["angle_deg"] < 10
    assert torch.equal(model[0].feedback.matrix, first)  # no layer below uses it


def test_values_out_of_range_are_refused_with_the_bound() -> None:
    for options, text in (
        ({"rate": 2.5}, r"rate \* sigma\^2 = 2.5 is outside \[0, 2\)"),
        ({"decay": 2.0}, r"decay = 2 is outside \[0, 2\)"),
        ({"decay": -0.1}, r"decay = -0.1 is outside \[0, 2\)"),
        ({"rate": 0.0}, "rate=0.0 must be positive"),
        ({"sigma": math.nan}, "sigma=nan is not a finite number"),
        ({"samples": 0, "every": 0}, "samples=0 must be at least 1; every=0 must be at least 1"),
        ({"noise": "cauchy"}, "noise='cauchy' is not one of 'normal', 'uniform'"),
    ):
        with pytest.raises(ValueError, match=text):
            WeightMirror(**options)  # type: ignore[arg-type]


def test_noise_that_cannot_be_whitened_is_refused_by_layer() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(200, 3))
    with pytest.raises(ValueError, match=r"0 \(Conv2d\).*linear layers only") as raised:
        apical.convert(model, WeightMirror(whiten=True))
    assert "2 (Linear): 128 noise vectors cannot be orthonormal in 200 inputs" in str(raised.value)
