"""The base class of attacks: values that make adversarial examples for any model."""

import abc
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, get_args

import torch
from torch import Tensor, nn

from apical.attacks import checks
from apical.attacks.ball import Ball, Norm, check_norm, standard_norm
from apical.attacks.isolation import undisturbed
from apical.attacks.scores import FEW, adapted, detached
from apical.attacks.sources import Averaged, NoGradient, Oracle, Source
from apical.attacks.sources import source as named_source
from apical.names import check_literals


@dataclass(frozen=True)
class Attack(abc.ABC):
    """An attack: `attack(model, x, y)` returns the adversarial inputs.

    Args of every attack:
        seed: of its own generator; the same seed gives the same points on every device.
        bounds: the range of the inputs, which all points are in. Normalisation must be part of the
            model.
    """

    seed: int = field(default=0, kw_only=True)
    bounds: tuple[float, float] = field(default=(0.0, 1.0), kw_only=True)

    default_gradient: ClassVar[str] = "exact"
    """The source it follows if none is given; "none" for a black box, which accepts no other."""
    uses_labels: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if hasattr(self, "norm"):
            object.__setattr__(self, "norm", standard_norm(self.norm))
            check_norm(self.name, self.norm, get_args(Norm))
        check_literals(self, self.name)
        object.__setattr__(self, "seed", checks.checked_seed(self.name, self.seed))
        object.__setattr__(self, "bounds", checks.checked_bounds(self.name, self.bounds))
        self.validate()

    def validate(self) -> None:
        """Raises: ValueError for options out of range."""
        ball = self.ball
        if ball is not None:
            linf = ball.norm == "linf"
            checks.check_eps(self.name, ball.eps, low=ball.low, high=ball.high, linf=linf)

    @property
    def name(self) -> str:
        """The name of the attack in messages."""
        return type(self).__name__

    @property
    def label(self) -> str:
        """The name in tables, with settings, but without the radius."""
        return self.name

    @property
    def ball(self) -> Ball | None:
        """The set that its points must be in; None if only the input range limits them."""
        if not hasattr(self, "eps"):
            return None
        norm: Norm = getattr(self, "norm", "linf")
        return Ball(self.eps, norm, *self.bounds)

    @abc.abstractmethod
    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        """The adversarial inputs, after all checks, with an open source."""

    def __call__(
        self,
        model: nn.Module,
        x: Tensor | Mapping[str, Tensor],
        y: Tensor,
        *,
        gradient: str | Source | None = None,
    ) -> Any:
        """Adversarial inputs for a model in eval mode. The model is left as it was.

        Args:
            model: returns scores (N, classes), or an object or mapping with them as `logits`.
            x: inputs, or a mapping with only them, as `{"pixel_values": x}`; then the points are
                returned in such a mapping.
            gradient: the source of gradients, or its name: "exact" (default), "own",
                "own-averaged:10", "rule:fa", "finite-difference", "none".

        In half precision the ball is computed in float32, and the points are rounded at the end: by
        this they may leave the ball by a unit in the last place.

        Shapes: x (N, ...) within `bounds`, y (N,) class numbers -> as x.
        Raises: ValueError for a model in training mode, with random scores (see `EOT`), or whose
            scores depend on the batch; inputs outside the range, labels that do not fit, a source
            that does not fit.
        """
        chosen = self.source(gradient)
        scoring, inputs = adapted(model, x)
        points = self.made(scoring, inputs, detached("labels", y), chosen)
        self.inspect(points, inputs)
        if isinstance(x, Mapping):
            return {name: points.to(given.dtype) for name, given in x.items()}
        return points.to(x.dtype)

    def made(
        self, model: nn.Module, x: Tensor, y: Tensor, source: Source, *, classes: int | None = None
    ) -> Tensor:
        """The points, for a model from float32 inputs to scores.

        Args: classes: of the model, if it was examined on these inputs before; then two of its
            passes are not compared again.
        """
        with source.open(model) as oracle, undisturbed(model, *oracle.others, seed=self.seed):
            x, y = x.clone(), y.clone()  # no inference tensors
            self._check(oracle, x, y, isinstance(source, Averaged), classes)
            if not len(x) or (self.ball is not None and self.ball.eps == 0):
                return x
            x = x.clamp(*self.bounds)  # by rounding they may be outside
            return self.perturb(oracle, x, y.to(x.device, torch.int64)).detach()

    def inspect(self, points: Tensor, x: Tensor) -> None:
        """Look at the points before they are returned, where others made them."""

    def source(self, gradient: str | Source | None) -> Source:
        """The source of this name, or the default. Raises: ValueError if it does not fit."""
        chosen = named_source(self.default_gradient if gradient is None else gradient)
        none_given = isinstance(chosen, NoGradient)
        if self.default_gradient == "none" and not none_given:
            raise ValueError(
                f"{self.name} is a black box and would ignore gradient={str(chosen)!r};"
                " leave it out"
            )
        if self.default_gradient != "none" and none_given:
            raise ValueError(f"{self.name} follows a gradient; gradient='none' provides none")
        return chosen

    def passes(self, classes: int) -> int:
        """The largest number of forward passes of an example, 1 if it is unknown. Those of an
        attack that follows a gradient have a backward pass each."""
        return 1

    def generator(self) -> torch.Generator:
        """The attack's own generator, on the CPU, from its seed."""
        return torch.Generator().manual_seed(self.seed)

    def _check(
        self, oracle: Oracle, x: Tensor, y: Tensor, random_allowed: bool, classes: int | None
    ) -> None:
        ball = self.ball or Ball(0.0, "linf", *self.bounds)
        if classes is None:
            checks.check_mode(oracle.model, random_allowed=random_allowed)
        checks.check_inputs(x, ball)
        most = ball.diameter(x[0].numel()) if len(x) else math.inf
        if ball.norm != "linf" and ball.eps > most:
            raise ValueError(
                f"{self.name}: eps={ball.eps:g} is larger than the whole range, whose diameter is"
                f" {most:.4g} for inputs of shape {tuple(x.shape[1:])}"
            )
        if not len(x):
            return
        if classes is None:
            classes = checks.check_repeats(oracle.model, x, random_allowed=random_allowed)
        self.check_labels(y, len(x), classes)
        self.check_classes(classes)
        for other in oracle.others:
            checks.check_mode(other, random_allowed=random_allowed)
            given = checks.check_repeats(adapted(other, x)[0], x[:FEW], random_allowed=True)
            if given != classes:
                raise ValueError(
                    f"the model that gives the gradient has {given} classes, the attacked one"
                    f" {classes}"
                )

    def check_labels(self, y: Tensor, examples: int, classes: int) -> None:
        """Raises: ValueError for labels that do not fit the model's scores."""
        checks.check_labels(y, examples, classes)

    def check_classes(self, classes: int) -> None:
        """Raises: ValueError if the attack needs more classes than the model has."""
