"""Settings of the learning rate schedule."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

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
