"""SDHA: the query's code is moved away from those it should find, or towards others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from apical.attacks.losses import Loss
from apical.retrieval.attacks.attack import KnownDatabase
from apical.retrieval.database import relevant
from apical.retrieval.relaxation import relax

FACTOR = 25.0
"""Of the distance over K, against the mean squared change of the input."""


@dataclass(frozen=True, eq=False)
class SDHA(KnownDatabase):
    """Smart deep hashing attack: away from all relevant codes, the nearest first.

    With q = tanh(alpha h(x')), r the codes of the database that share a label with y, and sigma
    the logistic function, it descends

        L = mean (x' - x)^2 - (25 / K) mean_r w d(q, r),    w = D(sign q, r)^-z, z = 0.5,
        d = 1/2 sum_k |q_k - r_k| sigma(s q_k r_k) + sum_k (1 - sigma(s q_k r_k)), s = 5,

    with D the number of bits that differ, taken as 1 where it is 0. If nothing in the database is
    relevant, r is the query's own code.

    targeted: y are the labels the attacker wants to see, and

        L = mean (x' - x)^2 + (25 / K) mean_r w d(q, r),    w = D(sign q, r)^0.3,
        d = 1/2 sum_k |q_k - r_k| sigma(-s q_k r_k), s = 10.

    Args and errors: as of `KnownDatabase`.
    Source: Lu, Chen, Sun, Wang, Wang, Yang 2021; published with steps=1500, optimizer="adam",
        sharpness=SHARPNESS, eps=8/255. With optimizer="sign" the first term of L is left out: the
        ball limits the change.
    """

    def aim(self, outputs: Tensor, y: Tensor) -> Callable[[float], Loss]:
        known = self.known.codes.signs().to(outputs)
        wanted = relevant(y.cpu(), self.known.labels).to(outputs)
        own = outputs.sign() + (outputs == 0)  # as codes: an output of 0 is a 1
        sign = -1.0 if self.targeted else 1.0
        factor = sign * FACTOR / outputs.shape[1]

        def loss(now: Tensor, alpha: float) -> Tensor:
            return factor * self.distance(relax(now, alpha), known, wanted, own)

        return lambda alpha: lambda now: loss(now, alpha)

    def restoring(self, change: Tensor) -> Tensor:
        return -2 * change / change[0].numel()

    def distance(self, q: Tensor, known: Tensor, wanted: Tensor, own: Tensor) -> Tensor:
        """mean_r w d(q, r) of each query.

        Args: wanted: which codes count, 0 or 1. own: counts where none does.
        Shapes: q, own (N, K), known (M, K), wanted (N, M) -> (N,).
        """
        apart = self._terms(q, -torch.ones_like(q))
        along = self._terms(q, torch.ones_like(q))
        # A bit of a code is -1 or +1, so d is linear in it: one matrix product serves all codes.
        distances = (along + apart).sum(1, keepdim=True) / 2 + (along - apart) @ known.T / 2
        turned = q.detach().sign() + (q.detach() == 0)
        weights = self._weight((known.shape[1] - turned @ known.T) / 2)
        count = wanted.sum(1)
        mean = (wanted * weights * distances).sum(1) / count.clamp(min=1)
        alone = self._weight((turned != own).sum(1).to(q)) * self._terms(q, own).sum(1)
        return torch.where(count > 0, mean, alone)

    def _terms(self, q: Tensor, r: Tensor) -> Tensor:
        """d(q, r) of each bit. Shapes: all (N, K)."""
        if self.targeted:
            return (1 - q * r) / 2 * torch.sigmoid(-10 * q * r)
        near = torch.sigmoid(5 * q * r)
        return (1 - q * r) / 2 * near + (1 - near)  # |q - r| = 1 - q r

    def _weight(self, bits: Tensor) -> Tensor:
        return bits**0.3 if self.targeted else bits.clamp(min=1) ** -0.5
