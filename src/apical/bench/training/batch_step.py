"""From a batch to gradients: the forward pass, the loss, and what the learner makes of them."""

import contextlib
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from apical import data, nets
from apical.attacks.scores import Normalised
from apical.attacks.sources import source
from apical.attacks.steps import PGD
from apical.bench.experiment import learner_settings
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Adversarial
from apical.bench.training.build import Parts
from apical.bench.training.splits import normalisation
from apical.core.converted import labels

Gradients = Callable[..., tuple[Tensor, Tensor]]
"""(inputs, targets, share of the batch) -> loss, a mean, and scores, both without a graph."""


def function(
    experiment: Experiment, parts: Parts, step: Callable[[], int], update: Callable[[], object]
) -> Gradients:
    """What adds the gradients of a batch, or of a part of it, to ``.grad`` of the net.

    Args:
        step: optimizer steps done so far: a loss may change with them.
        update: an optimizer step that empties ``.grad``, for learners that make several a batch.
    """
    if experiment.adversarial is not None:
        plain = dataclasses.replace(experiment, adversarial=None)
        return _attacked(experiment, parts, step, function(plain, parts, step, update))
    if learner_settings.is_default(experiment.learner):
        return _backward(experiment, parts, step)
    learner = experiment.build_learner()

    def gradients(x: Tensor, y: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        assert share == 1.0  # an experiment with a learner splits no batches
        loss, info = learner.stepwise(parts.model, (x, y), update)
        return loss, info.scores

    return gradients


def _attacked(
    experiment: Experiment, parts: Parts, step: Callable[[], int], learn: Gradients
) -> Gradients:
    """The same for what an attack makes of the batch; its random start is that of the step."""
    options = experiment.adversarial
    assert isinstance(options, Adversarial) and isinstance(parts.source, data.ImageData)
    mean, std = (
        torch.tensor(values).view(-1, 1, 1).to(parts.device)
        for values in normalisation(experiment, parts.source)
    )
    single = options.attack == "fgsm"
    attack = PGD(
        options.eps,
        1 if single else options.steps,
        1.25 * options.eps if single and options.step_size is None else options.step_size,
        options.norm,
    )
    model = Normalised(parts.model, *normalisation(experiment, parts.source)).to(parts.device)
    gradient, classes = source(options.gradient), parts.source.num_classes

    def gradients(x: Tensor, y: Tensor, share: float = 1.0) -> tuple[Tensor, Tensor]:
        model.eval()
        pixels = (x * std + mean).clamp(0, 1)
        seeded = dataclasses.replace(attack, seed=step())
        points = seeded.made(model, pixels, y, gradient, classes=classes)
        parts.net.train()
        return learn((points - mean) / std, y, share)

    return gradients


def _backward(experiment: Experiment, parts: Parts, step: Callable[[], int]) -> Gradients:
    autocast = autocasting(experiment, parts.device)
    loss_fn = parts.objective.training(step)
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
