"""Few-pixel attack: differential evolution over places and values of some pixels."""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.attacks.base import Attack
from apical.attacks.losses import broken
from apical.attacks.sources import Oracle
from apical.names import check_at_least

MUTATION = (0.5, 1.0)
"""Range of the factor of the difference, drawn once a generation."""


@dataclass(frozen=True)
class FewPixel(Attack):
    """Chooses places and new values of some pixels that minimise the probability of the label.

    A genome contains row, column and channel values of each pixel, all in [0, 1). In each
    generation every genome is replaced by best + factor * (one other - another) if that is better.
    Values outside [0, 1) are resampled.

    Args:
        pixels: how many may change, at least 1. steps: generations, at least 1.
        population: genomes for each example, rounded down to a multiple of a genome's length, at
            least one such multiple and 5.
        batch: images in one forward pass, at most.

    The limit is the number of pixels, not a norm; `bounds` limits the values.
    Shapes: inputs are images (N, channels, height, width).
    Source: Su, Vargas, Sakurai 2019; differential evolution "best1bin": Storn, Price 1997.
    """

    pixels: int = 1
    steps: int = 30
    population: int = 150
    batch: int = 1024

    default_gradient: ClassVar[str] = "none"

    def validate(self) -> None:
        check_at_least(self.name, 1, pixels=self.pixels, steps=self.steps)
        check_at_least(self.name, 1, population=self.population, batch=self.batch)

    @property
    def name(self) -> str:
        return f"FewPixel({self.pixels})"

    def passes(self, classes: int) -> int:
        return (self.steps + 1) * self.population

    def perturb(self, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        if x.dim() != 4 or self.pixels > x.shape[2] * x.shape[3]:
            raise ValueError(
                f"{self.name}: inputs of shape {tuple(x.shape)}; it changes {self.pixels} of the"
                " pixels of images (N, channels, height, width)"
            )
        draws = self.draws()
        length = self.pixels * (2 + x.shape[1])
        size = max(5, max(1, self.population // length) * length)
        genomes = draws.genomes(len(x), size, length)
        energy = self._energy(oracle, x, y, genomes)
        _best_first(genomes, energy)
        result, rows = x.clone(), torch.arange(len(x), device=x.device)
        for _ in range(self.steps):
            trials = draws.challengers(genomes)
            fresh = self._energy(oracle, x[rows], y[rows], trials)
            _select(genomes, energy, trials, fresh)
            best = _painted(x[rows], genomes[:, :1], self.bounds)
            keep = ~broken(oracle.scores(best), y[rows])
            result[rows] = best
            rows, genomes, energy = rows[keep], genomes[keep.cpu()], energy[keep.cpu()]
            if not len(rows):
                break
        return result

    def draws(self) -> "Draws":
        """The random numbers of one attack."""
        return Draws(self.generator())

    def _energy(self, oracle: Oracle, x: Tensor, y: Tensor, genomes: Tensor) -> Tensor:
        """Probability of the label, (N, genomes); in chunks, as each genome is an image."""
        size, parts = genomes.shape[1], []
        at_once = max(1, self.batch // size)
        for images, labels, group in zip(
            x.split(at_once), y.split(at_once), genomes.split(at_once), strict=True
        ):
            probability = F.softmax(oracle.scores(_painted(images, group, self.bounds)), dim=1)
            chosen = labels.repeat_interleave(size)[:, None]
            parts.append(probability.gather(1, chosen).view(len(images), size).cpu())
        return torch.cat(parts)


class Draws:
    """Random numbers of differential evolution.

    Shapes: populations (N, size, length) in [0, 1).
    """

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def genomes(self, count: int, size: int, length: int) -> Tensor:
        return self._uniform(count, size, length)

    def challengers(self, genomes: Tensor) -> Tensor:
        """best + factor * (one - another), inside [0, 1); the best is genome 0."""
        factor = MUTATION[0] + (MUTATION[1] - MUTATION[0]) * self._uniform(1)
        one, another = self._two_others(*genomes.shape[:2])
        trials = genomes[:, :1] + factor * (_taken(genomes, one) - _taken(genomes, another))
        outside = (trials < 0) | (trials > 1)
        return torch.where(outside, self._uniform(*trials.shape), trials)

    def _two_others(self, count: int, size: int) -> tuple[Tensor, Tensor]:
        """For each genome two others, different from it and from each other."""
        keys = self._uniform(count, size, size)
        keys.diagonal(dim1=1, dim2=2).fill_(-1)
        two = keys.topk(2, dim=2).indices
        return two[..., 0], two[..., 1]

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=self.generator)


def _taken(genomes: Tensor, index: Tensor) -> Tensor:
    return genomes.gather(1, index[..., None].expand_as(genomes))


def _select(genomes: Tensor, energy: Tensor, trials: Tensor, fresh: Tensor) -> None:
    """Keep the better of each pair, then put a copy of the best first, in place."""
    better = fresh < energy
    genomes[better], energy[better] = trials[better], fresh[better]
    least, place = energy.min(1)
    improves = least < energy[:, 0]
    best = genomes[torch.arange(len(genomes)), place]
    genomes[improves, 0], energy[improves, 0] = best[improves], least[improves]


def _best_first(genomes: Tensor, energy: Tensor) -> None:
    """Swap the best genome with the first, in place."""
    every, place = torch.arange(len(genomes)), energy.argmin(1)
    for values in (genomes, energy):
        first, best = values[:, 0].clone(), values[every, place].clone()
        values[every, place] = first
        values[:, 0] = best


def _painted(x: Tensor, genomes: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Each image with each of its genomes' pixels. Shapes: -> (N * genomes, C, H, W)."""
    count, size, _ = genomes.shape
    channels, height, width = x.shape[1:]
    images = x.repeat_interleave(size, dim=0)
    low, high = bounds
    pixels = genomes.reshape(count * size, -1, 2 + channels)
    rows = (pixels[..., 0] * height).long().clamp(max=height - 1).to(x.device)
    columns = (pixels[..., 1] * width).long().clamp(max=width - 1).to(x.device)
    values = (low + (high - low) * pixels[..., 2:]).to(x.device, x.dtype)
    every = torch.arange(count * size, device=x.device)
    for pixel in range(pixels.shape[1]):  # one after the other: a later pixel may cover an earlier
        images[every, :, rows[:, pixel], columns[:, pixel]] = values[:, pixel]
    return images
