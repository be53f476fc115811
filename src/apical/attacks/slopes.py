"""A gradient compared with differences of the loss along it and along random directions."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apical.attacks.ball import unit
from apical.attacks.isolation import restart
from apical.attacks.losses import Loss, against
from apical.nets.spiking import has_spikes

STEPS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
"""Lengths of the steps tried, as root mean square over the inputs' values, in ranges."""
Value = Callable[[float, Tensor], tuple[Tensor, Tensor]]
"""From a distance and a direction to the loss, and the point there."""

FLAT = 0.5
"""Share of smallest steps that change nothing, from which a loss counts as piecewise constant."""
SMOOTH = 0.99
"""Cosine between the changes at the two smallest steps above which a loss has a derivative."""
MOSTLY = 0.9
"""Share of the examples at which a loss has a derivative, above which the net has one."""
NOISE = 1e-5
"""Relative change of a loss below which it may be rounding in float32."""


class Slopes(NamedTuple):
    """A gradient compared with differences of the loss; see `audit.Audit` for each.

    derived: of a loss whose differences at the two smallest steps agree for most examples, as they
    do where it has a derivative, the cosines to them, the larger of the two, of those examples; 0
    where the gradient is. coarse: whether there is no such derivative, and the smallest steps
    mostly change nothing, or longer ones agree better with the gradient.
    Shapes: rising, bool, and ratio: (examples with a gradient,). derived: (with a derivative,).
    """

    rising: Tensor
    ratio: Tensor
    agreement: float | None
    coarse: bool
    derived: Tensor


def measure_slopes(
    model: nn.Module,
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    name: str,
    bounds: tuple[float, float],
    directions: int,
    seed: int,
) -> Slopes:
    """Compare a gradient with differences of the loss `name`, along it and along random directions.

    Shapes: gradient and x (N, ...), x within `bounds`, y (N,).
    """
    count = int(pointing(gradient).sum())
    if not count:
        none = torch.zeros(0)
        return Slopes(none.bool(), none, None, True, none)
    order = pointing(gradient).int().argsort(descending=True, stable=True)
    gradient, x, y = gradient[order], x[order], y[order]  # those without a gradient last
    value = _along(model, x, _relative(model, x, y, name), bounds)
    ahead = unit(gradient, "l2")
    size = (bounds[1] - bounds[0]) * x[0].numel() ** 0.5
    generator = torch.Generator().manual_seed(seed)
    draws = [
        [torch.randn(part.shape, dtype=x.dtype, generator=generator) for _ in range(directions)]
        for part in (x[:count], x[count:])
    ]
    random = [unit(torch.cat(pair).to(x.device), "l2") for pair in zip(*draws, strict=True)]
    # The gradient divided by its norm, so that its product with a change does not overflow.
    length = gradient.double().flatten(1).norm(dim=1)
    best, ratio, at = -1.0, torch.zeros(len(x)), STEPS[0]
    differences, agreements = [], []
    for share in STEPS:
        pairs = [_rise(value, x, ahead, share * size, direction) for direction in random]
        measured, claimed = (torch.stack(each, 1).double() for each in zip(*pairs, strict=True))
        differences.append(measured)
        agreements.append(cosines(measured, claimed))
        if (mean := agreements[-1][:count].mean().item()) > best:
            rise, along = _rise(value, x, ahead, share * size, ahead)
            best, ratio, at = mean, rise.double() / (along.double() * length), share
    flat = (differences[0][:count] == 0).double().mean().item() > FLAT
    least = at if flat or has_spikes(model) else STEPS[0]
    derivative = cosines(*differences[:2]) > SMOOTH
    smooth = derivative[:count].double().mean().item() > MOSTLY
    derived = torch.maximum(*agreements[:2])[derivative & smooth]
    coarse = not smooth and (flat or at > STEPS[0])
    leaving = ((x <= bounds[0]) & (gradient < 0)) | ((x >= bounds[1]) & (gradient > 0))
    ahead = unit(gradient.masked_fill(leaving, 0), "l2")  # else clamping would shorten the step
    rising = _first_change(value, ahead, size, least) > 0
    return Slopes(rising[:count], ratio[:count], best, coarse, derived)


def pointing(gradient: Tensor) -> Tensor:
    """Which examples have a gradient other than zero. Shapes: (N, ...) -> (N,)."""
    return gradient.flatten(1).abs().amax(1) > 0


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each example; 0 where a vector is zero. Shapes: (N, ...) twice -> (N,)."""
    return (unit(a.double(), "l2") * unit(b.double(), "l2")).flatten(1).sum(1)


def _relative(model: nn.Module, x: Tensor, y: Tensor, name: str) -> Loss:
    """The loss, a margin in units of the range of an example's clean scores: then, as DLR, it does
    not depend on the scale of the scores."""
    loss = against(y, name)
    if name == "dlr":
        return loss
    with torch.no_grad():
        scores = model(x)
    spread = scores.amax(1) - scores.amin(1)
    spread = spread.where(spread > 0, 1)
    return lambda scores: loss(scores) / spread


def _rise(
    value: Value, x: Tensor, gradient: Tensor, step: float, direction: Tensor
) -> tuple[Tensor, Tensor]:
    """The rise of the loss from a step back to a step ahead, and that which the gradient gives."""
    (ahead, there), (behind, here) = value(step, direction), value(-step, direction)
    return ahead - behind, (gradient * (there - here)).flatten(1).sum(1)


def _along(
    model: nn.Module, x: Tensor, loss: Loss, bounds: tuple[float, float]
) -> Callable[[float, Tensor], tuple[Tensor, Tensor]]:
    """The loss at a distance along a direction, and the point there, clamped to the range: outside,
    a model need not be defined. Shapes: direction as x -> (N,), as x."""

    def value(distance: float, direction: Tensor) -> tuple[Tensor, Tensor]:
        restart(model, 0)  # a random model must use the same random numbers at both points
        point = (x + distance * direction).clamp(*bounds)
        with torch.no_grad():
            return loss(model(point)), point

    return value


def _first_change(value: Value, direction: Tensor, size: float, least: float) -> Tensor:
    """How much the loss changes at the smallest step, from `least` on, at which it does; 0 where
    it never does."""
    base, _ = value(0.0, direction)
    floor, change = NOISE * base.abs().clamp_min(1), torch.zeros_like(base)
    for share in STEPS[STEPS.index(least) :]:
        moved = value(share * size, direction)[0] - base
        change = torch.where((change == 0) & (moved.abs() > floor), moved, change)
    return change
