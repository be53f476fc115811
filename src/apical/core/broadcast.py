"""The broadcast rules: from the model's output directly to the input of every converted layer.

A converted layer runs on `x.detach()`, and `x` itself is tapped. A pre-hook on the model opens a
call, the layers add their taps to it, and a hook on the output joins them: the gradient of the
output, the error, then reaches every tapped input as the signal of the layer's rule.

These are hooks, not a class for the model: its type and name, which other libraries save and
dispatch on, stay what they were, and a replica or a copy of the model broadcasts its own error.
"""

import inspect
import math
import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from apical.core import autograd, counted, graph, memory, outputs, sample_axis
from apical.core.feedback import Feedback
from apical.core.taps import BroadcastFeedback, Call, OpenCalls, Tap, measurable, recorded_in_memory
from apical.rules.ops import Op

ATTEMPTS = 3
"""Forward passes of several samples in which their axis is verified, until one shows it; then ever
rarer ones, since a network shows nothing while its gradients vanish (a last layer of zeros)."""


class Broadcast:
    """Sends the error of one converted model. Its methods `open` and `close` are the model's hooks.

    Attributes:
        output: which tensors of the model's output carry the error;
        axis: of those tensors, which counts samples; stated: whether the user gave it;
        max_bytes: of the feedback of all layers; None: the limit of `apical.core.memory`;
        error_shape: that of one sample; None until a first forward pass;
        layers: number of feedback modules that receive the error;
        labels: given by `apical.labels`;
        attempts: left to verify the axis of samples;
        warns_of_outputs: whether it still warns of another output that receives a gradient;
        last_part: how each layer took part in the last forward pass with gradients, which a
            recomputation has to repeat.
    """

    def __init__(
        self,
        output: outputs.OutputKey = None,
        axis: int | None = None,
        max_bytes: int | None = None,
    ) -> None:
        self.output = output
        self.max_bytes = max_bytes
        self.axis = axis or 0
        self.stated = axis is not None
        self.error_shape: tuple[int, ...] | None = None
        self.layers = 0
        self.labels: Tensor | None = None
        self.last_part: dict[str, str] = {}
        self.warns_of_outputs = True
        self.attempts = ATTEMPTS
        self._pause, self._until_next = ATTEMPTS, 0
        self._shares = True  # until a forward pass has found nothing to share
        self._open = OpenCalls()
        self._handles: list[Any] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "labels": None, "last_part": {}}

    def attach(self, model: nn.Module) -> None:
        """Register the hooks on the model whose output carries the error."""
        self._handles = [
            model.register_forward_pre_hook(self.open, prepend=True),
            model.register_forward_hook(self.close, always_call=True),
        ]

    def release(self) -> None:
        """A layer was reverted; with the last one the hooks are removed."""
        self.layers -= 1
        if not self.layers:
            for handle in self._handles:
                handle.remove()

    def open(self, model: nn.Module, args: Any) -> None:
        """Forward pre-hook: taps from here on belong to this call."""
        if torch.compiler.is_compiling():
            self._open.calls.append(Call(None))
            return
        self._current()  # removes calls that were interrupted
        if self._shares:
            self._shares = _share_storage(model, self)
        if self._until_next:
            self._until_next -= 1
            self.attempts = int(not self._until_next)
        caller = inspect.currentframe()
        call = Call(caller.f_back if caller else None)
        call.verifies = self.attempts > 0 and call.grad_enabled and measurable(model)
        self._open.calls.append(call)

    def close(self, model: nn.Module, args: Any, output: Any) -> Any:
        """Forward hook, also after an exception: join the call's taps to the output."""
        call = self._open.calls.pop()
        if call.grad_enabled and not torch.compiler.is_compiling():
            self.last_part = call.part
        if output is None or not (call.tokens or call.late):
            return output
        # A model in evaluation may return the one tensor alone.
        alone = isinstance(output, Tensor) and self.error_shape is not None
        keys = [None] if alone else outputs.names(self.output)
        parts = [outputs.find(output, key) for key in keys]
        error = outputs.error(parts, self.axis, self.output)
        shape = tuple(error.shape[1:])
        joint = [feedback for feedback, _ in call.tokens if not feedback.rule.by_position]
        if joint and shape != self.error_shape:
            raise ValueError(
                f"{joint[0].layer}: the model's output changed from {self.error_shape} to"
                f" {shape} per sample; the feedback is sized for the former. Revert and convert"
                " again to change it; for sequences of any length give the rule"
                " positions='samples', as DFA(positions='samples')"
            )
        self.error_shape = shape
        tokens = call.tokens + self._tokens_of_late_taps(model, call.late, error)
        tokens = [
            (feedback, counted.at_output(feedback, token, error)) for feedback, token in tokens
        ]
        if not tokens:
            return output
        if call.verifies and call.bridged and error.requires_grad:
            self._verify(model, call, parts)
        if self.warns_of_outputs and not torch.compiler.is_compiling():
            output = outputs.mapped(output, partial(self._watched, parts))
        joined = autograd.join(error, tokens[0][0], [token for _, token in tokens])
        if len(parts) == 1:
            carriers = [joined.movedim(0, self.axis)]
        else:
            sizes = [part.numel() // max(len(joined), 1) for part in parts]
            carriers = [
                flat.to(part.dtype).view(part.movedim(self.axis, 0).shape).movedim(0, self.axis)
                for part, flat in zip(parts, joined.split(sizes, 1), strict=True)
            ]

        def joined_to(path: tuple[outputs.Name, ...], tensor: Tensor) -> Tensor:
            # by identity: what the model returns under two names carries the error under both
            for part, carrier in zip(parts, carriers, strict=True):
                if tensor is part:
                    return carrier
            return tensor

        return outputs.mapped(output, joined_to)

    def _watched(
        self, parts: Sequence[Tensor], path: tuple[outputs.Name, ...], other: Tensor
    ) -> Tensor:
        """A tensor of the output; if it carries no error, one that warns of a gradient to it."""
        if not other.requires_grad or any(other is part for part in parts):
            return other
        seen = other.view_as(other)  # the layers that read `other` send it signals too
        seen.register_hook(partial(self._warn_of_output, path))
        return seen

    def _warn_of_output(self, path: tuple[outputs.Name, ...], gradient: Tensor) -> None:
        """Hook of an output that carries no error: once, if it receives a gradient."""
        if self.warns_of_outputs:
            self.warns_of_outputs = False
            name, *within = path
            named = [key for key in outputs.names(self.output) if key is not None]
            remedy = f"Give output={[*named, name]!r} if both count"
            if within:
                remedy = "If both count, return it beside that output and name both in output=[...]"
            warnings.warn(
                f"output {repr(name) + ''.join(f'[{key!r}]' for key in within)} of the model"
                " receives a gradient, which trains the layers next to it but reaches no hidden"
                f" layer: the broadcast error is that of output={self.output!r}. {remedy}",
                stacklevel=2,
            )

    def cut(self, feedback: BroadcastFeedback, op: Op, x: Tensor, weight: Tensor) -> Tensor:
        """What the layer runs on: `x` detached from the layers below, which receive the signal of
        the rule through the tap."""
        tap = Tap(feedback, op, x, weight, torch.is_grad_enabled() and x.requires_grad)
        call = self._current()
        if call is None:
            return self._cut_outside(tap) if tap.differentiated else x
        if call.grad_enabled and not torch.is_grad_enabled():
            call.note(feedback.layer, "hidden")
        if not (tap.differentiated or feedback.pending):
            return self._bridged(call, tap)
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
        token = None if feedback.pending else self._early_token(tap)
        if token is None:
            call.late.append(tap)
            call.note(feedback.layer, "late")
        else:
            call.tokens.append((feedback, token))
            call.note(feedback.layer, "tapped")
        return self._bridged(call, tap)

    def _bridged(self, call: Call, tap: Tap) -> Tensor:
        """What the layer runs on: `x` detached, or in a pass that shows the axis of samples a
        bridge, also of the first layers' inputs, which nothing below receives."""
        traced = torch.compiler.is_compiling()
        call.verifies = (
            call.verifies and not traced and torch.is_grad_enabled() and recorded_in_memory()
        )
        if not call.verifies:
            return tap.x.detach() if tap.differentiated else tap.x
        x = tap.x if tap.differentiated else tap.x.detach().requires_grad_()
        bridged = autograd.bridge(x, call.probe)
        call.bridged.append((tap, bridged))
        return bridged

    def _verify(self, model: nn.Module, call: Call, parts: Sequence[Tensor]) -> None:
        """Whether the axes taken for samples are those of the network; see `sample_axis.verify`."""
        if all(part.shape[self.axis] < 2 for part in parts):
            return  # a batch of one shows nothing; the next may
        self.attempts -= 1
        taps = [tap for tap, _ in call.bridged if tap.differentiated]
        recorded = graph.Graph([*parts, *(tap.x for tap in taps)])
        if any(hasattr(node, "run_function") for _, node in recorded.nodes):
            return  # reentrant checkpointing allows no such measurement
        tables = recorded.of_parameters_alone()
        for tap in taps:
            if tap.x.grad_fn in tables or isinstance(tap.x, nn.Parameter):
                raise ValueError(
                    f"{tap.feedback.layer}: its input {tuple(tap.x.shape)} is computed from"
                    " parameters alone (a table of positions), so that its rows are no samples, and"
                    f" {type(tap.feedback.rule).__name__} sends errors of samples; give the layer"
                    f" another rule by its name, {{{tap.feedback.layer!r}: 'bp', '*': ...}}"
                )
        readings = [
            sample_axis.Reading(
                tap.feedback.layer,
                type(tap.feedback.rule).__name__,
                tap.op,
                bridged,
                getattr(tap.feedback.rule, "sample_axis", 0) if tap.differentiated else None,
                tap.feedback.rule.by_position,
            )
            for tap, bridged in call.bridged
        ]
        mixes = any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())
        observing = [m for m in model.modules() if isinstance(m, Feedback) and m.history.observes]
        for feedback in observing:  # of other rules in the same model, which are no part of this
            feedback.history.observes = False
        call.probe.passes = True
        try:
            with torch.enable_grad():
                shown = [
                    sample_axis.verify(part, self.axis, readings, stated=self.stated, mixes=mixes)
                    for part in parts
                    if part.requires_grad
                ]
        finally:
            call.probe.passes = False
            for feedback in observing:
                feedback.history.observes = True
        if all(shown):
            self.attempts = 0
        elif not self.attempts:
            self._until_next = self._pause
            self._pause *= 2

    def _current(self) -> Call | None:
        """The call under way in this thread; calls that were interrupted are removed."""
        calls = self._open.calls
        while calls and not (torch.compiler.is_compiling() or calls[-1].is_running()):
            calls.pop()
        return calls[-1] if calls else None

    def _early_token(self, tap: Tap) -> Tensor | None:
        """The token, where the number of samples is known before the model's output is."""
        rule = tap.feedback.rule
        if self.error_shape is None:
            return None
        if rule.by_position and getattr(rule, "sample_axis", 0) != "folded":
            rows = tap.by_rows()
            return self._token(rows, len(rows.x))
        samples = rule.samples(tap.x.shape, self.error_shape)
        return None if samples is None else self._token(tap, samples)

    def _token(self, tap: Tap, samples: int) -> Tensor:
        assert self.error_shape is not None
        rule = tap.feedback.rule
        shape = counted.of_sample(rule, self.error_shape)
        targets = None
        if rule.needs_labels:
            targets = counted.targets(
                tap,
                self.labels,
                axis=self.axis,
                several=len(outputs.names(self.output)) > 1,
                samples=samples,
                error_shape=self.error_shape,
            )
        geometry = tap.geometry(samples)
        if not torch.compiler.is_compiling():
            tap.feedback.check_fit(geometry, math.prod(shape))
        token = autograd.tap(tap.x, tap.feedback, geometry, shape, targets)
        if tap.positions is None:
            return token
        token = token.view(*tap.positions, *shape)
        return token.movedim(-1, 1) if rule.by_pixel else token

    def _tokens_of_late_taps(
        self, model: nn.Module, late: list[Tap], error: Tensor
    ) -> list[tuple[BroadcastFeedback, Tensor]]:
        """Create the memory that waited for a first call, and the tokens that waited for the
        number of samples."""
        taps = [counted.counted(tap, error) for tap in late if not counted.is_empty(tap, error)]
        pending = [(tap, samples) for tap, samples in taps if tap.feedback.memory_names is None]
        if pending:
            rules = {tap.feedback.layer: tap.feedback.rule for tap, _ in pending}
            weights = sum(p.numel() * p.element_size() for p in model.parameters())
            device = pending[0][0].weight.device
            memory.check(counted.sizes(pending, error), rules, self.max_bytes, weights, device)
        tokens = []
        created = False
        for tap, samples in taps:
            feedback = tap.feedback
            if feedback.pending:
                size = counted.error_size(tap, error)
                feedback.create(tap.weight, tap.geometry(samples), size)
                created = True
            if tap.differentiated:
                tokens.append((feedback, self._token(tap, samples)))
        if created:
            self._shares = _share_storage(model, self)
        return tokens

    def _cut_outside(self, tap: Tap) -> Tensor:
        """A layer that runs while no call is open: recomputed by checkpointing, or bypassed."""
        layer = tap.feedback.layer
        rule = tap.feedback.rule
        recomputing = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        if not recomputing:
            raise RuntimeError(
                f"{layer}: called outside a forward pass of the model that was converted."
                f" {type(rule).__name__} sends the error from that model's output: call the"
                " whole model, as model(x), or convert the part you call, or use exact_gradients"
            )
        part = self.last_part.get(layer)
        if part == "hidden":
            raise RuntimeError(
                f"{layer}: reentrant activation checkpointing hides the layer from the error;"
                " use torch.utils.checkpoint.checkpoint(..., use_reentrant=False)"
            )
        if part != "late" and self.error_shape is not None:
            self._early_token(tap)  # saves again what the first run saved
        return tap.x.detach()


def _share_storage(model: nn.Module, broadcast: Broadcast) -> bool:
    """Let rules with one matrix for all layers use the storage of the longest, of which the others
    are slices. Moving or casting the model gives every layer a copy of its own.

    Returns: whether the model has such rules, or feedback that waits for its size.
    """
    groups: dict[Any, list[BroadcastFeedback]] = {}
    waits = False
    for module in model.modules():
        if isinstance(module, BroadcastFeedback) and module.broadcast is broadcast:
            waits = waits or module.pending
            if module.rule.shared and not module.pending:
                tensor = module.memory()[0]
                key = (type(module.rule), tensor.dtype, tensor.device)
                groups.setdefault(key, []).append(module)
    for members in groups.values():
        longest = max((feedback.memory()[0] for feedback in members), key=len)
        for feedback in members:
            assert feedback.memory_names is not None
            tensor = feedback.memory()[0]
            if tensor.data_ptr() != longest.data_ptr():
                setattr(feedback, feedback.memory_names[0], longest[: len(tensor)])
    return waits or bool(groups)
