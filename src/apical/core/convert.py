"""Converting a model to another learning rule, and reverting it."""

from collections.abc import Iterable
from numbers import Real
from typing import Any, Literal

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from apical.core import memory, obstacles, outputs, outside, search, updates
from apical.core.adapters import mixin_for, parts
from apical.core.broadcast import Broadcast
from apical.core.example import size_feedback
from apical.core.feedback import Feedback, TransportFeedback, check_checkpoint
from apical.core.layers import converted_class, converted_layers, feedback_modules, modules
from apical.core.outputs import OutputKey
from apical.core.plan import UNNAMED, Assignment, Row, plan
from apical.core.taps import BroadcastFeedback
from apical.rules import BroadcastRule, Rule, TransportRule


def convert(
    model: nn.Module,
    rule: Assignment,
    *,
    example: Any = None,
    seed: int = 0,
    output: OutputKey = None,
    output_axis: int | None = None,
    max_feedback_bytes: int | None = None,
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
            forward pass does, and reveals layers that the model never calls and weights that it
            multiplies outside their layers.
        seed: of all feedback, with the layers' names; global generators are left alone. Feedback is
            drawn on the CPU, and is the same on every device. Only what a rule draws after updates
            (brsf, redrawn, wm) is drawn on the weight's device, where CUDA differs from the CPU.
        output: key, place or attribute of the tensor that carries the error, or a list of them, for
            broadcast rules on a model that returns several. Another output that receives a gradient
            is warned of once: it reaches no hidden layer.
        output_axis: the axis of that tensor that counts samples, for broadcast rules: 1 for (time,
            samples, features). None: axis 0, unless the first training call shows that another
            axis fits as well or better (see `apical.core.sample_axis`), which is an error. The axis
            of the layers' inputs is the rule's `sample_axis`.
        max_feedback_bytes: feedback above it is refused before it is allocated; that of broadcast
            rules is sized by the example or the first forward pass, and refused there. None: four
            times the bytes of the weights or 1 GiB, whichever is more, but no more than what is
            free on the device.
        on_unsupported: "error", or "keep" to leave layers that cannot be converted on their exact
            gradient.

    Raises: ValueError with all problems at once, before anything is changed. The converted model
        raises it in the training calls 1, 2, 4, 8 and so on if it multiplies a converted layer's
        weight, or a parameter kept for its shape or name, outside of the converted layers, where
        the gradient is backpropagation's; and in the next if it has got layers since. Under "keep"
        it warns once. docs/your_model.md says what cannot be seen.

    >>> model = convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "fa")
    >>> [name for name, _ in model.named_buffers()]
    ['0.feedback.matrix', '2.feedback.matrix']
    """
    _check_call(model, example, seed)
    planned = plan(model, rule, on_unsupported=on_unsupported)
    if planned.problems:
        listed = "".join(f"\n  - {problem}" for problem in planned.problems)
        raise ValueError(f"nothing was converted:{listed}")
    rows = [row for row in planned.rows if row.action == "convert"]
    if not any(isinstance(row.rule, BroadcastRule) for row in rows):
        for option, value in (("output", output), ("output_axis", output_axis)):
            if value is not None:
                raise ValueError(
                    f"{option}={value!r} has no effect: no layer has a rule that broadcasts"
                )
    if output_axis is not None and (type(output_axis) is not int or output_axis < 0):
        raise ValueError(f"output_axis={output_axis!r} is no axis from 0, the first")
    outputs.names(output)  # or ValueError
    if max_feedback_bytes is not None:
        number = isinstance(max_feedback_bytes, Real) and not isinstance(max_feedback_bytes, bool)
        if not (number and max_feedback_bytes >= 0):
            raise ValueError(
                f"max_feedback_bytes={max_feedback_bytes!r} is no number of bytes from 0; give a"
                " number, as 2**30, or None for the limit that fits the weights and the device"
            )
    _check_memory(model, rows, max_feedback_bytes)
    conversion = _Conversion(seed, Broadcast(output, output_axis, max_feedback_bytes))
    for row in rows:
        conversion.convert(row)
    if conversion.broadcast.layers:
        conversion.broadcast.attach(model)
    guard = _guard(planned.rows, raises=on_unsupported == "error")
    if example is not None:
        try:
            sized = size_feedback(model, example, guard.layers, guard.kept)
            _handle_unused(rows, guard, *sized)
        except BaseException as error:
            for row in rows:  # not the whole model: parts may have been converted before
                revert(row.module)
            error.add_note("apical.convert ran the model on its example; nothing was converted")
            raise
    if rows:
        guard.attach(model)
    if any(feedback_modules(model)):
        _stop_checking_checkpoints(model)  # of parts that were converted before
        model.register_load_state_dict_pre_hook(check_checkpoint)
    return model


def _check_call(model: nn.Module, example: Any, seed: Any) -> None:
    """Raises: ValueError for arguments of another kind, and within or after inference mode."""
    if not isinstance(seed, int) or isinstance(seed, bool):
        raise ValueError(f"seed={seed!r} is no whole number")
    if isinstance(example, str | bytes | bool | int | float):
        raise ValueError(
            f"example={example!r} is no input of a model: give a tensor, a tuple of arguments, or "
            "a dictionary of keyword arguments"
        )
    held = [p for _, module in modules(model) for p in module.parameters(recurse=False)]
    made = (p.is_inference() for p in held if not isinstance(p, UninitializedParameter))
    if torch.is_inference_mode_enabled() or any(made):
        raise ValueError(
            "convert within torch.inference_mode(), or of weights made there: such tensors can "
            "never be trained. Build and convert the model outside of it"
        )


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
            if isinstance(slot.feedback, BroadcastFeedback):
                slot.feedback.broadcast.release()
        layer.__class__ = type(layer).plain_class  # type: ignore[attr-defined]
        del layer.feedback
    _stop_checking_checkpoints(model)
    if not any(converted_layers(model)):
        for module in model.modules():
            outside.release(module)
    return model


class _Conversion:
    """One call of `convert`: what its layers have in common."""

    def __init__(self, seed: int, broadcast: Broadcast) -> None:
        self.seed = seed
        self.broadcast = broadcast
        self._of_weight: dict[Any, Feedback] = {}

    def convert(self, row: Row) -> None:
        """Change the class of a layer, and add its feedback."""
        layer = row.module
        mixin = mixin_for(layer)
        assert mixin is not None and row.rule is not None
        layer.__class__ = converted_class(mixin, type(layer))  # type: ignore[arg-type]
        weights = {
            name: part.weight
            for name, part in parts(layer).items()
            if part.tapped or not isinstance(row.rule, BroadcastRule)
        }
        made = {
            name: self._feedback(row.rule, f"{row.layer}.{name}" if name else row.layer, weight)
            for name, weight in weights.items()
        }
        layer.feedback = made[""] if "" in made else nn.ModuleDict(made)
        layer.feedback.train(layer.training)
        updates.watch(layer)

    def _feedback(self, rule: Rule, name: str, weight: Any) -> Feedback:
        feedback: Feedback
        if isinstance(rule, BroadcastRule):
            feedback = BroadcastFeedback(rule, name, self.seed, self.broadcast)
        else:
            assert isinstance(rule, TransportRule)
            owner = weight if weight._base is None else weight._base  # attention packs three
            place = (owner, weight.storage_offset(), weight.shape, weight.stride(), rule)
            if place in self._of_weight:  # layers share a weight: they share this
                return self._of_weight[place]
            feedback = TransportFeedback(rule, name, self.seed, weight)
            self._of_weight[place] = feedback
        if rule.constrain_weights:
            feedback.constrain(weight)
        return feedback


def _check_memory(model: nn.Module, rows: list[Row], limit: int | None) -> None:
    """Refuse feedback of transport rules that is too large. Where no limit is given and the weights
    are small, it is not counted: such feedback is a few times as large as the weights."""
    made = (p for p in model.parameters() if not isinstance(p, UninitializedParameter))
    weights = sum(p.numel() * p.element_size() for p in made)
    if limit is None and weights < memory.FLOOR // 8:
        return
    sizes = {
        row.layer: sum(
            memory.transport_bytes(row.rule, p.weight) for p in parts(row.module).values()
        )
        for row in rows
        if isinstance(row.rule, TransportRule)
    }
    if sizes:
        rules = {row.layer: row.rule for row in rows if row.rule is not None}
        memory.check(sizes, rules, limit, weights, next(model.parameters()).device)


def _guard(rows: Iterable[Row], *, raises: bool) -> outside.Guard:
    """What finds weights that are used outside their layers. A weight that another layer shares
    which the user keeps on its exact gradient may be used anywhere."""
    exempt: set[int] = set()
    exact: set[str] = set()
    layers = {}
    kept = []
    for row in rows:
        held = [(name, p) for name, p in row.module._parameters.items() if p is not None]
        if row.action == "convert" and row.rule is not None:
            layers[row.layer] = type(row.rule).__name__
            held = list(obstacles.further_parameters(row.module).items())
        elif not row.by_kind:
            exempt.update(id(parameter) for _, parameter in held)
            exact.add("" if row.why == UNNAMED else row.layer)
            continue
        kept += [(parameter, search.Kept(row.layer, row.kind, name)) for name, parameter in held]
    for row in rows:
        if row.layer in layers and not exempt.isdisjoint(map(id, row.weights())):
            del layers[row.layer]
    places = [place for parameter, place in kept if id(parameter) not in exempt]
    return outside.Guard(layers, exact, places, raises=raises)


def _handle_unused(
    rows: list[Row], guard: outside.Guard, called: set[str], found: dict[str, str]
) -> None:
    """Refuse layers that the model never called, and weights that it uses outside their layers; or
    make such layers plain again."""
    idle = [row.layer for row in rows if row.layer not in called]
    found = {place: text for place, text in found.items() if place not in idle}
    if guard.raises and (idle or found):
        problems = []
        if idle:
            listed = ", ".join(map(repr, idle))
            problems.append(
                f"the model never calls these layers on the example, so no rule can act: {listed}."
                " It may use their weights directly (F.linear(x, layer.weight)), or only in another"
                " mode. Give them rule BP by name, or accept it with on_unsupported='keep'"
            )
        if found:
            problems.append(outside.report(found.values()))
        raise ValueError("\n".join(problems))
    guard.accept(found)
    for row in rows:
        if row.layer in idle or row.layer in found:
            revert(row.module)


def _stop_checking_checkpoints(model: nn.Module) -> None:
    for module in model.modules():
        hooks = module._load_state_dict_pre_hooks
        for key, wrapped in list(hooks.items()):
            if getattr(wrapped, "hook", None) is check_checkpoint:
                del hooks[key]
