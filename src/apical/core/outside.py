"""Weights that a model multiplies outside the forward of their layers, where no rule can act.

`F.linear(x, layer.weight)` passes the exact gradient to what is below, whatever the layer's rule
is. The graph of a training call shows it: a product with the weight that is not the layer's own. It
is examined at the calls 1, 2, 4, 8 and so on, so that in the long run it costs next to nothing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node, get_gradient_edge
from torch.nn.utils import parametrize

from apical.core import outputs, updates
from apical.core.converted import broadcasts, feedback_modules, is_converted

FACTORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("AddbmmBackward0", "AddmmBackward0", "AddmvBackward0"), (1, 2)),
    "BaddbmmBackward0": (1, 2),
    **dict.fromkeys(("BmmBackward0", "DotBackward0", "MmBackward0", "MvBackward0"), (0, 1)),
    **dict.fromkeys(("CdistBackward0", "EuclideanDistBackward0", "LinalgSolveExBackward0"), (0, 1)),
    **dict.fromkeys(("ConvolutionBackward0", "LinearBackward0"), (0, 1)),
    **{
        f"ScaledDotProduct{kind}AttentionBackward0": (0, 1, 2)
        for kind in ("Cudnn", "Efficient", "Flash")
    },
    "ScaledDotProductFlashAttentionForCpuBackward0": (0, 1, 2),
    "TrilinearBackward0": (0, 1, 2),
}
"""Products in autograd's graph, and the places of their factors among a node's edges."""

ELEMENTWISE = "MulBackward0"
"""A product of matrices if a sum follows; else it scales."""

_REARRANGES = frozenset(
    f"{name}Backward{number}"
    for name in (
        "Alias AsStrided Clone Div Expand Mul Neg Permute ReshapeAlias Select Slice Split"
        " SplitWithSizes Squeeze T ToCopy Transpose Unbind UnsafeSplit UnsafeView Unsqueeze View"
    ).split()
    for number in range(3)
)
"""What rearranges, casts or, with one edge, scales a tensor."""

_DETACHED = "BridgeBackward"
"""In the place of `detach` while the axis of samples is verified (`apical.core.autograd`)."""

_OF_DATA = (
    *("CheckpointFunction", "CompiledFunction", "Transport", _DETACHED),
    *("Embedding", "Gather", "Index", "Sparse"),
)
"""How the names of nodes begin that compute activations, also where no edge leads to data: what
converted layers compute is one, even of a parameter."""

Edge = tuple[Node, int]


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
        weights, layers = self._weights(model)
        kept = self._kept(model)
        products: list[tuple[Node, list[Edge]]] = []
        nodes = list(_nodes(tensor.grad_fn for tensor in outputs.tensors(output)))
        for node in nodes:
            name = node.name()
            if name == "TransportBackward":
                weight = _origin(node.next_functions[1])
                layer = layers.get(node.feedback.layer)  # type: ignore[attr-defined]
                if weight is not None and layer is not None:  # of a sharded layer, no parameter
                    weights.setdefault(weight, layer)
            elif name in FACTORS or name == ELEMENTWISE:
                edges = [node.next_functions[place] for place in FACTORS.get(name, (0, 1))]
                products.append((node, [e for edge in edges if (e := _origin(edge)) is not None]))
        found = {}
        activations = _activations(nodes)
        for node, factors in products:
            data = [f for f in factors if f not in weights and not _is_detached(f[0])]
            for factor in factors:
                others = [other for other in data if other != factor]
                if not others:
                    continue  # no gradient passes to activations
                direct = factor in weights or factor in kept
                if not direct and (
                    factor[0] in activations or activations.isdisjoint(o[0] for o in others)
                ):
                    continue
                for source in [factor] if direct else _made_of(factor, {*weights, *kept}):
                    if source in weights:
                        larger = _is_larger(node, source) if direct else _is_product(node, factor)
                        if node.name() in FACTORS or larger:
                            layer = weights[source]
                            found[layer] = _of_layer(layer, self.layers[layer], node)
                    elif node.name() in FACTORS:
                        if not all(other[0].name().endswith("AccumulateGrad") for other in others):
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

    def _weights(self, model: nn.Module) -> tuple[dict[Edge, str], dict[str, str]]:
        """The converted layer of each weight, and of each feedback by the name in it."""
        by_weight: dict[Edge, str] = {}
        by_feedback: dict[str, str] = {}
        for name in self.layers:
            layer = _module(model, name)
            if layer is None or not is_converted(layer):
                continue
            by_feedback.update((part.layer, name) for part in updates.feedback_of(layer))
            for parameter in _parameters(layer):
                if parameter.requires_grad:
                    by_weight[_edge(parameter)] = name
        return by_weight, by_feedback

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
    known = type(parameter) in (nn.Parameter, Tensor) and parameter.data_ptr()
    return known or id(parameter)


def _operation(node: Node) -> str:
    name = node.name().partition("Backward")[0].lower()
    return {"mul": "an elementwise product"}.get(name, f"torch's {name}")


def _nodes(roots: Iterable[Node | None]) -> Iterator[Node]:
    """All nodes of a graph but those that compute the weights of transports."""
    seen = {root for root in roots if root is not None}
    pending = list(seen)
    while pending:
        node = pending.pop()
        yield node
        edges = node.next_functions
        if node.name() == "TransportBackward":
            edges = edges[:1]
        for below, _ in edges:
            if below is not None and below not in seen:
                seen.add(below)
                pending.append(below)


def _origin(edge: Edge | tuple[Node | None, int]) -> Edge | None:
    """Where a tensor comes from that operations have rearranged; None if it has no gradient."""
    node, place = edge
    while node is not None and node.name() in _REARRANGES:
        differentiated = [e for e in node.next_functions if e[0] is not None]
        if len(differentiated) != 1:
            break
        node, place = differentiated[0]
    return None if node is None else (node, place)


def _activations(nodes: list[Node]) -> set[Node]:
    """Nodes of tensors that do not depend on parameters alone."""
    above: dict[Node, list[Node]] = {}
    pending = []
    for node in nodes:
        name, edges = node.name(), node.next_functions
        leaf = getattr(node, "variable", None)
        of_data = any(edges[place][0] is None for place in FACTORS.get(name, ()))
        if of_data or name.startswith(_OF_DATA) or not isinstance(leaf, nn.Parameter | None):
            pending.append(node)
        for below, _ in edges:
            if below is not None:
                above.setdefault(below, []).append(node)
    found = set(pending)
    while pending:
        new = set(above.get(pending.pop(), ())) - found
        found |= new
        pending.extend(new)
    return found


def _made_of(factor: Edge, parameters: set[Edge]) -> set[Edge]:
    """Those of the parameters that a factor without activations is computed from."""
    pending, seen = [factor], {factor}
    while pending:
        node, _ = pending.pop()
        below = {e for e in node.next_functions if e[0] is not None} - seen
        pending.extend(below)  # type: ignore[arg-type]
        seen |= below  # type: ignore[arg-type]
    return seen & parameters


def _is_product(node: Node, factor: Edge) -> bool:
    """Whether an elementwise product multiplies by a matrix and has axes that it has not; vectors
    and numbers scale."""
    shape = factor[0]._input_metadata[factor[1]].shape
    return len(node._input_metadata[0].shape) > len(shape) and sum(n > 1 for n in shape) > 1


def _is_detached(node: Node) -> bool:
    """Whether no gradient passes below: all paths end at bridges."""
    pending, seen = [node], {node}
    while pending:
        above = pending.pop()
        if above.name() == _DETACHED:
            continue
        below = {below for below, _ in above.next_functions if below is not None}
        if not below:
            return False
        pending.extend(below - seen)
        seen |= below
    return True


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


def _is_larger(node: Node, weight: Edge) -> bool:
    """Whether an elementwise product has axes that the weight has not: those of activations."""
    parameter = getattr(weight[0], "variable", None)
    return parameter is not None and len(node._input_metadata[0].shape) > parameter.dim()


def _module(model: nn.Module, name: str) -> nn.Module | None:
    """A module by its name; None if it is gone since."""
    try:
        return model.get_submodule(name)
    except AttributeError:
        return None


def _exact_blocks(model: nn.Module) -> int:
    return sum(feedback.exact_blocks for feedback in feedback_modules(model))
