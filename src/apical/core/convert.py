"""Converting a model, and everything one does with a converted one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import Parameter

from apical.core import updates
from apical.core.attention import projections
from apical.core.broadcast import Star
from apical.core.feedback import Feedback
from apical.core.layers import converted_class, converted_layers, mixin_for, modules
from apical.core.outputs import OutputKey
from apical.core.plan import Assignment, Row, plan
from apical.rules import BroadcastRule, Rule


def convert(
    model: nn.Module,
    rule: Assignment,
    *,
    example: Any = None,
    seed: int = 0,
    output: OutputKey = None,
    on_unsupported: Literal["error", "keep"] = "error",
) -> nn.Module:
    """Let the model learn by another rule than backpropagation. In place; returns the model.

    Weights, forward pass and state-dict keys stay as they are (keys `<layer>.feedback.*` are
    added), and an optimizer built before stays valid for the weights. Convert first, then wrap
    (DDP) or compile.

    Args:
        rule: a rule, its name, or a mapping from name patterns (`"layer4.*"`) or predicates
            `(name, module) -> bool` to rules. The first match wins; a layer that no pattern
            names keeps its exact gradient.
        example: an input of the model (a tensor, a tuple of arguments, or a dictionary of keyword
            arguments). It sizes the feedback of broadcast rules at once, where otherwise the first
            forward pass does, and reveals layers that the model never calls.
        seed: of all feedback, with the layers' names; global generators are left alone.
        output: key, place or attribute of the tensor that carries the error, for broadcast rules
            on a model that returns several.
        on_unsupported: "error", or "keep" to leave layers that cannot be converted on their exact
            gradient.

    Raises: ValueError with all problems at once, before anything is changed.

    >>> model = convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "fa")
    >>> [name for name, _ in model.named_buffers()]
    ['0.feedback.matrix', '2.feedback.matrix']
    """
    planned = plan(model, rule, on_unsupported=on_unsupported)
    if not isinstance(seed, int):
        raise ValueError(f"seed={seed!r} is no whole number")
    if planned.problems:
        listed = "".join(f"\n  - {problem}" for problem in planned.problems)
        raise ValueError(f"nothing was converted:{listed}")
    rows = [row for row in planned.rows if row.action == "convert"]
    star = Star(output)
    if not any(isinstance(row.rule, BroadcastRule) for row in rows) and output is not None:
        raise ValueError(f"output={output!r} has no effect: no layer has a rule that broadcasts")
    tied: dict[Any, Feedback] = {}
    for row in rows:
        _convert_layer(row, seed, star, tied)
    if star.feedbacks:
        star.attach(model)
    if example is not None:
        try:
            _try_out(model, rows, example, on_unsupported)
        except BaseException as error:
            for row in rows:  # not the whole model: parts may have been converted before
                revert(row.module)
            error.add_note("apical.convert ran the model on its example; nothing was converted")
            raise
    return model


def revert(model: nn.Module) -> nn.Module:
    """Make every converted layer plain again, in place: classes, keys and hooks as before.

    Raises: ValueError if a converted layer was parametrized since; remove that first.
    """
    layers = list(converted_layers(model))
    for name, layer in layers:
        if not hasattr(type(layer), "plain_class") or "plain_class" not in vars(type(layer)):
            raise ValueError(
                f"{name} ({type(layer).__name__}): its class was changed after the conversion;"
                " undo that first (for example torch.nn.utils.parametrize.remove_parametrizations)"
            )
    for _, layer in layers:
        updates.unwatch(layer)
        for slot in updates.slots(layer):
            if slot.feedback.star is not None:
                slot.feedback.star.release(slot.feedback)
        layer.__class__ = type(layer).plain_class  # type: ignore[attr-defined]
        del layer.feedback
    return model


@contextmanager
def exact_gradients(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block every converted layer backpropagates exactly; weights are not copied.

    The forward pass must run inside the block too: the backward of a graph built outside raises
    RuntimeError, since it would deliver the gradient of the rule (compiled graphs do not check).
    Blocks may be nested.
    """
    found = list(feedback_modules(model))
    for feedback in found:
        feedback.exact += 1
    try:
        yield model
    finally:
        for feedback in found:
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
    stars = list({id(f.star): f.star for f in feedback_modules(model) if f.star}.values())
    before = [star.labels for star in stars]
    for star in stars:
        star.labels = targets
    try:
        yield model
    finally:
        for star, old in zip(stars, before, strict=True):
            star.labels = old


def learn(model: nn.Module) -> None:
    """Let rules act on an update of the weights that was made by hand.

    Torch optimizers announce their steps, and what was announced is not done twice: after
    `optimizer.step()` this does nothing. Rules without anything to do after an update ignore it.
    """
    updates.updated_by_hand(layer for _, layer in converted_layers(model))


def feedback_modules(model: nn.Module) -> Iterator[Feedback]:
    """Every feedback module of the model, once."""
    return (module for _, module in modules(model) if isinstance(module, Feedback))


def feedback_parameters(model: nn.Module) -> Iterator[Parameter]:
    """The parameters that learning feedback adds; none for rules with fixed feedback."""
    for feedback in feedback_modules(model):
        yield from feedback.parameters(recurse=False)


def forward_parameters(model: nn.Module) -> Iterator[Parameter]:
    """The parameters of the model itself, without those of its feedback."""
    feedback = {id(parameter) for parameter in feedback_parameters(model)}
    return (parameter for parameter in model.parameters() if id(parameter) not in feedback)


def cite(model: nn.Module) -> str:
    """BibTeX of the rules that the model uses, each once, separated by blank lines."""
    used = {feedback.rule.reference for feedback in feedback_modules(model)}
    return "\n\n".join(sorted({entry for text in used for entry in text.split("\n\n")}))


def _convert_layer(row: Row, seed: int, star: Star, tied: dict[Any, Feedback]) -> None:
    layer, rule, mixin = row.module, row.rule, mixin_for(row.module)
    assert rule is not None and mixin is not None
    layer.__class__ = converted_class(mixin, type(layer))  # type: ignore[arg-type]
    if isinstance(layer, nn.MultiheadAttention):
        layer.feedback = nn.ModuleDict(
            {
                name: _feedback(rule, f"{row.layer}.{name}", seed, star, weight, tied)
                for name, (weight, _) in projections(layer).items()
            }
        )
    else:
        layer.feedback = _feedback(rule, row.layer, seed, star, layer.weight, tied)
    layer.feedback.train(layer.training)
    updates.watch(layer)


def _feedback(
    rule: Rule, name: str, seed: int, star: Star, weight: Any, tied: dict[Any, Feedback]
) -> Feedback:
    """New feedback; under transport rules, layers that share a weight share its feedback."""
    owner, place = weight, 0
    if weight._base is not None:  # attention packs three weights
        owner, place = weight._base, weight.storage_offset()
    key, broadcasts = (owner, place, rule), isinstance(rule, BroadcastRule)
    if key in tied and not broadcasts:
        return tied[key]
    feedback = tied[key] = Feedback(rule, name, seed, star if broadcasts else None)
    if not broadcasts:
        feedback.create(weight)
    if rule.constrain_weights:
        feedback.constrain(weight)
    return feedback


def _try_out(
    model: nn.Module, rows: list[Row], example: Any, on_unsupported: Literal["error", "keep"]
) -> None:
    """Run a copy of the model on the example: size its feedback, find layers nobody calls."""
    twin = copy.deepcopy(model)
    called: set[str] = set()
    for name, layer in converted_layers(twin):
        layer.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    devices = {p.device for p in model.parameters() if p.is_cuda}
    with torch.random.fork_rng(devices=list(devices)), torch.no_grad():
        call_with(twin, example)
    for original, sized in zip(feedback_modules(model), feedback_modules(twin), strict=True):
        original.memory_names, original.note_names = sized.memory_names, sized.note_names
        original._buffers.update(sized._buffers)
        original._parameters.update(sized._parameters)
        if original.star is not None and sized.star is not None:
            original.star.error_shape = sized.star.error_shape
    idle = [row for row in rows if row.layer not in called]
    if idle and on_unsupported == "error":
        listed = ", ".join(repr(row.layer) for row in idle)
        raise ValueError(
            f"the model never calls these layers on the example, so no rule can act: {listed}."
            " It may use their weights directly (F.linear(x, layer.weight)), or only in another"
            " mode. Give them rule BP by name, or accept it with on_unsupported='keep'"
        )
    for row in idle:
        revert(row.module)


def call_with(model: nn.Module, example: Any) -> Any:
    """Call the model with an example: a tensor, a tuple of arguments, or keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)
