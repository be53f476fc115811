"""The global random generators of torch (CPU), Python and NumPy together: code of the user may use
any of them."""

import contextlib
import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch


def seed(number: int) -> None:
    """Seed all of them. Args: number: at least 0."""
    torch.default_generator.manual_seed(number)
    random.seed(number)
    np.random.seed(number % 2**32)


def state() -> dict[str, Any]:
    """Their states, as a tensor and plain values."""
    of_numpy: Any = np.random.get_state()
    kind, keys, *rest = of_numpy
    return {
        "random": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],
    }


def restore(state: dict[str, Any]) -> None:
    """Set the states that `state` returned; a generator without one is left as it is."""
    torch.set_rng_state(state["random"])
    if "python" in state:
        random.setstate(state["python"])
    if "numpy" in state:
        np.random.set_state(tuple(state["numpy"]))


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """Restore their states after the block."""
    before = state()
    try:
        yield
    finally:
        restore(before)
