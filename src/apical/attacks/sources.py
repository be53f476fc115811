"""Where an attacker takes the gradient from: one interface for all attacks.

A source opens on the attacked model and gives an oracle. The forward pass, and so what counts as
success, is that of the attacked model in all of them; only the direction of attack differs.
"""

from __future__ import annotations

import abc
import re
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apical.attacks import twins
from apical.attacks.ball import per_example
from apical.attacks.losses import Loss
from apical.core.converted import exact_gradients, feedback_modules, labels

SMALL = 2.0**-10
"""Errors of the scores whose largest entry is outside [SMALL, 1 / SMALL] are scaled."""
LEAST = 2.0**-60
"""What was taken out of an error is put back into the gradient, but no factor beyond this."""


class Answer(NamedTuple):
    """Shapes: gradient as the input, true up to a positive factor where it is very small or large;
    losses (N,); scores (N, classes), of the attacked model."""

    gradient: Tensor
    losses: Tensor
    scores: Tensor


class NoGradientWarning(UserWarning):
    """The scores of a model do not depend on its input in a way that autograd can follow."""


@dataclass
class Oracle:
    """What an attack may ask while a source is open.

    Attributes: model: whose scores count; differentiated: the model whose ordinary backward pass
        gives the source's gradient, None where there is no such model; others: further models
        that run and must be left as they are; random: whether repeated answers may differ.
    """

    model: nn.Module
    answer: Callable[[Tensor, Tensor, Loss], Answer] | None
    differentiated: nn.Module | None = None
    others: tuple[nn.Module, ...] = ()
    random: bool = False
    passes: int = field(default=0, init=False)

    def ask(self, x: Tensor, y: Tensor, loss: Loss) -> Answer:
        """Gradient of each example's loss in its input. Shapes: x (N, ...), y (N,)."""
        if self.answer is None:
            raise ValueError("this attack follows a gradient; source 'none' provides none")
        self.passes += len(x)
        return self.answer(x.detach(), y, loss)

    def scores(self, x: Tensor) -> Tensor:
        """The scores of the attacked model, without a gradient."""
        self.passes += len(x)
        with torch.no_grad():
            return self.model(x)


@dataclass(frozen=True)
class Source(abc.ABC):
    """A source of gradients. `str(source)` is its name in tables, and what `source` reads."""

    @abc.abstractmethod
    def open(self, model: nn.Module) -> AbstractContextManager[Oracle]:
        """The oracle for this model; the model itself is not changed."""


@dataclass(frozen=True)
class Own(Source):
    """The gradient of the model's own backward pass: its rules' on a converted model. An attacker
    who uses it is misled wherever the feedback is; papers on such rules report it."""

    def __str__(self) -> str:
        return "own"

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        yield Oracle(model, _differentiation(model), model)


@dataclass(frozen=True)
class Exact(Source):
    """The true gradient of the same weights: what an attacker with full knowledge uses."""

    def __str__(self) -> str:
        return "exact"

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        with exact_gradients(model):
            yield Oracle(model, _differentiation(model), model)


@dataclass(frozen=True)
class OwnAveraged(Source):
    """The model's own gradient averaged over new draws of its random feedback (brSF).

    For magnitudes drawn independently of each other this tends to the gradient of uSF, not to the
    exact one: averaging over draws does not replace `exact`.

    Args: redraws: how many draws for each answer, at least 1. seed: of the draws.
    Raises: ValueError when opened on a model in which no rule draws again.
    """

    redraws: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        _at_least_one(type(self).__name__, "redraws", self.redraws)

    def __str__(self) -> str:
        return f"own-averaged:{self.redraws}"

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        twin = twins.sharing_parameters(model)
        if not twins.redraw(twin, torch.Generator().manual_seed(self.seed)):
            raise ValueError(
                "own-averaged: no rule of this model draws its feedback again (brsf does), so all"
                " draws would be the same; use 'own'"
            )
        generator = torch.Generator().manual_seed(self.seed)
        differentiate = _differentiation(twin)

        def once(x: Tensor, y: Tensor, loss: Loss) -> Answer:
            twins.redraw(twin, generator)
            return differentiate(x, y, loss)

        yield Oracle(model, partial(_mean, once, self.redraws), None, (twin,))


@dataclass(frozen=True)
class RuleGradient(Source):
    """The backward pass of any rule put on these weights; the model keeps its own.

    If weights that were not trained by a rule look robust under its gradient, the apparent
    robustness comes from the gradient.

    Args: rule: a rule or its name. seed: of its feedback.
    """

    rule: object
    seed: int = 0

    def __str__(self) -> str:
        return f"rule:{twins.rule_name(self.rule)}"

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        twin = twins.with_rule(model, self.rule, self.seed)
        yield Oracle(model, _differentiation(twin), twin, (twin,))


@dataclass(frozen=True, eq=False)
class From(Source):
    """Transfer: the exact gradient of another model, followed on the attacked one.

    The step size of adaptive attacks, and success, follow the attacked model. For an attack made
    on the other model throughout see `attacks.Transfer`.

    Args: model: takes the same inputs and has the same classes. name: in tables.
    """

    model: nn.Module
    name: str = "transfer"

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        differentiate = _differentiation(self.model)

        def ask(x: Tensor, y: Tensor, loss: Loss) -> Answer:
            gradient = differentiate(x, y, loss).gradient
            with torch.no_grad():
                scores = model(x)
                return Answer(gradient, loss(scores), scores)

        with exact_gradients(self.model):
            yield Oracle(model, ask, self.model, (self.model,))


@dataclass(frozen=True)
class FiniteDifference(Source):
    """Central differences of the loss: independent of any backward pass.

    Args: directions: 0 takes every input value in turn (exact up to the step, 2 forward passes a
        value: small inputs only); above 0 that many random Gaussian directions, whose sum tends to
        the gradient. step: half the distance of the two points, above 0. seed: of the directions.
    Source: the random directions are those of Ilyas et al. 2018 (NES with antithetic sampling).
    """

    directions: int = 0
    step: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.directions < 0 or self.step <= 0:
            raise ValueError(
                f"FiniteDifference: directions={self.directions}, step={self.step}; directions is"
                " at least 0 and step above 0"
            )

    def __str__(self) -> str:
        return f"finite-difference:{self.directions}" if self.directions else "finite-difference"

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        generator = torch.Generator().manual_seed(self.seed)

        def slopes(x: Tensor, loss: Loss) -> Tensor:
            estimate = torch.zeros_like(x)
            for direction in self._directions(x, generator):
                ahead, behind = (loss(model(x + s * direction)) for s in (self.step, -self.step))
                slope = (ahead - behind) / (2 * self.step)
                estimate += slope.view(-1, *[1] * (x.dim() - 1)) * direction
            return estimate / max(self.directions, 1)

        def ask(x: Tensor, y: Tensor, loss: Loss) -> Answer:
            with torch.no_grad():
                scores = model(x)
                return Answer(slopes(x, loss), loss(scores), scores)

        yield Oracle(model, ask)

    def _directions(self, x: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        for _ in range(self.directions):
            yield torch.randn(x.shape, dtype=x.dtype, generator=generator).to(x.device)
        for place in range(0 if self.directions else x[0].numel()):
            direction = torch.zeros_like(x[0]).flatten()
            direction[place] = 1
            yield direction.view_as(x[0])


@dataclass(frozen=True)
class Averaged(Source):
    """The mean of several answers of another source, for models whose forward pass is random.

    Source: expectation over transformation, Athalye et al. 2018.
    """

    source: Source
    samples: int

    def __post_init__(self) -> None:
        _at_least_one(type(self).__name__, "samples", self.samples)

    def __str__(self) -> str:
        return f"{self.source} x{self.samples}"

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        with self.source.open(model) as oracle:
            if oracle.answer is None:
                raise ValueError("an average of gradients needs a source that gives gradients")
            answer = partial(_mean, oracle.answer, self.samples)
            yield Oracle(model, answer, None, oracle.others, random=True)


@dataclass(frozen=True)
class NoGradient(Source):
    """Black box: scores only."""

    def __str__(self) -> str:
        return "none"

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        yield Oracle(model, None)


def _at_least_one(owner: str, name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{owner}: {name}={value} must be at least 1")


def _differentiation(model: nn.Module) -> Callable[[Tensor, Tensor, Loss], Answer]:
    """What the model's ordinary backward pass says, as a function of (x, y, loss)."""
    learns_from_labels = any(
        getattr(feedback.rule, "needs_labels", False) for feedback in feedback_modules(model)
    )

    def answer(x: Tensor, y: Tensor, loss: Loss) -> Answer:
        x = x.detach().requires_grad_()
        with labels(model, y) if learns_from_labels else nullcontext():
            scores = model(x)
            error, losses = _error(scores, loss)
            factor = _factor(error)
            gradient = _gradient(model, scores, error / factor[:, None], x)
            back = per_example(factor.clamp(LEAST, 1 / LEAST).to(gradient), gradient)
            return Answer(_finite(gradient * back), losses, scores.detach())

    return answer


def _error(scores: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
    """The gradient of each example's loss in its scores, and the losses."""
    outputs = scores.detach().requires_grad_()
    losses = loss(outputs)
    # The sum, not the mean: an example's gradient must not depend on how many there are.
    (error,) = torch.autograd.grad(losses.sum(), outputs)
    return error, losses.detach()


def _factor(error: Tensor) -> Tensor:
    """The power of two that is taken out of an error before it is sent back, (N,); mostly 1.

    The cross entropy of a confident net has a tiny error, whose products with small weights would
    underflow. Errors of ordinary size pass as they are, since not every rule is linear in them.
    """
    largest = error.abs().amax(1)
    odd = (largest > 0) & ((largest < SMALL) | (largest > 1 / SMALL)) & largest.isfinite()
    largest = largest.where(odd, torch.ones_like(largest))
    power = largest / (2 * torch.frexp(largest).mantissa)
    return power.where(odd, torch.ones_like(power))


def _finite(gradient: Tensor) -> Tensor:
    """Entries that are not finite point nowhere: 0, and the largest number for infinite ones."""
    return gradient if gradient.isfinite().all() else gradient.nan_to_num(nan=0.0)


def _gradient(model: nn.Module, scores: Tensor, error: Tensor, x: Tensor) -> Tensor:
    gradient = None
    if scores.requires_grad:
        try:
            (gradient,) = torch.autograd.grad(scores, x, error, allow_unused=True)
        except RuntimeError as failure:
            if not re.match(r"derivative for .* is not implemented", str(failure)):
                raise
    if gradient is None:
        warnings.warn(
            f"{type(model).__name__}: no gradient reaches its input (detached or not"
            " differentiable), so attacks that follow one do nothing; use a black box",
            NoGradientWarning,
            stacklevel=2,
        )
        return torch.zeros_like(x)
    return gradient.detach()


def _mean(
    once: Callable[[Tensor, Tensor, Loss], Answer], count: int, x: Tensor, y: Tensor, loss: Loss
) -> Answer:
    answers = [once(x, y, loss) for _ in range(count)]
    return Answer(*(torch.stack(parts).mean(0) for parts in zip(*answers, strict=True)))
