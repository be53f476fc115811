"""Settings of the training loop."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from apical.bench.experiment.adversarial_settings import Adversarial
from apical.bench.experiment.schedule import Schedule
from apical.bench.experiment.settings import Settings, setting


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
        seed: of weights, feedback, order of images and augmentation (>= 0).
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
    seed: int = setting(0, "[0, inf)")

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
