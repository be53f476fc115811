"""Measurements of a converted model: functions from a model to numbers per layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from apical import updates
from apical.convert import exact_gradients, labels
from apical.layers import converted_layers
from apical.rules import TransportRule

FLOOR = 1e-12
"""Norms below this times the square root of the number of entries count as zero: an angle to
them would be an angle to rounding errors, and is left out."""


def alignment(model: nn.Module) -> dict[str, dict[str, float]]:
    """Angle and norm ratio of the feedback matrix B to the weight W, for each transport layer.

    B is the matrix the rule really uses (for sign symmetry: with the sign of the current W).
    Rules that broadcast the error have no such matrix; their layers are not in the result.

    Returns: layer -> {"angle_deg": 0 to 180, 90 is unrelated; "norm_ratio": |B| / |W|}. An entry
        is left out where a norm is below `FLOOR`.
    Source: Lillicrap et al. 2016, figure 2; norm ratio: BioTorch (2021).
    """
    pairs = {}
    with torch.no_grad():
        for layer, slot in _slots(model):
            rule = slot.feedback.rule
            if isinstance(rule, TransportRule):
                pairs[layer] = (rule.matrix(slot.weight, *slot.feedback.memory()), slot.weight)
        return _compared(pairs)


def gradient_alignment(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any
) -> dict[str, dict[str, float]]:
    """Angle and norm ratio of each converted layer's weight gradient to the exact gradient.

    Two forward and backward passes on the same batch with the same dropout masks. Parameters'
    `.grad`, buffers and global random numbers are left as they were.

    Args:
        loss_fn: `loss_fn(model(x), y)` is a number.
        x: one batch of inputs, at most as large as memory allows; y: its targets.

    Returns: layer -> {"angle_deg": 0 to 180, 0 is backprop; "norm_ratio": |rule's| / |exact|},
        without entries where a norm is below `FLOOR`. Frozen layers are not in the result.
    """
    groups = {
        name: [p for p in _weight_parameters(layer) if p.requires_grad]
        for name, layer in converted_layers(model)
    }
    groups = {name: parameters for name, parameters in groups.items() if parameters}
    flat = [parameter for parameters in groups.values() for parameter in parameters]
    if not flat:
        return {}
    with _unchanged(model) as again:
        with labels(model, y):
            by_rule = torch.autograd.grad(loss_fn(model(x), y), flat, allow_unused=True)
        again()
        with exact_gradients(model):
            exact = torch.autograd.grad(loss_fn(model(x), y), flat, allow_unused=True)
    pairs, start = {}, 0
    for name, parameters in groups.items():
        here = slice(start, start + len(parameters))
        start = here.stop
        if not any(gradient is None for gradient in (*by_rule[here], *exact[here])):
            pairs[name] = (_joined(by_rule[here]), _joined(exact[here]))
    return _compared(pairs)


def _slots(model: nn.Module) -> Iterator[tuple[str, updates.Slot]]:
    for name, layer in converted_layers(model):
        for slot in updates.slots(layer):
            yield ".".join(part for part in (name, slot.name) if part), slot


def _weight_parameters(layer: nn.Module) -> list[Tensor]:
    found = (p for slot in updates.slots(layer) for p in slot.parameters if p is not None)
    return list({id(parameter): parameter for parameter in found}.values())


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@contextmanager
def _unchanged(model: nn.Module) -> Iterator[Callable[[], None]]:
    """Restore buffers and global random numbers at the end, and whenever the result is called."""
    own = {
        name: (buffer, buffer.clone())
        for name, buffer in model.named_buffers()
        if "feedback" not in name.split(".") or name.split(".")[-1].startswith("note_")
    }
    cuda = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    with torch.random.fork_rng(devices=list(cuda)):
        states = torch.get_rng_state(), [(d, torch.cuda.get_rng_state(d)) for d in cuda]

        def again() -> None:
            torch.set_rng_state(states[0])
            for device, state in states[1]:
                torch.cuda.set_rng_state(state, device)
            for buffer, value in own.values():
                with torch.no_grad():
                    buffer.copy_(value)

        try:
            yield again
        finally:
            again()


def _compared(pairs: Mapping[str, tuple[Tensor, Tensor]]) -> dict[str, dict[str, float]]:
    if not pairs:
        return {}
    rows = []
    for first, second in pairs.values():
        a, b = first.detach().flatten().double(), second.detach().flatten().double()
        rows.append(torch.stack([a.dot(b), a.norm(), b.norm()]))
    numbers = torch.stack([row.to(rows[0].device) for row in rows]).tolist()  # one wait for all
    return {
        name: _angle_and_ratio(*row, entries=pair[0].numel())
        for (name, pair), row in zip(pairs.items(), numbers, strict=True)
    }


def _angle_and_ratio(dot: float, first: float, second: float, *, entries: int) -> dict[str, float]:
    floor = FLOOR * math.sqrt(entries)
    result = {}
    if first > floor and second > floor:
        cosine = max(-1.0, min(1.0, dot / (first * second)))
        result["angle_deg"] = math.degrees(math.acos(cosine))
    if second > floor:
        result["norm_ratio"] = first / second
    return result
