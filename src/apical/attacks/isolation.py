"""Attacks without side effects: parameters, buffers and random generators are restored."""

import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn

from apical.core.layers import feedback_modules, modes_kept


@contextmanager
def undisturbed(*models: nn.Module, seed: int = 0) -> Iterator[None]:
    """Within the block gradients are enabled, but none are computed for parameters.

    Global generators (torch's on the CPU and on the models' devices, Python's, NumPy's if it is
    loaded) start from `seed`, so that models and attacks that use them are reproducible. At the
    end, also after an exception, these generators, every buffer, what rules have noted, `training`
    of every module and `requires_grad` of every parameter are as before.
    """
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(_generators(models, seed))
        for model in models:
            stack.enter_context(_buffers(model))
            stack.enter_context(_frozen(model))
            stack.enter_context(modes_kept(model))
        yield


def restart(model: nn.Module, seed: int) -> None:
    """Within `undisturbed`: seed torch's generators, so that a random model repeats its random
    numbers."""
    torch.default_generator.manual_seed(seed)
    for index in _devices((model,)):
        torch.cuda.default_generators[index].manual_seed(seed)


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    # A Python autograd Function computes the gradients of all tensors that required one in the
    # forward pass, also those that are not asked for: freezing avoids that.
    trained = [p for p in model.parameters() if p.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


@contextmanager
def _buffers(model: nn.Module) -> Iterator[None]:
    saved = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    noted = [(f.history, f.history.took_part) for f in feedback_modules(model)]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in saved:  # a needless copy would invalidate graphs still in use
                if not torch.equal(buffer, value):
                    buffer.copy_(value)
        for history, took_part in noted:
            history.took_part = took_part


@contextmanager
def _generators(models: tuple[nn.Module, ...], seed: int) -> Iterator[None]:
    devices = _devices(models)
    numpy: Any = sys.modules.get("numpy")
    python_state = random.getstate()
    numpy_state = numpy.random.get_state() if numpy else None
    try:
        with torch.random.fork_rng(devices=devices):
            # torch.manual_seed would also seed devices that are not restored afterwards.
            torch.default_generator.manual_seed(seed)
            for index in devices:
                torch.cuda.default_generators[index].manual_seed(seed)
            random.seed(seed)
            if numpy:
                numpy.random.seed(seed % 2**32)
            yield
    finally:
        random.setstate(python_state)
        if numpy:
            numpy.random.set_state(numpy_state)


def _devices(models: tuple[nn.Module, ...]) -> list[int]:
    if not torch.cuda.is_initialized():
        return []
    tensors = (t for model in models for t in [*model.parameters(), *model.buffers()])
    return sorted({t.device.index for t in tensors if t.is_cuda})
