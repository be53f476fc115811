"""One attack by one gradient source at one radius, example by example."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical.attacks.ball import Ball, FewFlips, FewPixels
from apical.attacks.base import Attack
from apical.attacks.isolation import undisturbed
from apical.attacks.losses import broken
from apical.attacks.sources import NoGradient, NoGradientWarning, Source

Group = Literal[
    "averaged", "black box", "exact", "extra", "noise", "own", "pixels", "rule", "transfer"
]
"""What a trial is for: the gradient that papers use (own), the exact one, or a cross-check. In the
group "pixels" `eps` counts pixels: another threat model, not part of the worst case at a radius."""
Role = Literal["doubled", "large", "published", "single step", "usual"]
"""Attacks of an earlier study, with its settings, have the role "published"."""

ALLOWANCE = 0.01
"""Difference in accuracy that a check tolerates; at least one example."""


@dataclass(frozen=True)
class Step:
    """An attack that is to be run.

    Args: on: "all" correct examples, or "survivors", those that no attack has broken yet.
        first: only the examples before this position, None: no limit. doublings: in the role
        "doubled", how often its steps were doubled. then: the attack with its whole budget, which
        follows if this one breaks an example.
    """

    attack: Attack
    source: Source
    group: Group
    eps: float
    on: Literal["all", "survivors"] = "all"
    role: Role = "usual"
    first: int | None = None
    doublings: int = 1
    then: Attack | None = None

    @property
    def key(self) -> str:
        """The step with all its settings, for resuming."""
        settings = _settings(self.attack)
        limit = "" if self.first is None else f" first {self.first}"
        return f"{self.group}|{self.role}|{self.on}{limit}|{self.eps!r}|{self.source}|{settings}"


@dataclass(frozen=True)
class Trial:
    """The result of an attack. Examples that are misclassified without it are not attacked.

    Attributes: attacked, broken: one entry per example. strays: number of points that were
        misclassified but outside the ball or the range, and so not counted. first: as of the step.
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
    first: int | None = None

    def robust(self, clean: Sequence[bool]) -> tuple[bool, ...]:
        """Which examples are correct and stay so under this attack alone (it attacked all)."""
        return tuple(right and not b for right, b in zip(clean, self.broken, strict=True))

    def accuracy(self, clean: Sequence[bool]) -> float:
        """Share of all examples (before `first`) that are correct and stay so under this attack."""
        counted = self.robust(clean)[: self.first]
        return sum(counted) / len(counted)

    def record(self) -> dict[str, object]:
        """As a JSON row, one hexadecimal digit for four examples; `read` reads it."""
        row = {f.name: getattr(self, f.name) for f in fields(self)}
        masks = {"attacked": _packed(self.attacked), "broken": _packed(self.broken)}
        return row | masks | {"examples": len(self.attacked)}

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> "Trial":
        """The trial of a row; other entries of the row are ignored."""
        known = {f.name: row[f.name] for f in fields(cls)}
        masks = {k: unpacked(row[k], row["examples"]) for k in ("attacked", "broken")}
        return cls(**known | masks)


def allowance(examples: int) -> float:
    """The difference in accuracy that checks tolerate."""
    return max(ALLOWANCE, 1 / examples) + 1e-12


def run(
    step: Step,
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    rows: Tensor,
    ball: Ball | FewFlips | FewPixels,
    *,
    batch_size: int,
    classes: int | None = None,
) -> Trial:
    """Attack the examples `rows` (before `step.first`), in batches with different seeds, except
    those of an attack inside another one.

    Args: classes: of the model, if it was examined on these examples before.
    Raises: AssertionError if an attack of ours leaves its ball.
    """
    rows = rows if step.first is None else rows[rows < step.first]
    done = torch.zeros(len(x), dtype=torch.bool)
    # A black box takes none, and a transfer uses the exact gradient of its other model.
    given = not isinstance(step.source, NoGradient) and step.group != "transfer"
    gradient = step.source if given else None
    strays = 0
    for number, chosen in enumerate(rows.split(batch_size)):
        if not len(chosen):
            continue
        attack = replace(step.attack, seed=step.attack.seed + number)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NoGradientWarning)  # the audit says it
            source = attack.source(gradient)
            points = attack.made(model, x[chosen], y[chosen], source, classes=classes)
        with undisturbed(model, seed=attack.seed), torch.no_grad():
            wrong = broken(model(points), y[chosen])
        outside = ball.strays(points, x[chosen])
        assert step.group == "extra" or not outside.any(), f"{attack.label} left its ball"
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
        step.first,
    )


def _packed(mask: Sequence[bool]) -> str:
    digits = -(-len(mask) // 4)
    bits = "".join("01"[value] for value in mask).ljust(4 * digits, "0")
    return f"{int(bits, 2):0{digits}x}" if mask else ""


def unpacked(text: str, examples: int) -> tuple[bool, ...]:
    """One entry an example, from the hexadecimal digits of a row.

    >>> unpacked("b0", 5)
    (True, False, True, True, False)
    """
    bits = "".join(f"{int(digit, 16):04b}" for digit in text)
    return tuple(bit == "1" for bit in bits[:examples])


def _settings(attack: Attack) -> str:
    def shown(value: Any) -> str:
        if isinstance(value, Attack):
            return _settings(value)
        return "" if isinstance(value, nn.Module) or callable(value) else repr(value)

    options = ", ".join(f"{f.name}={shown(getattr(attack, f.name))}" for f in fields(attack))
    return f"{type(attack).__name__}({options})"
