"""What a learner remembers for one net: a child module `learner`, saved and moved with the net."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor, nn

from apical.learners.base import Learner

LEARNER_VERSION = 1
"""Part of the seed of every draw; raised when a change alters the numbers."""


class Memory(nn.Module):
    """The tensors a learner made by `create`, and a generator for each of its calls."""

    def __init__(self, learner: Learner, seed: int, made: dict[str, Tensor], like: Tensor) -> None:
        super().__init__()
        self.learner, self.seed = learner, seed
        for name, tensor in made.items():
            placed = tensor.detach().to(like.device, like.dtype)
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, nn.Parameter(placed))
            else:
                self.register_buffer(name, placed)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """What it gets: in a Sequential it stands behind the last layer."""
        return x

    def generator(self, like: Tensor) -> torch.Generator:
        """For the random numbers of this call of the learner: another one at the next call."""
        self.calls += 1
        return _generator(self.seed, int(self.calls), like.device)


def attach(model: nn.Module, learner: Learner, *, seed: int = 0) -> nn.Module:
    """Give the net what the learner remembers, in place; returns the net. Before the optimizer.

    For learners that remember nothing it does nothing. State-dict keys `learner.*` are added.

    Args: seed: of random feedback, inverses and noise; global generators are left alone.
    Raises: ValueError if the net already has a learner's memory.
    """
    with torch.device("cpu"):  # whatever torch's default device is
        made = learner.create(model, _generator(seed, 0, torch.device("cpu")))
        if hasattr(model, "learner"):
            raise learner.error("this net already has the memory of a learner; `detach` it first")
        if made:
            model.learner = Memory(learner, seed, made, next(model.parameters()))
    return model


def detach(model: nn.Module) -> nn.Module:
    """Take the learner's memory away again, in place; returns the net."""
    if hasattr(model, "learner"):
        del model.learner
    return model


def memory_of(model: nn.Module, learner: Learner) -> Memory:
    """The memory that `attach` made for this learner.

    Raises: ValueError if there is none, or that of another learner.
    """
    memory = getattr(model, "learner", None)
    if not isinstance(memory, Memory):
        raise learner.error(
            "it has tensors of its own; call learners.attach(model, learner) before the "
            "optimizer is built"
        )
    if memory.learner != learner:
        raise learner.error(f"the net has the memory of another learner, {memory.learner}")
    return memory


def _generator(seed: int, call: int, device: torch.device) -> torch.Generator:
    digest = hashlib.sha256(f"{LEARNER_VERSION}/{seed}/{call}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
