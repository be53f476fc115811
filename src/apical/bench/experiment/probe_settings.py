"""Settings of the measurements during training."""

from dataclasses import dataclass
from typing import ClassVar

from apical.bench.experiment.settings import Settings, setting


@dataclass(frozen=True)
class ProbeSettings(Settings):
    """When the layers are measured, on how many images, and at which cost.

    Args:
        probe_every: epochs between measurements of the layers (0: never).
        probe_images: training images (>= 1) on which gradients are compared.
        probe_share: part of the run's steps, in (0, 1], that measurements may cost; 1 is no limit.
            Where ``probe_every`` would cost more, epochs are left out, more of the later ones; the
            first and the last are always measured.
        probe_steps: optimizer steps (>= 1, rising) after which layers are measured as well, to
            follow the first epoch, where alignment happens; not counted in ``probe_share``.
    """

    probe_every: int = setting(1, "[0, inf)")
    probe_images: int = setting(128, "[1, inf)")
    probe_share: float = setting(0.05, "(0, 1]")
    probe_steps: tuple[int, ...] = ()

    label: ClassVar[str] = "probes"

    def problems(self) -> list[str]:
        found = super().problems()
        steps = self.probe_steps
        if list(steps) != sorted(set(steps)) or any(step < 1 for step in steps):
            found.append(f"probe_steps={steps}: must rise, each at least 1")
        if steps and not self.probe_every:
            found.append(f"probe_steps={steps} have no effect with probe_every=0")
        return found
