"""What autograd's graph of a forward pass shows: products, and which of their factors are
activations, weights, or computed from weights alone."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from typing import NamedTuple

from torch import Tensor, nn
from torch.autograd.graph import Node

FACTORS: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("AddbmmBackward0", "AddmmBackward0", "AddmvBackward0"), (1, 2)),
    **dict.fromkeys(("AddrBackward0", "BaddbmmBackward0"), (1, 2)),
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

ELEMENTWISE: dict[str, tuple[int, ...]] = {
    "AddcmulBackward0": (1, 2),
    **dict.fromkeys(("DivBackward0", "MulBackward0"), (0, 1)),
}
"""Elementwise products, which scale, or are products of matrices if an axis is summed over."""

DIFFERENCES: dict[str, tuple[int, ...]] = dict.fromkeys(
    ("AddBackward0", "RsubBackward0", "SubBackward0"), (0, 1)
)
"""Of activations and a matrix, along an axis that the matrix has not, they measure distances."""

PLACES = {**FACTORS, **ELEMENTWISE, **DIFFERENCES}

_REARRANGES = frozenset(
    f"{name}Backward{number}"
    for name in (
        "Alias AsStrided Clone Div Expand Mul Neg Permute ReshapeAlias Select Slice Split"
        " SplitWithSizes Squeeze T ToCopy Transpose Unbind UnsafeSplit UnsafeView Unsqueeze View"
    ).split()
    for number in range(3)
)
"""What rearranges, casts or, with one edge, scales a tensor."""

_TRANSPOSES = ("Permute", "TBackward", "Transpose")
_SUMS = ("MeanBackward", "SumBackward")
_MATRIX_PRODUCTS = (
    *("AddmmBackward0", "BaddbmmBackward0", "BmmBackward0", "MmBackward0"),
    *("DotBackward0", "MvBackward0"),
)

_DETACHED = "BridgeBackward"
"""In the place of `detach` while the axis of samples is verified (`apical.core.autograd`)."""

_OF_DATA = ("CheckpointFunction", "CompiledFunction", "Sparse", "Transport", _DETACHED)
"""How the names of nodes begin that compute activations, also where no edge leads to data: what
converted layers compute is one, even of a parameter."""

_FOR_DATA = ("CheckpointFunction", "CompiledFunction", "Expand", "Repeat")
"""How the names of nodes begin whose result may have an entry for each sample."""

_LOOKS_UP = ("Embedding", "Gather", "Index")
"""How the names of nodes begin that choose entries by data; of a weight they are the weight's, as
in a sampled softmax, of anything else activations."""

Edge = tuple[Node, int]

_SAVED: dict[str, list[str]] = {}  # by a node's name, those of the tensors that it saves


class Product(NamedTuple):
    """A product, or a difference, in the graph.

    Attributes: factors: with a gradient, from before they were rearranged, and the edges at which
        they enter; constant: whether another factor has no gradient.
    """

    node: Node
    factors: list[tuple[Edge, Edge]]
    constant: bool

    @property
    def shape(self) -> Sequence[int]:
        return self.node._input_metadata[0].shape


class Graph:
    """The graph of some tensors.

    Attributes: nodes: all but those that compute the weights of transports; above: the nodes that
        read what a node computes; activations: nodes of tensors that do not depend on parameters
        alone, after `trace`.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.nodes = list(_nodes(tensor.grad_fn for tensor in tensors))
        self.above: dict[Node, list[Node]] = {}
        self.activations: set[Node] = set()
        for node in self.nodes:
            for below, _ in node.next_functions:
                if below is not None:
                    self.above.setdefault(below, []).append(node)

    def trace(self, weights: Mapping[Edge, object], embedded: Set[Edge]) -> None:
        """Find the activations. What is looked up in one of the weights, or is its product with a
        constant, is none, unless the weight is `embedded`: the table of an `nn.Embedding`."""
        undecided = []
        for node in self.nodes:
            name, edges = node.name(), node.next_functions
            leaf = getattr(node, "variable", None)
            of_data = any(edges[place][0] is None for place in FACTORS.get(name, ()))
            if name.startswith(_LOOKS_UP) or (of_data and _is_by_constant(node)):
                undecided.append(node)
            elif of_data or name.startswith(_OF_DATA) or not isinstance(leaf, nn.Parameter | None):
                self._reach(node)
        for node in undecided:
            if node not in self.activations:
                found = made_of((node, 0), weights.keys())
                if not found or found & embedded:
                    self._reach(node)

    def _reach(self, node: Node) -> None:
        pending = [node]
        while pending:
            node = pending.pop()
            if node not in self.activations:
                self.activations.add(node)
                pending.extend(self.above.get(node, ()))

    def products(self) -> Iterator[Product]:
        """All products and differences, of activations or not."""
        for node in self.nodes:
            places = PLACES.get(node.name())
            if places is None:
                continue
            edges = [node.next_functions[place] for place in places]
            factors = [(found, e) for e in edges if (found := origin(e)) is not None]
            yield Product(node, factors, len(factors) < len(edges))  # type: ignore[arg-type]

    def multiplies(
        self,
        product: Product,
        factor: Tensor | Edge,
        axes: int,
        data: list[tuple[Edge, Edge]],
        *,
        direct: bool = True,
    ) -> bool:
        """Whether a product of activations with what comes from a weight is one with a matrix; if
        not, it scales.

        Args: factor: the weight, or what is computed from it, as it enters; axes: of the weight;
            data: the other factors; direct: whether the weight is only rearranged or looked up.
        """
        node, result = product.node, product.shape
        name = node.name()
        if name in FACTORS:
            return True
        shape = factor.shape if isinstance(factor, Tensor) else shape_of(factor)
        is_matrix = sum(size > 1 for size in shape) > 1
        is_larger = len(result) > axes
        if name in DIFFERENCES:
            return is_matrix and is_larger
        if not direct:
            return is_matrix and (is_larger or len(result) > len(shape))
        if is_larger or math.prod(shape) < 2:
            return is_larger
        data = [pair for pair in data if pair[0][0] in self.activations]
        if not data:
            return False
        if any(up.name().startswith(_SUMS) for up in self.above.get(node, ())):
            return True
        if not isinstance(factor, Tensor) and (origin(factor) or factor)[0].name().startswith(
            _LOOKS_UP
        ):
            return False
        sizes = (min(math.prod(shape_of(edge)) for edge in pair) for pair in data)
        return min(sizes) < math.prod(result)


def origin(edge: Edge | tuple[Node | None, int]) -> Edge | None:
    """Where a tensor comes from that operations have rearranged; None if it has no gradient."""
    node, place = edge
    while node is not None and node.name() in _REARRANGES:
        differentiated = [e for e in node.next_functions if e[0] is not None]
        if len(differentiated) != 1:
            break
        node, place = differentiated[0]
    return None if node is None else (node, place)


def looked_up(edge: Edge) -> Edge:
    """Where the entries come from that were chosen by data; else the edge itself."""
    node = edge[0]
    while node.name().startswith(_LOOKS_UP) and len(node.next_functions) == 1:
        below = origin(node.next_functions[0])
        if below is None:
            break
        edge = below
        node = edge[0]
    return edge


def made_of(factor: Edge, parameters: Set[Edge]) -> set[Edge]:
    """Those of the parameters that a factor without activations is computed from."""
    pending, seen = [factor], {factor}
    while pending:
        node, _ = pending.pop()
        below = {e for e in node.next_functions if e[0] is not None} - seen
        pending.extend(below)  # type: ignore[arg-type]
        seen |= below  # type: ignore[arg-type]
    return seen & parameters


def is_detached(node: Node) -> bool:
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


def is_of_parameters_alone(tensor: Tensor) -> bool:
    """Whether a tensor is computed from parameters, without data, as a table of positions is; where
    a constant takes part it is not known to be, and the answer is no."""
    if tensor.grad_fn is None:
        return isinstance(tensor, nn.Parameter)
    pending, seen = [tensor.grad_fn], {tensor.grad_fn}
    while pending:
        node = pending.pop()
        name, edges = node.name(), node.next_functions
        if not isinstance(getattr(node, "variable", None), nn.Parameter | None):
            return False
        if name in FACTORS:  # the others are biases, perhaps absent
            edges = tuple(edges[place] for place in FACTORS[name])
        elif name == "TransportBackward":
            edges = edges[:1]
        below = {node for node, _ in edges}
        if None in below or name.startswith((*_LOOKS_UP, *_FOR_DATA)):
            return False
        pending.extend(below - seen)  # type: ignore[arg-type]
        seen |= below  # type: ignore[arg-type]
    return True


def constants(node: Node) -> Iterator[Tensor]:
    """The tensors that a node keeps as they are, not those that hooks have packed."""
    name = node.name()
    if name not in _SAVED:
        _SAVED[name] = [key for key in dir(node) if key.startswith("_raw_saved_")]
    for key in _SAVED[name]:
        saved = getattr(node, key)
        if getattr(saved, "unpack_hook", node) is None:
            tensor = getattr(node, key.removeprefix("_raw"))
            if isinstance(tensor, Tensor):
                yield tensor


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


def _is_by_constant(node: Node) -> bool:
    """Whether a product in which one factor has no gradient may be `C @ W` or `W @ C`, W a weight
    and C a constant: layers multiply data by W^T, from the left."""
    name = node.name()
    if name not in _MATRIX_PRODUCTS:
        return False
    left, right = (node.next_functions[place] for place in FACTORS[name])
    edge = left if right[0] is None else right
    below = edge[0]
    if below is None:
        return False
    while below.name() in _REARRANGES:
        if below.name().startswith(_TRANSPOSES):
            return False
        below = next(b for b, _ in below.next_functions if b is not None)
    return edge is right or all(tensor.is_contiguous() for tensor in constants(node))


def shape_of(edge: Edge) -> Sequence[int]:
    """The shape of the tensor that an edge leads to."""
    return edge[0]._input_metadata[edge[1]].shape
