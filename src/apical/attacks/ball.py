"""The sets of allowed points: a ball around the input, within the input range, and others."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Norm = Literal["linf", "l2", "l1"]
Threat = Literal["linf", "l2", "l1", "flips"]
"""The norm of a change, or the number of values that are flipped from 0 to 1 or back."""

_SPELLINGS = {"inf": "linf", "linfty": "linf", "2": "l2", "2.0": "l2", "1": "l1", "1.0": "l1"}

SLACK = 1e-5  # what rounding may add to a radius, relative to the radius
ROUNDING = 8  # what it may add to a coordinate, in units of the last place of the largest input
EXACT = 1e-12  # relative size of a difference in float64 below which it may be rounding
SPARSE = 0.01
"""Share of the values that a step in "l1" changes. Source: Tramèr, Boneh 2019 (SLIDE)."""


def standard_norm(name: object) -> object:
    """The name of a norm here, from its name or number in other libraries; others as given.

    >>> [standard_norm(name) for name in ("Linf", "l_2", float("inf"), 1, "L0")]
    ['linf', 'l2', 'linf', 'l1', 'L0']
    """
    plain = str(name).lower().replace("-", "").replace("_", "")
    return plain if plain in get_args(Norm) else _SPELLINGS.get(plain, name)


def check_norm(owner: str, name: object, allowed: Sequence[str]) -> None:
    """Raises: ValueError for a norm that is none of those allowed."""
    if name not in allowed:
        words = ", ".join(map(repr, allowed))
        raise ValueError(
            f"{owner}: norm={name!r} is not one of {words}. For L0, attacks.FewPixel limits the"
            " number of pixels (in a report: protocol=attacks.Protocol((), pixels=(1, 2, 3))),"
            " attacks.Flips that of binary events (in a report: norm='flips')"
        )


@dataclass(frozen=True)
class Ball:
    """All points within `eps` of an input and within [low, high].

    Args: eps: radius, at least 0, in the unit of the inputs. norm: "linf" the largest change of
        one value, "l2" the Euclidean length of the change of one example, "l1" the sum of the
        absolute changes of its values.
    Shapes: inputs, points and directions (N, ...), norms (N,).
    """

    eps: float
    norm: Norm
    low: float = 0.0
    high: float = 1.0

    def project(self, point: Tensor, x: Tensor) -> Tensor:
        """The nearest allowed point (for "l2": nearest in the ball, then clamped to the range)."""
        if self.norm == "l1":
            return (x + self._shrunk(point, x)).clamp(self.low, self.high)
        change = point - x
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            length = per_example(lengths(change), change)
            change = change * (self.eps / length).clamp(max=1)
        return (x + change).clamp(self.low, self.high)

    def _shrunk(self, point: Tensor, x: Tensor) -> Tensor:
        """The nearest change of x that is allowed in "l1": each value's change is shortened by the
        same amount t >= 0, not below 0, and ends at the range. Its sum over values falls with t,
        piecewise linear with kinks where a value leaves the range's end, or stops changing.

        Source: Croce, Hein 2021, "Mind the box", proposition 2.1; in float64, since sums of many
        values in float32 would leave the ball.
        """
        x_NV, change = x.double().flatten(1), (point.double() - x.double()).flatten(1)
        size, room = change.abs(), torch.where(change > 0, self.high - x_NV, x_NV - self.low)
        kinks, order = torch.cat([size, size - room], 1).sort(dim=1, descending=True)
        sign = 1.0 - 2.0 * (order >= size.shape[1])
        slope, offset = sign.cumsum(1), (sign * kinks).cumsum(1)
        total = offset - slope * kinks  # at t between a kink and the next one offset - slope t
        last = (total < self.eps).sum(1, keepdim=True).clamp(min=1) - 1
        kink, total, slope = (each.gather(1, last) for each in (kinks, total, slope))
        # By rounding the slope may be 0 or less only where the sum is eps already.
        t = kink - torch.where(slope > 0, (self.eps - total) / slope, 0)
        inside = torch.minimum(size, room).sum(1, keepdim=True) <= self.eps
        t = t.clamp(min=0).masked_fill(inside, 0)
        kept = torch.minimum(size - t, room)
        kept = kept.where(kept > EXACT * size, 0)  # what rounding leaves is no change
        return (kept * change.sign()).view_as(x).to(x.dtype)

    def ascent(self, gradient: Tensor, share: float | Tensor = SPARSE) -> Tensor:
        """The step of length 1 in this norm that increases a function of this gradient most. In
        "l1" that would change one value: it changes a share of them, those of the largest entries,
        by equal parts.

        Args: share: in (0, 1], a number or one for each example, (N,); at least one value.
        """
        if self.norm != "l1":
            return gradient.sign() if self.norm == "linf" else unit(gradient, "l2")
        size = gradient.flatten(1).abs()
        values = size.shape[1]
        share = torch.as_tensor(share, dtype=size.dtype, device=size.device).expand(len(size))
        place = ((1 - share) * values).long().clamp(0, values - 1)
        least = size.sort(dim=1).values.gather(1, place[:, None])
        step = gradient.sign() * (size >= least).view_as(gradient)
        return step / per_example(lengths(step, "l1").clamp(min=1), step)

    def advance(self, point: Tensor, x: Tensor, gradient: Tensor, length: float) -> Tensor:
        """The point after a projected step. In "l1" values at the end of the range stay, and so
        many change that the range has room for the step."""
        share = SPARSE
        if self.norm == "l1":
            gradient = gradient.masked_fill((point <= self.low) & (gradient < 0), 0)
            gradient = gradient.masked_fill((point >= self.high) & (gradient > 0), 0)
            share = max(SPARSE, length / self.diameter(x[0].numel()))
        return self.project(point + length * self.ascent(gradient, share), x)

    def furthest(self, x: Tensor, gradient: Tensor) -> Tensor:
        """The allowed point that is best for a linear function of this gradient ("l2": best in the
        ball, then clamped to the range)."""
        if self.norm != "l1":
            return (x + self.eps * self.ascent(gradient)).clamp(self.low, self.high)
        size = gradient.double().flatten(1).abs()
        start, upward = x.double().flatten(1), gradient.flatten(1).sign()
        room = torch.where(upward > 0, self.high - start, start - self.low) * upward.abs()
        budget = torch.full_like(size[:, :1], self.eps)
        change = spent(size, room, torch.ones_like(size), budget) * upward
        return (x + change.view_as(x).to(x.dtype)).clamp(self.low, self.high)

    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A random allowed point: "linf" uniform in the cube, "l2" uniform in direction and radius,
        "l1" uniform on the surface of a ball of uniform radius; then clamped to the range.

        Random numbers are made on the CPU: the same ones for every device.
        """
        if self.norm == "linf":
            change = torch.empty(x.shape, dtype=x.dtype).uniform_(
                -self.eps, self.eps, generator=generator
            )
        else:
            change = torch.empty(x.shape, dtype=x.dtype).normal_(generator=generator)
            if self.norm == "l1":
                change = change.sign() * torch.empty_like(change).exponential_(generator=generator)
            radius = torch.zeros(len(x), dtype=x.dtype).uniform_(0, 1, generator=generator)
            change *= per_example(radius / lengths(change, self.norm), change) * self.eps
        return (x + change.to(x.device)).clamp(self.low, self.high)

    def strays(self, point: Tensor, x: Tensor) -> Tensor:
        """Which examples are outside the ball or the range, or have values that are not finite."""
        if not len(x):
            return torch.zeros(0, dtype=torch.bool, device=x.device)
        change = (point.double() - x.double()).flatten(1)
        room = self.rounding(x) * (change.shape[1] ** 0.5 if self.norm == "l2" else 1)
        most = self.eps * (1 + SLACK) + room * ((change != 0).sum(1) if self.norm == "l1" else 1)
        inside = (point.flatten(1) >= self.low - room) & (point.flatten(1) <= self.high + room)
        return ~((lengths(change, self.norm) <= most) & inside.all(1))

    def rounding(self, x: Tensor) -> float:
        """By how much inputs may be outside the range, or points outside the ball, by rounding."""
        digits = torch.finfo(x.dtype).eps
        return ROUNDING * digits * max(abs(self.low), abs(self.high))

    def diameter(self, values: int) -> float:
        """The largest distance between two points of the range, with so many values each."""
        width = self.high - self.low
        return width * {"linf": 1, "l2": math.sqrt(values), "l1": values}[self.norm]


@dataclass(frozen=True)
class FewPixels:
    """All images that differ from an input in at most `count` pixels, values within [low, high].

    Shapes: images (N, channels, height, width).
    """

    count: int
    low: float = 0.0
    high: float = 1.0

    def strays(self, point: Tensor, x: Tensor) -> Tensor:
        """Which examples have changed too much, or have values outside the range or not finite."""
        changed = (point != x).any(1).flatten(1).sum(1)
        inside = (point.flatten(1) >= self.low) & (point.flatten(1) <= self.high)
        return (changed > self.count) | ~inside.all(1)


@dataclass(frozen=True)
class FewFlips:
    """All binary examples that differ from one in at most `count` values, each `low` or `high`.

    Shapes: (N, ...).
    """

    count: int
    low: float = 0.0
    high: float = 1.0

    def strays(self, point: Tensor, x: Tensor) -> Tensor:
        """Which examples have changed too much, or have other values than `low` and `high`."""
        changed = (point != x).flatten(1).sum(1)
        binary = ((point == self.low) | (point == self.high)).flatten(1).all(1)
        return (changed > self.count) | ~binary


def lengths(change: Tensor, norm: Norm = "l2") -> Tensor:
    """The norm of each example, (N,)."""
    if norm == "l2":
        return change.flatten(1).norm(dim=1)
    size = change.flatten(1).abs()
    return size.amax(1) if norm == "linf" else size.sum(1)


def spent(value: Tensor, room: Tensor, price: Tensor, budget: Tensor) -> Tensor:
    """A budget spent on coordinates of the largest value first, as far as each has room.

    Args: price: of a unit, at least 0; what costs nothing is not bought.
    Shapes: budget (N, 1), the others (N, V) -> (N, V).
    """
    order = value.sort(dim=1, descending=True).indices
    room, price = room.gather(1, order), price.gather(1, order)
    cost = room * price
    left = (budget - (cost.cumsum(1) - cost)).clamp(min=0)
    bought = torch.minimum(left / price.where(price > 0, 1), room) * (price > 0)
    return torch.zeros_like(room).scatter(1, order, bought)


def unit(change: Tensor, norm: Norm) -> Tensor:
    """Each example divided by its norm; zero stays zero.

    It is divided by a power of two first, which is exact: the squares of small entries do not
    underflow, and a gradient times a power of two gives the same bits.
    """
    change = scaled(change)
    size = lengths(change, norm)
    return change / per_example(size.where(size > 0, torch.ones_like(size)), change)


def scaled(change: Tensor) -> Tensor:
    """Each example divided by a power of two, so that its largest entry is in [1, 2); zero stays
    zero."""
    largest = (
        change.flatten(1).abs().amax(1) if change[:1].numel() else change.new_ones(len(change))
    )
    largest = largest.where(largest > 0, torch.ones_like(largest))
    power = largest / (2 * torch.frexp(largest).mantissa)
    return change / per_example(power, change)


def per_example(values: Tensor, like: Tensor) -> Tensor:
    """(N,) as (N, 1, ...), with as many axes as `like`."""
    return values.view(-1, *[1] * (like.dim() - 1))
