"""Running a model on an example of its input: sizes feedback, shows what layers are given."""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from apical.core import counted, outputs, updates
from apical.core.adapters import adapter_of
from apical.core.adapters import parts as weights_of
from apical.core.broadcast import Broadcast
from apical.core.converted import broadcasts, forked_rng
from apical.core.layers import converted_layers, feedback_modules
from apical.core.search import Following, Found, Kept, Search, parameters_of
from apical.core.taps import BroadcastFeedback, Tap
from apical.rules.base import BroadcastRule, Rule


def call_with(model: nn.Module, example: Any) -> Any:
    """Call the model with an example: a tensor, a tuple of arguments, or keyword arguments."""
    if isinstance(example, Mapping):
        return model(**example)
    return model(*example) if isinstance(example, tuple) else model(example)


def size_feedback(
    model: nn.Module, example: Any, layers: dict[str, str], kept: list[Kept]
) -> tuple[set[str], Found]:
    """Run a copy of the model on the example; the model receives the feedback that this sized.

    Args: layers, kept: as of `search.Search`.
    Returns: the names of the converted layers that were called, and what the search found: nothing
        where a rule learns from labels, which the example does not have.
    """
    try:
        return _size_feedback(model, example, layers, kept, follow=True)
    except NotImplementedError as error:
        if "HigherOrderOperator" not in str(error):
            raise
    torch.compiler.reset()  # it remembers that nothing could be followed into `torch.cond`
    return _size_feedback(model, example, layers, kept, follow=False)


def _size_feedback(
    model: nn.Module, example: Any, layers: dict[str, str], kept: list[Kept], *, follow: bool
) -> tuple[set[str], Found]:
    """Args: follow: whether all that is computed from detached weights is followed; else copies of
    weights are found by their values."""
    twin = _copy(model)
    called: set[str] = set()
    sized = list(feedback_modules(twin))
    for broadcast in broadcasts(twin):
        broadcast.attempts = 0  # an example, of zeros perhaps, shows no axis of samples
        broadcast.warns_of_outputs = False
    for name, layer in converted_layers(twin):
        layer.register_forward_pre_hook(lambda *_, name=name: called.add(name))
    needs_labels = any(getattr(feedback.rule, "needs_labels", False) for feedback in sized)
    named = ((name, layer) for name, layer in converted_layers(twin) if name in layers)
    following = None
    if follow:
        following = Following((name, p) for name, layer in named for p in parameters_of(layer))
        following.mark(example)
        for feedback in sized:
            feedback.listeners.append(following.mark)
    found: Found = {}
    with forked_rng(model), torch.set_grad_enabled(not needs_labels), following or nullcontext():
        output = call_with(twin, example)
        search = Search(twin, layers, kept, found.update, following)
        found |= search.run(output)
        if search.defers:
            for feedback in sized:
                feedback.history.observes = False
            carriers = [tensor for tensor in outputs.tensors(output) if tensor.requires_grad]
            torch.autograd.backward(carriers, [torch.ones_like(tensor) for tensor in carriers])
            twin.zero_grad()
    for _, layer in converted_layers(twin):
        updates.unwatch(layer)  # the model takes the parameters of its feedback
    for original, twins in zip(feedback_modules(model), sized, strict=True):
        original.memory_names = twins.memory_names
        original.note_names = twins.note_names
        original._buffers.update(twins._buffers)
        original._parameters.update(twins._parameters)
        if isinstance(original, BroadcastFeedback) and isinstance(twins, BroadcastFeedback):
            original.broadcast.error_shape = twins.broadcast.error_shape
            original.fitting = twins.fitting
    return called, found


def _copy(model: nn.Module) -> nn.Module:
    """A copy, also of weights that hooks have computed (old `weight_norm`, pruning), which torch
    does not copy with their graph; the hooks of the copy compute them again.

    Raises: ValueError if a lazy layer (a norm) is not initialised, which none can copy.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise ValueError(
                f"{name} is not initialised; run one forward pass of the model, then convert it"
                " with an example, or convert without"
            )
    made = (v for m in model.modules() for v in vars(m).values() if isinstance(v, Tensor))
    return copy.deepcopy(model, {id(v): v.detach() for v in made if v.grad_fn is not None})


def broadcast_bytes(
    model: nn.Module,
    example: Any,
    layers: Mapping[str, tuple[nn.Module, Rule | None]],
    output: outputs.OutputKey,
    output_axis: int | None,
) -> dict[str, int | None]:
    """Bytes of the feedback that broadcast rules would need, none of which is allocated: a copy of
    the plain model runs on the example.

    Args: layers: by name, with their rules.     output, output_axis: as of `apical.convert`.
    Returns: the layers that are called and whose rule broadcasts; None for those with an adapter
        that names several weights, whose inputs only the converted layer shows.
    """
    twin = _copy(model)
    seen: list[tuple[str, str, Tensor]] = []
    unknown: set[str] = set()
    for name, layer in twin.named_modules():
        if name in layers and isinstance(layers[name][1], BroadcastRule):
            if adapter_of(layer) is not None and set(weights_of(layer)) != {""}:
                unknown.add(name)
                continue
            layer.register_forward_pre_hook(partial(_note, seen, name), with_kwargs=True)
    with forked_rng(model), torch.enable_grad():
        returned = call_with(twin, example)  # without a graph, attention takes another path
    parts = [outputs.find(returned, key) for key in outputs.names(output)]
    error = outputs.error(parts, output_axis or 0, output).to("meta")
    source = Broadcast(output, output_axis)
    sizes: dict[str, dict[str, int]] = {}
    for name, slot, x in seen:
        layer, rule = layers[name]
        assert isinstance(rule, BroadcastRule)
        part = weights_of(layer)[slot]
        feedback = BroadcastFeedback(rule, f"{name}.{slot}" if slot else name, 0, source)
        tap = Tap(feedback, part.op, x, part.weight, False)
        sizes.setdefault(name, {}).update(counted.sizes([counted.counted(tap, error)], error))
    found = {name: sum(by_slot.values()) for name, by_slot in sizes.items()}
    return {**found, **dict.fromkeys(unknown)}


def _note(
    seen: list[tuple[str, str, Tensor]], name: str, layer: Any, args: Any, named: Mapping[str, Any]
) -> None:
    if not isinstance(layer, nn.MultiheadAttention):
        x = next(iter((*args, *named.values())))
        if isinstance(layer, nn.modules.conv._ConvNd) and x.dim() < layer.weight.dim():
            x = x.unsqueeze(0)  # a convolution of one sample
        seen.append((name, "", x.to("meta")))
        return
    given = dict(zip(("query", "key", "value"), args, strict=False)) | dict(named)
    for slot, key in (("q", "query"), ("k", "key"), ("v", "value"), ("out", "query")):
        x = given[key].to("meta")
        if x.dim() == 2:
            x = x.unsqueeze(0)
        elif not layer.batch_first:
            x = x.transpose(0, 1)
        width = layer.embed_dim if slot == "out" else x.shape[-1]
        seen.append((name, slot, x[..., :1].expand(*x.shape[:-1], width)))
