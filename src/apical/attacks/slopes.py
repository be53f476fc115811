"""Slopes of a loss by finite differences, compared with those that a gradient predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apical.attacks.ball import per_example, unit
from apical.attacks.isolation import restart
from apical.attacks.losses import Loss, against
from apical.nets.spiking import has_spikes

STEPS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
"""Lengths of the steps tried, as root mean square over the inputs' values, in ranges."""
NOISE = 1e-5
"""Relative change of a loss below which it may be rounding in float32."""


class Slopes(NamedTuple):
    """A gradient compared with differences of the loss; see `audit.Audit` for each.

    Shapes: rising, bool, and ratio: (examples with a gradient,).
    """

    rising: Tensor
    ratio: Tensor
    agreement: float | None


def measure(
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
    rows = pointing(gradient).nonzero().squeeze(1)
    if not len(rows):
        return Slopes(torch.zeros(0, dtype=torch.bool), torch.zeros(0), None)
    gradient, x, y = gradient[rows], x[rows], y[rows]
    value = _along(model, x, _relative(model, x, y, name))
    ahead = unit(gradient, "l2")
    size = (bounds[1] - bounds[0]) * x[0].numel() ** 0.5
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for _ in range(directions)]
    random = [unit(draw.to(x.device), "l2") for draw in draws]
    length = gradient.double().flatten(1).norm(dim=1)
    best, ratio, at = -1.0, torch.zeros(len(x)), STEPS[0]
    for share in STEPS:
        step = torch.full((len(x),), share * size, dtype=x.dtype, device=x.device)
        pairs = [
            (_slope(value, step, direction), (ahead * direction).flatten(1).sum(1))
            for direction in random
        ]
        measured, claimed = (torch.stack(each, 1).double() for each in zip(*pairs, strict=True))
        if (mean := cosines(measured, claimed).mean().item()) > best:
            best, ratio, at = mean, _slope(value, step, ahead).double() / length, share
    least = at if has_spikes(model) else STEPS[0]
    return Slopes(_first_change(value, ahead, size, least) > 0, ratio, best)


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
    spread = spread.where(spread > 0, torch.ones_like(spread))
    return lambda scores: loss(scores) / spread


def _slope(value: Callable[[Tensor, Tensor], Tensor], step: Tensor, direction: Tensor) -> Tensor:
    return (value(step, direction) - value(-step, direction)) / (2 * step)


def _along(model: nn.Module, x: Tensor, loss: Loss) -> Callable[[Tensor, Tensor], Tensor]:
    """The loss at a distance along a direction. Shapes: distance (N,), direction as x."""

    def value(distance: Tensor, direction: Tensor) -> Tensor:
        restart(model, 0)  # a random model must use the same random numbers at both points
        with torch.no_grad():
            return loss(model(x + per_example(distance, x) * direction))

    return value


def _first_change(
    value: Callable[[Tensor, Tensor], Tensor], direction: Tensor, size: float, least: float
) -> Tensor:
    """How much the loss changes at the smallest step, from `least` on, at which it does; 0 where
    it never does."""
    base = value(torch.zeros(len(direction), dtype=direction.dtype).to(direction.device), direction)
    floor, change = NOISE * base.abs().clamp_min(1), torch.zeros_like(base)
    for share in STEPS[STEPS.index(least) :]:
        moved = value(torch.full_like(base, share * size), direction) - base
        change = torch.where((change == 0) & (moved.abs() > floor), moved, change)
    return change
