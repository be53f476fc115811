"""Which parameters of a net with trained weights learn, how fast, and how far they moved."""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from apical.names import unknown


def freeze(model: nn.Module, *patterns: str) -> list[str]:
    """Exclude the parameters of these names ("layer1.*") from learning. In place.

    The statistics of norms are no parameters: see `norm_statistics`.
    Returns: the names of all parameters that do not learn now.
    Raises: ValueError for a pattern that matches nothing, or if no parameter would learn.
    """
    chosen = {name for pattern in patterns for name in _matching(model, pattern)}
    return _set_frozen(
        model, {n for n, p in model.named_parameters() if not p.requires_grad} | chosen
    )


def train_only(model: nn.Module, *patterns: str) -> list[str]:
    """Exclude all parameters but those of these names from learning. In place.

    Returns, raises: as `freeze`.
    """
    chosen = {name for pattern in patterns for name in _matching(model, pattern)}
    return _set_frozen(model, {name for name, _ in model.named_parameters()} - chosen)


def parameter_groups(
    model: nn.Module, lr: float, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Parameter groups for any torch optimizer, without frozen parameters.

    Args:
        lr: the learning rate of parameters that no pattern matches, above 0.
        rates: name patterns and factors of `lr`, at least 0; the first match counts. For example
            {"layer1.*": 0.1, "fc.*": 10}.

    Returns: one group for each factor: {"params", "lr", "rate": the factor, "names"}; each
        parameter is in one group.
    Raises: ValueError for a pattern without effect, a factor below 0, or if all are frozen.
    """
    if not lr > 0:
        raise ValueError(f"parameter_groups: lr={lr} must be above 0")
    for pattern, factor in rates.items():
        if not factor >= 0:
            raise ValueError(f"parameter_groups: {pattern!r}: {factor} must be at least 0")
        _matching(model, pattern)
    groups: dict[float, dict[str, Any]] = {}
    used = set()
    for name, parameter in model.named_parameters():
        first = next((p for p in rates if fnmatchcase(name, p)), None)
        used.add(first)
        if parameter.requires_grad:
            rate = 1.0 if first is None else float(rates[first])
            group = groups.setdefault(
                rate, {"params": [], "lr": lr * rate, "rate": rate, "names": []}
            )
            group["params"].append(parameter)
            group["names"].append(name)
    late = [pattern for pattern in rates if pattern not in used]
    if late:
        raise ValueError(
            f"parameter_groups: {late[0]!r} has no effect: earlier patterns match all of it"
        )
    if not groups:
        raise ValueError("parameter_groups: every parameter is frozen")
    return list(groups.values())


def norm_statistics(model: nn.Module, statistics: Literal["frozen", "live"]) -> list[str]:
    """Set what batch norms normalise by while training. In place; `model.train()` does not undo it.

    "frozen": by their stored mean and variance, which do not change, whatever the batches. "live":
    by those of the batch, as usual. Weights and biases of norms learn in both cases; freeze them by
    name.

    Returns: the names of the norms. Norms without stored statistics are left as they are.
    Raises: ValueError if there is no such norm, or if one is of a class that cannot be frozen.
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
    known = {*_FREEZES, *_FREEZES.values()}
    refused = [f"{n} ({type(m).__name__})" for n, m in found.items() if type(m) not in known]
    if refused:
        raise ValueError(f"statistics of these norms cannot be frozen: {', '.join(refused)}")
    for module in found.values():
        if type(module) in _CLASSES[statistics]:
            module.__class__ = _CLASSES[statistics][type(module)]
            module.train(model.training)
    return list(found)


def weight_change(model: nn.Module, start: Mapping[str, Tensor]) -> dict[str, float]:
    """The relative change of each trainable parameter: ||W - W_0|| / ||W_0||, by name.

    It shows whether the whole net was tuned or only its head.

    Args: start: the state dict before training, copied (`copy.deepcopy(model.state_dict())`).
    Returns: for parameters that are in `start` with the same shape; infinite where W_0 is zero and
        W is not.
    """
    changes = {}
    for name, parameter in model.named_parameters():
        before = start.get(name)
        if not parameter.requires_grad or before is None or before.shape != parameter.shape:
            continue
        now = parameter.detach().double()
        before = before.to(now)
        moved, size = (now - before).norm().item(), before.norm().item()
        changes[name] = moved / size if size else (float("inf") if moved else 0.0)
    return changes


def _matching(model: nn.Module, pattern: str) -> list[str]:
    names = [name for name, _ in model.named_parameters()]
    found = [name for name in names if fnmatchcase(name, pattern)]
    if not found:
        raise unknown("parameter, or pattern of parameters,", pattern, names)
    return found


def _set_frozen(model: nn.Module, frozen: set[str]) -> list[str]:
    parameters = dict(model.named_parameters())
    if frozen >= set(parameters):
        raise ValueError("no parameter would be left to learn")
    for name, parameter in parameters.items():
        parameter.requires_grad_(name not in frozen)
    return [name for name in parameters if name in frozen]


class _Frozen(_BatchNorm):
    """A batch norm that is in eval mode always."""

    def train(self, mode: bool = True) -> "_Frozen":
        return super().train(False)


class FrozenBatchNorm1d(_Frozen, nn.BatchNorm1d):
    """`BatchNorm1d` that keeps its statistics."""


class FrozenBatchNorm2d(_Frozen, nn.BatchNorm2d):
    """`BatchNorm2d` that keeps its statistics."""


class FrozenBatchNorm3d(_Frozen, nn.BatchNorm3d):
    """`BatchNorm3d` that keeps its statistics."""


_FREEZES: dict[type, type] = {
    nn.BatchNorm1d: FrozenBatchNorm1d,
    nn.BatchNorm2d: FrozenBatchNorm2d,
    nn.BatchNorm3d: FrozenBatchNorm3d,
}
_CLASSES = {"frozen": _FREEZES, "live": {frozen: live for live, frozen in _FREEZES.items()}}
