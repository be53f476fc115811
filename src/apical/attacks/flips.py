"""Attacks on binary events, which add or remove a number of events."""

import sys
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apical.attacks.base import Attack
from apical.attacks.losses import LossName, against, broken, check_classes, margin
from apical.attacks.sources import Oracle
from apical.names import check_at_least


@dataclass(frozen=True)
class _FlipAttack(Attack):
    count: int

    def validate(self) -> None:
        if type(self.count) is not int or self.count < 1:
            raise ValueError(
                f"{self.name}: count={self.count!r} must be a whole number of at least 1"
            )

    @property
    def name(self) -> str:
        return f"{type(self).__name__}({self.count})"

    def flat(self, x: Tensor) -> tuple[Tensor, float, float]:
        """The examples as rows, and the two values.     Raises: ValueError if they do not fit."""
        check_binary(self.name, x, self.bounds)
        if self.count > x[0].numel():
            raise ValueError(f"{self.name}: an example has {x[0].numel()} values only")
        return x.flatten(1), *self.bounds


@dataclass(frozen=True)
class Flips(_FlipAttack):
    """Flips the events whose flip increases the loss most according to its gradient g: the gain of
    flipping x is g (1 - 2x). Events without a positive gain are not flipped.

    Args:
        count: how many of an example's values may be flipped, at least 1.
        steps: rounds, at least 1, each with a new gradient and an equal share of the flips; no
            value is flipped twice.
        loss: "ce", "dlr" or "margin".
        stop_when_broken: of several rounds, leave out an example once it is misclassified.
        finish: number of candidates, those of the largest gain, from which forward passes choose
            the last flip; 0: the gradient chooses it. A gradient predicts the effect of a small
            change, and a flip is a large one.

    Shapes: inputs (N, ...) of zeros and ones.
    Raises: ValueError for inputs that are not binary, or more flips than values.
    Source: after the gradient-to-spike attacks of Liang et al. 2021, which flip one at a time.
    """

    steps: int = 1
    loss: LossName = "ce"
    stop_when_broken: bool = True
    finish: int = 0

    def validate(self) -> None:
        super().validate()
        check_at_least(self.name, 0, finish=self.finish)
        if not 1 <= self.steps <= self.count:
            raise ValueError(
                f"{self.name}: steps={self.steps} must be from 1 to count={self.count}"
            )

    @property
    def label(self) -> str:
        return f"Flips-{self.steps} {self.loss}" + (" finished" if self.finish else "")

    def check_classes(self, classes: int) -> None:
        check_classes(self.name, self.loss, classes)

    def passes(self, classes: int) -> int:
        return self.steps + (self.finish + 1 if self.finish else 0)

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        flat, low, high = self.flat(x)
        result, rows = flat.clone(), torch.arange(len(x), device=x.device)
        fresh = torch.ones_like(flat, dtype=torch.bool)
        for step in range(self.steps):
            share = self.count * (step + 1) // self.steps - self.count * step // self.steps
            points = result[rows].view(len(rows), *x.shape[1:])
            answer = oracle.ask(points, y[rows], against(y[rows], self.loss))
            if step and self.stop_when_broken:
                keep = ~broken(answer.scores, y[rows])
                rows, answer = rows[keep], answer._replace(gradient=answer.gradient[keep])
                if not len(rows):
                    break
            gain = answer.gradient.flatten(1) * (high + low - 2 * result[rows])
            gain = gain.masked_fill(~fresh[rows], 0)
            if self.finish and step == self.steps - 1:
                share -= 1
            best, places = gain.topk(min(share, gain.shape[1]), dim=1)
            turned = torch.zeros_like(gain, dtype=torch.bool).scatter_(1, places, best > 0)
            result[rows] = torch.where(turned, high + low - result[rows], result[rows])
            fresh[rows] &= ~turned
            if self.finish and step == self.steps - 1:
                left = gain.masked_fill(turned | ~fresh[rows], -torch.inf)
                result[rows] = self._finished(oracle, result[rows], y[rows], left, x.shape[1:])
        return result.view_as(x)

    def _finished(
        self, oracle: Oracle, points: Tensor, y: Tensor, gain: Tensor, shape: torch.Size
    ) -> Tensor:
        """The best single flip of those with the largest gain, or none."""
        best, smallest = points, -margin(oracle.scores(points.view(-1, *shape)), y)
        for place in gain.topk(min(self.finish, gain.shape[1]), dim=1).indices.t():
            tried = points.clone()
            at = (torch.arange(len(points), device=points.device), place)
            tried[at] = sum(self.bounds) - tried[at]
            margins = -margin(oracle.scores(tried.view(-1, *shape)), y)
            better = (margins < smallest) & gain[at].isfinite()
            best = torch.where(better[:, None], tried, best)
            smallest = torch.where(better, margins, smallest)
        return best


@dataclass(frozen=True)
class RandomFlips(_FlipAttack):
    """Flips events at random places: the control for `Flips`.

    Args: count: how many of an example's values, at least 1.
    Shapes: inputs (N, ...) of zeros and ones.
    Raises: ValueError for inputs that are not binary, or more flips than values.
    """

    default_gradient: ClassVar[str] = "none"

    @property
    def label(self) -> str:
        return "Flips random"

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        flat, low, high = self.flat(x)
        order = torch.rand(flat.shape, generator=self.generator())  # the same on every device
        places = order.topk(self.count, dim=1).indices.to(x.device)
        turned = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, places, True)
        return torch.where(turned, high + low - flat, flat).view_as(x)


@dataclass(frozen=True)
class GreedyFlips(_FlipAttack):
    """Flips events one after the other by scores only: of all single flips that are tried, the one
    with the smallest margin. Needs no gradient, so that it applies to nets without one, too.

    Each round tries every value that was not flipped yet, or as many random ones as the queries
    allow. Of equal margins a random one is taken: where scores are rounded, many are equal.

    Args:
        count: how many of an example's values may be flipped, at least 1.
        queries: forward passes for each example, at least `count`; 0 for as many as it takes.

    Shapes: inputs (N, ...) of zeros and ones.
    Raises: ValueError for inputs that are not binary, or more flips than values.
    """

    queries: int = 0

    default_gradient: ClassVar[str] = "none"

    def validate(self) -> None:
        super().validate()
        if self.queries and self.queries < self.count:
            raise ValueError(
                f"{self.name}: queries={self.queries} must be 0 or at least count={self.count}"
            )

    @property
    def label(self) -> str:
        return "Flips greedy"

    def passes(self, classes: int) -> int:
        return self.queries or sys.maxsize  # as many as there are values, for each flip

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        flat, low, high = self.flat(x)
        generator = self.generator()
        result = flat.clone()
        fresh = torch.ones_like(flat, dtype=torch.bool)
        rows = torch.arange(len(x), device=x.device)
        share = self.queries // self.count if self.queries else flat.shape[1]
        for _ in range(self.count):
            order = torch.rand(len(rows), flat.shape[1], generator=generator).to(x.device)
            places = order.masked_fill(~fresh[rows], -1).topk(min(share, flat.shape[1]), 1).indices
            margins = torch.full((len(rows),), torch.inf, device=x.device)
            chosen = places[:, 0].clone()
            for place in places.t():
                points = result[rows]
                at = (torch.arange(len(rows), device=x.device), place)
                points[at] = high + low - points[at]
                scores = oracle.scores(points.view(len(rows), *x.shape[1:]))
                found = -margin(scores, y[rows]).to(margins)
                better = (found < margins) & fresh[rows, place]
                margins = torch.where(better, found, margins)
                chosen = torch.where(better, place, chosen)
            result[rows, chosen] = high + low - result[rows, chosen]
            fresh[rows, chosen] = False
            rows = rows[margins > 0]
            if not len(rows):
                break
        return result.view_as(x)


def check_binary(owner: str, x: Tensor, bounds: tuple[float, float]) -> None:
    """Raises: ValueError for inputs with other values than the two bounds."""
    odd = ~((x == bounds[0]) | (x == bounds[1]))
    if odd.any():
        raise ValueError(
            f"{owner}: {int(odd.sum())} values are neither {bounds[0]:g} nor {bounds[1]:g}, the "
            f"first is {x[odd][0].item():.4g}; it flips binary events. Attack images with FGSM or "
            "PGD, or binarise them"
        )
