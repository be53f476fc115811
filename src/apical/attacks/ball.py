"""The sets of allowed points: a ball around the input, within the input range, and others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Norm = Literal["linf", "l2"]
Threat = Literal["linf", "l2", "flips"]
"""The norm of a change, or the number of values that are flipped from 0 to 1 or back."""

_SPELLINGS = {"linf": "linf", "inf": "linf", "linfty": "linf", "l2": "l2", "2": "l2", "2.0": "l2"}

SLACK = 1e-5  # what rounding may add to a radius, relative to the radius
ROUNDING = 8  # what it may add to a coordinate, in units of the last place of the largest input


def standard_norm(name: object) -> object:
    """The name of a norm here, from its name or number in other libraries; others as given.

    >>> [standard_norm(name) for name in ("Linf", "l_2", float("inf"), "L1")]
    ['linf', 'l2', 'linf', 'L1']
    """
    return _SPELLINGS.get(str(name).lower().replace("-", "").replace("_", ""), name)


def check_norm(owner: str, name: object, allowed: Sequence[str]) -> None:
    """Raises: ValueError for a norm that is none of those allowed."""
    if name not in allowed:
        words = ", ".join(map(repr, allowed))
        raise ValueError(
            f"{owner}: norm={name!r} is not one of {words}. There is no attack in L1; for L0,"
            " attacks.FewPixel limits the number of pixels, attacks.Flips that of binary events"
        )


@dataclass(frozen=True)
class Ball:
    """All points within `eps` of an input and within [low, high].

    Args: eps: radius, at least 0, in the unit of the inputs. norm: "linf" the largest change of
        one value, "l2" the Euclidean length of the change of one example.
    Shapes: inputs, points and directions (N, ...), norms (N,).
    """

    eps: float
    norm: Norm
    low: float = 0.0
    high: float = 1.0

    def project(self, point: Tensor, x: Tensor) -> Tensor:
        """The nearest allowed point (for "l2": nearest in the ball, then clamped to the range)."""
        change = point - x
        if self.norm == "linf":
            change = change.clamp(-self.eps, self.eps)
        else:
            length = per_example(lengths(change), change)
            change = change * (self.eps / length).clamp(max=1)
        return (x + change).clamp(self.low, self.high)

    def ascent(self, gradient: Tensor) -> Tensor:
        """The step of length 1 in this norm that increases a function of this gradient most."""
        return gradient.sign() if self.norm == "linf" else unit(gradient, "l2")

    def start(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """A random allowed point: "linf" uniform in the cube, "l2" uniform in direction and radius.

        Random numbers are made on the CPU: the same ones for every device.
        """
        if self.norm == "linf":
            change = torch.empty(x.shape, dtype=x.dtype).uniform_(
                -self.eps, self.eps, generator=generator
            )
        else:
            change = torch.empty(x.shape, dtype=x.dtype).normal_(generator=generator)
            radius = torch.zeros(len(x), dtype=x.dtype).uniform_(0, 1, generator=generator)
            change *= per_example(radius / lengths(change), change) * self.eps
        return (x + change.to(x.device)).clamp(self.low, self.high)

    def strays(self, point: Tensor, x: Tensor) -> Tensor:
        """Which examples are outside the ball or the range, or have values that are not finite."""
        if not len(x):
            return torch.zeros(0, dtype=torch.bool, device=x.device)
        change = (point.double() - x.double()).flatten(1)
        size = change.abs().amax(1) if self.norm == "linf" else change.norm(dim=1)
        room = self.rounding(x) * (1 if self.norm == "linf" else change.shape[1] ** 0.5)
        inside = (point.flatten(1) >= self.low - room) & (point.flatten(1) <= self.high + room)
        return ~((size <= self.eps * (1 + SLACK) + room) & inside.all(1))

    def rounding(self, x: Tensor) -> float:
        """By how much inputs may be outside the range, or points outside the ball, by rounding."""
        digits = torch.finfo(x.dtype).eps
        return ROUNDING * digits * max(abs(self.low), abs(self.high))

    def diameter(self, x: Tensor) -> float:
        """The largest distance between two points of the range."""
        width = self.high - self.low
        return width if self.norm == "linf" else width * math.sqrt(x[0].numel())


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


def lengths(change: Tensor) -> Tensor:
    """Euclidean length of each example."""
    return change.flatten(1).norm(dim=1)


def unit(change: Tensor, norm: Norm) -> Tensor:
    """Each example divided by its norm; zero stays zero.

    It is divided by a power of two first, which is exact: the squares of small entries do not
    underflow, and a gradient times a power of two gives the same bits.
    """
    change = scaled(change)
    size = change.flatten(1).abs().amax(1) if norm == "linf" else lengths(change)
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
