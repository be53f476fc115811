"""Optimizers by name or class path, with their options checked before anything runs."""

import inspect
from collections.abc import Iterable
from typing import Any

import torch

from apical.names import from_path, unknown

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}

FUSED = ("adam", "adamw", "sgd")
"""Those whose fused form is used unless the options say otherwise: one pass over the memory. Of
weights that are divided among processes torch has no fused SGD."""


def build(
    name: str, parameters: Iterable[Any], *, lr: float, options: dict[str, Any]
) -> torch.optim.Optimizer:
    """The optimizer of an experiment.

    Args: name: a name of ``OPTIMIZERS`` or a class as ``package.module:Class``.
        parameters: parameters, or groups of them as torch has them; frozen ones are left out.
        lr: learning rate.     options: further keyword arguments of the class.
    Raises: ValueError for an unknown name, an option the class does not have, or a value it
        refuses.
    """
    chosen: Any = OPTIMIZERS.get(name)
    if chosen is None:
        if ":" not in name and "." not in name:
            raise unknown_optimizer(name)
        chosen = from_path(name, "optimizer")
        if not (isinstance(chosen, type) and issubclass(chosen, torch.optim.Optimizer)):
            kind = chosen.__name__ if isinstance(chosen, type) else type(chosen).__name__
            raise ValueError(f"optimizer {name!r} is {kind}, not a class of torch.optim.Optimizer")
    allowed = [p for p in inspect.signature(chosen).parameters if p not in ("params", "lr")]
    for option in options:
        if option not in allowed:
            raise unknown(f"option of the optimizer {name}", option, allowed)
    given = [p for p in parameters if isinstance(p, dict) or p.requires_grad]
    if not given:
        raise ValueError(f"optimizer {name}: the net has no parameter to train")
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
    each = [p for group in given for p in (group["params"] if isinstance(group, dict) else [group])]
    plain = all(p.is_floating_point() for p in each)
    plain &= name != "sgd" or all(type(p.data) is torch.Tensor for p in each)
    if name in FUSED and plain and not values.keys() & {"fused", "foreach", "differentiable"}:
        values["fused"] = True
    try:
        if name not in OPTIMIZERS:
            _try_step(chosen, lr, values)
        return chosen(given, lr=lr, **values)
    except Exception as error:  # an optimizer of any package may raise anything
        reason = error if str(error) else type(error).__name__
        raise ValueError(f"optimizer {name} with lr={lr}, {options}: {reason}") from error


def unknown_optimizer(name: str) -> ValueError:
    """The error for a name not in `OPTIMIZERS`; torch's class of that name is suggested."""
    kinds = [k for k in torch.optim.Optimizer.__subclasses__() if hasattr(torch.optim, k.__name__)]
    classes = [f"torch.optim:{k.__name__}" for k in kinds if k.__name__.lower() == name.lower()]
    return unknown("optimizer", name, [*OPTIMIZERS, "package.module:Class"], first=classes)


def _try_step(kind: type[torch.optim.Optimizer], lr: float, values: dict[str, Any]) -> None:
    """One step on a parameter of its own. Some classes cannot be used in a plain loop: LBFGS needs
    a closure, SparseAdam sparse gradients; others check their options only when they step."""
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    parameter.grad = torch.ones(2, 2)
    kind([parameter], lr=lr, **values).step()  # type: ignore[call-arg]
