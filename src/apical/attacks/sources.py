"""Sources of the gradient that attacks follow, with one interface.

A source opens on the attacked model and returns an oracle. Scores, and so what counts as success,
are those of the attacked model with every source; only the gradient differs.
"""

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
from apical.attacks.scores import Scores, parameter_type
from apical.core.converted import exact_gradients, labels
from apical.core.layers import feedback_modules
from apical.names import check_at_least, check_literals, unknown

SMALL = 2.0**-10
"""Errors of the scores whose largest entry is outside [SMALL, 1 / SMALL] are scaled."""
LEAST = 2.0**-60
"""The gradient is multiplied by the factor that its error was divided by, at least this."""


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
    """The answers of a source while it is open.

    Attributes: model: the attacked model; differentiated: the model whose ordinary backward pass
        gives the source's gradient, None if there is no such model; others: further models that
        run and must be left as they were; random: whether repeated answers may differ.
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
    """A source of gradients. `str(source)` is its name in tables and for `attacks.source`."""

    @abc.abstractmethod
    def open(self, model: nn.Module) -> AbstractContextManager[Oracle]:
        """The oracle for this model; the model itself is not changed."""


@dataclass(frozen=True)
class Own(Source):
    """The gradient of the model's own backward pass; on a converted model that of its rules, which
    is not the exact one. Papers on such rules report attacks by it."""

    def __str__(self) -> str:
        return "own"

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        yield Oracle(model, _differentiation(model), model)


@dataclass(frozen=True)
class Exact(Source):
    """The exact gradient of the same weights: that of an attacker with full knowledge."""

    def __str__(self) -> str:
        return "exact"

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        with exact_gradients(model):
            yield Oracle(model, _differentiation(model), model)


@dataclass(frozen=True)
class OwnAveraged(Source):
    """The model's own gradient averaged over several samples of its random feedback (brSF).

    For independently sampled magnitudes this tends to the gradient of uSF, not to the exact one: it
    does not replace `exact`.

    Args: redraws: samples for each answer, at least 1. seed: of the samples.
    Raises: ValueError when opened on a model without a rule that resamples its feedback.
    """

    redraws: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        check_literals(self, "OwnAveraged")
        check_at_least("OwnAveraged", 1, redraws=self.redraws)

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
    """The backward pass of another rule with these weights; the model keeps its own.

    If weights that were not trained by a rule appear robust under its gradient, the apparent
    robustness is due to the gradient.

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
    """Transfer: the exact gradient of another model, with the scores of the attacked one.

    The step size of adaptive attacks, and success, depend on the attacked model. For an attack that
    uses only the other model see `attacks.Transfer`.

    Args: model: takes the same inputs and has the same classes. name: in tables.
    """

    model: nn.Module
    name: str = "transfer"

    def __post_init__(self) -> None:
        if not isinstance(self.model, nn.Module):
            raise ValueError(f"From: model={self.model!r} must be a torch.nn.Module")

    def __str__(self) -> str:
        return self.name

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        other = Scores(self.model, parameter_type(self.model, torch.float32))
        differentiate = _differentiation(other)

        def ask(x: Tensor, y: Tensor, loss: Loss) -> Answer:
            gradient = differentiate(x, y, loss).gradient
            with torch.no_grad():
                scores = model(x)
                return Answer(gradient, loss(scores), scores)

        with exact_gradients(other):
            yield Oracle(model, ask, other, (other,))


@dataclass(frozen=True)
class FiniteDifference(Source):
    """Central differences of the loss: independent of any backward pass.

    Args: directions: 0: every input value in turn (exact up to the step, 2 forward passes for each
        value: for small inputs only); above 0: the mean over that many random Gaussian directions,
        which tends to the gradient. step: half the distance of the two points, above 0. seed: of
        the directions.
    Source: the random directions are those of Ilyas et al. 2018 (NES with antithetic sampling).
    """

    directions: int = 0
    step: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        check_literals(self, "FiniteDifference")
        if self.directions < 0 or self.step <= 0:
            raise ValueError(f"{self!r}: directions is at least 0 and step above 0")

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
                estimate += per_example(slope, x) * direction
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
    """The mean of several answers of another source, for models with a random forward pass.

    Source: expectation over transformation, Athalye et al. 2018.
    """

    source: Source
    samples: int

    def __post_init__(self) -> None:
        check_literals(self, "Averaged")
        check_at_least("Averaged", 1, samples=self.samples)
        if not isinstance(self.source, Source):
            raise ValueError(f"Averaged: source={self.source!r} must be a source, as Exact()")

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
    """No gradient: for black-box attacks, which use scores only."""

    def __str__(self) -> str:
        return "none"

    @contextmanager
    def open(self, model: nn.Module) -> Iterator[Oracle]:
        yield Oracle(model, None)


SOURCES: dict[str, type[Source]] = {
    "exact": Exact,
    "finite-difference": FiniteDifference,
    "none": NoGradient,
    "own": Own,
    "own-averaged": OwnAveraged,
    "rule": RuleGradient,
    "transfer": From,
}
_COUNTED = {"finite-difference": "directions", "own-averaged": "redraws"}


def source(name: str | Source) -> Source:
    """The source of this name; a source is returned as given.

    "own-averaged:20" gives the number of samples, "finite-difference:64" that of random directions,
    "rule:usf" the rule.

    Raises: ValueError for an unknown name, with the most similar ones.
    >>> source("rule:fa")
    RuleGradient(rule='fa', seed=0)
    """
    if isinstance(name, Source):
        return name
    kind, _, detail = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in SOURCES:
        raise unknown("gradient source", str(name), SOURCES)
    if kind == "transfer":
        raise ValueError("gradient 'transfer' needs its model: give attacks.From(other_model)")
    if kind == "rule":
        if not detail:
            raise ValueError("gradient 'rule' needs the rule's name, for example 'rule:fa'")
        str(RuleGradient(detail))  # an unknown rule raises now, not when the source opens
        return RuleGradient(detail)
    if not detail:
        return SOURCES[kind]()
    if kind not in _COUNTED or not detail.isdecimal():
        raise ValueError(f"source {name!r}: a number after the colon is for {', '.join(_COUNTED)}")
    return SOURCES[kind](**{_COUNTED[kind]: int(detail)})


def _differentiation(model: nn.Module) -> Callable[[Tensor, Tensor, Loss], Answer]:
    """The answers of the model's ordinary backward pass, as a function of (x, y, loss)."""
    uses_labels = any(getattr(f.rule, "needs_labels", False) for f in feedback_modules(model))

    def answer(x: Tensor, y: Tensor, loss: Loss) -> Answer:
        x = x.detach().requires_grad_()
        with labels(model, y) if uses_labels else nullcontext():
            scores = model(x)
            outputs = scores.detach().requires_grad_()
            losses = loss(outputs)
            # The sum, not the mean: an example's gradient must not depend on how many there are.
            (error,) = torch.autograd.grad(losses.sum(), outputs)
            factor = _factor(error)
            gradient = _gradient(model, scores, error / factor[:, None], x)
            gradient = gradient * per_example(factor.clamp(LEAST, 1 / LEAST).to(gradient), gradient)
            if not gradient.isfinite().all():  # no direction from NaN, the largest number for inf
                gradient = gradient.nan_to_num(nan=0.0)
            return Answer(gradient, losses.detach(), scores.detach())

    return answer


def _factor(error: Tensor) -> Tensor:
    """The power of two by which an error is divided before it is propagated, (N,); mostly 1.

    The cross entropy of a confident net has a tiny error, whose products with small weights would
    underflow. Errors of ordinary size are not scaled, since not every rule is linear in them.
    """
    largest = error.abs().amax(1)
    odd = (largest > 0) & ((largest < SMALL) | (largest > 1 / SMALL)) & largest.isfinite()
    largest = largest.where(odd, torch.ones_like(largest))
    power = largest / (2 * torch.frexp(largest).mantissa)
    return power.where(odd, torch.ones_like(power))


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
