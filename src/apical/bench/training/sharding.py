"""A net whose weights, gradients and optimizer state are divided among processes (FSDP2).

The sharded net learns. Beside it the plain net is kept, on the first process on its device: it is
brought up to date before it is measured, evaluated or saved, so that checkpoints are those of one
process.
"""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from apical.bench.experiment.experiment import Experiment
from apical.core.layers import feedback_modules
from apical.rules import WeightMirror

State = dict[str, Any]


def check(experiment: Experiment, model: nn.Module, processes: int) -> None:
    """Refuse what does not train in a sharded net.

    Raises: ValueError naming every reason.
    """
    problems = []
    if processes == 1:
        problems.append("needs several processes: start it by torchrun --nproc-per-node N")
    for name in ("compile", "switch"):
        if experiment.differs(name):
            problems.append(f"cannot be combined with {name}={getattr(experiment, name)}")
    if experiment.autocast == "fp16":
        problems.append("cannot be combined with autocast='fp16': use bf16")
    for feedback in feedback_modules(model):
        # what each process observes on its part of a batch would give each another feedback
        if feedback.notes or isinstance(feedback.rule, WeightMirror):
            kind = type(feedback.rule).__name__
            problems.append(f"cannot be combined with {kind} (layer {feedback.layer!r})")
            break
    if problems:
        raise ValueError(f"parallel='fsdp' {'; it '.join(problems)}. parallel='ddp' takes all")


def shard(model: nn.Module, device: torch.device) -> nn.Module:
    """A sharded copy: a unit for each block of its outermost sequences, one for the rest."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    net = copy.deepcopy(model)
    for block in _blocks(net):
        fully_shard(block, mesh=mesh)
    fully_shard(net, mesh=mesh)
    return net


def _blocks(net: nn.Module) -> Iterator[nn.Module]:
    """The members of outermost lists and sequences that share no parameter with another module."""
    uses: dict[int, int] = {}
    for module in net.modules():
        for parameter in module.parameters(recurse=False):
            uses[id(parameter)] = uses.get(id(parameter), 0) + 1
    sequences: list[nn.Module] = [net]
    while sequences:
        sequence = sequences.pop(0)
        for child in sequence.children():
            if not isinstance(sequence, nn.ModuleList | nn.Sequential):
                sequences.append(child)
            elif (own := list(child.parameters())) and all(uses[id(p)] == 1 for p in own):
                yield child


def whole(values: Any) -> Any:
    """The same structure with whole tensors; every process of the group must call."""
    from torch.distributed.tensor import DTensor

    if isinstance(values, dict):
        return type(values)((key, whole(value)) for key, value in values.items())
    if isinstance(values, list):
        return [whole(value) for value in values]
    return values.full_tensor() if isinstance(values, DTensor) else values


def load_model(net: nn.Module, state: State) -> None:
    """Give every process its part of a whole state."""
    own = net.state_dict()
    net.load_state_dict({name: _part(value, own.get(name)) for name, value in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: State) -> None:
    """The same of the optimizer of a sharded net, whose parameters stand in the same order."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    parts = {
        place: {name: _part(value, parameters[place]) for name, value in values.items()}
        for place, values in state["state"].items()
    }
    optimizer.load_state_dict({**state, "state": parts})


def _part(value: Any, like: Any) -> Any:
    from torch.distributed.tensor import DTensor, distribute_tensor

    if not (isinstance(like, DTensor) and isinstance(value, Tensor) and value.shape == like.shape):
        return value
    return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
