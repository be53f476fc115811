"""Settings of the training loop, of its learning rates and of adversarial training."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from apical.bench.experiment.settings import Settings, setting


@dataclass(frozen=True)
class Schedule(Settings):
    """How the learning rate changes over a run.

    Args:
        kind: ``constant``; ``multistep``: times ``gamma`` from each milestone on;
            ``cosine``: from the full rate down to zero at the last step.
        milestones: epochs finished (>= 1, rising) after which ``gamma`` is applied.
        gamma: factor in (0, 1] of each milestone.
        warmup: epochs (>= 0, fractions allowed) of linear rise from zero.
    """

    kind: Literal["constant", "multistep", "cosine"] = "constant"
    milestones: tuple[int, ...] = ()
    gamma: float = setting(0.1, "(0, 1]")
    warmup: float = setting(0.0, "[0, inf)")

    label: ClassVar[str] = "schedule"

    def problems(self) -> list[str]:
        found = super().problems()
        if self.kind != "multistep" and self.milestones:
            found.append(f"milestones have no effect with kind={self.kind!r}; use multistep")
        if self.kind != "multistep" and self.gamma != type(self).gamma:
            found.append(f"gamma={self.gamma} has no effect with kind={self.kind!r}; use multistep")
        if self.kind == "multistep" and not self.milestones:
            found.append("kind='multistep' needs milestones, for example (50, 75)")
        rising = list(self.milestones) == sorted(set(self.milestones))
        if not rising or any(milestone < 1 for milestone in self.milestones):
            found.append(f"milestones={self.milestones}: must rise, each at least 1")
        return found

    def factor(self, done: float, epochs: int) -> float:
        """Factor on the learning rate of the step that begins after ``done`` epochs.

        Args: done: epochs finished, fractions within an epoch. epochs: of the whole run.
        Returns: a number in [0, 1].
        >>> [Schedule("multistep", (2, 3)).factor(e, 4) for e in range(4)]
        [1.0, 1.0, 0.1, 0.010000000000000002]
        """
        if done < self.warmup:
            return done / self.warmup
        if self.kind == "multistep":
            return self.gamma ** sum(done >= m for m in self.milestones)
        if self.kind == "cosine":
            span = max(epochs - self.warmup, 1e-9)
            return 0.5 * (1 + math.cos(math.pi * min((done - self.warmup) / span, 1.0)))
        return 1.0


@dataclass(frozen=True)
class Adversarial(Settings):
    """Each batch is replaced by what an attack makes of it on the net as it is.

    The attack sees the net in eval mode, and the range of its points is that of pixels.

    Args:
        eps: radius (> 0) in units of pixels in [0, 1]; 8/255 is 0.0314.
        attack: ``pgd``, or ``fgsm``, a single step from a random start.
        norm: ``linf`` (largest change of one pixel), ``l2`` (length of the change) or ``l1`` (sum
            of the changes).
        steps: of pgd (>= 1).
        step_size: of one step (> 0); absent: 2.5 eps / steps, of fgsm 1.25 eps.
        gradient: ``exact``, the true gradient of the weights, or ``own``, that of the rule, which
            is all that a net without weight transport has.
    Source: Madry et al. 2018; fgsm as in Wong, Rice, Kolter 2020.
    """

    eps: float = setting(8 / 255, "(0, inf)")
    attack: Literal["fgsm", "pgd"] = "pgd"
    norm: Literal["l1", "l2", "linf"] = "linf"
    steps: int = setting(7, "[1, inf)")
    step_size: float | None = setting(None, "(0, inf)")
    gradient: Literal["exact", "own"] = "exact"

    label: ClassVar[str] = "adversarial"

    def problems(self) -> list[str]:
        found = super().problems()
        if self.norm == "linf" and self.eps > 1:
            found.append(f"eps={self.eps}: pixels lie in [0, 1]; did you mean {self.eps:g}/255?")
        if self.attack == "fgsm" and self.steps != type(self).steps:
            found.append(f"steps={self.steps}: fgsm takes a single one")
        return found


@dataclass(frozen=True)
class TrainingSettings(Settings):
    """How long the net is trained, by which optimizer, in which precision.

    Args:
        epochs: passes over the training split (>= 1).
        batch_size: images per optimizer step (>= 1), over all processes together.
        optimizer: sgd, adam, adamw, rmsprop, or a class as ``package.module:Class``.
        lr: learning rate (> 0) before the schedule.
        optimizer_options: further keyword arguments of the optimizer.
        schedule: how the learning rate changes.
        clip_norm: upper limit (> 0) of the norm of all gradients; absent: none.
        accumulate: parts (>= 1) that a batch is split into, to need less memory.
        adversarial: train on attacked images: its settings, or ``pgd`` for their
            defaults; absent: on the images as they are.
        autocast: ``bf16`` or ``fp16`` (CUDA only, with a gradient scaler).
        seed: of weights, feedback, order of images and augmentation (0 to 1e18).
    """

    epochs: int = setting(10, "[1, inf)")
    batch_size: int = setting(64, "[1, inf)")
    optimizer: str = "sgd"
    lr: float = setting(0.05, "(0, inf)")
    optimizer_options: dict[str, Any] = setting(factory=dict)
    schedule: Schedule = setting(factory=Schedule)
    clip_norm: float | None = setting(None, "(0, inf)")
    accumulate: int = setting(1, "[1, inf)", not_with=("learner",))
    adversarial: Adversarial | Literal["pgd"] | None = setting(None, not_with=("task", "hashing"))
    autocast: Literal["off", "bf16", "fp16"] = setting("off", not_with=("learner",))
    seed: int = setting(0, "[0, 1e18]")

    label: ClassVar[str] = "training"

    def __post_init__(self) -> None:
        if self.adversarial == "pgd":
            object.__setattr__(self, "adversarial", Adversarial())
        super().__post_init__()

    def problems(self) -> list[str]:
        found = super().problems()
        if self.accumulate > self.batch_size:
            found.append(f"accumulate={self.accumulate}: exceeds batch_size={self.batch_size}")
        return found
