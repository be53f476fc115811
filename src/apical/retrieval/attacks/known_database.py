"""Attacks that know codes of the database: the query's code is moved away from those that should be
found, or towards those of target labels."""

import abc
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from apical.attacks.losses import Loss
from apical.retrieval.attacks.attack import RetrievalAttack
from apical.retrieval.codes import relax
from apical.retrieval.database import Database, check_alike, check_labels, relevant

FACTOR = 25.0
"""Weight of the distance over K, relative to the mean squared change of the input."""


@dataclass(frozen=True, eq=False)
class KnownDatabase(RetrievalAttack):
    """An attack with access to codes of the database and their labels.

    Args: database: codes by the attacked net (within `attacks.Transfer` by the other net) that the
        attacker has, such as those of its training images. targeted: y are target labels.
    Raises: ValueError when called with labels of another form than those of the database, for codes
        of another length, or for a target label that the database does not contain.
    """

    database: Database | None = None
    targeted: bool = False

    def validate(self) -> None:
        super().validate()
        if self.database is None:
            raise ValueError(
                f"{self.name}: database= is missing: the codes it moves queries away from, as"
                " retrieval.Database(codes, labels)"
            )

    @property
    def label(self) -> str:
        return super().label + (" targeted" if self.targeted else "")

    def check_labels(self, y: Tensor, examples: int, classes: int) -> None:
        known = self.known
        check_labels(y, examples)
        check_alike(y, known.labels)
        if known.codes.bits != classes:
            raise ValueError(
                f"{self.name}: the database has codes of {known.codes.bits} bits, the model gives"
                f" {classes}"
            )
        if self.targeted:
            alone = (~relevant(y.cpu(), known.labels).any(1)).nonzero().flatten()
            if len(alone):
                raise ValueError(
                    f"{self.name}: no code of the database has target label {y[alone[0]].tolist()}"
                    f" (query {int(alone[0])})"
                )

    @property
    def known(self) -> Database:
        assert self.database is not None
        return self.database

    def aim(self, outputs: Tensor, y: Tensor) -> Callable[[float], Loss]:
        known = self.known.codes.signs().to(outputs)
        wanted = relevant(y.cpu(), self.known.labels).to(outputs)
        own = outputs.sign() + (outputs == 0)  # as codes: an output of 0 is a 1
        raised = self.raised(known, wanted, own)

        def at(alpha: float) -> Loss:
            return lambda now: raised(relax(now, alpha))

        return at

    @abc.abstractmethod
    def raised(self, known: Tensor, wanted: Tensor, own: Tensor) -> Loss:
        """The loss that is to rise, as a function of q = tanh(alpha h).

        Shapes: known (M, K), wanted (N, M) of 0 and 1, own (N, K), of -1 and 1; q (N, K) -> (N,).
        """


@dataclass(frozen=True, eq=False)
class Anchor(KnownDatabase):
    """The query's code is moved away from the anchor of its labels; targeted: towards the anchor of
    the target labels.

    With q = tanh(alpha h(x')), R the codes of the database that share a label with y, and S the
    others, the anchor and the loss to be raised are

        a = sign(mean_R r - mean_S s) (a bit of 0 counts as 1),    L = -(1 / K) sum_k q_k a_k,

    and L with the other sign where it is targeted. If nothing in the database is relevant, a is the
    query's own code.

    Args and errors: as of `KnownDatabase`.
    Source: after Bai et al. 2020 (component voting, targeted) and Wang et al. 2021 (non-targeted).
    """

    def raised(self, known: Tensor, wanted: Tensor, own: Tensor) -> Loss:
        anchor = self.anchor(known, wanted, own)
        sign = 1.0 if self.targeted else -1.0
        return lambda q: sign * (q * anchor).mean(1)

    def anchor(self, known: Tensor, wanted: Tensor, own: Tensor) -> Tensor:
        """The anchor a, (N, K) of -1 and 1; arguments as of `raised`."""
        count = wanted.sum(1, keepdim=True)
        others = len(known) - count
        near = wanted @ known / count.clamp(min=1)
        far = (1 - wanted) @ known / others.clamp(min=1)
        votes = near - far
        return ((votes.sign() + (votes == 0)) * (count > 0)) + own * (count == 0)


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

    def raised(self, known: Tensor, wanted: Tensor, own: Tensor) -> Loss:
        sign = -1.0 if self.targeted else 1.0
        factor = sign * FACTOR / own.shape[1]
        return lambda q: factor * self.distance(q, known, wanted, own)

    def restoring(self, change: Tensor) -> Tensor:
        return -2 * change / change[0].numel()

    def distance(self, q: Tensor, known: Tensor, wanted: Tensor, own: Tensor) -> Tensor:
        """mean_r w d(q, r) of each query, (N,), of d(q, own) without relevant codes; arguments as
        of `raised`."""
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
