"""Attacks that use other attacks, attacks of other libraries, and substitute models."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.attacks import checks
from apical.attacks.ball import Ball, Norm
from apical.attacks.base import Attack
from apical.attacks.isolation import undisturbed
from apical.attacks.scores import FEW, adapted, check_model, detached
from apical.attacks.sources import Averaged, Oracle, Source
from apical.names import check_at_least, is_whole


@dataclass(frozen=True)
class _Wrapper(Attack):
    """An attack that makes its points by another one."""

    attack: Attack

    def __post_init__(self) -> None:
        if not isinstance(self.attack, Attack):
            raise ValueError(
                f"{type(self).__name__}: attack={self.attack!r} must be an attack, as PGD(eps=0.1)"
            )
        super().__post_init__()

    def validate(self) -> None:
        if self.bounds not in ((0.0, 1.0), self.attack.bounds):
            raise ValueError(
                f"{self.name}: bounds={self.bounds}, but the attack inside keeps"
                f" {self.attack.bounds}; give them to that attack"
            )

    @property
    def ball(self) -> Ball | None:
        return self.attack.ball

    def passes(self, classes: int) -> int:
        return self.attack.passes(classes)

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        return self.attack.perturb(oracle, x, y)

    def check_labels(self, y: Tensor, examples: int, classes: int) -> None:
        self.attack.check_labels(y, examples, classes)

    def check_classes(self, classes: int) -> None:
        self.attack.check_classes(classes)


@dataclass(frozen=True)
class EOT(_Wrapper):
    """Another attack on a model with a random forward pass: every gradient is a mean.

    Args: attack: which follows the mean. samples: forward and backward passes for each gradient,
        at least 1.
    Random numbers of the model start from this attack's seed; global generators are restored.
    Source: Athalye, Engstrom, Ilyas, Kwok 2018.
    """

    samples: int = 10

    def validate(self) -> None:
        super().validate()
        check_at_least(self.name, 1, samples=self.samples)
        if self.attack.default_gradient == "none":
            raise ValueError(f"{self.name}: {self.attack.name} has no gradient to average")

    @property
    def name(self) -> str:
        return f"EOT-{self.samples} {self.attack.name}"

    @property
    def label(self) -> str:
        return f"EOT-{self.samples} {self.attack.label}"

    def passes(self, classes: int) -> int:
        return self.samples * self.attack.passes(classes)

    def source(self, gradient: str | Source | None) -> Source:
        return Averaged(super().source(gradient), self.samples)


@dataclass(frozen=True, eq=False)
class Transfer(_Wrapper):
    """An attack whose points are made on another model, by its scores and gradient.

    Its gradient source applies to the other model. To follow the other model's gradient with the
    scores of the attacked one, give an attack `gradient=attacks.From(other)`.

    Args: attack: by which points are made. model: the other model; it has the same inputs and
        classes as the attacked one.
    """

    model: nn.Module

    def validate(self) -> None:
        super().validate()
        check_model(self.model)

    @property
    def name(self) -> str:
        return f"Transfer {self.attack.name}"

    @property
    def label(self) -> str:
        return self.attack.label

    def made(
        self, model: nn.Module, x: Tensor, y: Tensor, source: Source, *, classes: int | None = None
    ) -> Tensor:
        """As of every attack. Raises: ValueError if the numbers of classes differ."""
        other = adapted(self.model, x)[0]
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
    """Any callable `attack(model, x, y) -> x_adv`, such as attacks of other libraries.

    It receives a model whose ordinary backward pass is the gradient source, and its points are
    checked like those of all attacks.

    Args:
        call: for example `lambda model, x, y: torchattacks.PGD(model, eps=8 / 255)(x, y)`.
        title: its name in tables. eps, norm: the ball that its points must be in.

    Raises: ValueError when called with a source that is no model's backward pass (an average or
        finite differences), or if it does not return points of the shape of the inputs.
    """

    call: Callable[[nn.Module, Tensor, Tensor], Tensor]
    title: str
    eps: float
    norm: Norm = "linf"

    def validate(self) -> None:
        super().validate()
        if not callable(self.call):
            raise ValueError(f"{self.name}: call={self.call!r} must be a function (model, x, y)")

    @property
    def name(self) -> str:
        return self.title

    def inspect(self, points: Tensor, x: Tensor) -> None:
        """Warns: of points outside the ball or the range, and of NaN."""
        assert self.ball is not None
        if away := int(self.ball.strays(points, x).sum()):
            warnings.warn(
                f"{self.name}: {away} of {len(x)} points are outside the ball of"
                f" eps={self.eps:g} ({self.norm}) or the range {self.bounds}, or not finite: do"
                " not count them, or give the attack inside this radius",
                stacklevel=3,
            )

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        if oracle.differentiated is None:
            raise ValueError(
                f"{self.name}: an attack from elsewhere calls backward itself, so its source must"
                " be 'own', 'exact', 'rule:...' or another model"
            )
        points = self.call(oracle.differentiated, x, y)
        numbers = getattr(getattr(points, "dtype", None), "kind", "") in ("b", "f", "i", "u")
        if numbers and not isinstance(points, Tensor):
            points = torch.as_tensor(points)  # of libraries that work in NumPy
        if not isinstance(points, Tensor) or points.shape != x.shape:
            shape = getattr(points, "shape", None)
            given = type(points).__name__ if shape is None else tuple(shape)
            raise ValueError(
                f"{self.name}: returned {given} for inputs of shape {tuple(x.shape)}; expected a"
                " tensor or an array of numbers of that shape: the adversarial inputs"
            )
        return points.to(x.device, x.dtype)


def imitate(
    model: nn.Module,
    substitute: nn.Module,
    x: Tensor,
    *,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
) -> nn.Module:
    """Train another net, in place by Adam, to predict the classes that a model predicts.

    Returns: the substitute, in eval mode.

    Only the class of each input is queried from the model, once. An attack on the substitute that
    is then applied to the model is a black-box attack: black-box FGSM is
    `Transfer(FGSM(eps), imitate(model, net, x))`.

    Args: model: in eval mode; left as it was.     substitute: takes the same inputs.
        x: the attacker's inputs, none of those attacked.     epochs, batch_size: >= 1.     lr:
        above 0.     seed: of the order of the inputs.
    Shapes: x (N, ...).
    Raises: ValueError for a model in training mode, or values out of range.
    Source: Papernot et al. 2017, without their augmentation of the inputs.
    """
    for net in (model, substitute):
        check_model(net)
    checks.check_mode(model, random_allowed=True)
    seed, x = checks.checked_seed("imitate", seed), detached("inputs", x)
    whole = is_whole(epochs) and is_whole(batch_size) and isinstance(lr, Real)
    if not whole or epochs < 1 or batch_size < 1 or not lr > 0 or not len(x):
        raise ValueError(
            f"imitate: epochs={epochs!r}, batch_size={batch_size!r}, lr={lr!r}, {len(x)} inputs:"
            " all must be numbers above 0, and the first two whole"
        )
    model = adapted(model, x)[0]
    with undisturbed(model), torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in x.split(256)])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(substitute.parameters(), lr=lr)
    substitute.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(substitute(x[rows]), answers[rows]).backward()
            optimizer.step()
    return substitute.eval()
