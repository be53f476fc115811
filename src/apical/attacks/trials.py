"""One attack by one gradient source at one radius, example by example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical.attacks.ball import Ball
from apical.attacks.base import Attack
from apical.attacks.isolation import undisturbed
from apical.attacks.losses import broken
from apical.attacks.sources import NoGradient, Source

Group = Literal["averaged", "black box", "exact", "extra", "noise", "own", "rule", "transfer"]
"""What a trial says: the paper's protocol (own), the truth (exact), or a cross-check."""
Role = Literal["doubled", "large", "single step", "usual"]


@dataclass(frozen=True)
class Step:
    """An attack that is to be run.

    Args: on: "all" correct examples, or "survivors", those that nothing has broken yet.
    """

    attack: Attack
    source: Source
    group: Group
    eps: float
    on: Literal["all", "survivors"] = "all"
    role: Role = "usual"

    @property
    def key(self) -> str:
        """Names the step and all its settings, for resuming."""
        settings = _settings(self.attack)
        return f"{self.group}|{self.role}|{self.on}|{self.eps!r}|{self.source}|{settings}"


@dataclass(frozen=True)
class Trial:
    """What an attack did. Examples that were wrong from the start are not attacked.

    Attributes: attacked, broken: one entry per example. strays: points that were misclassified but
        lay outside the ball or the range, and so were not counted.
    """

    key: str
    attack: str
    source: str
    group: Group
    eps: float
    on: Literal["all", "survivors"]
    role: Role
    attacked: tuple[bool, ...]
    broken: tuple[bool, ...]
    strays: int

    def robust(self, clean: Sequence[bool]) -> tuple[bool, ...]:
        """Which examples are right and stay so under this attack alone (it attacked all)."""
        return tuple(right and not b for right, b in zip(clean, self.broken, strict=True))

    def accuracy(self, clean: Sequence[bool]) -> float:
        """Share of all examples that are right and stay so under this attack alone."""
        return sum(self.robust(clean)) / len(clean)


def run(
    step: Step,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    ball: Ball,
    *,
    batch_size: int,
) -> Trial:
    """Attack the examples `rows`, in batches with seeds of their own."""
    done = torch.zeros(len(x), dtype=torch.bool)
    # A black box takes none, and what is transferred was made by the other model's exact one.
    given = not isinstance(step.source, NoGradient) and step.group != "transfer"
    gradient = step.source if given else None
    strays = 0
    for number, chosen in enumerate(rows.split(batch_size)):
        if not len(chosen):
            continue
        attack = replace(step.attack, seed=step.attack.seed + number)
        points = attack(model, x[chosen], y[chosen], gradient=gradient)
        with undisturbed(model, seed=attack.seed), torch.no_grad():
            wrong = broken(model(points), y[chosen])
        outside = ball.strays(points, x[chosen])
        strays += int((wrong & outside).sum())
        done[chosen.cpu()] = (wrong & ~outside).cpu()
    attacked = torch.zeros(len(x), dtype=torch.bool)
    attacked[rows.cpu()] = True
    return Trial(
        step.key,
        step.attack.label,
        str(step.source),
        step.group,
        step.eps,
        step.on,
        step.role,
        tuple(attacked.tolist()),
        tuple(done.tolist()),
        strays,
    )


def _settings(attack: Attack) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, Attack):
            return _settings(value)
        return "" if isinstance(value, nn.Module) or callable(value) else repr(value)

    options = ", ".join(f"{f.name}={shown(getattr(attack, f.name))}" for f in fields(attack))
    return f"{type(attack).__name__}({options})"
