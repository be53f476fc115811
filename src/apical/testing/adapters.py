"""Whether an adapter computes what its layer computes."""

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from apical.core import outputs, updates
from apical.core.convert import convert
from apical.core.converted import forked_rng
from apical.core.layers import converted_layers
from apical.rules import FA

TOLERANCE = 1e-10
"""Of the largest entry, in float64: a product in another order differs by some 1e-15 for each of
the numbers that it adds up."""


def check_adapter(layer: nn.Module, *inputs: Any, **named: Any) -> None:
    """Compare what is registered for a layer with the layer itself, on an example of its inputs.

    A copy in float64 is converted to feedback alignment with B = W, under which outputs and
    gradients of inputs and parameters are those of the plain layer. Both draw the same random
    numbers. The layer itself is not changed.

    Args: inputs, named: the arguments of the layer's forward; tensors of floating point get
        gradients.
    Raises: ValueError naming the first output or gradient that differs, and what `convert` raises.
    """
    plain = copy.deepcopy(layer).double()
    adapted = convert(copy.deepcopy(plain), FA())
    with torch.no_grad():
        for _, part in converted_layers(adapted):
            for slot in updates.slots(part):
                slot.feedback.memory()[0].copy_(slot.weight)
    expected, seen = (_passed(model, inputs, named) for model in (plain, adapted))
    kind = type(layer).__name__
    for name, wanted in expected.items():
        if name not in seen:
            raise ValueError(f"check_adapter: {kind} has the {name}, its adapter has none")
        got = seen[name]
        if got.shape != wanted.shape:
            raise ValueError(
                f"check_adapter: the {name} of {kind} is {tuple(wanted.shape)}, its adapter gives"
                f" {tuple(got.shape)}"
            )
        largest = wanted.abs().max().item() if wanted.numel() else 0.0
        error = (got - wanted).abs().max().item() if wanted.numel() else 0.0
        if not error <= TOLERANCE * max(largest, 1e-300):
            raise ValueError(
                f"check_adapter: the {name} of {kind} differs from its adapter's by {error:.3g},"
                f" with a largest entry of {largest:.3g}; forward, or the use of a weight, is not"
                " what was registered"
            )
    if further := seen.keys() - expected.keys():
        raise ValueError(
            f"check_adapter: {kind} has no {', '.join(sorted(further))}, its adapter has"
        )


def _passed(model: nn.Module, inputs: Any, named: Mapping[str, Any]) -> dict[str, Tensor]:
    """The outputs of a model and the gradients of a sum of them, by name."""
    arguments = {**{f"input {place}": x for place, x in enumerate(inputs)}, **named}
    given = {name: _float64(x) for name, x in arguments.items()}
    differentiated = {
        f"{name}.{place}": x
        for name, value in given.items()
        for place, x in enumerate(outputs.tensors(value))
        if x.requires_grad
    }
    differentiated |= {n: p for n, p in model.named_parameters() if "feedback" not in n.split(".")}
    with forked_rng(model), torch.enable_grad():
        output = model(*list(given.values())[: len(inputs)], **{n: given[n] for n in named})
    tensors = [t for t in outputs.tensors(output) if t.is_floating_point()]
    found = {f"output {place}": t.detach() for place, t in enumerate(tensors)}
    total = torch.zeros((), dtype=torch.float64)
    for tensor in tensors:
        factors = torch.arange(tensor.numel(), dtype=torch.float64, device=tensor.device).cos()
        total = total + (tensor.double() * factors.view(tensor.shape)).sum()
    gradients = torch.autograd.grad(total, list(differentiated.values()), allow_unused=True)
    for name, gradient in zip(differentiated, gradients, strict=True):
        if gradient is not None:
            found[f"gradient of {name}"] = gradient
    return found


def _float64(x: Any) -> Any:
    if type(x) in (tuple, list):
        return type(x)(_float64(part) for part in x)
    if not (isinstance(x, Tensor) and x.is_floating_point()):
        return x
    return x.detach().double().requires_grad_()
