"""Attacks that take steps of a given length along a gradient, and random noise as their control."""

from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from apical.attacks.ball import Ball, Norm, unit
from apical.attacks.base import Attack
from apical.attacks.losses import LOSSES, LossName, against, broken, check_classes, divergence
from apical.attacks.sources import Oracle
from apical.names import check_at_least


@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps in the direction that increases the loss ("l2": fast gradient method;
    "l1": values of the largest gradients first, each to the end of the range).

    Args: eps: radius in units of the input, 8/255 for example. loss: "ce", "dlr" or "margin".
    Source: Goodfellow, Shlens, Szegedy 2015.
    """

    eps: float
    norm: Norm = "linf"
    loss: LossName = "ce"

    @property
    def label(self) -> str:
        return f"FGSM {self.loss}"

    def check_classes(self, classes: int) -> None:
        check_classes(self.name, self.loss, classes)

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        ball = Ball(self.eps, self.norm, *self.bounds)
        gradient = oracle.ask(x, y, against(y, self.loss)).gradient
        return ball.furthest(x, gradient)


@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient ascent of steps of equal length; in "l1" a step changes the 1 % of the
    values with the largest gradients (more, where their range has too little room for it).

    Args:
        eps: radius. steps: at least 1.
        step_size: length of one step; None: 2.5 * eps / steps.
        restarts: runs from new random starts, at least 1; each one only on examples that are not
            broken yet. Of those that stay unbroken the point with the highest loss is returned.
        random_start: start at a random point of the ball; needed for restarts.
        loss: "ce", "dlr" or "margin".
        stop_when_broken: return the first misclassified point of each example and stop there: it
            breaks at least as many. False: return the last point, as published.

    Source: Madry et al. 2018; "l1": Tramèr, Boneh 2019, with the projection of Croce, Hein 2021.
    """

    eps: float
    steps: int = 20
    step_size: float | None = None
    norm: Norm = "linf"
    restarts: int = 1
    random_start: bool = True
    loss: LossName = "ce"
    stop_when_broken: bool = False

    def validate(self) -> None:
        super().validate()
        check_at_least(self.name, 1, steps=self.steps, restarts=self.restarts)
        if self.step_size is not None and self.step_size <= 0:
            raise ValueError(f"{self.name}: step_size={self.step_size} must be above 0")
        if self.restarts > 1 and not self.random_start:
            raise ValueError(
                f"{self.name}: restarts={self.restarts} without random_start would repeat one run"
            )

    @property
    def label(self) -> str:
        restarts = f" x{self.restarts}" if self.restarts > 1 else ""
        return f"PGD-{self.steps}{restarts} {self.loss}"

    def check_classes(self, classes: int) -> None:
        check_classes(self.name, self.loss, classes)

    def passes(self, classes: int) -> int:
        return self.steps * self.restarts

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        ball, generator = Ball(self.eps, self.norm, *self.bounds), self.generator()
        best = self._run(oracle, x, y, ball, generator)
        if self.restarts == 1:
            return best
        loss = LOSSES[self.loss]
        scores = oracle.scores(best)
        highest, safe = loss(scores, y), ~broken(scores, y)
        for _ in range(self.restarts - 1):
            rows = safe.nonzero().squeeze(1)
            if not len(rows):
                break
            point = self._run(oracle, x[rows], y[rows], ball, generator)
            scores = oracle.scores(point)
            losses, done = loss(scores, y[rows]), broken(scores, y[rows])
            better = done | (losses > highest[rows])
            best[rows[better]] = point[better]
            highest[rows[better]] = losses[better]
            safe[rows[done]] = False
        return best

    def _run(
        self, oracle: Oracle, x: Tensor, y: Tensor, ball: Ball, generator: torch.Generator
    ) -> Tensor:
        step = 2.5 * self.eps / self.steps if self.step_size is None else self.step_size
        point = ball.start(x, generator) if self.random_start else x.clone()
        if not self.stop_when_broken:
            loss = against(y, self.loss)
            for _ in range(self.steps):
                point = ball.advance(point, x, oracle.ask(point, y, loss).gradient, step)
            return point
        result, rows = point.clone(), torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            answer = oracle.ask(point, y, against(y, self.loss))
            keep = ~broken(answer.scores, y)
            result[rows[~keep]] = point[~keep]
            rows, x, y = rows[keep], x[keep], y[keep]
            if not len(rows):
                return result
            point = ball.advance(point[keep], x, answer.gradient[keep], step)
        result[rows] = point
        return result


@dataclass(frozen=True)
class TPGD(Attack):
    """Projected gradient ascent of the divergence from the clean scores; labels have no effect.

    Args:
        eps: radius ("linf"). step_size, steps: as in `PGD`.
        start: the inputs with normal noise of standard deviation 0.001, "clamped" to the input
            range (torchattacks 3.5) or "unclamped" (its version 3.1, which BioTorch used).

    Source: Zhang et al. 2019 (TRADES).
    """

    eps: float
    steps: int = 7
    step_size: float = 2 / 255
    start: Literal["clamped", "unclamped"] = "clamped"

    def validate(self) -> None:
        super().validate()
        check_at_least(self.name, 1, steps=self.steps)
        if self.step_size <= 0:
            raise ValueError(f"{self.name}: step_size={self.step_size} must be above 0")

    @property
    def label(self) -> str:
        return f"TPGD-{self.steps} {self.start}"

    def passes(self, classes: int) -> int:
        return self.steps + 1

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        noise = torch.randn(x.shape, dtype=x.dtype, generator=self.generator())
        point = x + 0.001 * noise.to(x.device)
        if self.start == "clamped":
            point = point.clamp(*self.bounds)
        loss = partial(divergence, reference=oracle.scores(x))
        ball = Ball(self.eps, "linf", *self.bounds)
        for _ in range(self.steps):
            point = ball.advance(point, x, oracle.ask(point, y, loss).gradient, self.step_size)
        return point


@dataclass(frozen=True)
class Noise(Attack):
    """Random points of the ball, no adversary.

    Args:
        eps: radius.
        kind: "uniform" in the ball (not "linf": uniform direction and radius); "gaussian": normal
            with standard deviation eps / 2 (not "linf": normal, of length eps), projected to the
            ball; "sign": +eps or -eps for every value with equal probability ("linf" only).
        draws: at least 1; the first misclassified one is returned, else the last.
    """

    eps: float
    norm: Norm = "linf"
    kind: Literal["gaussian", "sign", "uniform"] = "uniform"
    draws: int = 1

    default_gradient: ClassVar[str] = "none"

    def validate(self) -> None:
        super().validate()
        check_at_least(self.name, 1, draws=self.draws)
        if self.kind == "sign" and self.norm != "linf":
            raise ValueError(f"{self.name}: kind='sign' is for norm='linf', not {self.norm!r}")

    @property
    def label(self) -> str:
        return f"Noise {self.kind}"

    def passes(self, classes: int) -> int:
        return self.draws

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        ball, generator = Ball(self.eps, self.norm, *self.bounds), self.generator()
        result, rows = self._draw(x, ball, generator), torch.arange(len(x), device=x.device)
        for _ in range(self.draws - 1):
            rows = rows[~broken(oracle.scores(result[rows]), y[rows])]
            if not len(rows):
                break
            result[rows] = self._draw(x[rows], ball, generator)
        return result

    def _draw(self, x: Tensor, ball: Ball, generator: torch.Generator) -> Tensor:
        if self.kind == "uniform":
            return ball.start(x, generator)
        if self.kind == "sign":
            coin = torch.randint(2, x.shape, generator=generator).to(x.device, x.dtype)
            return (x + self.eps * (2 * coin - 1)).clamp(*self.bounds)
        draw = torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)
        change = 0.5 * draw if self.norm == "linf" else unit(draw, self.norm)
        return ball.project(x + self.eps * change, x)
