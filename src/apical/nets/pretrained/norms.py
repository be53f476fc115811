"""Whether batch norms keep the statistics that a start came with."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def norm_statistics(model: nn.Module, statistics: Literal["frozen", "live"]) -> list[str]:
    """What batch norms normalise by while training. In place; `model.train()` does not undo it.

    "frozen": their stored mean and variance, which stay as they are: small batches, or data unlike
    those of the start, cannot disturb them. "live": those of the batch, as usual. Weights and
    biases of norms learn in both; freeze them by name.

    Returns: the names of the norms. Norms without stored statistics have none to freeze.
    Raises: ValueError if there is no such norm, or it is of a class that cannot be frozen.
    """
    if statistics not in ("frozen", "live"):
        raise ValueError(f"norm_statistics: {statistics!r} is not one of 'frozen', 'live'")
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not found:
        raise ValueError(
            f"{type(model).__name__} has no batch norm with stored statistics: nothing to freeze"
        )
    refused = [f"{n} ({type(m).__name__})" for n, m in found.items() if type(m) not in _PAIRS]
    if refused:
        raise ValueError(f"statistics of these norms cannot be frozen: {', '.join(refused)}")
    for module in found.values():
        frozen = type(module) in _FROZEN
        if frozen != (statistics == "frozen"):
            module.__class__ = _PAIRS[type(module)]
            module.train(model.training)
    return list(found)


class _Frozen(_BatchNorm):
    """A batch norm that is in eval mode always."""

    def train(self, mode: bool = True) -> _Frozen:
        return super().train(False)


class FrozenBatchNorm1d(_Frozen, nn.BatchNorm1d):
    """`BatchNorm1d` that keeps its statistics."""


class FrozenBatchNorm2d(_Frozen, nn.BatchNorm2d):
    """`BatchNorm2d` that keeps its statistics."""


class FrozenBatchNorm3d(_Frozen, nn.BatchNorm3d):
    """`BatchNorm3d` that keeps its statistics."""


_PAIRS: dict[type, type] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
    FrozenBatchNorm1d: nn.BatchNorm1d,
    FrozenBatchNorm2d: nn.BatchNorm2d,
    FrozenBatchNorm3d: nn.BatchNorm3d,
}
_FROZEN = (FrozenBatchNorm1d, FrozenBatchNorm2d, FrozenBatchNorm3d)
