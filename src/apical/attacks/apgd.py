"""Auto-PGD: projected gradient ascent with an adaptive step size."""

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from apical.attacks.ball import Ball, Norm, per_example, unit
from apical.attacks.base import Attack
from apical.attacks.losses import Loss, against, broken, check_classes, targeted_dlr
from apical.attacks.sources import Answer, Oracle
from apical.names import check_at_least

MOMENTUM = 0.75
"""Share of the newest step in each move."""
SPARSER, SHRINK, LEAST = 0.95, 1.5, 0.1
"""In "l1": the ratio of the numbers of changed values below which it has fallen; the divisor of
that number and of steps; the shortest step, in radii."""


@dataclass(frozen=True)
class APGD(Attack):
    """Steps of length 2 eps at first; at checkpoints the step of an example is halved, and it
    returns to its best point, if the loss rose in too few steps or its best value did not improve.

    The loss before the first step counts as 0 in the first checkpoint, as in the authors' code.

    In "l1" a step has length eps at first and changes the values of the largest gradients, 2/3 as
    many as differ at the best point. At a checkpoint (every 4 % of the steps) where that number has
    fallen, the step is eps again and the example returns to its best point; elsewhere it is divided
    by 1.5, down to eps / 10. The first 30 % of the steps have 3 eps for the radius, the next 30 %
    2 eps, each from the best point before, projected: the schedule of AutoAttack.

    Args:
        eps: radius. steps: at least 1. restarts: at least 1, on examples that are not broken yet.
        loss: "ce", "dlr", "margin", or "dlr-targeted", which runs once for each target class.
        targets: target classes for "dlr-targeted", the most likely first; 0 means up to 9.
        rho: share of steps that must raise the loss, in (0, 1).
        stop_when_broken: as in `PGD`; False returns the last misclassified point.

    Where no point was misclassified, the one with the highest loss is returned.
    Source: Croce, Hein 2020, algorithm 1; "l1": Croce, Hein 2021, "Mind the box", algorithm 1.
    """

    eps: float
    steps: int = 100
    norm: Norm = "linf"
    restarts: int = 1
    loss: Literal["ce", "dlr", "dlr-targeted", "margin"] = "ce"
    targets: int = 0
    rho: float = 0.75
    stop_when_broken: bool = False

    def validate(self) -> None:
        super().validate()
        check_at_least(self.name, 1, steps=self.steps, restarts=self.restarts)
        if not 0 < self.rho < 1:
            raise ValueError(f"{self.name}: rho={self.rho} is outside (0, 1)")
        if self.targets < 0 or (self.targets and self.loss != "dlr-targeted"):
            raise ValueError(
                f"{self.name}: targets={self.targets} has a meaning for loss='dlr-targeted' only,"
                " where it is at least 0"
            )

    @property
    def label(self) -> str:
        return f"APGD-{self.steps} {self.loss}"

    def check_classes(self, classes: int) -> None:
        check_classes(self.name, self.loss, classes)
        if self.targets >= classes:
            raise ValueError(
                f"{self.name}: targets={self.targets}, but {classes} classes leave {classes - 1}"
            )

    def passes(self, classes: int) -> int:
        targets = min(self.targets or 9, classes - 1) if self.loss == "dlr-targeted" else 1
        return self.restarts * targets * (self.steps + (3 if self.norm == "l1" else 1))

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        generator, result = self.generator(), x.clone()
        scores = oracle.scores(x)
        ranked = scores.sort(dim=1).indices
        safe = ~broken(scores, y)
        highest = torch.full((len(x),), float("-inf"), dtype=x.dtype, device=x.device)
        runs = [0] * self.restarts
        if self.loss == "dlr-targeted":
            most = self.targets or min(9, scores.shape[1] - 1)
            runs = [target for target in range(2, most + 2) for _ in range(self.restarts)]
        for target in runs:
            rows = safe.nonzero().squeeze(1)
            if not len(rows):
                break
            # From the second most likely class on: of a correct example it is the strongest rival.
            goal = ranked[rows, -target] if target else y[rows]
            point, done, losses = self._run(oracle, x[rows], y[rows], goal, generator)
            better = done | (losses > highest[rows])
            result[rows[better]] = point[better]
            highest[rows[better]] = losses[better]
            safe[rows[done]] = False
        return result

    def _run(
        self, oracle: Oracle, x: Tensor, y: Tensor, goal: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One run. Returns: points, which are misclassified, highest losses."""
        ball, climb = Ball(self.eps, self.norm, *self.bounds), partial(self._climb, oracle, y, goal)
        if self.norm != "l1":
            start = _start(x, ball, generator)
            return climb(x, start, ball, self.steps, stop=self.stop_when_broken)[0]
        early = min(math.ceil(0.3 * self.steps), (self.steps - 1) // 2)
        point = _start(x, replace(ball, eps=3 * self.eps), generator)
        for factor in (3, 2):
            wider = replace(ball, eps=factor * self.eps)
            point = climb(x, wider.project(point, x), wider, early, stop=False)[1]
        last = self.steps - 2 * early
        return climb(x, ball.project(point, x), ball, last, stop=self.stop_when_broken)[0]

    def _climb(
        self,
        oracle: Oracle,
        y: Tensor,
        goal: Tensor,
        x: Tensor,
        start: Tensor,
        ball: Ball,
        steps: int,
        *,
        stop: bool,
    ) -> tuple[tuple[Tensor, Tensor, Tensor], Tensor]:
        """Steps in a ball. Returns: the same, and the points of highest loss, if none stopped."""
        found, done = x.clone(), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        reached = torch.empty(len(x), dtype=x.dtype, device=x.device)
        answer = oracle.ask(start, y, self._loss(y, goal))
        state = _State(
            row=torch.arange(len(x), device=x.device),
            x=x,
            y=y,
            goal=goal,
            point=start,
            before=start,
            gradient=answer.gradient,
            hits=broken(answer.scores, y),
            best_point=start.clone(),
            best_gradient=answer.gradient.clone(),
            best_loss=answer.losses.clone(),
            best_at_check=answer.losses.clone(),
            halved_at_check=torch.ones(len(x), dtype=torch.bool, device=x.device),
            length=torch.full_like(reached, (1 if ball.norm == "l1" else 2) * ball.eps),
            losses=torch.zeros(len(x), steps, dtype=x.dtype, device=x.device),
            changed=_changed(start, x),
        )
        wait, since = _checkpoints(steps, ball.norm), 0
        period = next(wait)
        for step in range(steps):
            self._record(state, found, done)
            if stop and done[state.row].any():
                over = done[state.row]
                reached[state.row[over]] = state.best_loss[over]
                state = state.kept(~over)
                if not len(state.row):
                    return (found, done, reached), state.best_point
            state.move(ball, MOMENTUM if step else 1.0)
            state.take(oracle.ask(state.point, state.y, self._loss(state.y, state.goal)), step)
            since += 1
            if since == period:
                self._record(state, found, done)  # before some of them go back
                state.adapt(ball, step, period, self.rho)
                period, since = next(wait), 0
        self._record(state, found, done)
        reached[state.row] = state.best_loss
        unbroken = ~done[state.row]
        found[state.row[unbroken]] = state.best_point[unbroken]
        return (found, done, reached), state.best_point

    @staticmethod
    def _record(state: "_State", found: Tensor, done: Tensor) -> None:
        rows = state.row[state.hits]
        found[rows], done[rows] = state.point[state.hits], True

    def _loss(self, y: Tensor, goal: Tensor) -> Loss:
        if self.loss == "dlr-targeted":
            return partial(targeted_dlr, labels=y, targets=goal)
        return against(y, self.loss)


@dataclass
class _State:
    """The state of one run for each example; every field has the examples on axis 0."""

    row: Tensor
    x: Tensor
    y: Tensor
    goal: Tensor
    point: Tensor
    before: Tensor
    gradient: Tensor
    hits: Tensor  # whether `point` is misclassified
    best_point: Tensor
    best_gradient: Tensor
    best_loss: Tensor
    best_at_check: Tensor
    halved_at_check: Tensor
    length: Tensor  # of the step
    losses: Tensor  # (N, steps), 0 where not reached
    changed: Tensor  # values that differed at the best point of the last checkpoint, at first start

    def kept(self, mask: Tensor) -> "_State":
        return _State(**{f.name: getattr(self, f.name)[mask] for f in fields(self)})

    def move(self, ball: Ball, share: float) -> None:
        """A projected step, but in "l1" mixed with the step before."""
        length = per_example(self.length, self.x)
        if ball.norm == "l1":
            step = ball.ascent(self.gradient, self.changed / self.x[0].numel() / SHRINK)
            self.point = ball.project(self.point + length * step, self.x)
            return
        ascended = ball.project(self.point + length * ball.ascent(self.gradient), self.x)
        drift = self.point - self.before
        mixed = self.point + (ascended - self.point) * share + drift * (1 - share)
        self.before, self.point = self.point, ball.project(mixed, self.x)

    def take(self, answer: Answer, step: int) -> None:
        self.gradient, self.hits = answer.gradient, broken(answer.scores, self.y)
        self.losses[:, step] = answer.losses
        better = answer.losses > self.best_loss
        self.best_point[better] = self.point[better]
        self.best_gradient[better] = answer.gradient[better]
        self.best_loss[better] = answer.losses[better]

    def adapt(self, ball: Ball, step: int, period: int, rho: float) -> None:
        """Conditions 1 and 2 of the paper, on the last `period` steps; in "l1" that on sparsity."""
        if ball.norm == "l1":
            changed = _changed(self.best_point, self.x)
            back = changed / self.changed < SPARSER
            shorter = (self.length / SHRINK).clamp(min=LEAST * ball.eps)
            self.length, self.changed = shorter.masked_fill(back, ball.eps), changed
        else:
            latest = range(step - period + 1, step + 1)
            rises = sum(
                (self.losses[:, i] > self.losses[:, i - 1]).to(self.x.dtype) for i in latest
            )
            stuck = ~self.halved_at_check & (self.best_at_check >= self.best_loss)
            back = (rises <= period * rho) | stuck
            self.halved_at_check, self.best_at_check = back, self.best_loss.clone()
            self.length = torch.where(back, self.length / 2, self.length)
        # From here on the point is the best one, and its loss has been seen.
        self.point = torch.where(per_example(back, self.point), self.best_point, self.point)
        self.gradient = torch.where(
            per_example(back, self.point), self.best_gradient, self.gradient
        )
        self.hits = self.hits & ~back


def _start(x: Tensor, ball: Ball, generator: torch.Generator) -> Tensor:
    if ball.norm == "linf":
        draw = 2 * torch.rand(x.shape, dtype=x.dtype, generator=generator) - 1
    else:
        draw = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    if ball.norm == "l1":
        return ball.project(x + draw.to(x.device), x)
    return (x + ball.eps * unit(draw.to(x.device), ball.norm)).clamp(ball.low, ball.high)


def _changed(point: Tensor, x: Tensor) -> Tensor:
    """How many values of each example differ, (N,), as a number of the inputs' type."""
    return (point != x).flatten(1).sum(1).to(x.dtype)


def _checkpoints(steps: int, norm: Norm) -> Iterator[int]:
    """How many steps lie between checkpoints: 22 % at first, 3 % less each time, at least 6 %; in
    "l1" 4 %."""
    shares = (0.04, 0.0, 0.04) if norm == "l1" else (0.22, 0.03, 0.06)
    period, shrink, least = (max(int(share * steps), 1) for share in shares)
    while True:
        yield period
        period = max(period - shrink, least)
