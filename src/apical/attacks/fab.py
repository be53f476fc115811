"""FAB: the nearest misclassified point, by steps to the linearised decision boundary."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from apical.attacks.ball import Ball, Norm, lengths, per_example, scaled, spent, unit
from apical.attacks.base import Attack
from apical.attacks.isolation import undisturbed
from apical.attacks.losses import broken
from apical.attacks.scores import adapted
from apical.attacks.sources import Oracle, Source
from apical.names import check_at_least

BACK = 0.9
"""Factor on the distance of a misclassified point, which is moved towards the input."""
BISECTIONS = 7
"""After the last step, between the nearest point and `BACK` times its distance."""
STEP, MOST = 1.05, 0.1
"""Overshoot of a projection, and the largest weight of the projection of the input."""


@dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary: a point near the input on the other side of the decision boundary to
    each of the most likely classes in turn. It has no step size, and the radius decides only which
    points count.

    Args:
        eps: radius; None: unlimited, the nearest misclassified point is returned, from which
            `minimum_norms` follow. norm: "linf", "l2" or "l1".
        steps: at least 1. restarts: at least 1, all but the first from a random point.
        targets: target classes, the most likely first; 0 means up to 9.
    Where no point was misclassified, the input is returned.
    Source: Croce, Hein 2020, "Minimally distorted adversarial examples with a fast adaptive
    boundary attack"; the targeted form that AutoAttack runs, with a final search as in the paper.
    """

    eps: float | None = None
    steps: int = 100
    norm: Norm = "linf"
    restarts: int = 1
    targets: int = 0

    def validate(self) -> None:
        if self.eps is not None:
            super().validate()
        check_at_least("FAB", 1, steps=self.steps, restarts=self.restarts)
        check_at_least("FAB", 0, targets=self.targets)

    @property
    def label(self) -> str:
        return f"FAB-{self.steps}"

    @property
    def ball(self) -> Ball | None:
        return None if self.eps is None else super().ball

    def check_classes(self, classes: int) -> None:
        if self.targets >= classes:
            raise ValueError(
                f"FAB: targets={self.targets}, but {classes} classes leave {classes - 1}"
            )

    def passes(self, classes: int) -> int:
        return self.restarts * min(self.targets or 9, classes - 1) * (2 * self.steps + BISECTIONS)

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        generator, best = self.generator(), x.clone()
        scores = oracle.scores(x)
        right = (~broken(scores, y)).nonzero().squeeze(1)
        if not len(right):
            return best
        x, y, ranked = x[right], y[right], scores[right].sort(dim=1, descending=True).indices
        found = torch.full((len(x),), float("inf"), dtype=x.dtype, device=x.device)
        point = x.clone()
        for restart in range(self.restarts):
            for target in range(1, min(self.targets or 9, scores.shape[1] - 1) + 1):
                open_ = torch.arange(len(x), device=x.device)
                if self.eps is not None:
                    open_ = (found > self.eps).nonzero().squeeze(1)
                if not len(open_):
                    break
                start = x[open_]
                if restart:
                    start = self._start(start, found[open_], generator)
                near, size = self._run(oracle, x[open_], y[open_], ranked[open_, target], start)
                better = size < found[open_]
                point[open_[better]], found[open_[better]] = near[better], size[better]
        if self.eps is not None:  # what lies outside does not count
            point = torch.where(per_example(found <= self.eps, point), point, x)
        best[right] = point
        return best

    def _start(self, x: Tensor, found: Tensor, generator: torch.Generator) -> Tensor:
        """A random point at half the distance of the nearest one found, at most half the radius."""
        most = found if self.eps is None else found.clamp(max=self.eps)
        most = most.where(most.isfinite(), torch.ones_like(most))
        draw = torch.randn(x.shape, dtype=x.dtype, generator=generator)
        if self.norm == "linf":
            draw = 2 * torch.rand(x.shape, dtype=x.dtype, generator=generator) - 1
        change = per_example(most / 2, x) * unit(draw.to(x.device), self.norm)
        return (x + change).clamp(*self.bounds)

    def _run(
        self, oracle: Oracle, x: Tensor, y: Tensor, target: Tensor, point: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The nearest misclassified points, and their distances, infinite where there is none."""
        near, least = x.clone(), torch.full_like(x.flatten(1)[:, 0], float("inf"))
        ahead = partial(_ahead, labels=y, targets=target)
        to_plane = partial(nearest, norm=self.norm, low=self.bounds[0], high=self.bounds[1])
        for _ in range(self.steps):
            answer = oracle.ask(point, y, ahead)
            # The loss rises along the gradient, and is 0 on the boundary.
            from_point = to_plane(point, answer.gradient, -answer.losses)
            slope = (answer.gradient * (point - x)).flatten(1).sum(1)
            from_input = to_plane(x, answer.gradient, slope - answer.losses)
            here, there = (self.size(each).clamp_min(1e-8) for each in (from_point, from_input))
            share = per_example((here / (here + there)).clamp(0, MOST), x)
            point = (point + STEP * from_point) * (1 - share) + (x + STEP * from_input) * share
            point = point.clamp(*self.bounds)
            wrong = broken(oracle.scores(point), y)
            size = self.size(point - x)
            better = wrong & (size < least)
            near[better], least[better] = point[better], size[better]
            point = torch.where(per_example(wrong, x), x + BACK * (point - x), point)
        return self._shortened(oracle, x, y, near, least)

    def _shortened(
        self, oracle: Oracle, x: Tensor, y: Tensor, near: Tensor, least: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The nearest points moved closer, by bisection between each one and the point at `BACK`
        times its distance, which undoes the overshoot."""
        low, high = torch.full_like(least, BACK), torch.ones_like(least)
        found = least.isfinite()
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            wrong = broken(oracle.scores(x + per_example(middle, x) * (near - x)), y)
            low, high = torch.where(wrong, low, middle), torch.where(wrong, middle, high)
        point = torch.where(per_example(found, x), x + per_example(high, x) * (near - x), near)
        return point, torch.where(found, self.size(point - x), least)

    def size(self, change: Tensor) -> Tensor:
        """The norm of the change of each example, (N,)."""
        return lengths(change, self.norm)


def minimum_norms(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    norm: Norm = "linf",
    steps: int = 100,
    restarts: int = 1,
    gradient: str | Source | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    seed: int = 0,
) -> Tensor:
    """The norm of the smallest change found by which each example is misclassified: 0 where the
    clean example is, infinite where none was found. As of every attack, an upper bound.

    The share of values above a radius is the robust accuracy at that radius: sorted values give the
    curve of robust accuracy over the radius.

    Args: as of `FAB`; gradient: as of every attack.
    Shapes: x (N, ...) within `bounds`, y (N,) -> (N,).
    Raises: ValueError as attacks do.
    """
    attack = FAB(None, steps, norm, restarts, seed=seed, bounds=bounds)
    points = attack(model, x, y, gradient=gradient)
    scoring, inputs = adapted(model, x)
    points = adapted(model, points)[1]
    with undisturbed(scoring, seed=seed), torch.no_grad():
        wrong = broken(scoring(points), y)
    size = attack.size(points - inputs)
    return size.where(wrong, torch.full_like(size, float("inf")))


def nearest(
    x: Tensor, normal: Tensor, rise: Tensor, *, norm: Norm, low: float, high: float
) -> Tensor:
    """The smallest change of x, in a norm, by which normal . change = rise, within [low, high];
    where that is not possible in the range, the change that comes nearest.

    Every coordinate moves by t ("linf") or t |normal| ("l2"), until it reaches the end of the
    range; t solves a piecewise linear equation. In "l1" the coordinate with the largest |normal|
    moves, then the next one.
    Shapes: x, normal (N, ...), rise (N,) -> as x.

    >>> x, normal = torch.tensor([[0.5, 0.9]]), torch.tensor([[1.0, 1.0]])
    >>> nearest(x, normal, torch.tensor([0.4]), norm="linf", low=0.0, high=1.0)
    tensor([[0.3000, 0.1000]])
    """
    power = normal.flatten(1).abs().amax(1) / scaled(normal).flatten(1).abs().amax(1)
    power = power.where(power > 0, torch.ones_like(power))
    flat = scaled(normal).flatten(1)
    rise = rise / power
    upward = flat * rise.sign()[:, None]  # every coordinate moves along the sign of this
    start = x.flatten(1)
    room = torch.where(upward > 0, high - start, start - low)
    weight = upward.abs()
    if norm == "l1":
        return (spent(weight, room, weight, rise.abs()[:, None]) * upward.sign()).view_as(x)
    speed = torch.ones_like(weight) if norm == "linf" else weight
    moving = weight > 0
    at = torch.where(moving, room / speed.where(moving, torch.ones_like(speed)), 0)
    order = at.sort(dim=1)
    reached = (weight * room).gather(1, order.indices).cumsum(1)  # by coordinates at the range
    rate = (weight * speed).gather(1, order.indices)
    left = rate.flip(1).cumsum(1).flip(1) - rate  # by those that still move
    total = reached + left * order.values
    place = torch.searchsorted(total, rise.abs()[:, None]).clamp(max=total.shape[1] - 1)
    before = torch.where(place > 0, reached.gather(1, (place - 1).clamp(min=0)), 0)
    remaining = rise.abs()[:, None] - before
    slope = (left + rate).gather(1, place)
    time = remaining / slope.where(slope > 0, torch.ones_like(slope))
    time = torch.where(slope > 0, time, order.values[:, -1:])
    change = torch.minimum(time.clamp(min=0) * speed, room) * upward.sign() * moving
    return change.view_as(x)


def _ahead(scores: Tensor, labels: Tensor, targets: Tensor) -> Tensor:
    """z_t - z_y: above 0 where the target class is ahead of the label."""
    chosen = scores.gather(1, torch.stack([targets, labels], 1))
    return chosen[:, 0] - chosen[:, 1]
