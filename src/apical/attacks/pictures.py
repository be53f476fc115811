"""A few images and their adversarial versions, for pages that show them."""

import math
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from apical.attacks.ball import Threat
from apical.attacks.base import Attack
from apical.attacks.flips import Flips, RandomFlips
from apical.attacks.sources import NoGradientWarning
from apical.attacks.square import Square
from apical.attacks.steps import PGD, Noise
from apical.nets.spiking import has_spikes, spikes

IMAGES, STEPS, QUERIES = 6, 20, 200


def pictures(
    model: nn.Module, x: Tensor, y: Tensor, *, eps: float, norm: Threat, seed: int = 0
) -> dict[str, Any]:
    """Attacks on `IMAGES` images, at most, that the model classifies correctly, of as many classes
    as possible.

    Args: eps: radius. seed: of the attacks.
    Returns: arrays: x (k, C, H, W), labels (k,), predictions_clean (k,), adv (s, k, C, H, W),
        predictions_adv (s, k), names (s,) as "attack / source", eps. Empty if no image is correct.
        Frames of events, ON before OFF, are arranged as one picture in colours: see `laid_out`.
        For a spiking net also raster_<layer> (1 + s, T, units), the spikes on the first image:
        first on the clean image, then on its adversarial versions.
    """
    rows = _chosen(model, x, y)
    if not len(rows):
        return {}
    x, y = x[rows], y[rows]
    found = _points(model, x, y, eps, norm, seed)
    predicted = [_predicted(model, points) for points in found.values()]
    shown = laid_out if norm == "flips" else lambda points: points
    return {
        "x": shown(x).cpu().numpy(),
        "labels": y.cpu().numpy(),
        "predictions_clean": _predicted(model, x).numpy(),
        "adv": torch.stack([shown(points) for points in found.values()]).cpu().numpy(),
        "predictions_adv": torch.stack(predicted).numpy(),
        "names": list(found),
        "eps": eps,
        **_rasters(model, torch.stack([x[0], *(points[0] for points in found.values())])),
    }


def laid_out(frames: Tensor) -> Tensor:
    """Frames of events side by side in reading order: ON red, OFF blue, on white.

    Shapes: (N, T * 2, H, W) -> (N, 3, rows * (H + 1) - 1, columns * (W + 1) - 1).
    """
    on, off = frames.unflatten(1, (-1, 2)).unbind(2)  # (N, T, H, W) each
    coloured = torch.stack([1 - off, 1 - torch.maximum(on, off), 1 - on], 2)
    steps = coloured.shape[1]
    columns = math.ceil(math.sqrt(steps))
    rows = math.ceil(steps / columns)
    framed = torch.nn.functional.pad(coloured, (0, 1, 0, 1), value=0.6)
    blank = framed.new_full((1,), 0.6).expand(
        len(frames), rows * columns - steps, *framed.shape[2:]
    )
    grid = torch.cat([framed, blank], 1).unflatten(1, (rows, columns))
    return grid.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)[:, :, :-1, :-1]


def _rasters(model: nn.Module, x: Tensor) -> dict[str, Any]:
    if not has_spikes(model):
        return {}
    fired = spikes(model, x)
    return {
        f"raster_{name.rpartition('.')[2]}": each.flatten(2).transpose(0, 1).bool().cpu().numpy()
        for name, each in fired.items()
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


def _chosen(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Positions of correct images: the first one of each class, then others."""
    right = (_predicted(model, x) == y.cpu()).nonzero().squeeze(1).tolist()
    first: dict[int, int] = {}
    for place in right:
        first.setdefault(int(y[place]), place)
    chosen = list(first.values())
    chosen += [place for place in right if first[int(y[place])] != place]
    return torch.tensor(sorted(chosen[:IMAGES]), dtype=torch.int64)


def _predicted(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(part).argmax(1).cpu() for part in x.split(256)])
