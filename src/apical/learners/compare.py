"""How far a learner's gradients are from those of backpropagation."""

from __future__ import annotations

import copy
import math

from torch import Tensor, nn

from apical.core.converted import forked_rng
from apical.learners.backprop import Backprop
from apical.learners.base import Batch, Learner


def alignment(model: nn.Module, learner: Learner, batch: Batch) -> dict[str, dict[str, float]]:
    """Angle and norm ratio of each parameter's gradient to that of exact backprop through time.

    Works on copies: the model, its `.grad` and its random numbers stay as they are.

    Returns: parameter -> {"angle_deg": 0 to 180, 0 is backprop; "norm_ratio": |learner's| /
        |exact|}; only parameters that both train, without entries where a norm is zero.
    """
    ours = _gradients(model, learner, batch)
    exact = _gradients(model, Backprop(loss=learner.loss, through="exact"), batch)
    rows: dict[str, dict[str, float]] = {}
    for name in ours.keys() & exact.keys():
        a, b = ours[name].flatten().double(), exact[name].flatten().double()
        norms = a.norm().item(), b.norm().item()
        if min(norms) > 0:
            cosine = max(-1.0, min(1.0, a.dot(b).item() / (norms[0] * norms[1])))
            ratio = norms[0] / norms[1]
            rows[name] = {"angle_deg": math.degrees(math.acos(cosine)), "norm_ratio": ratio}
    return dict(sorted(rows.items()))


def _gradients(model: nn.Module, learner: Learner, batch: Batch) -> dict[str, Tensor]:
    twin = copy.deepcopy(model)
    twin.zero_grad(set_to_none=True)
    with forked_rng(twin):
        learner.gradients(twin, batch)
    return {name: p.grad for name, p in twin.named_parameters() if p.grad is not None}
