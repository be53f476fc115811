"""Copies of a model that share its parameters, for another backward pass."""

import copy
from typing import Any

import torch
from torch import nn

from apical.core import updates
from apical.core.convert import convert, revert
from apical.core.layers import converted_layers, feedback_modules
from apical.rules import Redrawn, SignSymmetric, build, spell
from apical.rules.base import Update


def sharing_parameters(model: nn.Module) -> nn.Module:
    """A deep copy with the same parameter objects, but its own buffers and feedback."""
    twin = copy.deepcopy(model, {id(p): p for p in model.parameters()})
    _unwatch(twin)
    return twin


def with_rule(model: nn.Module, rule: Any, seed: int) -> nn.Module:
    """A copy that shares parameters and is converted by another rule."""
    twin = revert(sharing_parameters(model))
    convert(twin, build(rule), seed=seed)
    _unwatch(twin)
    return twin


def rule_name(rule: Any) -> str:
    """The name in tables of a rule as `build` takes it."""
    return spell(build(rule))


@torch.no_grad()
def redraw(twin: nn.Module, generator: torch.Generator) -> int:
    """Resample all feedback that its rule resamples; returns the number of such layers."""
    drawn = 0
    for layer in dict(converted_layers(twin)).values():
        for slot in updates.slots(layer):
            feedback = slot.feedback
            if not _is_fresh(feedback.rule):
                continue
            seed = int(torch.randint(2**62, (1,), generator=generator))
            device = slot.weight.device
            update = Update(
                slot.weight.detach(),
                slot.bias,
                slot.op,
                feedback.history.count,
                lambda seed=seed, device=device: torch.Generator(device).manual_seed(seed),  # type: ignore[misc]
            )
            feedback.rule.after_update(update, *feedback.memory(), *feedback.notes)
            drawn += 1
    return drawn


def random_feedback(model: nn.Module) -> bool:
    """Whether a rule of the model resamples its feedback."""
    return any(_is_fresh(feedback.rule) for feedback in feedback_modules(model))


def _is_fresh(rule: object) -> bool:
    while (inner := getattr(rule, "inner", None)) is not None:  # of a rule around another
        rule = inner
    if isinstance(rule, Redrawn):
        return True
    return isinstance(rule, SignSymmetric) and rule.magnitude == "fresh"


def _unwatch(twin: nn.Module) -> None:
    # Otherwise a later step of the model's optimizer would apply the copy's rule to the shared
    # weights, too, as long as the copy exists.
    for _, layer in converted_layers(twin):
        updates.unwatch(layer)
