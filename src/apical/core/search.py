"""Searching one graph for products with weights outside the forward of their layers.

The rule: wherever a gradient reaches activations through a product with a matrix, that matrix is
neither a converted layer's weight nor, in the same forward pass, computed from it without data. A
copy of earlier values, as a teacher's weights or a buffer, is a weight of its own. Edges of the
graph show what a factor is computed from; where they are cut (`detach`, frozen weights), its place
in memory does, and what `Following` saw, or its values.
"""

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
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.utils import parametrize
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apical.core import outputs, updates
from apical.core.graph import (
    FACTORS,
    PLACES,
    Edge,
    Factor,
    Graph,
    computed_from,
    constants,
    is_custom,
    looked_up,
    origin,
    saved,
    shape_of,
)
from apical.core.layers import is_converted

Found = dict[str, str]
"""By layer, or by layer and parameter, what is wrong and the remedy."""

Later = Callable[[Found], None]

_CORRELATION = 0.75  # at least; of normal entries with their signs it is 0.8
_DEVIATIONS = 5.0  # by Fisher's z, since small matrices correlate by chance

_MADE = ("new_", *(f"{kind}_like" for kind in "empty full ones rand randint randn zeros".split()))
"""How the names of operations begin that read the shape and the dtype of a tensor, no values."""


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
        later: called with what is found in a backward pass, in which activation checkpointing
            computes again what it left out;
        following: what was seen in the pass; without it, copies of weights are found by values.

    Attributes: defers: whether there is something to find in the backward pass.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: dict[str, str],
        kept: list[Kept],
        later: Later,
        following: "Following | None" = None,
    ) -> None:
        self.defers = False
        self._given = model, layers, kept, later, following
        self._later, self._following = later, following
        self._found: Found = {}
        self._weights: dict[Edge, str] = {}
        self._by_feedback: dict[str, str] = {}
        self._kept: dict[Edge, tuple[Kept, Tensor]] = {}
        self._named: list[tuple[str, Tensor]] = []
        for name in layers:
            layer = module_named(model, name)
            if layer is None or not is_converted(layer):
                continue
            self._by_feedback.update((part.layer, name) for part in updates.feedback_of(layer))
            for parameter in parameters_of(layer):
                self._named.append((name, parameter))
                if parameter.requires_grad:
                    self._weights[_edge(parameter)] = name
        for place in kept:
            tensor = getattr(module_named(model, place.layer), place.parameter, None)
            if isinstance(tensor, Tensor) and tensor.requires_grad and tensor.numel() > 1:
                self._kept[_edge(tensor)] = place, tensor
        self._tables: set[Edge] = set()  # of embeddings
        held: list[tuple[str | None, Tensor | None]] = [*self._named]
        for module in model.modules():
            own = (*module._parameters.values(), *module._buffers.values())
            held += [(None, tensor) for tensor in own]
            if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.weight.requires_grad:
                self._tables.add(_edge(module.weight))
        places: dict[int, tuple[int, int, str | None]] = {}
        for owner, tensor in held:
            if tensor is not None and (start := address(tensor)):
                end = start + tensor.numel() * tensor.element_size()
                places.setdefault(start, (start, end, owner))
        self._memory = sorted(places.values(), key=itemgetter(0))

    def run(self, output: Any) -> Found:
        """What is wrong in the graph of an output."""
        graph = Graph(outputs.tensors(output))
        for name, node in graph.nodes:
            if name == "TransportBackward":
                weight = node.next_functions[1]
                layer = self._by_feedback.get(node.feedback.layer)  # type: ignore[attr-defined]
                if weight[0] is not None and layer is not None:  # of a sharded layer, no parameter
                    self._weights.setdefault(origin(weight), layer)  # type: ignore[arg-type]
            elif name.startswith("CheckpointFunction") and hasattr(node, "run_function"):
                self._search_recomputed(node)
        graph.trace(self._weights.keys(), self._tables)
        for node, factors in graph.products():
            self._examine(graph, node, factors)
        return self._found

    def _examine(self, graph: Graph, node: Node, factors: list[Factor]) -> None:
        """Note the weights by which a product multiplies something that a gradient passes to."""
        weights, is_matrix_product = self._weights, node.name() in FACTORS
        data = [f for f in factors if f.origin not in weights and f.origin[0] not in graph.cut]
        active = [f for f in data if f.origin[0] in graph.activations]
        if active and (is_custom(node) or len(factors) < len(PLACES[node.name()])):
            kept = ((t, self._at(t) is None) for t in constants(node))  # another has no gradient
            mixed = (t for t, new in kept if graph.mixes(node, t.shape, active, computed=new))
            self._note(node, mixed)
        for factor in factors:
            is_weight = factor.origin in weights
            if factor.origin[0] in graph.activations and not is_weight:
                continue
            # A parameter that W itself multiplies, as a learned query, learns by what W passes.
            others = data if is_weight and is_matrix_product else active
            others = [other for other in others if other.origin != factor.origin]
            source = looked_up(factor.origin)
            computed = source not in weights and source not in self._kept
            shape = shape_of(factor.enters)
            if not others or not graph.mixes(node, shape, others, computed=computed):
                continue
            sources = {source, *computed_from(factor.enters)}
            for layer in {weights[edge] for edge in sources & weights.keys()}:
                self._add(layer, _operation(node))
            if is_matrix_product:
                for edge in sources & self._kept.keys():
                    place, parameter = self._kept[edge]
                    key = f"{place.layer}.{place.parameter}"
                    self._found[key] = _of_kept(place, parameter, _operation(node))
            if sources.isdisjoint(weights):  # perhaps from a weight that is detached
                nodes = {node, *(below for below, _ in sources)}
                self._note(node, (t for below in nodes for t in constants(below)))

    def _note(self, node: Node, factors: Iterable[Tensor]) -> None:
        """Note the layers whose weights are among the tensors without gradient that the factors of
        a product are, or are computed from; where checkpointing left out the product's, later."""
        for tensor in factors:
            self._add(self._layer_of(tensor), _operation(node))
        for kept in saved(node) if node.name() in FACTORS or is_custom(node) else ():
            hook = kept.unpack_hook
            names = getattr(getattr(hook, "__code__", None), "co_freevars", ())
            if "frame" in names:  # of torch.utils.checkpoint, not reentrant
                self.defers = True
                frame = hook.__closure__[names.index("frame")].cell_contents
                place = ref(frame), ref(kept.data), _operation(node)
                frame.recompute_fn = partial(self._search_frame, frame.recompute_fn, *place)

    def _add(self, layer: str | None, operation: str) -> None:
        if layer is not None:
            self._found[layer] = _of_layer(layer, self._given[1][layer], operation)

    def _search_frame(self, run: Any, frame: Any, holder: Any, operation: str, *args: Any) -> None:
        """Compute a frame of checkpointing again, and examine the tensor that the holder is for."""
        try:
            run(*args)
        finally:  # by an exception of torch's own, once all is computed
            task = torch._C._current_graph_task_id()
            handle = holder().handles.get(task) if holder() else None
            tensor = frame().recomputed[task].get(handle) if handle else None
            if tensor is not None:
                self._add(self._layer_of(tensor), operation)
                self._later(self._found)

    def _search_recomputed(self, node: Any) -> None:
        """Search what reentrant checkpointing computes in the backward pass."""
        self.defers = True
        run, given, later = node.run_function, self._given, self._later

        def searched(*args: Any) -> Any:
            returned = run(*args)
            later(Search(*given).run(returned))
            return returned

        node.run_function = searched

    def _layer_of(self, tensor: Tensor) -> str | None:
        """The layer in whose weight a tensor without gradient lies, or whose weight it is a changed
        copy of; None for other parameters, of any model, and for buffers of this one."""
        held, following = self._at(tensor), self._following
        if held is not None:
            return held[2]
        if following is not None:
            return following.layer_of(tensor)
        if not address(tensor) or not tensor.is_floating_point():
            return None
        if isinstance(tensor if tensor._base is None else tensor._base, nn.Parameter):
            return None
        entries = math.prod(n for n, s in zip(tensor.shape, tensor.stride(), strict=True) if s)
        alike = ((name, w) for name, w in self._named if w.numel() == entries and address(w))
        return next((name for name, weight in alike if _is_copy(tensor, weight)), None)

    def _at(self, tensor: Tensor) -> tuple[int, int, str | None] | None:
        """In whose memory a tensor lies: its begin, its end, and the layer if it is a weight's."""
        start = address(tensor)
        at = bisect.bisect(self._memory, start, key=itemgetter(0)) - 1
        return self._memory[at] if at >= 0 and start < self._memory[at][1] else None


class Following(TorchDispatchMode):
    """Within the block it notes which memory holds what is computed from weights without data: from
    other parameters, buffers, constants and random numbers alone.

    Args: weights: with the names of their layers.
    """

    def __init__(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        super().__init__()
        # by place, which the reference keeps from being used again; None: of data
        self._layers: dict[StorageWeakRef, str | None] = {}
        for name, weight in weights:
            self._layers.update(dict.fromkeys(_places(weight), name))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.__name__.startswith(_MADE):
            return result
        found = [self._layers[at] for at in _places((args, kwargs)) if at in self._layers]
        if found:
            layer = None if None in found else found[0]
            self._layers.update(dict.fromkeys(_places(result), layer))
        return result

    def mark(self, *data: Any) -> None:
        """Note as data: what a model is given, and what a converted layer computes."""
        self._layers.update(dict.fromkeys(_places(data)))

    def layer_of(self, tensor: Tensor) -> str | None:
        """The layer from whose weight a tensor is computed."""
        return next((self._layers.get(at) for at in _places(tensor)), None)


def _places(given: Any) -> list[StorageWeakRef]:
    """The memory of the tensors in a value, but of those that have none of their own."""
    tensors = (t for t in tree_leaves(given) if type(t) in (Tensor, nn.Parameter))
    return [StorageWeakRef(t.untyped_storage()) for t in tensors if t.layout == torch.strided]


def _is_copy(tensor: Tensor, weight: Tensor) -> bool:
    """Whether the entries of a matrix, perhaps repeated without memory, follow those of a weight or
    of its transpose: whether it is scaled, rounded, pruned or moved a little."""
    once = tensor.detach()[tuple(slice(None if stride else 1) for stride in tensor.stride())]
    matrix, expected = (t.squeeze().double() for t in (once, weight.detach()))
    if matrix.dim() < 2 or expected.dim() < 2:
        return False
    for entries in (matrix, matrix.mT):
        if entries.shape == expected.shape:
            pair = torch.stack([entries.flatten(), expected.flatten()])
            r = float(torch.corrcoef(pair)[0, 1].abs().clamp(max=1 - 1e-9))
            if r > _CORRELATION and math.atanh(r) * (expected.numel() - 3) ** 0.5 > _DEVIATIONS:
                return True
    return False


def _of_layer(layer: str, rule: str, operation: str) -> str:
    called = layer or "the layer"
    return (
        f"{layer or '(root)'}: the model multiplies its weight itself ({operation}, as in"
        f" F.linear(x, {called}.weight)), and the gradient that passes there is that of"
        f" backpropagation, not of {rule}. Call the layer, {called}(x), or a layer of its own that"
        " shares the weight; what scales, rounds or prunes it first can be a parametrization of the"
        " layer, registered after convert; or keep its exact gradient by name:"
        f" convert(model, {{{layer!r}: 'bp', '*': ...}})"
    )


def _of_kept(place: Kept, tensor: Tensor, operation: str) -> str:
    layer, kind, parameter = place
    return (
        f"{layer or '(root)'} ({kind}): its {parameter} {tuple(tensor.shape)} was kept on its exact"
        " gradient as a parameter that scales activations, is added to them or is looked up, but"
        f" the model multiplies activations by it ({operation}). Use it in a layer (Linear)"
        f" of its own, say what it computes: apical.adapters.register({kind}, {{{parameter!r}:"
        " Weight('x W^T')}), or keep its exact gradient by name:"
        f" convert(model, {{{layer!r}: 'bp', '*': ...}})"
    )


def address(tensor: Tensor) -> int:
    """Where a tensor begins in memory; 0 if it has none of its own, as on the meta device."""
    plain = type(tensor) in (nn.Parameter, Tensor) and tensor.layout == torch.strided
    return tensor.data_ptr() if plain else 0


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
