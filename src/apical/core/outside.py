"""Weights that a model multiplies outside the forward of their layers, where no rule can act.

`F.linear(x, layer.weight)` passes the exact gradient to what is below, whatever the layer's rule
is. The graph of a training call shows it: a product with the weight that is not the layer's own. It
is examined at the calls 1, 2, 4, 8 and so on, so that in the long run it costs next to nothing.
"""

from __future__ import annotations

import bisect
import math
import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.utils import parametrize

from apical.core import outputs, updates
from apical.core.converted import broadcasts, feedback_modules, is_converted
from apical.core.graph import (
    FACTORS,
    Edge,
    Graph,
    constants,
    is_detached,
    looked_up,
    made_of,
    origin,
    shape_of,
)


class Kept(NamedTuple):
    """A parameter that keeps its exact gradient since it seems to scale activations, or to be added
    to them: the names of its layer, of the layer's class, and its own."""

    layer: str
    kind: str
    parameter: str


class Guard:
    """Finds uses of weights outside their layers in training calls of a converted model.

    Its methods `before` and `after` are hooks of the model.

    Attributes:
        layers: by name of a converted layer, the class of its rule;
        kept: parameters that should be no factors of products;
        raises: whether it raises ValueError; else it warns, once of each;
        calls: training calls so far.
    """

    def __init__(self, layers: dict[str, str], kept: list[Kept], *, raises: bool) -> None:
        self.layers = layers
        self.kept = kept
        self.raises = raises
        self.calls = 0
        self._reported: set[str] = set()
        self._exact_blocks = 0

    def attach(self, model: nn.Module) -> None:
        """Register the hooks."""
        model.register_forward_pre_hook(self.before)
        model.register_forward_hook(self.after)

    def accept(self, found: Iterable[str]) -> None:
        """The user accepts these uses, keys of what `find` returns."""
        for place in found:
            self.layers.pop(place, None)
        self.kept = [kept for kept in self.kept if f"{kept.layer}.{kept.parameter}" not in found]

    def before(self, model: nn.Module, args: Any) -> None:
        """Forward pre-hook. Raises: ValueError while torch.jit.trace records a training call."""
        if torch.jit.is_tracing() and torch.is_grad_enabled():
            exporting = torch.onnx.is_in_onnx_export() and not broadcasts(model)
            if not (exporting or all(feedback.exact for feedback in feedback_modules(model))):
                raise ValueError(
                    f"{next(iter(self.layers), '') or '(root)'}: torch.jit.trace and exporters that"
                    " use it cannot record the backward pass of a rule; trace for inference, inside"
                    " torch.no_grad(), and train the model itself or torch.compile(model)"
                )
        if not torch.compiler.is_compiling() and torch.is_grad_enabled() and self._is_due():
            self._exact_blocks = _exact_blocks(model)

    def after(self, model: nn.Module, args: Any, output: Any) -> None:
        """Forward hook. Raises: ValueError, or warns, naming all uses that it found."""
        if torch.compiler.is_compiling() or not torch.is_grad_enabled():
            return
        if self._is_due():
            if torch._C._are_functorch_transforms_active() or torch.jit.is_tracing():
                return  # not counted: the next call is due
            exact = any(feedback.exact for feedback in feedback_modules(model))
            if exact or self._exact_blocks != _exact_blocks(model):
                return  # all of it, or a part, ran inside `exact_gradients`
            found = self.find(model, output) | self._changed_ties(model)
            if found and self.raises:
                raise ValueError(report(found.values()))
            new = {place: text for place, text in found.items() if place not in self._reported}
            if new:
                self._reported.update(new)
                for name in self.layers.keys() & new:
                    updates.reported(model.get_submodule(name))
                warnings.warn(report(new.values()), stacklevel=2)
        self.calls += 1

    def find(self, model: nn.Module, output: Any) -> dict[str, str]:
        """Uses in the graph of an output: by layer, or by layer and parameter, what is wrong and
        the remedy."""
        weights, layers, memory = self._weights(model)
        kept = self._kept(model)
        graph = Graph(outputs.tensors(output))
        for node in graph.nodes:
            if node.name() == "TransportBackward":
                weight = origin(node.next_functions[1])
                layer = layers.get(node.feedback.layer)  # type: ignore[attr-defined]
                if weight is not None and layer is not None:  # of a sharded layer, no parameter
                    weights.setdefault(weight, layer)
        graph.trace(weights, _embedded(model))
        found = {}
        for product in graph.products():
            node, activations = product.node, graph.activations
            data = [
                pair
                for pair in product.factors
                if pair[0] not in weights and not is_detached(pair[0][0])
            ]
            if not data:
                continue  # no gradient passes to activations
            if product.constant and any(pair[0][0] in activations for pair in data):
                for tensor in constants(node):
                    layer = _holder(memory, tensor)
                    if layer and graph.multiplies(product, tensor, tensor.dim(), data):
                        found[layer] = _of_layer(layer, self.layers[layer], node)
            for factor, edge in product.factors:
                others = [pair for pair in data if pair[0] != factor]
                if not others:
                    continue
                direct = looked_up(factor) in weights or factor in kept
                if factor not in weights and factor not in kept:
                    if factor[0] in activations:
                        continue
                    if activations.isdisjoint(pair[0][0] for pair in others):
                        continue
                sources = {looked_up(factor)} if direct else made_of(factor, {*weights, *kept})
                for source in sources:
                    if source in weights:
                        whole = factor if direct else source  # or the entries that were looked up
                        axes = len(shape_of(whole))
                        if graph.multiplies(product, edge, axes, others, direct=direct):
                            layer = weights[source]
                            found[layer] = _of_layer(layer, self.layers[layer], node)
                    elif node.name() in FACTORS:
                        if not all(o[0].name().endswith("AccumulateGrad") for o, _ in others):
                            place, tensor = kept[source]
                            key = f"{place.layer}.{place.parameter}"
                            found[key] = _of_kept(place, tensor, node)
        return found

    def _changed_ties(self, model: nn.Module) -> dict[str, str]:
        """Layers whose feedback follows a weight that another layer shares since the conversion, or
        shares no longer."""
        holders: dict[int, list[tuple[str, nn.Module]]] = {}
        for name, module in model.named_modules():
            for parameter in module._parameters.values():
                if parameter is not None:
                    holders.setdefault(_place(parameter), []).append((name, module))
        alike: dict[int, tuple[str, set[int]]] = {}
        found = {}
        for name, rule in self.layers.items():
            layer = _module(model, name)
            if layer is None or not is_converted(layer):
                continue
            following = {id(f) for f in updates.feedback_of(layer) if f.rule.follows_weight}
            if not following:
                continue
            own, places = set(layer.modules()), {_place(p) for p in _parameters(layer)}
            for key in following:
                before, others = alike.setdefault(key, (name, places))
                if others.isdisjoint(places):
                    found[name] = _of_tie(name, before, rule, "no longer shares its weight with")
            for other, module in (holder for key in places for holder in holders.get(key, ())):
                both = set(map(id, updates.feedback_of(module))) if is_converted(module) else set()
                if module not in own and following.isdisjoint(both):
                    found[name] = _of_tie(name, other, rule, "now shares its weight with")
        return found

    def _is_due(self) -> bool:
        return not self.calls & (self.calls + 1)

    def _weights(
        self, model: nn.Module
    ) -> tuple[dict[Edge, str], dict[str, str], list[tuple[int, int, str]]]:
        """The converted layer of each weight, of each feedback by the name in it, and of the places
        in memory from where to where the weights lie, in order."""
        by_weight: dict[Edge, str] = {}
        by_feedback: dict[str, str] = {}
        places = []
        for name in self.layers:
            layer = _module(model, name)
            if layer is None or not is_converted(layer):
                continue
            by_feedback.update((part.layer, name) for part in updates.feedback_of(layer))
            for parameter in _parameters(layer):
                if parameter.requires_grad:
                    by_weight[_edge(parameter)] = name
                if start := _address(parameter):
                    size = parameter.numel() * parameter.element_size()
                    places.append((start, start + size, name))
        return by_weight, by_feedback, sorted(places)

    def _kept(self, model: nn.Module) -> dict[Edge, tuple[Kept, Tensor]]:
        found = {}
        for place in self.kept:
            tensor = getattr(_module(model, place.layer), place.parameter, None)
            if isinstance(tensor, Tensor) and tensor.requires_grad:
                found[_edge(tensor)] = place, tensor
        return found


def release(module: nn.Module) -> None:
    """Remove the hooks of guards from a module."""
    for hooks in (module._forward_pre_hooks, module._forward_hooks):
        for key, hook in list(hooks.items()):
            if isinstance(getattr(hook, "__self__", None), Guard):
                del hooks[key]


def report(texts: Iterable[str]) -> str:
    """All uses that were found, in one message."""
    return "a weight is used outside its layer's own forward:" + "".join(
        f"\n  - {text}" for text in texts
    )


def _of_layer(layer: str, rule: str, node: Node) -> str:
    called = layer or "the layer"
    return (
        f"{layer or '(root)'}: the model multiplies its weight itself ({_operation(node)}, as in"
        f" F.linear(x, {called}.weight)), and the gradient that passes there is that of"
        f" backpropagation, not of {rule}. Call the layer, {called}(x), or a layer of its own that"
        " shares the weight; or keep its exact gradient by name:"
        f" convert(model, {{{layer!r}: 'bp', '*': ...}})"
    )


def _of_kept(place: Kept, tensor: Tensor, node: Node) -> str:
    layer, kind, parameter = place
    return (
        f"{layer or '(root)'} ({kind}): its {parameter} {tuple(tensor.shape)} was kept on its exact"
        " gradient as a parameter that scales activations, is added to them or is looked up, but"
        f" the model multiplies activations by it ({_operation(node)}). Use it in a layer (Linear)"
        f" of its own, say what it computes: apical.adapters.register({kind}, {{{parameter!r}:"
        " Weight('x W^T')}), or keep its exact gradient by name:"
        f" convert(model, {{{layer!r}: 'bp', '*': ...}})"
    )


def _of_tie(layer: str, other: str, rule: str, change: str) -> str:
    return (
        f"{layer or '(root)'}: {change} {other or '(root)'}, other than when it was converted, and"
        f" the feedback of {rule} would not follow it: apical.revert(model), then convert again"
    )


def _place(parameter: Tensor) -> int:
    """Equal for tensors that begin at one place of the memory; else the tensor's own."""
    return _address(parameter) or id(parameter)


def _address(tensor: Tensor) -> int:
    """Where a tensor begins in memory; 0 if it has none of its own, as on the meta device."""
    return tensor.data_ptr() if type(tensor) in (nn.Parameter, Tensor) else 0


def _holder(memory: list[tuple[int, int, str]], tensor: Tensor) -> str | None:
    """The layer in whose weight a tensor lies."""
    address = _address(tensor)
    at = bisect.bisect(memory, (address, math.inf, "")) - 1
    return memory[at][2] if at >= 0 and address < memory[at][1] else None


def _embedded(model: nn.Module) -> set[Edge]:
    """The tables of embeddings, which another layer may share."""
    tables = (m.weight for m in model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag))
    return {_edge(table) for table in tables if table.requires_grad}


def _operation(node: Node) -> str:
    name = node.name().partition("Backward")[0].lower()
    return {"mul": "an elementwise product"}.get(name, f"torch's {name}")


def _parameters(layer: nn.Module) -> Iterator[Tensor]:
    """Those that the weights of a converted layer are made of, not what parametrizations add."""
    if parametrize.is_parametrized(layer):  # reading the weight may change a state, as of norms
        for made in layer.parametrizations.values():  # type: ignore[operator]
            yield from made._parameters.values()
        return
    yield from updates.parameters_of(layer)


def _edge(tensor: Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def _module(model: nn.Module, name: str) -> nn.Module | None:
    """A module by its name; None if it is gone since."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _exact_blocks(model: nn.Module) -> int:
    return sum(feedback.exact_blocks for feedback in feedback_modules(model))
