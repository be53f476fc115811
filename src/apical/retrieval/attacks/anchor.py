"""Anchor codes: one code stands for all codes that should be found, and the query leaves it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from apical.attacks.losses import Loss
from apical.retrieval.attacks.attack import KnownDatabase
from apical.retrieval.database import relevant
from apical.retrieval.relaxation import relax


@dataclass(frozen=True, eq=False)
class Anchor(KnownDatabase):
    """Projected gradient ascent away from the anchor of the query's labels; targeted: towards that
    of the target labels.

    With q = tanh(alpha h(x')), R the codes of the database that share a label with y, and S the
    others, the anchor and the loss to be raised are

        a = sign(mean_R r - mean_S s) (a bit of 0 counts as 1),    L = -(1 / K) sum_k q_k a_k,

    and L with the other sign where it is targeted. If nothing in the database is relevant, a is the
    query's own code.

    Args and errors: as of `KnownDatabase`.
    Source: after Bai et al. 2020 (component voting, targeted) and Wang et al. 2021 (non-targeted).
    """

    def aim(self, outputs: Tensor, y: Tensor) -> Callable[[float], Loss]:
        known = self.known.codes.signs().to(outputs)
        wanted = relevant(y.cpu(), self.known.labels).to(outputs)
        own = outputs.sign() + (outputs == 0)
        anchor = self.anchor(known, wanted, own)
        sign = 1.0 if self.targeted else -1.0

        def loss(now: Tensor, alpha: float) -> Tensor:
            return sign * (relax(now, alpha) * anchor).mean(1)

        return lambda alpha: lambda now: loss(now, alpha)

    def anchor(self, known: Tensor, wanted: Tensor, own: Tensor) -> Tensor:
        """The code that stands for those to be found.

        Shapes: known (M, K), wanted (N, M), own (N, K) -> (N, K), of -1 and 1.
        """
        count = wanted.sum(1, keepdim=True)
        others = len(known) - count
        near = wanted @ known / count.clamp(min=1)
        far = (1 - wanted) @ known / others.clamp(min=1)
        votes = near - far
        return ((votes.sign() + (votes == 0)) * (count > 0)) + own * (count == 0)
