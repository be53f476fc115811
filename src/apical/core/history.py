"""Which updates of a weight count for its rule: the one record of what happened to a weight."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from weakref import ref

from torch import Tensor
from torch.optim import Optimizer


class History:
    """What happened to one weight since the last update that its rule acted on.

    Optimizers announce their steps, `apical.learn` tells of updates made by hand. An update counts
    if the rule took part in a pass since the one before: what nobody heard need not be drawn
    anew. One that was both announced and told of counts once, since no pass lies between.

    Attributes:
        count: updates that counted, saved with the model: draws and phases follow from it.
        heard: whether the rule took part in a pass since the last of them.
        attends: whether the rule wants to see the passes before the next of them.
        outdated: whether a checkpoint of the plain model has replaced the weight; no update.
        missed: steps of optimizers that know the weight but not its trained feedback.
        advised: whether the optimizers were looked at (`apical.core.advice`).
    """

    def __init__(self) -> None:
        self.count = 0
        self.heard = False
        self.attends = True  # a plain bool: compiled code is made once for each of its values
        self.outdated = False
        self.missed = 0
        self.advised = False
        self._optimizer: ref[Optimizer] | None = None
        self._versions: tuple[int, ...] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy has weights of its own, and no optimizer yet.
        return {**self.__dict__, "_optimizer": None, "_versions": None}

    def counts(self, weight: Iterable[Tensor | None], *, told: bool) -> bool:
        """Whether an update counts; `told`: by `learn`, which may repeat what was announced.

        An update by hand may also follow an announced one without a pass between. It shows in the
        version counter (which fused optimizers leave alone, but they announce themselves).
        """
        known = self._versions
        return self.heard or (told and known is not None and known != _versions(weight))

    def close(self, weight: Iterable[Tensor | None]) -> None:
        """An update is done, counted or not, with all that rules changed about the weight."""
        self.heard = False
        self._versions = _versions(weight) if self.count else None  # else nobody ever listened

    def loaded(self, *, plain: bool) -> None:
        """The weight came from a checkpoint; `plain`: one without its feedback."""
        self.heard, self.outdated, self._versions = False, plain, None

    @property
    def optimizer(self) -> Optimizer | None:
        """The one that trains the weight, while it is alive."""
        return None if self._optimizer is None else self._optimizer()

    @optimizer.setter
    def optimizer(self, optimizer: Optimizer) -> None:
        self._optimizer = ref(optimizer)


def _versions(weight: Iterable[Tensor | None]) -> tuple[int, ...]:
    """Of the parameters that a weight is made of."""
    return tuple([p._version for p in weight if p is not None and not p.is_inference()])
