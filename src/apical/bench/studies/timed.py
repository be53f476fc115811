"""The time of a call, for estimates."""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

TIMES = 3


def timed(call: Callable[[], Any], device: str) -> float:
    """Seconds of one call, the median of a few after a first one that does not count."""
    seconds = []
    for _ in range(1 + TIMES):
        begin = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - begin)
    return median(seconds[1:])
