"""From a batch to gradients: the forward pass, the loss, and what the learner makes of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from apical import nets
from apical.bench.experiment import learner_settings
from apical.bench.experiment.experiment import Experiment
from apical.bench.training.build import Parts
from apical.bench.training.resume import Position
from apical.core.converted import labels

Gradients = Callable[..., tuple[Tensor, Tensor]]
"""(inputs, targets, share of the batch) -> loss, a mean, and scores, both without a graph."""


def function(
    experiment: Experiment, parts: Parts, at: Position, update: Callable[[], object]
) -> Gradients:
    """What adds to ``.grad`` of the net what a batch, or a part of it, teaches.

    Args:
        at: where the run stands, kept up to date: a loss may change with the step.
        update: an optimizer step that empties ``.grad``, for learners that make several a batch.
    """
    if learner_settings.is_default(experiment.learner):
        return _backward(experiment, parts, at)
    learner = experiment.build_learner()

    def gradients(x: Tensor, y: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        assert share == 1.0  # an experiment with a learner splits no batches
        loss, info = learner.stepwise(parts.model, (x, y), update)
        return loss, info.scores

    return gradients


def _backward(experiment: Experiment, parts: Parts, at: Position) -> Gradients:
    autocast = autocasting(experiment, parts.device)
    loss_fn = parts.objective.training(lambda: at.step)
    own_loss = isinstance(parts.model, nets.OwnLoss) and parts.model.has_own_loss

    def gradients(x: Tensor, y: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        with labels(parts.trained, y):
            with autocast():
                if own_loss:
                    scores, more = parts.net(x, own_loss=True)
                    loss = loss_fn(scores, y) + more
                else:
                    scores = parts.net(x)
                    loss = loss_fn(scores, y)
            parts.scaler.scale(loss * share).backward()
        return loss.detach(), scores.detach()

    return gradients


def autocasting(experiment: Experiment, device: torch.device) -> Callable[[], Any]:
    """A function giving the context in which an experiment's nets compute."""
    if experiment.autocast == "off":
        return contextlib.nullcontext
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[experiment.autocast]
    return lambda: torch.autocast(device.type, dtype)
