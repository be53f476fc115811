"""From a classifier to a hash net: K outputs in place of the class scores."""

from typing import Any

from torch import nn

from apical.names import checked_count
from apical.nets.pretrained import replace_head

INITIAL_STD = 0.01  # of the new layer's weights: small outputs, so that no bit is saturated


def hash_head(
    model: nn.Module, bits: int, *, head: str | None = None, example: Any = None, seed: int = 0
) -> str:
    """Give any net K outputs, one for each bit, in place of its last layer.

    The code of an input is the sign of its outputs (`pack`); losses and attacks see
    `relax(outputs, sharpness)`.

    Args: bits: K, at least 2. head, example, seed: as in `pretrained.replace_head`.
    Returns: the name of the new layer.
    Raises: ValueError if there is no head to replace, or several might be meant.

    >>> net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    >>> hash_head(net, bits=16), net[2].out_features
    ('2', 16)
    """
    bits = checked_count("hash_head", 2, bits=bits)
    return replace_head(model, bits, head=head, example=example, std=INITIAL_STD, seed=seed)
