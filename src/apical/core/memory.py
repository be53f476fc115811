"""What feedback costs before it exists: its bytes, and the limit above which it is refused."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from apical.rules.base import BroadcastRule, Rule, TransportRule
from apical.rules.ops import Geometry

FLOOR = 2**30
"""Bytes of feedback that are never refused for their size relative to the weights."""

TIMES = 4
"""Feedback may be so many times as large as the weights."""


def transport_bytes(rule: TransportRule, weight: Tensor) -> int:
    """Bytes of the memory of a rule for a weight; nothing is allocated, unless the rule needs the
    weight's values: then for this layer, and dropped again."""
    with torch.no_grad():
        try:
            with torch.device("meta"):
                like = torch.empty(weight.shape, dtype=weight.dtype)
                made = rule.create(like, torch.Generator("cpu"))
        except (NotImplementedError, RuntimeError):  # of operations on tensors without values
            made = rule.create(weight, torch.Generator("cpu"))
    return _elements(made) * weight.element_size()


def broadcast_bytes(
    rule: BroadcastRule, geometry: Geometry, error_size: int, weight: Tensor
) -> int:
    """Bytes of the memory of a broadcast rule for a layer; nothing is allocated. 0 for a rule of
    the user's own whose `create` does not run on tensors without values."""
    try:
        with torch.device("meta"), torch.no_grad():
            made = rule.create(geometry, error_size, torch.Generator("cpu"))
    except (NotImplementedError, RuntimeError):
        return 0
    return _elements(made) * weight.element_size()


def total(sizes: Mapping[str, int], rules: Mapping[str, Rule]) -> int:
    """Bytes in all; layers whose rule shares one matrix need the largest alone."""
    shared: dict[Rule, int] = {}
    own = 0
    for layer, size in sizes.items():
        rule = rules[layer]
        if isinstance(rule, BroadcastRule) and rule.shared:
            shared[rule] = max(size, shared.get(rule, 0))
        else:
            own += size
    return own + sum(shared.values())


def check(
    sizes: Mapping[str, int],
    rules: Mapping[str, Rule],
    limit: int | None,
    weights: int,
    device: torch.device,
) -> None:
    """Refuse feedback above the limit, before it is allocated.

    Args:
        sizes: bytes by layer.     rules: of the layers.
        limit: bytes; None: `TIMES` the bytes of the weights or `FLOOR`, whichever is more, but no
            more than what is free on the device.
        weights: bytes of the model's weights.

    Raises: ValueError naming the largest layers and the remedies.
    """
    needed = total(sizes, rules)
    free = _free(device) if limit is None else None
    allowed = max(TIMES * weights, FLOOR) if limit is None else limit
    if needed <= (allowed if free is None else min(allowed, free)):
        return
    reason = f"max_feedback_bytes={limit:,}" if limit is not None else f"the limit of {allowed:,}"
    if free is not None and free < allowed:
        reason = f"the {free:,} bytes that are free on {device}"
    largest = sorted(sizes, key=lambda layer: -sizes[layer])[:5]
    listed = ", ".join(f"{layer} {sizes[layer]:,}" for layer in largest)
    raise ValueError(
        f"{largest[0]}: the feedback would take {needed:,} bytes ({needed / max(weights, 1):.1f}"
        f" times the weights), above {reason}; largest: {listed}. Where every position has an error"
        " of its own use positions='samples' (sequences) or 'pixels' (maps), else layout='channel'"
        " or 'kernel', DFA(shared=True), another rule by name for these layers"
        " ({'...': 'bp', '*': ...}), or"
        f" allow it: convert(..., max_feedback_bytes={needed})"
    )


def _elements(made: Mapping[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in made.values())


def _free(device: torch.device) -> int | None:
    """Bytes that are free on a device; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    table = Path("/proc/meminfo")
    if device.type != "cpu" or not table.exists():
        return None
    lines = table.read_text().splitlines()
    found = [line.split()[1] for line in lines if line.startswith("MemAvailable:")]
    return int(found[0]) * 1024 if found else None
