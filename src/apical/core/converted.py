"""A converted model: its parameters, exact gradients, labels, updates by hand, sources."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from torch import nn
from torch.nn import Parameter

from apical.core import updates
from apical.core.broadcast import Broadcast
from apical.core.layers import converted_layers, feedback_modules
from apical.core.taps import BroadcastFeedback


def broadcasts(model: nn.Module) -> list[Broadcast]:
    """What sends errors from outputs to the layers of the model; empty for transport rules."""
    found: dict[int, Broadcast] = {}
    for feedback in feedback_modules(model):
        if isinstance(feedback, BroadcastFeedback):
            found[id(feedback.broadcast)] = feedback.broadcast
    return list(found.values())


def feedback_parameters(model: nn.Module) -> Iterator[Parameter]:
    """The parameters that learning feedback adds; none for rules with fixed feedback."""
    for feedback in feedback_modules(model):
        yield from feedback.parameters(recurse=False)


def forward_parameters(model: nn.Module) -> Iterator[Parameter]:
    """The parameters of the model itself, without those of its feedback."""
    feedback = {id(parameter) for parameter in feedback_parameters(model)}
    return (parameter for parameter in model.parameters() if id(parameter) not in feedback)


def forked_rng(model: nn.Module) -> AbstractContextManager[None]:
    """Within the block random numbers of the CPU and of the model's GPUs may be drawn; afterwards
    the global generators are as before."""
    devices = {tensor.device for tensor in model.parameters() if tensor.is_cuda}
    return torch.random.fork_rng(devices=list(devices))


@contextmanager
def exact_gradients(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block every converted layer backpropagates exactly; weights are not copied.

    The forward pass must run inside the block too: the backward of a graph built outside raises
    RuntimeError, since it would deliver the gradient of the rule (compiled graphs do not check).
    Blocks may be nested.
    """
    changed = list(feedback_modules(model))
    for feedback in changed:
        feedback.exact += 1
        feedback.exact_blocks += 1
    try:
        yield model
    finally:
        for feedback in changed:
            feedback.exact -= 1


@contextmanager
def labels(model: nn.Module, targets: torch.Tensor) -> Iterator[nn.Module]:
    """Within the block, rules that learn from labels instead of the error are given these.

    Forward and backward pass belong inside. For models without such rules it does nothing.

    Shapes: targets (N,) class numbers, or numbers shaped as the model's output.
    Raises: ValueError if they are no tensor.
    """
    if not isinstance(targets, torch.Tensor):
        raise ValueError(f"labels are a tensor, not a {type(targets).__name__}")
    changed = broadcasts(model)
    before = [broadcast.labels for broadcast in changed]
    for broadcast in changed:
        broadcast.labels = targets
    try:
        yield model
    finally:
        for broadcast, old in zip(changed, before, strict=True):
            broadcast.labels = old


def learn(model: nn.Module) -> None:
    """Let rules act on an update of the weights that was made by hand.

    Torch optimizers announce their steps, and what was announced is not done twice: after
    `optimizer.step()` this does nothing. Rules without anything to do after an update ignore it.
    """
    updates.updated_by_hand(layer for _, layer in converted_layers(model))


def cite(model: nn.Module) -> str:
    """BibTeX of the rules that the model uses, each once, separated by blank lines."""
    used = {feedback.rule.reference for feedback in feedback_modules(model)}
    return "\n\n".join(sorted({entry for text in used for entry in text.split("\n\n")}))
