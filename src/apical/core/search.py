"""Searching one graph for products with weights outside the forward of their layers.

The rule: wherever a gradient reaches activations through a product with a matrix, that matrix is
neither a converted layer's weight nor, in the same forward pass, computed from it without data. A
copy of earlier values, as a teacher's weights or a buffer, is a weight of its own. Edges of the
graph show what a factor is computed from; where they are cut (`detach`, frozen weights), its place
in memory does, or its values.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from operator import itemgetter
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.utils import parametrize

from apical.core import outputs, updates
from apical.core.converted import is_converted
from apical.core.graph import (
    FACTORS,
    Edge,
    Graph,
    Product,
    computed_from,
    constants,
    looked_up,
    origin,
    saved,
    shape_of,
)

Found = dict[str, str]
"""By layer, or by layer and parameter, what is wrong and the remedy."""

_LEAST_CORRELATION = 0.75  # of the signs of normal entries with these it is 0.8
_LEAST_Z = (
    5.0  # standard deviations, by Fisher's transformation: small matrices correlate by chance
)


class Kept(NamedTuple):
    """A parameter that keeps its exact gradient since it seems to scale activations, or to be added
    to them: the names of its layer, of the layer's class, and its own."""

    layer: str
    kind: str
    parameter: str


class Search:
    """Finds what a model multiplies itself.

    Args:
        layers: by name of a converted layer, the class of its rule;
        kept: parameters that should be no factors of products;
        later: called with what is found in a backward pass, where activation checkpointing computes
            again what it left out. None: that is computed and searched at once.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, str],
        kept: Iterable[Kept],
        later: Callable[[Found], None] | None,
    ) -> None:
        self.found: Found = {}
        self._model = model
        self._layers = layers
        self._places = kept
        self._later = later
        self._weights: dict[Edge, str] = {}
        self._by_feedback: dict[str, str] = {}
        self._kept: dict[Edge, tuple[Kept, Tensor]] = {}
        named: list[tuple[str, Tensor]] = []
        for name in layers:
            layer = module_named(model, name)
            if layer is None or not is_converted(layer):
                continue
            self._by_feedback.update((part.layer, name) for part in updates.feedback_of(layer))
            for parameter in parameters_of(layer):
                named.append((name, parameter))
                if parameter.requires_grad:
                    self._weights[_edge(parameter)] = name
        for place in kept:
            tensor = getattr(module_named(model, place.layer), place.parameter, None)
            if isinstance(tensor, Tensor) and tensor.requires_grad and tensor.numel() > 1:
                self._kept[_edge(tensor)] = place, tensor
        self._memory = _Memory(model, named)

    def run(self, output: Any) -> Found:
        """Search the graph of an output; returns all that was found so far."""
        graph = Graph(outputs.tensors(output))
        for node in graph.nodes:
            if node.name() == "TransportBackward":
                edge, layer = node.next_functions[1], self._by_feedback.get(node.feedback.layer)  # type: ignore
                if edge[0] is not None and layer is not None:  # of a sharded layer, no parameter
                    self._weights.setdefault(origin(edge), layer)
            elif hasattr(node, "run_function"):
                self._search_again(node)
        tables = (
            m.weight for m in self._model.modules() if isinstance(m, nn.Embedding | nn.EmbeddingBag)
        )
        graph.trace(self._weights.keys(), {_edge(t) for t in tables if t.requires_grad})
        for product in graph.products():
            self._examine(graph, product)
        return self.found

    def _examine(self, graph: Graph, product: Product) -> None:
        """Note which weights are factors of a product with something that a gradient passes to."""
        node, weights = product.node, self._weights
        is_matrix_product = node.name() in FACTORS
        data = [f for f in product.factors if f.origin not in weights and graph.passes(f.origin)]
        active = [f for f in data if f.origin[0] in graph.activations]
        if active and product.constant:
            for tensor in constants(node):
                if graph.mixes(product, tensor.shape, active):
                    self._note(self._memory.layer(tensor), node)
            if is_matrix_product:
                self._search_frames(node)
        for factor in product.factors:
            is_weight = factor.origin in weights
            if factor.origin[0] in graph.activations and not is_weight:
                continue
            # A parameter that W itself multiplies, as a learned query, learns by what W passes.
            others = data if is_weight and is_matrix_product else active
            others = [other for other in others if other.origin != factor.origin]
            source = looked_up(factor.origin)
            computed = source not in weights and source not in self._kept
            shape = shape_of(factor.enters)
            if not others or not graph.mixes(product, shape, others, computed=computed):
                continue
            sources = computed_from(factor.enters) if computed else {source}
            layers: set[str | None] = {weights[edge] for edge in sources & weights.keys()}
            places = sources & self._kept.keys() if is_matrix_product else set()
            if not layers:  # perhaps from a weight that is detached
                nodes = {below for below, _ in computed_from(factor.enters)} | {node}
                layers = {self._memory.layer(t) for below in nodes for t in constants(below)}
                if is_matrix_product:
                    self._search_frames(node)
            for layer in layers:
                self._note(layer, node)
            for edge in places:
                place, parameter = self._kept[edge]
                self.found[f"{place.layer}.{place.parameter}"] = _of_kept(place, parameter, node)

    def _note(self, layer: str | None, node: Node) -> None:
        if layer is not None:
            self.found[layer] = _of_layer(layer, self._layers[layer], _operation(node))

    def _search_again(self, node: Any) -> None:
        """Search what reentrant checkpointing computes."""
        run = node.run_function
        if self._later is None:
            inputs = list(node.inputs)
            for place, tensor in zip(node.tensor_indices, node.saved_tensors, strict=True):
                inputs[place] = tensor.detach().requires_grad_(tensor.requires_grad)
            with torch.enable_grad():
                self.run(run(*inputs))
            return
        later, search = self._later, partial(Search, self._model, self._layers, self._places)

        def searched(*args: Any) -> Any:
            returned = run(*args)
            later(search(later).run(returned))
            return returned

        node.run_function = searched

    def _search_frames(self, node: Node) -> None:
        """Search the factors without gradient of a product that other checkpointing computes
        again."""
        for kept in saved(node):
            hook = kept.unpack_hook
            names = getattr(getattr(hook, "__code__", None), "co_freevars", ())
            if "frame" not in names:
                continue
            if self._later is None:
                self._note(self._memory.layer(kept.unpack()), node)
                continue
            frame = hook.__closure__[names.index("frame")].cell_contents
            frame.recompute_fn = partial(
                self._search_frame, frame.recompute_fn, ref(frame), ref(kept.data), _operation(node)
            )

    def _search_frame(self, run: Any, frame: Any, holder: Any, operation: str, *args: Any) -> None:
        """Compute a frame of checkpointing again, and search the tensor that the holder is for."""
        try:
            run(*args)
        finally:  # it ends with an exception of torch's own once all is computed
            task = torch._C._current_graph_task_id()
            handle = holder().handles.get(task) if holder() else None
            tensor = frame().recomputed[task].get(handle) if handle else None
            layer = None if tensor is None else self._memory.layer(tensor)
            if layer is not None and self._later is not None:
                self._later({layer: _of_layer(layer, self._layers[layer], operation)})


class _Memory:
    """Which layer's weight a tensor without gradient is, by its place in memory or its values."""

    def __init__(self, model: nn.Module, weights: list[tuple[str, Tensor]]) -> None:
        self._weights = weights
        others = ((None, tensor) for tensor in (*model.parameters(), *model.buffers()))
        places: dict[int, tuple[int, int, str | None]] = {}
        for layer, tensor in (*weights, *others):
            if start := address(tensor):
                end = start + tensor.numel() * tensor.element_size()
                places.setdefault(start, (start, end, layer))
        self._places = sorted(places.values(), key=itemgetter(0))

    def layer(self, tensor: Tensor) -> str | None:
        """The layer in whose weight a tensor lies, or whose weight it is a changed copy of."""
        start = address(tensor)
        at = bisect.bisect(self._places, start, key=itemgetter(0)) - 1
        if not start or (at >= 0 and start < self._places[at][1]):
            return self._places[at][2] if start else None
        return next((name for name, weight in self._weights if _is_copy(tensor, weight)), None)


def _is_copy(tensor: Tensor, weight: Tensor) -> bool:
    """Whether the entries of a matrix follow those of a weight, or of its transpose: a copy that
    was scaled, rounded, pruned or moved a little."""
    if tensor.layout != torch.strided or tensor.is_complex() or not address(weight):
        return False
    once = tensor.detach()[tuple(slice(None if stride else 1) for stride in tensor.stride())]
    if once.numel() != weight.numel() or once.squeeze().dim() < 2:
        return False
    rows, expected = (t.squeeze().flatten(1).double() for t in (once, weight.detach()))
    for matrix in (rows, rows.T):
        if matrix.shape == expected.shape:
            entries = torch.stack([matrix.flatten(), expected.flatten()])
            r = float(torch.corrcoef(entries)[0, 1].abs().clamp(max=1 - 1e-9))
            if r > _LEAST_CORRELATION and math.atanh(r) * (len(entries[0]) - 3) ** 0.5 > _LEAST_Z:
                return True
    return False


def _of_layer(layer: str, rule: str, operation: str) -> str:
    called = layer or "the layer"
    return (
        f"{layer or '(root)'}: the model multiplies its weight itself ({operation}, as in"
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


def address(tensor: Tensor) -> int:
    """Where a tensor begins in memory; 0 if it has none of its own, as on the meta device."""
    return tensor.data_ptr() if type(tensor) in (nn.Parameter, Tensor) else 0


def _operation(node: Node) -> str:
    name = node.name().partition("Backward")[0].lower()
    return {"mul": "an elementwise product"}.get(name, f"torch's {name}")


def parameters_of(layer: nn.Module) -> Iterator[Tensor]:
    """Those that the weights of a converted layer are made of, not what parametrizations add."""
    if parametrize.is_parametrized(layer):  # reading the weight may change a state, as of norms
        for made in layer.parametrizations.values():  # type: ignore[operator]
            yield from made._parameters.values()
        return
    yield from updates.parameters_of(layer)


def _edge(tensor: Tensor) -> Edge:
    edge = get_gradient_edge(tensor)
    return edge.node, edge.output_nr


def module_named(model: nn.Module, name: str) -> nn.Module | None:
    """A module by its name; None if it is gone since."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None
