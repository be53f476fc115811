"""The processes that train one net together."""

import os
from dataclasses import dataclass

import torch


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
