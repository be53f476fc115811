"""Checks of one architecture under one rule: whether every layer does what the plan says.

The converted model is compared with a plain copy with the same weights and the same random numbers
in a few training steps. Both move by the sign of the gradient, so that a weight moves whenever its
gradient is not zero, however small it is.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import apical
from apical.core.adapters import adapter_of, mixin_for
from apical.core.example import call_with
from apical.core.feedback import Feedback
from apical.core.layers import converted_layers, is_converted
from apical.core.plan import Assignment

RATE = 1e-3


@dataclass
class Finding:
    """The result. `problems` is empty if no layer was skipped without a message.

    converted, kept: numbers of layers; kept_why: the number of layers for each reason.
    exact: converted layers whose gradient is that of backprop: there is no converted layer above.
    idle: converted layers without a gradient, in the plain copy, too.
    rounding: whether the forward pass equals the plain one only within rounding (attention).
    """

    converted: int = 0
    kept: int = 0
    kept_why: dict[str, int] = field(default_factory=dict)
    exact: list[str] = field(default_factory=list)
    idle: list[str] = field(default_factory=list)
    rounding: bool = False
    problems: list[str] = field(default_factory=list)


@dataclass
class Trace:
    """Some steps of a model: first output, first gradients, weights that ever had a gradient."""

    output: Tensor
    gradients: dict[str, Tensor]
    with_gradient: set[str]
    moved: set[str]
    finite: bool


def check(
    model: nn.Module,
    x: Any,
    rule: Assignment,
    *,
    loss: Callable[[Any], Tensor],
    exact: Trace,
    steps: int,
    **options: Any,
) -> Finding:
    """Convert the model (it is changed) and compare it with a plain twin.

    Args: x: an example, as of `apical.convert`.
        loss: of what the model returned.
        exact: the result of `train` for a plain copy.
        options: of `apical.convert`.
    Raises: any exception that converting or running the model raises.
    """
    finding = Finding()
    planned = apical.plan(
        model, rule, **{k: v for k, v in options.items() if k == "on_unsupported"}
    )
    apical.convert(model, rule, example=x, **options)
    finding.problems += _unlisted(model, {row.layer: row.why for row in planned.rows})
    layers = dict(converted_layers(model))
    finding.converted = len(layers)
    kept = [row for row in planned.rows if not is_converted(row.module)]
    finding.kept = len(kept)
    idle = "never called on the example"
    finding.kept_why = dict(
        Counter(idle if row.action == "convert" else row.why.split(":")[0] for row in kept)
    )
    calls = _counted(layers)
    ours = train(model, x, loss, steps)
    finding.problems += [f"{name}: never called" for name in layers if not calls[name]]
    finding.rounding = not torch.equal(exact.output, ours.output)
    # attention and layers with an adapter sum in another order
    reordered = any(
        isinstance(layer, nn.MultiheadAttention) or adapter_of(layer) is not None
        for layer in layers.values()
    )
    same = reordered and torch.allclose(exact.output, ours.output, 1e-3, 1e-4)
    if finding.rounding and not same:
        finding.problems.append("the forward pass changed")
    if exact.finite and not ours.finite:
        finding.problems.append("gradients are not finite, those of backprop are")
    _compare(finding, layers, exact, ours)
    return finding


def _unlisted(model: nn.Module, reasons: dict[str, str]) -> list[str]:
    """Modules with a weight of two or more dimensions for which the plan gives no reason."""
    inside = {
        id(child)
        for module in model.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.modules()
        if child is not module
    }
    return [
        f"{name}: not in the plan"
        for name, module in model.named_modules()
        if (mixin_for(module) or _has_matrix(module))
        and not isinstance(module, Feedback)
        and id(module) not in inside
        and not reasons.get(name.partition(".parametrizations")[0])  # the row is the layer's
    ]


def _has_matrix(module: nn.Module) -> bool:
    own = module.parameters(recurse=False)
    return any(sum(size > 1 for size in parameter.shape) > 1 for parameter in own)


def _counted(layers: dict[str, nn.Module]) -> Counter[str]:
    calls: Counter[str] = Counter()
    for name, layer in layers.items():
        layer.register_forward_pre_hook(lambda *_, name=name: calls.update([name]))
    return calls


def train(model: nn.Module, x: Any, loss: Callable[[Any], Tensor], steps: int) -> Trace:
    """Some steps on one batch, by the sign of the gradient."""
    model.train()
    trace = Trace(torch.empty(0), {}, set(), set(), True)
    for step in range(steps):
        torch.manual_seed(step)
        model.zero_grad()
        returned = call_with(model, x)
        loss(returned).backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        trace.with_gradient |= {name for name, grad in gradients.items() if bool(grad.any())}
        trace.finite &= all(bool(grad.isfinite().all()) for grad in gradients.values())
        if step == 0:
            trace.output = first(returned).detach().clone()
            trace.gradients = {name: grad.clone() for name, grad in gradients.items()}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name in gradients:
                    before = parameter.clone()
                    parameter.sub_(gradients[name].sign(), alpha=RATE)
                    # in each step: two steps may cancel each other
                    if not torch.equal(before, parameter):
                        trace.moved.add(name)
    return trace


def first(output: Any) -> Tensor:
    """What a model returned, or the first tensor in it."""
    while not isinstance(output, Tensor):
        output = next(iter(output.values() if isinstance(output, Mapping) else output))
    return output


def _compare(finding: Finding, layers: dict[str, nn.Module], exact: Trace, ours: Trace) -> None:
    for layer_name, layer in layers.items():
        own = [n for n, p in layer.named_parameters() if p.dim() > 1 and "feedback" not in n]
        names = [f"{layer_name}.{n}" if layer_name else n for n in own]
        for name in names:
            if name not in exact.with_gradient:
                finding.idle.append(name)
            elif name not in ours.with_gradient:
                finding.problems.append(f"{name}: no gradient, though backprop has one")
            elif name not in ours.moved:
                finding.problems.append(f"{name}: did not move")
            elif torch.equal(ours.gradients[name], exact.gradients[name]):
                if bool(exact.gradients[name].any()):
                    finding.exact.append(name)
