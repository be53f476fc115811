"""The star of the broadcast rules: from the model's output straight to every tapped activation.

A converted layer runs on `x.detach()`, and `x` itself becomes a tap. A pre-hook on the model
opens a call, the layers add their taps to it, and a hook on the output joins them: the gradient
of the output, the error, then reaches every tap as the teaching signal of its rule.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from apical import functional, outputs
from apical.functional import Op
from apical.rules.base import BroadcastRule, Geometry

if TYPE_CHECKING:
    from apical.feedback import Feedback


@dataclass
class _Tap:
    feedback: Feedback
    op: Op
    x: Tensor
    weight: Tensor
    teaches: bool  # whether x takes part in a backward pass, or only shows its shape


@dataclass
class _Call:
    grad_enabled: bool
    tokens: list[Tensor] = field(default_factory=list)
    owners: list[str] = field(default_factory=list)
    late: list[_Tap] = field(default_factory=list)  # taps made when the output is known


class _Calls(threading.local):
    """The forward passes under way, those of each thread apart (`nn.DataParallel` has many)."""

    def __init__(self) -> None:
        self.stack: list[_Call] = []

    def __reduce__(self) -> tuple[type[_Calls], tuple[()]]:
        return _Calls, ()  # a copy of the model is not running


class Star:
    """The taps of one converted model. Its methods `open` and `close` are the model's hooks."""

    def __init__(self, output: outputs.OutputKey = None) -> None:
        self.output = output
        self.error_shape: tuple[int, ...] | None = None  # of one sample
        self.running = _Calls()
        self.hidden: set[str] = set()  # layers that ran without gradients in a training call
        self.tapped_late: set[str] = set()
        self.handles: list[Any] = []
        self.layers = 0
        self.labels: Tensor | None = None  # given by `apical.labels`

    def __getstate__(self) -> dict[str, Any]:
        transient: dict[str, Any] = {
            "hidden": set(),
            "tapped_late": set(),
            "labels": None,
        }
        return {**self.__dict__, **transient}

    def attach(self, model: nn.Module) -> None:
        """Hook the star to the model whose output carries the error."""
        self.handles = [
            model.register_forward_pre_hook(self.open),
            model.register_forward_hook(self.close, always_call=True),
        ]

    def release(self) -> None:
        """Count one converted layer less; the last one takes the hooks along."""
        self.layers -= 1
        if self.layers == 0:
            for handle in self.handles:
                handle.remove()

    def open(self, model: nn.Module, args: Any) -> None:
        """Forward pre-hook: taps from here on belong to this call."""
        self.running.stack.append(_Call(torch.is_grad_enabled()))
        if not torch.compiler.is_compiling():
            self.hidden.clear()
            self.tapped_late.clear()

    def close(self, model: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook, also after an exception: join the call's taps to the output."""
        call = self.running.stack.pop()
        if output is None or not (call.tokens or call.late):
            return output
        error = outputs.find(output, self.output)
        if error.dim() == 0:
            raise ValueError("the model's output is a single number; it must be (samples, ...)")
        shape = tuple(error.shape[1:])
        if call.tokens and shape != self.error_shape:
            raise ValueError(
                f"the model's output changed from {self.error_shape} to {shape} per sample; the"
                " feedback is sized for the former. Revert and convert again to change it"
            )
        self.error_shape = shape
        tokens, owners = self._with_late(call, error)
        for token, layer in zip(tokens, owners, strict=True):
            if token.shape[0] != error.shape[0]:
                raise _samples_differ(layer, token.shape[0], error.shape[0])
        if not tokens:
            return output
        return outputs.replaced(output, self.output, functional.join(error, tokens))

    def pass_on(self, feedback: Feedback, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        """What the layer runs on: `x` cut from what is below it, which hears from the tap."""
        teaches = torch.is_grad_enabled() and x.requires_grad
        if not self.running.stack:
            return self._outside(feedback, op, x, weight) if teaches else x
        call = self.running.stack[-1]
        if call.grad_enabled and not torch.is_grad_enabled():
            self.hidden.add(feedback.layer)
        if feedback.pending and torch.compiler.is_compiling():
            raise RuntimeError(
                f"{feedback.layer}: its feedback has no size yet. Before compiling, run the model"
                " once, or give convert(..., example=x)"
            )
        if x.dim() < 2 and (teaches or feedback.pending):
            raise ValueError(
                f"{feedback.layer}: its input has no axis that counts samples, and an error belongs"
                " to a sample; give the model a batch of one, x.unsqueeze(0)"
            )
        rule = feedback.rule
        assert isinstance(rule, BroadcastRule)
        samples = None
        if self.error_shape is not None and not feedback.pending:
            samples = rule.samples(x.shape, self.error_shape)
        if teaches and samples is not None and self.error_shape is not None:
            geometry = _geometry(op, x, weight, samples)
            call.tokens.append(self._tap(x, feedback, geometry))
            call.owners.append(feedback.layer)
        elif teaches or feedback.pending:
            call.late.append(_Tap(feedback, op, x, weight, teaches))
            self.tapped_late.add(feedback.layer)
        return x.detach() if teaches else x

    def _tap(self, x: Tensor, feedback: Feedback, geometry: Geometry) -> Tensor:
        assert self.error_shape is not None and isinstance(feedback.rule, BroadcastRule)
        targets = None
        if feedback.rule.needs_labels:
            if self.labels is None:
                raise ValueError(
                    f"{feedback.layer}: {type(feedback.rule).__name__} learns from labels; run the"
                    " forward and backward pass inside `with apical.labels(model, targets):`"
                )
            targets = outputs.targets(self.labels, geometry.samples, self.error_shape)
        return functional.tap(x, feedback, geometry, self.error_shape, targets)

    def _with_late(self, call: _Call, error: Tensor) -> tuple[list[Tensor], list[str]]:
        assert self.error_shape is not None
        tokens, owners = list(call.tokens), list(call.owners)
        self._size(call, error)
        for late in call.late:
            if late.teaches:
                geometry = self._geometry_of(late, error)
                tokens.append(self._tap(late.x, late.feedback, geometry))
                owners.append(late.feedback.layer)
        return tokens, owners

    def _size(self, call: _Call, error: Tensor) -> None:
        """Make the memory that waited for the shapes of this call."""
        shared = []
        for late in call.late:
            if late.feedback.pending:
                geometry = self._geometry_of(late, error)
                late.feedback.create(late.weight, geometry, error.shape[1:].numel())
                if getattr(late.feedback.rule, "shared", False):
                    shared.append(late.feedback)
        _share(shared)

    def _geometry_of(self, late: _Tap, error: Tensor) -> Geometry:
        rule, expected = late.feedback.rule, error.shape[0]
        assert isinstance(rule, BroadcastRule) and self.error_shape is not None
        samples = rule.samples(late.x.shape, self.error_shape)
        if samples is None and late.x.shape[0] % expected == 0:
            samples = expected
        if samples != expected:
            raise _samples_differ(late.feedback.layer, samples or late.x.shape[0], expected)
        return _geometry(late.op, late.x, late.weight, samples)

    def _outside(self, feedback: Feedback, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        """A layer that runs while no call is open: recomputed by checkpointing, or bypassed."""
        recomputing = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        if not recomputing:
            raise RuntimeError(
                f"{feedback.layer}: called outside a forward pass of the model that was converted."
                f" {type(feedback.rule).__name__} sends the error from that model's output: call"
                " the whole model, or convert the part you call, or use exact_gradients"
            )
        if feedback.layer in self.hidden:
            raise RuntimeError(
                f"{feedback.layer}: reentrant activation checkpointing hides the layer from the"
                " error; use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )
        if feedback.layer not in self.tapped_late:  # save again what the first run saved
            rule, shape = feedback.rule, self.error_shape
            assert isinstance(rule, BroadcastRule) and shape is not None
            samples = rule.samples(x.shape, shape)
            if samples is not None:
                self._tap(x, feedback, _geometry(op, x, weight, samples))
        return x.detach()


def _share(feedbacks: list[Feedback]) -> None:
    """Let all use the storage of the longest: the others are beginnings of the same numbers."""
    if feedbacks:
        name = (feedbacks[0].memory_names or ("",))[0]
        longest = max((getattr(feedback, name) for feedback in feedbacks), key=len)
        for feedback in feedbacks:
            setattr(feedback, name, longest[: len(getattr(feedback, name))])


def _geometry(op: Op, x: Tensor, weight: Tensor, samples: int) -> Geometry:
    channels_last = x.dim() == 4 and not x.is_contiguous() and x.stride(1) == 1
    return Geometry(x.shape, samples, weight.shape, op, channels_last)


def _samples_differ(layer: str, given: int, expected: int) -> ValueError:
    return ValueError(
        f"{layer}: its input counts {given} samples, the model's output {expected}. If another"
        " axis counts samples, or axis 0 holds several rows of each sample, tell the rule:"
        " DFA(sample_axis=...). If it holds no samples (a table of positions), give the layer rule"
        " BP by its name"
    )
