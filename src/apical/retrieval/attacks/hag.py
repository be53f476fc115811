"""HAG: the bits of the query's own code are inverted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from apical.attacks.losses import Loss
from apical.attacks.sources import Source
from apical.names import check_at_least
from apical.retrieval.attacks.attack import RetrievalAttack
from apical.retrieval.relaxation import relax


@dataclass(frozen=True, eq=False)
class HAG(RetrievalAttack):
    """Hash adversary generation: the bits of the query's code are inverted. Non-targeted.

    With v = tanh(alpha h(x')), u = tanh(h(x)) of the clean input, w_k = 1 for bits with
    |v_k - sign u_k| < 1 + t, which are not inverted with a margin yet (0 for the others), and M
    their number, it minimises

        L = (sum_k w_k v_k u_k / M + 1)^2 + beta (mean_k w_k v_k)^2.

    If all bits are inverted (M = 0) the first sum is 0.

    Args: margin: t, at least 0. balance: beta, at least 0.
    Labels have no effect and may be left out: `attack(model, x)`.
    Source: Yang, Liu, Deng, Tao 2018, "Adversarial examples for Hamming space search"; published
        with steps=2000, optimizer="sgd", sharpness=SHARPNESS, eps=8/255.
    """

    margin: float = 0.5
    balance: float = 1.0

    uses_labels = False

    def validate(self) -> None:
        super().validate()
        check_at_least("HAG", 0, margin=self.margin, balance=self.balance)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor | Mapping[str, Tensor],
        y: Tensor | None = None,
        *,
        gradient: str | Source | None = None,
    ) -> Any:
        if y is None:
            count = len(next(iter(x.values()))) if isinstance(x, Mapping) else len(x)
            y = torch.zeros(count, dtype=torch.int64)
        return super().__call__(model, x, y, gradient=gradient)

    def aim(self, outputs: Tensor, y: Tensor) -> Callable[[float], Loss]:
        clean = relax(outputs)
        return lambda alpha: lambda now: -self.objective(relax(now, alpha), clean)

    def objective(self, moved: Tensor, clean: Tensor) -> Tensor:
        """L, to be lowered. Shapes: v, u (N, K) -> (N,)."""
        left = ((moved - clean.sign()).abs() < 1 + self.margin).to(moved.dtype)
        alike = (left * moved * clean).sum(1) / left.sum(1).clamp(min=1)
        return (alike + 1).square() + self.balance * (left * moved).mean(1).square()
