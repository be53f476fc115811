"""Attacks made of other attacks, and attacks of other libraries."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from apical.attacks import checks
from apical.attacks.ball import Ball, Norm
from apical.attacks.base import Attack
from apical.attacks.isolation import undisturbed
from apical.attacks.scores import FEW, adapted
from apical.attacks.sources import Averaged, Oracle, Source


@dataclass(frozen=True)
class EOT(Attack):
    """Another attack on a model whose forward pass is random: every gradient is a mean.

    Args: attack: what is repeated. samples: forward and backward passes for each gradient, >= 1.
    The model's chance starts from the attack's seed and leaves global generators as they were.
    Source: Athalye, Engstrom, Ilyas, Kwok 2018.
    """

    attack: Attack
    samples: int = 10

    def validate(self) -> None:
        _one_range(self, self.attack)
        if self.samples < 1:
            raise ValueError(f"{self.name}: samples={self.samples} must be at least 1")
        if self.attack.default_gradient == "none":
            raise ValueError(f"{self.name}: {self.attack.name} has no gradient to average")

    @property
    def name(self) -> str:
        return f"EOT-{self.samples} {self.attack.name}"

    @property
    def label(self) -> str:
        return f"EOT-{self.samples} {self.attack.label}"

    @property
    def ball(self) -> Ball | None:
        return self.attack.ball

    def passes(self, classes: int) -> int:
        return self.samples * self.attack.passes(classes)

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        return self.attack.perturb(oracle, x, y)

    def source(self, gradient: str | Source | None) -> Source:
        return Averaged(super().source(gradient), self.samples)

    def check_labels(self, y: Tensor, examples: int, classes: int) -> None:
        self.attack.check_labels(y, examples, classes)

    def check_classes(self, classes: int) -> None:
        self.attack.check_classes(classes)


@dataclass(frozen=True, eq=False)
class Transfer(Attack):
    """An attack made on another model throughout, to be tried on this one.

    Its gradient source is taken on the other model. To follow the other model's gradient while
    watching this one's scores, give an attack `gradient=attacks.From(other)`.

    Args: attack: what is made. model: on what; the same inputs and classes as the attacked one.
    """

    attack: Attack
    model: nn.Module

    def validate(self) -> None:
        _one_range(self, self.attack)

    @property
    def name(self) -> str:
        return f"Transfer {self.attack.name}"

    @property
    def label(self) -> str:
        return self.attack.label

    @property
    def ball(self) -> Ball | None:
        return self.attack.ball

    def passes(self, classes: int) -> int:
        return self.attack.passes(classes)

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        return self.attack.perturb(oracle, x, y)

    def made(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor,
        source: Source,
        *,
        classes: int | None = None,
    ) -> Tensor:
        """As every attack. Raises: ValueError if the models have not the same classes."""
        other, x = adapted(self.model, x)
        if len(x):
            with undisturbed(model, other):
                checks.check_mode(other, random_allowed=True)
                few = x[:FEW]
                here = classes or checks.check_repeats(model, few, random_allowed=True)
                there = checks.check_repeats(other, few, random_allowed=True)
            if here != there:
                raise ValueError(
                    f"{self.name}: the other model has {there} classes, the attacked one {here}"
                )
        return self.attack.made(other, x, y, source)

    def source(self, gradient: str | Source | None) -> Source:
        return self.attack.source(gradient)


@dataclass(frozen=True)
class Plugin(Attack):
    """Any callable `attack(model, x, y) -> x_adv`: other libraries' attacks among the rest.

    It is given a model whose ordinary backward pass is the gradient source, and its points are
    checked like all others.

    Args:
        call: for example `lambda model, x, y: torchattacks.PGD(model, eps=8 / 255)(x, y)`.
        title: its name in tables. eps, norm: the ball it promises to stay in.

    Raises: ValueError when called with a source that is no model's backward pass (an average or
        finite differences), or if it returns something else than inputs.
    """

    call: Callable[[nn.Module, Tensor, Tensor], Tensor]
    title: str
    eps: float
    norm: Norm = "linf"

    @property
    def name(self) -> str:
        return self.title

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        if oracle.differentiated is None:
            raise ValueError(
                f"{self.name}: an attack from elsewhere calls backward itself, so its source must"
                " be 'own', 'exact', 'rule:...' or another model"
            )
        points = self.call(oracle.differentiated, x, y)
        if hasattr(points, "__array__") and not isinstance(points, Tensor):
            points = torch.as_tensor(points)  # of libraries that work in NumPy
        if not isinstance(points, Tensor) or points.shape != x.shape:
            raise ValueError(
                f"{self.name}: returned {tuple(getattr(points, 'shape', ()))} for inputs of shape"
                f" {tuple(x.shape)}"
            )
        return points.to(x.device, x.dtype)


def _one_range(wrapper: Attack, attack: Attack) -> None:
    if wrapper.bounds not in ((0.0, 1.0), attack.bounds):
        raise ValueError(
            f"{wrapper.name}: bounds={wrapper.bounds}, but the attack inside keeps"
            f" {attack.bounds}; give them to that attack"
        )
