"""How and where runs are executed."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apical.names import check_literals

MOST_THREADS = 256
"""Threads that are allowed on a machine with fewer cores; many more kill the process in OpenMP."""


@dataclass(frozen=True)
class Execution:
    """How and where a run is executed; nothing here changes what is computed.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``, ...
        threads: CPU threads (>= 1) of a run. One each for several runs beats many for one.
        data_root: existing folder with data sets; absent: APICAL_DATA, then the cache.
        download: fetch a missing data set.
        checkpoint_steps: steps between checkpoints within an epoch (0: at epoch ends only).
        quiet: no progress bar, even in a terminal.
        parallel: under torchrun, whether every process holds the whole net (``ddp``), or weights,
            gradients and optimizer state are divided among them (``fsdp``).
        regroup: go on from a checkpoint of another number of processes or another ``parallel``: the
            rest of the run is then the same up to rounding, no longer to the bit.
        track: also send the records to a tracker of experiments.
    """

    device: str = "cpu"
    threads: int = 1
    data_root: str | None = None
    download: bool = True
    checkpoint_steps: int = 0
    quiet: bool = False
    parallel: Literal["ddp", "fsdp"] = "ddp"
    regroup: bool = False
    track: Literal["none", "mlflow", "tensorboard", "wandb"] = "none"

    def __post_init__(self) -> None:
        check_literals(self, "execution")
        if self.data_root is not None and not Path(self.data_root).expanduser().is_dir():
            raise ValueError(
                f"execution: data_root={self.data_root!r} (--data-root) is not a folder; name one "
                "that exists, or leave it out"
            )
        most = max(MOST_THREADS, os.cpu_count() or 1)
        if not 1 <= self.threads <= most:
            raise ValueError(f"execution: threads={self.threads} must lie in [1, {most}]")
        if self.checkpoint_steps < 0:
            raise ValueError(
                f"execution: checkpoint_steps={self.checkpoint_steps} must be at least 0"
            )

    def recorded(self) -> dict[str, Any]:
        """What environment.json says of it."""
        return {"device": self.device, "run_threads": self.threads}
