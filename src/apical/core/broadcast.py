"""The star of the broadcast rules: from the model's output straight to every tapped activation.

A converted layer runs on `x.detach()`, and `x` itself becomes a tap. A pre-hook on the model
opens a call, the layers add their taps to it, and a hook on the output joins them: the gradient
of the output, the error, then reaches every tap as the teaching signal of its rule.

Hooks, not a class of its own for the model: its type and name, which other libraries save and
dispatch on, stay what they were, and a replica or a copy runs its own star.
"""

from __future__ import annotations

import operator
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor, nn

from apical.core import autograd, outputs
from apical.rules.base import BroadcastRule, Geometry
from apical.rules.ops import Op

if TYPE_CHECKING:
    from apical.core.feedback import Feedback


class _Tap(NamedTuple):
    """What a layer reads, which is to hear of the error."""

    feedback: Feedback
    op: Op
    x: Tensor
    weight: Tensor
    teaches: bool  # whether x takes part in a backward pass, or only shows its shape

    @property
    def rule(self) -> BroadcastRule:
        assert isinstance(self.feedback.rule, BroadcastRule)
        return self.feedback.rule

    def geometry(self, samples: int) -> Geometry:
        x, shape = self.x, self.x.shape
        channels_last = x.dim() == 4 and not x.is_contiguous() and x.stride(1) == 1
        if torch.compiler.is_compiling():  # one graph for all batch sizes, but for one image size
            shape = torch.Size([shape[0], *map(operator.index, shape[1:])])
        return Geometry(shape, samples, self.weight.shape, self.op, channels_last)


class _Call:
    """A forward pass under way: the tokens of its taps, and taps that wait for the output.

    `part` says how each layer takes part: "tapped", "late" as it waits for the output, or "hidden"
    from autograd in a pass that others take part in.
    """

    def __init__(self, caller: FrameType | None) -> None:
        self.caller, self.trains = caller, torch.is_grad_enabled()
        self.tokens: list[tuple[str, Tensor]] = []
        self.late: list[_Tap] = []
        self.part: dict[str, str] = {}

    def note(self, layer: str, part: str) -> None:
        """Remember the layer's part; of a layer called several times that it was hidden."""
        if self.part.get(layer) != "hidden" and not torch.compiler.is_compiling():
            self.part[layer] = part

    def runs(self) -> bool:
        """Whether the pass goes on: hooks do not hear of an interrupt, which may have ended it."""
        try:
            if self.caller is not None:
                self.caller.clear()  # frames that run refuse this
        except RuntimeError:
            return True
        return self.caller is None


class _Calls(threading.local):
    """The forward passes under way, those of each thread apart (`nn.DataParallel` has many)."""

    def __init__(self) -> None:
        self.stack: list[_Call] = []

    def __reduce__(self) -> tuple[type[_Calls], tuple[()]]:
        return _Calls, ()  # a copy of the model is not running


class Star:
    """The taps of one converted model. Its methods `open` and `close` are the model's hooks.

    Attributes:
        output: which tensor of the model's output carries the error;
        error_shape: that of one sample; None until a first forward pass;
        feedbacks: of the layers that it taps;
        labels: given by `apical.labels`;
        last: how each layer took part in the last forward pass with gradients, which a
            recomputation has to repeat.
    """

    def __init__(self, output: outputs.OutputKey = None) -> None:
        self.output = output
        self.error_shape: tuple[int, ...] | None = None
        self.feedbacks: WeakSet[Feedback] = WeakSet()
        self.labels: Tensor | None = None
        self.last: dict[str, str] = {}
        self.running = _Calls()
        self.handles: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        state = {**self.__dict__, "labels": None, "last": {}}
        del state["feedbacks"]  # their copies join the copy by themselves
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, feedbacks=WeakSet())

    def attach(self, model: nn.Module) -> None:
        """Hook the star to the model whose output carries the error."""
        self.handles = [
            model.register_forward_pre_hook(self.open, prepend=True),
            model.register_forward_hook(self.close, always_call=True),
        ]

    def add(self, feedback: Feedback) -> None:
        """Tap the layer of this feedback, wherever that was tapped before."""
        feedback.star = self
        self.feedbacks.add(feedback)

    def release(self, feedback: Feedback) -> None:
        """Tap one layer less; the last one takes the hooks along."""
        self.feedbacks.discard(feedback)
        if not self.feedbacks:
            for handle in self.handles:
                handle.remove()

    def share(self) -> None:
        """Let rules with one matrix for all use the storage of the longest: the others are
        beginnings of the same numbers."""
        groups: dict[Any, list[tuple[Tensor, Feedback]]] = {}
        for feedback in self.feedbacks:
            rule = feedback.rule
            if isinstance(rule, BroadcastRule) and rule.shared and not feedback.pending:
                name, tensor = (feedback.memory_names or ("",))[0], feedback.memory()[0]
                alike = type(rule), name, tensor.dtype, tensor.device
                groups.setdefault(alike, []).append((tensor, feedback))
        for (_, name, *_), members in groups.items():
            longest = max((tensor for tensor, _ in members), key=len)
            for tensor, feedback in members:
                setattr(feedback, name, longest[: len(tensor)])

    def open(self, model: nn.Module, args: Any) -> None:
        """Forward pre-hook: taps from here on belong to this call."""
        self._call()  # drops what was interrupted
        caller = None if torch.compiler.is_compiling() else sys._getframe(1)
        self.running.stack.append(_Call(caller))

    def close(self, model: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook, also after an exception: join the call's taps to the output."""
        call = self.running.stack.pop()
        if call.trains and not torch.compiler.is_compiling():
            self.last = call.part
        if output is None or not (call.tokens or call.late):
            return output
        alone = isinstance(output, Tensor) and self.error_shape is not None
        error = outputs.find(output, None if alone else self.output)  # in evaluation, for example
        if error.dim() == 0:
            raise ValueError("the model's output is a single number; it must be (samples, ...)")
        shape = tuple(error.shape[1:])
        if call.tokens and shape != self.error_shape:
            raise ValueError(
                f"the model's output changed from {self.error_shape} to {shape} per sample; the"
                " feedback is sized for the former. Revert and convert again to change it"
            )
        self.error_shape = shape
        tokens = call.tokens + self._at_output(call.late, error)
        for layer, token in tokens:
            if token.shape[0] != error.shape[0]:
                raise _samples_differ(layer, token.shape[0], error.shape[0])
        if not tokens:
            return output
        joined = autograd.join(error, [token for _, token in tokens])
        return outputs.replaced(output, self.output, joined)

    def pass_on(self, feedback: Feedback, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        """What the layer runs on: `x` cut from what is below it, which hears from the tap."""
        tap = _Tap(feedback, op, x, weight, torch.is_grad_enabled() and x.requires_grad)
        call = self._call()
        if call is None:
            return self._outside(tap) if tap.teaches else x
        if call.trains and not torch.is_grad_enabled():
            call.note(feedback.layer, "hidden")
        if not (tap.teaches or feedback.pending):
            return x
        if feedback.pending and torch.compiler.is_compiling():
            raise RuntimeError(
                f"{feedback.layer}: its feedback has no size yet. Before compiling, run the model"
                " once, or give convert(..., example=x)"
            )
        if x.dim() < 2:
            raise ValueError(
                f"{feedback.layer}: its input has no axis that counts samples, and an error belongs"
                " to a sample; give the model a batch of one, x.unsqueeze(0)"
            )
        samples = None
        if self.error_shape is not None and not feedback.pending:
            samples = tap.rule.samples(x.shape, self.error_shape)
        if samples is None:
            call.late.append(tap)
            call.note(feedback.layer, "late")
        else:
            call.tokens.append((feedback.layer, self._token(tap, samples)))
            call.note(feedback.layer, "tapped")
        return x.detach() if tap.teaches else x

    def _call(self) -> _Call | None:
        """The call under way in this thread; those that an interrupt ended are dropped."""
        stack = self.running.stack
        while stack and not (torch.compiler.is_compiling() or stack[-1].runs()):
            stack.pop()
        return stack[-1] if stack else None

    def _token(self, tap: _Tap, samples: int) -> Tensor:
        assert self.error_shape is not None
        targets = None
        if tap.rule.needs_labels:
            if self.labels is None:
                raise ValueError(
                    f"{tap.feedback.layer}: {type(tap.rule).__name__} learns from labels; run the"
                    " forward and backward pass inside `with apical.labels(model, targets):`"
                )
            targets = outputs.targets(self.labels, samples, self.error_shape)
        geometry = tap.geometry(samples)
        return autograd.tap(tap.x, tap.feedback, geometry, self.error_shape, targets)

    def _at_output(self, late: list[_Tap], error: Tensor) -> list[tuple[str, Tensor]]:
        """Size the memory that waited for a first call; tokens of the taps that wait for one."""
        tokens, created = [], False
        for tap in late:
            samples = self._samples(tap, error.shape[0])
            if tap.feedback.pending:
                tap.feedback.create(tap.weight, tap.geometry(samples), error.shape[1:].numel())
                created = True
            if tap.teaches:
                tokens.append((tap.feedback.layer, self._token(tap, samples)))
        if created:
            self.share()
        return tokens

    def _samples(self, tap: _Tap, expected: int) -> int:
        assert self.error_shape is not None
        rows, samples = tap.x.shape[0], tap.rule.samples(tap.x.shape, self.error_shape)
        if samples is None and expected and rows % expected == 0:
            samples = expected
        if samples != expected:
            raise _samples_differ(tap.feedback.layer, samples or rows, expected)
        return samples

    def _outside(self, tap: _Tap) -> Tensor:
        """A layer that runs while no call is open: recomputed by checkpointing, or bypassed."""
        layer = tap.feedback.layer
        recomputing = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        if not recomputing:
            raise RuntimeError(
                f"{layer}: called outside a forward pass of the model that was converted."
                f" {type(tap.rule).__name__} sends the error from that model's output: call the"
                " whole model, as model(x), or convert the part you call, or use exact_gradients"
            )
        part = self.last.get(layer)
        if part == "hidden":
            raise RuntimeError(
                f"{layer}: reentrant activation checkpointing hides the layer from the error;"
                " use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )
        if part != "late" and self.error_shape is not None:
            samples = tap.rule.samples(tap.x.shape, self.error_shape)
            if samples is not None:
                self._token(tap, samples)  # saves again what the first run saved
        return tap.x.detach()


def _samples_differ(layer: str, given: int, expected: int) -> ValueError:
    return ValueError(
        f"{layer}: its input counts {given} samples, the model's output {expected}. If another"
        " axis counts samples, or axis 0 holds several rows of each sample, tell the rule:"
        " DFA(sample_axis=...), for spiking nets sample_axis='steps'. If it holds no samples (a"
        " table of positions), give the layer rule BP by its name"
    )
