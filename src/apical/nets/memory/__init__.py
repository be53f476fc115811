"""Metalearned neural memory: nets that change a memory by a learning rule while they process a
sequence.

>>> import torch
>>> net = build("mnm", inputs=6, outputs=4, write="g", width=8)
>>> net(torch.zeros(2, 5, 6)).shape
torch.Size([2, 5, 4])
"""

from torch import nn

from apical.names import unknown
from apical.nets import building
from apical.nets.memory.memory import (
    ACTIVATIONS,
    Gradient,
    Local,
    Memory,
    Write,
    activations,
    begin,
    recall,
)
from apical.nets.memory.net import COLLAPSED, WRITES, MemoryNet

__all__ = [
    "ACTIVATIONS",
    "COLLAPSED",
    "NETS",
    "WRITES",
    "Gradient",
    "Local",
    "Memory",
    "MemoryNet",
    "Write",
    "activations",
    "begin",
    "build",
    "recall",
]

NETS: dict[str, type[nn.Module]] = {"mnm": MemoryNet}
"""Nets with a memory that is written, by name."""


def build(name: str, *, inputs: int, outputs: int, **options: object) -> nn.Module:
    """A net with a memory by name; weights use the global generator.

    Args: inputs, outputs: numbers at each step.     options: of the net; see its docstring.
    Raises: ValueError for an unknown name or option, or a value out of range.
    """
    if name not in NETS:
        raise unknown("net with a memory", name, NETS)
    with building(name, NETS[name], options, beside=("inputs", "outputs")):
        return NETS[name](inputs, outputs, **options)
