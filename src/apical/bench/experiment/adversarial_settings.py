"""Settings of adversarial training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from apical.bench.experiment.settings import Settings, setting


@dataclass(frozen=True)
class Adversarial(Settings):
    """Each batch is replaced by what an attack makes of it on the net as it is.

    The attack sees the net in eval mode, and the range of its points is that of pixels.

    Args:
        eps: radius (> 0) in units of pixels in [0, 1]; 8/255 is 0.0314.
        attack: ``pgd``, or ``fgsm``, a single step from a random start.
        norm: ``linf`` (largest change of one pixel) or ``l2`` (length of the change).
        steps: of pgd (>= 1).
        step_size: of one step (> 0); absent: 2.5 eps / steps, of fgsm 1.25 eps.
        gradient: ``exact``, the true gradient of the weights, or ``own``, that of the rule, which
            is all that a net without weight transport has.
    Source: Madry et al. 2018; fgsm as in Wong, Rice, Kolter 2020.
    """

    eps: float = setting(8 / 255, "(0, inf)")
    attack: Literal["fgsm", "pgd"] = "pgd"
    norm: Literal["l2", "linf"] = "linf"
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
