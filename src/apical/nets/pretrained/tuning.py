"""What of a started net learns, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from apical.names import unknown


def freeze(model: nn.Module, *patterns: str) -> list[str]:
    """Let parameters of these names ("layer1.*") keep their values. In place.

    The statistics of norms are no parameters: see `norm_statistics`.
    Returns: the names of all parameters that do not learn now.
    Raises: ValueError for a pattern that matches nothing, or if nothing would be left to learn.
    """
    chosen = {name for pattern in patterns for name in _matching(model, pattern)}
    return _set_frozen(
        model, {n for n, p in model.named_parameters() if not p.requires_grad} | chosen
    )


def train_only(model: nn.Module, *patterns: str) -> list[str]:
    """Let only parameters of these names learn, and all others keep their values. In place.

    Returns, raises: as `freeze`.
    """
    chosen = {name for pattern in patterns for name in _matching(model, pattern)}
    return _set_frozen(model, {name for name, _ in model.named_parameters()} - chosen)


def parameter_groups(
    model: nn.Module, lr: float, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """Groups for any torch optimizer, with learning rates by layer. Frozen parameters are left out.

    Args:
        lr: the learning rate of what no pattern names, above 0.
        rates: name patterns and factors of `lr`, at least 0; the first match wins. For example
            {"layer1.*": 0.1, "fc.*": 10}.

    Returns: one group for each factor: {"params", "lr", "rate": the factor, "names"}; each
        parameter is in one group.
    Raises: ValueError for a pattern that matches nothing or comes too late, or a factor below 0.
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
