"""Fully connected net: flattens, then linear layers with one activation between them."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from apical.names import unknown

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def mlp(
    *,
    in_shape: tuple[int, ...],
    num_classes: int,
    hidden: Sequence[int] = (1024, 1024),
    activation: Literal["relu", "sigmoid", "tanh"] = "relu",
) -> nn.Sequential:
    """Multilayer perceptron; layers are named fc1, fc2, ...

    Args: in_shape: of one input, flattened.     num_classes: number of outputs.
        hidden: units of each hidden layer, each >= 1; empty = a linear classifier.
        activation: between the layers, none after the last.
    Raises: ValueError for an unknown activation or a width below 1.
    >>> [tuple(p.shape) for p in mlp(in_shape=(1, 2, 2), num_classes=3, hidden=[5]).parameters()]
    [(5, 4), (5,), (3, 5), (3,)]
    """
    if activation not in ACTIVATIONS:
        raise unknown("activation of mlp", activation, ACTIVATIONS)
    if isinstance(hidden, (int, str)) or any(not isinstance(h, int) or h < 1 for h in hidden):
        raise ValueError(f"mlp: hidden={hidden!r} must list widths of at least 1, e.g. [256, 128]")
    widths = [math.prod(in_shape), *hidden, num_classes]
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
        if i < len(widths) - 1:
            layers[f"{activation}{i}"] = ACTIVATIONS[activation]()
    return nn.Sequential(OrderedDict(layers))
