"""Attacks on retrieval, which move the code of a query by steps of its input; HAG."""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical.attacks.ball import Ball, Norm, lengths
from apical.attacks.base import Attack
from apical.attacks.losses import Loss
from apical.attacks.sources import From, Oracle, Source
from apical.names import check_at_least
from apical.retrieval.codes import relax

SHARPNESS = (0.1, 0.1, 0.1, 0.1, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)
"""The published schedule: a flat tanh first, so that saturated bits have a gradient. With steps of
equal length it is weaker than a constant tanh, since only in the last tenth of the steps the
tanh is close to the code."""

STEP_SIZES = {"adam": 0.01, "sgd": 100.0}
"""Defaults of the published optimizers, in units of the input (adam) or input / gradient (sgd)."""
MOMENTUM = 0.9


@dataclass(frozen=True, eq=False)
class RetrievalAttack(Attack):
    """An attack on the code of a query. `attack(model, x, y)`; the model gives K outputs.

    Args of every attack on retrieval:
        eps: radius. norm: "linf", "l2" or "l1".
        steps: at least 1.
        optimizer: "sign": projected steps of equal length, as in PGD: its strength does not depend
            on the norm of the gradient, which differs between rules by powers of ten. "sgd" (with
            momentum 0.9) and "adam" are the published ones; with them an attack may be weak only
            because of a small gradient.
        step_size: of one step; None: the larger of eps / 8 and 2.5 eps / steps ("sign"), 100
            ("sgd") or 0.01 ("adam").
        sharpness: alpha of the tanh that gradients pass through, for consecutive blocks of equally
            many steps; published is `SHARPNESS`.

    The originals use the mean of the loss over a batch; here every example has its own loss, so
    that it does not depend on the others.
    """

    eps: float
    steps: int = 100
    norm: Norm = "linf"
    optimizer: Literal["adam", "sgd", "sign"] = "sign"
    step_size: float | None = None
    sharpness: tuple[float, ...] = (1.0,)

    def validate(self) -> None:
        super().validate()
        check_at_least(self.name, 1, steps=self.steps)
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
        """No check: labels are not among the outputs of a hash net."""

    def source(self, gradient: str | Source | None) -> Source:
        """As of every attack.

        Raises: ValueError for another model's gradient: the bits of two nets are not related.
        """
        chosen = super().source(gradient)
        if isinstance(chosen, From):
            raise ValueError(
                f"{self.name}: the bits of another model are not related to those of this one, and"
                " neither is its gradient. For a transfer make the attack on the other model:"
                f" attacks.Transfer({self.name}(...), other)"
            )
        return chosen

    @abc.abstractmethod
    def aim(self, outputs: Tensor, y: Tensor) -> Callable[[float], Loss]:
        """From alpha to the loss that is to rise, as a function of the outputs.

        Shapes: outputs (N, K) of the clean inputs.
        """

    def restoring(self, change: Tensor) -> Tensor | None:
        """Gradient of the term of the loss that depends on the change itself; None without one."""
        return None

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        ball = Ball(self.eps, self.norm, *self.bounds)
        aim = self.aim(oracle.scores(x), y)
        point = nn.Parameter(x.clone())
        advance = self._stepper(point, ball)
        for step in range(self.steps):
            alpha = self.sharpness[step * len(self.sharpness) // self.steps]
            gradient = oracle.ask(point.detach(), y, aim(alpha)).gradient
            # Steps of equal length do not depend on the norm of the gradient, and the ball limits
            # them: where the gradient is small, this term would dominate it.
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


@dataclass(frozen=True)
class Perceptibility:
    """Means over examples of the change, in units of the inputs.

    linf: the largest change of one value. l2: the Euclidean norm. mse: the mean square.
    """

    linf: float
    l2: float
    mse: float


def perceptibility(x: Tensor, x_adv: Tensor) -> Perceptibility:
    """The size of a change, by the three measures used for attacks on retrieval.

    Shapes: both (N, ...).     Raises: ValueError for other or no examples.

    >>> import torch
    >>> perceptibility(torch.zeros(1, 2, 2), torch.tensor([[[0.0, 0.75], [1.0, 0.0]]]))
    Perceptibility(linf=1.0, l2=1.25, mse=0.390625)
    """
    if x.shape != x_adv.shape or not len(x):
        raise ValueError(
            f"inputs of shapes {tuple(x.shape)} and {tuple(x_adv.shape)}: expected the same"
            " examples, at least one, before and after an attack"
        )
    change = (x_adv - x).detach().double()
    return Perceptibility(
        linf=change.flatten(1).abs().amax(1).mean().item(),
        l2=lengths(change).mean().item(),
        mse=change.square().flatten(1).mean(1).mean().item(),
    )


@dataclass(frozen=True, eq=False)
class HAG(RetrievalAttack):
    """Hash adversary generation: the bits of the query's code are inverted. Non-targeted.

    With v = tanh(alpha h(x')), u = tanh(h(x)) of the clean input, w_k = 1 for bits with
    |v_k - sign u_k| < 1 + t, which are not inverted with a margin yet (0 for the others), and M
    their number, it minimises

        L = (sum_k w_k v_k u_k / M + 1)^2 + beta (mean_k w_k v_k)^2.

    If all bits are inverted (M = 0) the first sum is 0.

    Args: margin: t, at least 0. balance: beta, at least 0.
    Labels have no effect and may be left out: `attack(model, x)`.
    Source: Yang, Liu, Deng, Tao 2018, "Adversarial examples for Hamming space search"; published
        with steps=2000, optimizer="sgd", sharpness=SHARPNESS, eps=8/255.
    """

    margin: float = 0.5
    balance: float = 1.0

    uses_labels = False

    def validate(self) -> None:
        super().validate()
        check_at_least("HAG", 0, margin=self.margin, balance=self.balance)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor | Mapping[str, Tensor],
        y: Tensor | None = None,
        *,
        gradient: str | Source | None = None,
    ) -> Any:
        if y is None:
            count = len(next(iter(x.values()))) if isinstance(x, Mapping) else len(x)
            y = torch.zeros(count, dtype=torch.int64)
        return super().__call__(model, x, y, gradient=gradient)

    def aim(self, outputs: Tensor, y: Tensor) -> Callable[[float], Loss]:
        clean = relax(outputs)
        return lambda alpha: lambda now: -self.objective(relax(now, alpha), clean)

    def objective(self, moved: Tensor, clean: Tensor) -> Tensor:
        """L, to be lowered. Shapes: v, u (N, K) -> (N,)."""
        left = ((moved - clean.sign()).abs() < 1 + self.margin).to(moved.dtype)
        alike = (left * moved * clean).sum(1) / left.sum(1).clamp(min=1)
        return (alike + 1).square() + self.balance * (left * moved).mean(1).square()
