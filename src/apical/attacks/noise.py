"""Random noise of the size of an attack, the control for attacks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from apical.attacks.ball import Ball, Norm, unit
from apical.attacks.base import Attack
from apical.attacks.losses import broken
from apical.attacks.sources import Oracle
from apical.names import check_at_least


@dataclass(frozen=True)
class Noise(Attack):
    """Random points of the ball, no adversary.

    Args:
        eps: radius.
        kind: "uniform" in the ball ("l2": uniform direction and radius); "gaussian": normal with
            standard deviation eps / 2 ("l2": a random direction with length eps), projected to the
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
        change = 0.5 * draw if self.norm == "linf" else unit(draw, "l2")
        return ball.project(x + self.eps * change, x)
