"""How far training has moved a net from where it started."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import nn


def weight_change(model: nn.Module, start: Mapping[str, torch.Tensor]) -> dict[str, float]:
    """How far each trainable parameter has moved: ||W - W_0|| / ||W_0||, by name.

    Together with an accuracy it shows whether the whole net was tuned or only its head.

    Args: start: the state dict before training, copied (`copy.deepcopy(model.state_dict())`).
    Returns: for parameters that `start` holds with the same shape; infinite where W_0 is zero and
        W is not.
    """
    changes = {}
    for name, parameter in model.named_parameters():
        before = start.get(name)
        if not parameter.requires_grad or before is None or before.shape != parameter.shape:
            continue
        now = parameter.detach().double()
        before = before.to(now)
        moved, size = (now - before).norm().item(), before.norm().item()
        changes[name] = moved / size if size else (float("inf") if moved else 0.0)
    return changes
