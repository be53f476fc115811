"""The processes that train one net together, and the threads and random numbers of each."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from apical.bench.experiment.execution import Execution
from apical.data import generators


@dataclass
class Group:
    """The processes that train together under ``torchrun``; one of them without it."""

    rank: int = 0
    size: int = 1
    opened: bool = False  # by this library, not by the program that calls it

    def agree(self, value: bool, device: torch.device) -> bool:
        """Whether the value is true on any process."""
        if self.size == 1:
            return value
        flag = torch.tensor(int(value), device=device)
        torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
        return bool(flag.item())

    def wait(self) -> None:
        """Return once every process is here."""
        if self.size > 1:
            torch.distributed.barrier()

    def close(self) -> None:
        """Leave the group: a process that only ends may abort in its network threads."""
        if self.opened and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def join_group(device: torch.device) -> Group:
    """The processes started by ``torchrun`` (gloo on CPU, nccl on CUDA), or one alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Group()
    opened = not torch.distributed.is_initialized()
    if opened:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return Group(torch.distributed.get_rank(), torch.distributed.get_world_size(), opened)


@contextlib.contextmanager
def settings(execution: Execution) -> Iterator[None]:
    """Threads, determinism and random numbers of a run; afterwards those of the caller."""
    threads = torch.get_num_threads()
    device = torch.device(execution.device)
    devices = [device] if device.type == "cuda" else []
    try:
        torch.set_num_threads(execution.threads)
        with generators.kept(), torch.random.fork_rng(devices):
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True):
                yield
    finally:
        torch.set_num_threads(threads)
