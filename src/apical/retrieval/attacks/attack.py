"""What attacks on retrieval share: they move the code of a query, by small steps of its input."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from apical.attacks import Attack, From, Source
from apical.attacks.ball import Ball, Norm
from apical.attacks.losses import Loss
from apical.attacks.sources import Oracle
from apical.retrieval.database import Database, check_alike, check_labels, relevant

SHARPNESS = (0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""The published schedule: a flat tanh first, so that saturated bits have a gradient too. With steps
of equal length it is weaker than a tanh that stays as it is, since only the last tenth of the
steps sees the code almost as it is."""

STEP_SIZES = {"adam": 0.01, "sgd": 100.0}
"""Of the published optimizers, in units of the input (adam) and of input per gradient (sgd)."""
MOMENTUM = 0.9


@dataclass(frozen=True, eq=False)
class RetrievalAttack(Attack):
    """An attack on the code of a query. `attack(model, x, y)`; the model gives K outputs.

    Args of every attack on retrieval:
        eps: radius. norm: "linf" or "l2".
        steps: at least 1.
        optimizer: "sign" takes steps of equal length, projected, as PGD does: its strength does
            not depend on the size of the gradient, which differs between rules by powers of ten.
            "sgd" (with momentum 0.9) and "adam" are those the attacks were published with; with
            them a weak attack may be a small gradient and nothing else.
        step_size: of one step; None for eps / 8, or 2.5 eps / steps where that is more ("sign"),
            100 ("sgd") or 0.01 ("adam").
        sharpness: alpha of the tanh through which gradients are taken, in blocks of equally many
            steps; published is `SHARPNESS`.

    Where the original takes the mean of a loss over a batch, here every example has its own: what
    happens to one does not depend on the others.
    """

    eps: float
    steps: int = 100
    norm: Norm = "linf"
    optimizer: Literal["adam", "sgd", "sign"] = "sign"
    step_size: float | None = None
    sharpness: tuple[float, ...] = (1.0,)

    def validate(self) -> None:
        super().validate()
        if self.steps < 1:
            raise ValueError(f"{self.name}: steps={self.steps} must be at least 1")
        if self.step_size is not None and not self.step_size > 0:
            raise ValueError(f"{self.name}: step_size={self.step_size} must be above 0")
        if not self.sharpness or not min(self.sharpness) > 0:
            raise ValueError(f"{self.name}: sharpness={self.sharpness} must be numbers above 0")

    @property
    def label(self) -> str:
        original = "" if self.optimizer == "sign" else f" {self.optimizer}"
        return f"{self.name}-{self.steps}{original}"

    def passes(self, classes: int) -> int:
        return self.steps + 1

    def check_labels(self, y: Tensor, examples: int, classes: int) -> None:
        """Labels of retrieval are no outputs of the model."""

    def source(self, gradient: str | Source | None) -> Source:
        """The source that is meant.

        Raises: ValueError for another model's gradient: the bits of two nets mean different things.
        """
        chosen = super().source(gradient)
        if isinstance(chosen, From):
            raise ValueError(
                f"{self.name}: the bits of another model mean other things, so its gradient has no"
                " direction here. For a transfer make the attack on the other model:"
                f" attacks.Transfer({self.name}(...), other)"
            )
        return chosen

    @abc.abstractmethod
    def aim(self, outputs: Tensor, y: Tensor) -> Callable[[float], Loss]:
        """From alpha to the loss that is to rise. Shapes: outputs (N, K) of the clean inputs."""

    def restoring(self, change: Tensor) -> Tensor | None:
        """Gradient of what the loss says of the change itself; None where it says nothing."""
        return None

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        ball = Ball(self.eps, self.norm, *self.bounds)
        aim = self.aim(oracle.scores(x), y)
        point = nn.Parameter(x.clone())
        advance = self._stepper(point, ball)
        for step in range(self.steps):
            alpha = self.sharpness[step * len(self.sharpness) // self.steps]
            gradient = oracle.ask(point.detach(), y, aim(alpha)).gradient
            # Steps of equal length are limited by the ball, and take no size from the gradient:
            # where that is small, this term would outweigh it.
            published = self.optimizer != "sign"
            restoring = self.restoring(point.detach() - x) if published else None
            advance(gradient if restoring is None else gradient + restoring)
            point.data = ball.project(point.detach(), x)
        return point.detach()

    def _stepper(self, point: nn.Parameter, ball: Ball) -> Callable[[Tensor], None]:
        """What moves the point up a gradient."""
        size = self.step_size
        if self.optimizer == "sign":
            length = self.eps * max(2.5 / self.steps, 1 / 8) if size is None else size

            def advance(gradient: Tensor) -> None:
                point.data = point.data + length * ball.ascent(gradient)

            return advance
        lr = STEP_SIZES[self.optimizer] if size is None else size
        optimizer: torch.optim.Optimizer = (
            torch.optim.Adam([point], lr, maximize=True)
            if self.optimizer == "adam"
            else torch.optim.SGD([point], lr, momentum=MOMENTUM, maximize=True)
        )

        def step(gradient: Tensor) -> None:
            point.grad = gradient
            optimizer.step()

        return step


@dataclass(frozen=True, eq=False)
class KnownDatabase(RetrievalAttack):
    """An attack with access to codes of the database and their labels.

    Args: database: codes the attacker has, of the attacked net (of the other net, inside
        `attacks.Transfer`), such as those of its training images. targeted: y are the labels the
        attacker wants to see.
    Raises: ValueError when called with labels unlike those of the database, codes of another
        length, or targeted with a label that the database does not hold.
    """

    database: Database | None = None
    targeted: bool = False

    def validate(self) -> None:
        super().validate()
        if self.database is None:
            raise ValueError(
                f"{self.name}: database= is missing: the codes it moves queries away from, as"
                " retrieval.Database(codes, labels)"
            )

    @property
    def label(self) -> str:
        return super().label + (" targeted" if self.targeted else "")

    def check_labels(self, y: Tensor, examples: int, classes: int) -> None:
        known = self.known
        check_labels(y, examples)
        check_alike(y, known.labels)
        if known.codes.bits != classes:
            raise ValueError(
                f"{self.name}: the database has codes of {known.codes.bits} bits, the model gives"
                f" {classes}"
            )
        if self.targeted:
            alone = (~relevant(y.cpu(), known.labels).any(1)).nonzero().flatten()
            if len(alone):
                raise ValueError(
                    f"{self.name}: no code of the database has target label {y[alone[0]].tolist()}"
                    f" (query {int(alone[0])})"
                )

    @property
    def known(self) -> Database:
        assert self.database is not None
        return self.database
