"""A few images and what attacks make of them, for pages that show them."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from apical.attacks.ball import Threat
from apical.attacks.base import Attack
from apical.attacks.flips import Flips, RandomFlips
from apical.attacks.noise import Noise
from apical.attacks.sources import NoGradientWarning
from apical.attacks.square import Square
from apical.attacks.steps import PGD

STEPS, QUERIES = 20, 200


def pictures(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    norm: Threat,
    count: int = 6,
    seed: int = 0,
) -> dict[str, Any]:
    """Attacks on images that the model gets right, of different classes first.

    Args: eps: radius. count: images at most. seed: of the attacks.
    Returns: arrays: x (k, C, H, W), labels (k,), predictions_clean (k,), adv (s, k, C, H, W),
        predictions_adv (s, k), names (s,) as "attack / source", eps. Nothing if none is right.
    """
    rows = _chosen(model, x, y, count)
    if not len(rows):
        return {}
    x, y = x[rows], y[rows]
    found = _points(model, x, y, eps, norm, seed)
    predicted = [_predicted(model, points) for points in found.values()]
    return {
        "x": x.cpu().numpy(),
        "labels": y.cpu().numpy(),
        "predictions_clean": _predicted(model, x).numpy(),
        "adv": torch.stack(list(found.values())).cpu().numpy(),
        "predictions_adv": torch.stack(predicted).numpy(),
        "names": list(found),
        "eps": eps,
    }


def _points(
    model: nn.Module, x: Tensor, y: Tensor, eps: float, norm: Threat, seed: int
) -> dict[str, Tensor]:
    common: dict[str, Any] = {"norm": norm, "seed": seed}
    noise: Attack
    pgd: Attack
    if norm == "flips":
        count = round(eps)
        noise = RandomFlips(count, seed=seed)
        pgd = Flips(count, min(STEPS, count), loss="margin", seed=seed)
    else:
        noise, pgd = Noise(eps, **common), PGD(eps, STEPS, loss="margin", **common)
    found = {f"{noise.label} / none": noise(model, x, y)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoGradientWarning)  # the picture shows it
        for source in ("own", "exact"):
            found[f"{pgd.label} / {source}"] = pgd(model, x, y, gradient=source)
    if norm != "flips" and x.dim() == 4 and min(x.shape[2:]) >= 5:
        square = Square(eps, QUERIES, **common)
        found[f"{square.label} / none"] = square(model, x, y)
    return found


def _chosen(model: nn.Module, x: Tensor, y: Tensor, count: int) -> Tensor:
    """Places of images that are right: the first of each class, then the others."""
    right = (_predicted(model, x) == y.cpu()).nonzero().squeeze(1).tolist()
    first: dict[int, int] = {}
    for place in right:
        first.setdefault(int(y[place]), place)
    others = [place for place in right if place not in set(first.values())]
    return torch.tensor(sorted([*first.values(), *others][:count]), dtype=torch.int64)


def _predicted(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part).argmax(1).cpu() for part in x.split(256)])
