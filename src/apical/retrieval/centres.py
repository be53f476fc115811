"""Losses that pull the codes of each class to one code, its centre."""

from __future__ import annotations

import abc
import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from apical.retrieval.database import check_labels
from apical.retrieval.losses import HashLoss


@dataclass(frozen=True)
class CentreLoss(HashLoss):
    """A loss between u and the centre c of its class, without pairs.

    Args of every such loss:
        classes: at least 1.
        seed: of random centres and of ties.
    """

    classes: int
    seed: int = 0

    def __call__(self, u: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch.

        Shapes: u (B, K) in [-1, 1]; labels (B,) class numbers or (B, classes) of 0 and 1.
        Raises: ValueError for a K that cannot hold the classes, or labels that do not fit.
        """
        check_labels(labels, len(u))
        return self.towards(u, self.targets(labels, u.shape[1]).to(u))

    @abc.abstractmethod
    def towards(self, u: Tensor, targets: Tensor) -> Tensor:
        """The loss for the given centres. Shapes: both (B, K)."""

    @abc.abstractmethod
    def centres(self, bits: int) -> Tensor:
        """The code of each class. Shapes: (classes, bits) of -1 and +1, float32."""

    def targets(self, labels: Tensor, bits: int) -> Tensor:
        """The centre of each example: with several labels the sign of the sum of their centres;
        where that is 0 a random sign, which is fixed for each bit.

        Shapes: labels (B,) or (B, classes) -> (B, bits).
        """
        self.check(bits, self.classes)
        centres = _cached_centres(self, bits).to(labels.device)
        if labels.dim() == 1:
            if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < len(centres):
                raise ValueError(
                    f"{self.name}: labels from {int(labels.min())} to {int(labels.max())}, but"
                    f" classes={self.classes}"
                )
            return centres[labels.long()]
        if labels.shape[1] != self.classes:
            raise ValueError(
                f"{self.name}: labels of {labels.shape[1]} classes, but classes={self.classes}"
            )
        generator = torch.Generator().manual_seed(self.seed)
        ties = (2 * torch.randint(2, (bits,), generator=generator) - 1).to(centres)
        total = labels.to(centres) @ centres
        return torch.where(total == 0, ties, total.sign())


@dataclass(frozen=True)
class CSQ(CentreLoss):
    """Central similarity: BCE((u + 1) / 2, (c + 1) / 2) + q mean(|u| - 1)^2.

    The centres are the rows of a Hadamard matrix H, then those of -H: any two of the first K
    differ in K / 2 bits, and agree in bit 0. BCE is the mean over all bits.

    Args: quantisation: q; 0.05, in DeepHash-pytorch 1e-4.
    Raises: ValueError when used with a number of bits that is no power of two, or with more than
        2 K classes.
    Source: Yuan et al. 2020. They draw random centres where no Hadamard matrix serves: see `DPN`.
    """

    quantisation: float = 0.05

    def towards(self, u: Tensor, targets: Tensor) -> Tensor:
        # Of targets -1 and +1 it is -log((1 + u c) / 2); torch's own refuses to run under autocast.
        likely = ((1 + u * targets) / 2).clamp(min=torch.finfo(u.dtype).tiny)
        return -likely.log().mean() + self.quantisation * (u.abs() - 1).square().mean()

    def check(self, bits: int, classes: int) -> None:
        super().check(bits, classes)
        if bits & (bits - 1):
            raise ValueError(
                f"CSQ: codes of {bits} bits are not supported: its centres are rows of a Hadamard"
                f" matrix. Use a power of two ({2 ** (bits.bit_length() - 1)} or"
                f" {2 ** bits.bit_length()}), or DPN"
            )
        if classes > 2 * bits:
            raise ValueError(
                f"CSQ: {classes} classes, but {bits} bits have centres for {2 * bits}; use"
                f" {2 ** (math.ceil(classes / 2) - 1).bit_length()} bits or more, or DPN"
            )

    def centres(self, bits: int) -> Tensor:
        self.check(bits, self.classes)
        rows = torch.ones(1, 1)
        while len(rows) < bits:
            rows = torch.cat([torch.cat([rows, rows], 1), torch.cat([rows, -rows], 1)])
        return torch.cat([rows, -rows])[: self.classes]


@dataclass(frozen=True)
class DPN(CentreLoss):
    """Deep polarised network: mean max(0, m - u c), each bit by itself.

    The centres are random, different, and balanced: half of the bits are +1.

    Args: margin: m. Above 1 it never vanishes, since |u| < 1.
    Raises: ValueError when used with an odd number of bits, or with more classes than there are
        balanced codes.
    Source: Fan, Ng, Ju, Zhang, Liu, Chan, Yang 2020.
    """

    margin: float = 1.0

    def towards(self, u: Tensor, targets: Tensor) -> Tensor:
        return (self.margin - u * targets).clamp(min=0).mean()

    def check(self, bits: int, classes: int) -> None:
        super().check(bits, classes)
        if bits % 2:
            raise ValueError(
                f"DPN: codes of {bits} bits are not supported: half of the bits of a balanced"
                f" centre are +1; use {bits + 1}"
            )
        if classes > math.comb(bits, bits // 2):
            raise ValueError(
                f"DPN: {classes} classes, but {bits} bits have only"
                f" {math.comb(bits, bits // 2)} balanced codes; use more bits"
            )

    def centres(self, bits: int) -> Tensor:
        self.check(bits, self.classes)
        generator = torch.Generator().manual_seed(self.seed)
        found: dict[tuple[int, ...], None] = {}
        while len(found) < self.classes:
            positive = torch.randperm(bits, generator=generator)[: bits // 2]
            found[tuple(positive.sort().values.tolist())] = None
        centres = -torch.ones(self.classes, bits)
        return centres.scatter_(1, torch.tensor(list(found)), 1.0)


@functools.lru_cache(maxsize=32)
def _cached_centres(loss: CentreLoss, bits: int) -> Tensor:
    return loss.centres(bits)
