"""Losses for learning hash codes: those on pairs, with a memory of codes, and those that pull the
codes of each class to one code, its centre.

Notation: B examples of K bits; u = tanh(alpha h) in (-1, 1)^K of a net's outputs h; U the same of
the N examples that u is compared with; S_ij = 1 if i and j share a label, else 0. A loss is a
number, the mean over its terms.
"""

import abc
import functools
import math
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.names import check_literals, checked_count
from apical.retrieval.database import check_labels, relevant

PairWeight = Literal["balanced", "none"]


class Bank(NamedTuple):
    """Examples to compare a batch with. Shapes: codes (N, K) in [-1, 1], labels as the batch's."""

    codes: Tensor
    labels: Tensor


class Memory(nn.Module):
    """The last code u of each training example, for losses on pairs to compare a batch with.

    A module with buffers, so that it is moved, saved and restored with the model.

    Args: labels: (N,) class numbers or (N, classes) of 0 and 1. bits: K.
    Codes that no batch has renewed yet are zero.
    """

    codes: Tensor
    labels: Tensor

    def __init__(self, labels: Tensor, bits: int) -> None:
        super().__init__()
        check_labels(labels, len(labels))
        bits = checked_count("Memory", bits=bits)
        self.register_buffer("codes", torch.zeros(len(labels), bits))
        self.register_buffer("labels", labels.detach().clone())

    @torch.no_grad()
    def renew(self, rows: Tensor, u: Tensor) -> Bank:
        """Store the codes of these examples; returns those of all examples, without gradients.

        Shapes: rows (B,) positions in the training set, u (B, K).
        """
        self.codes[rows] = u.detach().to(self.codes.dtype)
        # a copy: the next batch changes the memory, while this one's graph may still need it
        return Bank(self.codes.clone(), self.labels)


@dataclass(frozen=True)
class HashLoss(abc.ABC):
    """A loss on relaxed codes u. The object is its configuration."""

    def __post_init__(self) -> None:
        check_literals(self, self.name)
        for option in fields(self):
            value = getattr(self, option.name)
            if isinstance(value, int | float) and value < 0:
                raise ValueError(f"{self.name}: {option.name}={value} must be at least 0")

    @abc.abstractmethod
    def __call__(self, u: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, a number."""

    @property
    def name(self) -> str:
        """The name of the loss in messages."""
        return type(self).__name__

    def check(self, bits: int, classes: int) -> None:
        """Raises: ValueError if there are fewer codes of this number of bits than classes."""
        if bits < 1 or classes < 1:
            raise ValueError(f"{self.name}: bits={bits} and classes={classes} are at least 1")
        if bits < 63 and classes > 2**bits:
            raise ValueError(
                f"{self.name}: {classes} classes, but {bits} bits have only {2**bits} codes; use"
                f" at least {(classes - 1).bit_length()} bits"
            )


@dataclass(frozen=True)
class PairLoss(HashLoss):
    """A loss that pulls examples of one class together and pushes others apart.

    Args of every loss on pairs:
        pair_weight: "none" gives every pair the same weight. With C equally frequent classes only
            one pair in C shares a label, so that pushing apart dominates. With a memory, whose
            codes have no gradient, all codes of a batch then collapse to one: DSH at every learning
            rate tried, DPSH and HashNet at those that train well otherwise, DPH only at high ones.
            "balanced" weights the pairs that share a label by pairs / number of these, and the
            others likewise, so that both kinds have the same total weight.
    """

    pair_weight: PairWeight = "none"

    def __call__(self, u: Tensor, labels: Tensor, bank: Bank | None = None) -> Tensor:
        """The loss of a batch.

        Args: bank: examples that the batch is compared with, such as the whole training set
            (`Memory.renew`); None: the batch itself, each example with itself included.
        Shapes: u (B, K) in [-1, 1]; labels (B,) class numbers or (B, classes) of 0 and 1.
        Raises: ValueError for shapes that do not fit.
        """
        check_labels(labels, len(u))
        others = Bank(u, labels) if bank is None else bank
        if others.codes.shape[1:] != u.shape[1:]:
            raise ValueError(
                f"{self.name}: codes of shape {tuple(u.shape)}, those of the bank"
                f" {tuple(others.codes.shape)}: both need the same number of bits"
            )
        alike = relevant(labels, others.labels).to(u.dtype)
        terms = self.pairs(u, others.codes, alike)
        if self.pair_weight == "balanced":
            pairs, positive = alike.numel(), alike.sum()
            terms = terms * (pairs / torch.where(alike > 0, positive, pairs - positive))
        return terms.mean() + self.penalty(u)

    @abc.abstractmethod
    def pairs(self, u: Tensor, others: Tensor, alike: Tensor) -> Tensor:
        """The term of each pair. Shapes: (B, K), (N, K), (B, N) of 0 and 1 -> (B, N)."""

    def penalty(self, u: Tensor) -> Tensor:
        """A number that pulls u to -1 and +1."""
        return u.new_zeros(())


@dataclass(frozen=True)
class DSH(PairLoss):
    """Deep supervised hashing: S d^2 / 2 + (1 - S) max(0, m - d^2) / 2 + q mean||u| - 1|.

    d^2 = ||u_i - U_j||^2. Collapses with a memory without balanced weights.

    Args: margin: m, None for 2 K. quantisation: q.
    Source: Liu, Wang, Shan, Chen 2016; q = 0.1 and m = 2 K as in DeepHash-pytorch.
    """

    margin: float | None = None
    quantisation: float = 0.1

    def pairs(self, u: Tensor, others: Tensor, alike: Tensor) -> Tensor:
        margin = 2 * u.shape[1] if self.margin is None else self.margin
        squares = u.square().sum(1, keepdim=True) + others.square().sum(1)
        distance = (squares - 2 * u @ others.T).clamp(min=0)
        return (alike * distance + (1 - alike) * (margin - distance).clamp(min=0)) / 2

    def penalty(self, u: Tensor) -> Tensor:
        return self.quantisation * (u.abs() - 1).abs().mean()


@dataclass(frozen=True)
class DPSH(PairLoss):
    """Deep pairwise supervised hashing: log(1 + e^t) - S t + q mean(sign u - u)^2, t = u . U / 2.

    Collapses with a memory without balanced weights, except at small learning rates.

    Args: quantisation: q, of the mean over all B K values (DeepHash-pytorch: 0.1). The sum over
        values divided by B N with a factor 50, as others write it, is q = 50 K / N.
    Source: Li, Wang, Kang 2016.
    """

    quantisation: float = 0.1

    def pairs(self, u: Tensor, others: Tensor, alike: Tensor) -> Tensor:
        return _likelihood(u @ others.T / 2, alike)

    def penalty(self, u: Tensor) -> Tensor:
        return self.quantisation * (u.detach().sign() - u).square().mean()


@dataclass(frozen=True)
class DPH(PairLoss):
    """Deep pairwise hashing: (u . U / K - (2 S - 1))^2.

    Bounded terms: without balanced weights it collapses with a memory only at high rates.

    Source: the loss that HAG was published with, Yang et al. 2018.
    """

    def pairs(self, u: Tensor, others: Tensor, alike: Tensor) -> Tensor:
        return (u @ others.T / u.shape[1] - (2 * alike - 1)).square()


@dataclass(frozen=True)
class HashNet(PairLoss):
    """log(1 + e^t) - S t with t = scale u . U, with balanced pairs, as published.

    Without balanced pairs it collapses with a memory, except at small learning rates. It has no
    penalty: a tanh that becomes steeper pulls u to -1 and +1 (`Continuation`).

    Args: scale: None for 10 / K. DeepHash-pytorch: 0.1.
    Source: Cao, Long, Wang, Yu 2017.
    """

    pair_weight: PairWeight = "balanced"
    scale: float | None = None

    def pairs(self, u: Tensor, others: Tensor, alike: Tensor) -> Tensor:
        scale = 10 / u.shape[1] if self.scale is None else self.scale
        return _likelihood(scale * u @ others.T, alike)


def _likelihood(products: Tensor, alike: Tensor) -> Tensor:
    """Negative log likelihood of S under the probability sigmoid(t)."""
    return F.softplus(products) - alike * products


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


LOSSES: dict[str, type[HashLoss]] = {
    "csq": CSQ,
    "dph": DPH,
    "dpn": DPN,
    "dpsh": DPSH,
    "dsh": DSH,
    "hashnet": HashNet,
}
