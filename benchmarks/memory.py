"""Peak memory of a step on the CPU, exactly: the sum of what torch's allocator gave and took."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.profiler import ProfilerActivity, profile


def peak_bytes(step: Callable[[], None], model: nn.Module) -> int:
    """Parameters and buffers of the model, plus the most that a step holds beyond its start.

    The step must have run before, so that optimizer state and gradients exist.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step()
    events = profiler.profiler.kineto_results.events()  # type: ignore[union-attr]
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    tensors = [*model.parameters(), *model.buffers()]
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}
    return peak + sum(storages.values())
