"""Running a model on an example of its input: sizes feedback, shows which layers are called."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from apical.core.converted import converted_layers, feedback_modules
from apical.core.taps import BroadcastFeedback


def call_with(model: nn.Module, example: Any) -> Any:
    """Call the model with an example: a tensor, a tuple of arguments, or keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def size_feedback(model: nn.Module, example: Any) -> set[str]:
    """Run a copy of the model on the example; the model receives the feedback that this sized.

    Returns: the names of the converted layers that were called.
    """
    twin = copy.deepcopy(model)
    called: set[str] = set()
    for name, layer in converted_layers(twin):
        layer.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        call_with(twin, example)
    for original, sized in zip(feedback_modules(model), feedback_modules(twin), strict=True):
        original.memory_names = sized.memory_names
        original.note_names = sized.note_names
        original._buffers.update(sized._buffers)
        original._parameters.update(sized._parameters)
        if isinstance(original, BroadcastFeedback) and isinstance(sized, BroadcastFeedback):
            original.broadcast.error_shape = sized.broadcast.error_shape
            original.fitting = sized.fitting
    return called
