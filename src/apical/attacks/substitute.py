"""Black boxes by imitation: a net that learned another one's answers is attacked in its place."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.attacks import checks
from apical.attacks.isolation import undisturbed


def imitate(
    model: nn.Module,
    substitute: nn.Module,
    x: Tensor,
    *,
    epochs: int = 20,
    batch_size: int = 64,
    lr: float = 2e-3,
    seed: int = 0,
) -> nn.Module:
    """Train another net to answer as this one does, in place, by Adam; returns it in eval mode.

    The model is asked for the class of each input, once, and for nothing else. What is then made on
    the substitute and tried on the model is a black-box attack: black-box FGSM is
    `Transfer(FGSM(eps), imitate(model, net, x))`.

    Args: model: in eval mode; left as it was.     substitute: takes the same inputs.
        x: inputs of one's own, none of those attacked.     epochs, batch_size: >= 1.     lr: above
        0.     seed: of the order of the inputs.
    Shapes: x (N, ...).
    Raises: ValueError for a model in training mode, or values out of range.
    Source: Papernot et al. 2017, without their augmentation of the inputs.
    """
    checks.check_model(model)
    checks.check_mode(model, random_allowed=True)
    if epochs < 1 or batch_size < 1 or not lr > 0 or not len(x):
        raise ValueError(
            f"imitate: epochs={epochs}, batch_size={batch_size}, lr={lr}, {len(x)} inputs: all "
            "must be above 0"
        )
    with undisturbed(model), torch.no_grad():
        answers = torch.cat([model(part).argmax(1) for part in x.split(256)])
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(substitute.parameters(), lr=lr)
    substitute.train()
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(batch_size):
            optimizer.zero_grad()
            F.cross_entropy(substitute(x[rows]), answers[rows]).backward()
            optimizer.step()
    return substitute.eval()
