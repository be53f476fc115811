"""What autograd's graph of a forward pass shows: which of its tensors are activations, and the
products in which activations meet what is computed from parameters alone.

A node of the graph is the `grad_fn` of a tensor. Its `next_functions` are edges to the nodes of the
operation's inputs, in their order: a parameter is a node too (AccumulateGrad), an input without
gradient is None.
"""

import math
from collections.abc import Iterable, Iterator, Sequence, Set
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.autograd.graph import Node

from apical.core.autograd import OWN

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
"""Products of matrices, and the places of their factors among a node's edges."""

ELEMENTWISE: dict[str, tuple[int, ...]] = {
    "AddcmulBackward0": (1, 2),
    **dict.fromkeys(("DivBackward0", "MulBackward0"), (0, 1)),
}
"""Elementwise products, which scale, or are parts of products of matrices (`Graph.mixes`)."""

DIFFERENCES: dict[str, tuple[int, ...]] = dict.fromkeys(
    ("AddBackward0", "RsubBackward0", "SubBackward0"), (0, 1)
)
"""They move, or are parts of distances between activations and the rows of a matrix."""

PLACES = {**FACTORS, **ELEMENTWISE, **DIFFERENCES}

_REARRANGES = frozenset(
    f"{name}Backward{number}"
    for name in (
        "Alias AsStrided Clone Div Expand Mul Neg Permute Repeat ReshapeAlias Select Slice Split"
        " SplitWithSizes Squeeze T ToCopy Transpose Unbind UnsafeSplit UnsafeView Unsqueeze View"
    ).split()
    for number in range(3)
)
"""What rearranges, repeats, casts or, with one edge, scales a tensor."""

_SUMS = ("MeanBackward", "SumBackward")

_TRANSPORT = "TransportBackward"

_DETACHED = "BridgeBackward"
"""In the place of `detach` while the axis of samples is verified (`apical.core.autograd`)."""

_OF_DATA = ("CheckpointFunction", "CompiledFunction", "Sparse", "Transport", _DETACHED)
"""How the names of nodes begin that compute activations, also where no edge leads to data: what
converted layers compute is one, even of a parameter."""

_FOR_DATA = ("CheckpointFunction", "CompiledFunction", "Expand", "Repeat")
"""How the names of nodes begin whose result may have an entry for each sample."""

_LOOKS_UP = ("Embedding", "Gather", "Index")
"""How the names of nodes begin that choose entries by data."""

Edge = tuple[Node, int]

_SAVED: dict[str, list[str]] = {}  # by a node's name, those of the tensors that it saves


class Factor(NamedTuple):
    """A factor of a product that has a gradient: where it enters, and where it was before it was
    rearranged."""

    enters: Edge
    origin: Edge


class Graph:
    """The graph of some tensors.

    Attributes: nodes: names and nodes, but those that compute the weights of transports;
        activations: the nodes of activations, after `trace`; cut: those from which all paths end at
        bridges, so that no gradient passes below.
    """

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.nodes = [(node.name(), node) for node in _nodes(tensor.grad_fn for tensor in tensors)]
        self.activations: set[Node] = set()
        self._above: dict[Node, list[Node]] = {}  # the nodes that read what a node computes
        for _, node in self.nodes:
            for below, _ in node.next_functions:
                if below is not None:
                    self._above.setdefault(below, []).append(node)
        self.cut: set[Node] = set()
        if any(name == _DETACHED for name, _ in self.nodes):
            leaves = (node for _, node in self.nodes if not node.next_functions)
            self.cut = {node for _, node in self.nodes} - self._reached(leaves, ends=_DETACHED)

    def trace(self, weights: Set[Edge], embedded: Set[Edge]) -> None:
        """Find the activations: what depends on data, or is computed by a converted layer.

        Entries that are looked up in one of the weights, and the product of a constant with what is
        computed from them, are none: layers mark what they compute themselves. Of other parameters
        they are, and of an `embedded` weight, the table of an `nn.Embedding`.
        """
        undecided = []
        for name, node in self.nodes:
            if name.startswith(_OF_DATA) or _is_data(node):
                self._mark(node)
            elif OWN in node.metadata:  # type: ignore[operator]
                self._mark(origin((node, 0))[0])  # the product, of which the node may be a view
            elif name.startswith(_LOOKS_UP) or (name in FACTORS and None in _factors(name, node)):
                undecided.append(node)
        for node in undecided:
            if node not in self.activations:
                found = computed_from((node, 0)) & weights
                if not found or found & embedded:
                    self._mark(node)

    def of_parameters_alone(self) -> set[Node]:
        """The nodes of what is computed from parameters, without data, as a table of positions is;
        what a constant takes part in is not known to be, and left out."""
        for name, node in self.nodes:
            if name in FACTORS:  # the others are biases, perhaps absent
                below = _factors(name, node)
            else:
                below = [n for n, _ in node.next_functions[: 1 if name == _TRANSPORT else None]]
            if None in below or name.startswith((*_LOOKS_UP, *_FOR_DATA)) or _is_data(node):
                self._mark(node)
        return {node for _, node in self.nodes} - self.activations

    def products(self) -> Iterator[tuple[Node, list[Factor]]]:
        """All products and differences, of activations or not, and what may be some."""
        for name, node in self.nodes:
            if name in PLACES or is_custom(node):
                places = PLACES.get(name, range(len(node.next_functions)))
                edges = (node.next_functions[place] for place in places)
                yield node, [Factor((n, at), origin((n, at))) for n, at in edges if n is not None]

    def mixes(
        self, product: Node, shape: Sequence[int], data: list[Factor], *, computed: bool = False
    ) -> bool:
        """Whether a product of activations with a weight is one with a matrix, or a distance to its
        rows. If not, it scales the activations or moves them.

        An elementwise product is one if an activation meets several entries of the weight, so that
        its gradient is a sum over them, if a sum follows, or if it is one of frequencies.

        Args: shape: of the weight as it enters; data: the activations among the factors; computed:
            whether the weight was not only rearranged before. Its norms, say, scale.
        """
        name = product.name()
        if name in FACTORS:
            return True
        axes = sum(size > 1 for size in shape)
        if is_custom(product):
            return axes > 1 or not computed
        if name in ELEMENTWISE and product._input_metadata[0].dtype.is_complex:
            return True
        if axes < (1 if name in ELEMENTWISE and not computed else 2):
            return False
        sizes = (math.prod(shape_of(edge)) for factor in data for edge in factor)
        if min(sizes) < math.prod(product._input_metadata[0].shape):
            return True
        readers = self._above.get(product, ())
        return name in ELEMENTWISE and any(up.name().startswith(_SUMS) for up in readers)

    def _mark(self, node: Node) -> None:
        """Note that a node, and all that depends on it, is an activation."""
        if node not in self.activations:
            self.activations |= self._reached([node])

    def _reached(self, starts: Iterable[Node], ends: str = "") -> set[Node]:
        """What depends on some nodes, or would but for the nodes of this name."""
        pending, found = list(starts), set()
        while pending:
            node = pending.pop()
            if node not in found and node not in self.activations and node.name() != ends:
                found.add(node)
                pending.extend(self._above.get(node, ()))
        return found


def origin(edge: Edge) -> Edge:
    """Where a tensor was before operations rearranged it."""
    node, place = edge
    while node.name() in _REARRANGES:
        below = [(n, at) for n, at in node.next_functions if n is not None]
        if len(below) != 1:
            break
        node, place = below[0]
    return node, place


def looked_up(edge: Edge) -> Edge:
    """Where the entries come from that were chosen by data; else the edge itself."""
    while edge[0].name().startswith(_LOOKS_UP) and len(edge[0].next_functions) == 1:
        node, place = edge[0].next_functions[0]
        if node is None:
            break
        edge = origin((node, place))
    return edge


def computed_from(edge: Edge) -> set[Edge]:
    """All that a tensor is computed from, itself included."""
    pending, seen = [edge], {edge}
    while pending:
        node, _ = pending.pop()
        for below, place in node.next_functions:
            if below is not None and (below, place) not in seen:
                seen.add((below, place))
                pending.append((below, place))
    return seen


def saved(node: Node) -> Iterator[Any]:
    """What a node keeps for its backward pass, as autograd's `SavedTensor`. Its `data` is a tensor
    or, where an `unpack_hook` is to restore it, what was packed."""
    name = node.name()
    if name not in _SAVED:
        _SAVED[name] = [key for key in dir(node) if key.startswith("_raw_saved_")]
    for key in _SAVED[name]:
        kept = getattr(node, key)
        if hasattr(kept, "data"):  # not a list of them
            yield kept
        elif is_custom(node):
            yield from kept


def constants(node: Node) -> Iterator[Tensor]:
    """The tensors that a node keeps as they are."""
    return (kept.data for kept in saved(node) if isinstance(kept.data, Tensor))


def is_custom(node: Node) -> bool:
    """Whether a node is of an autograd Function that neither torch nor Apical wrote; one that is
    given activations and a weight is taken for a product."""
    own = getattr(type(node), "_forward_cls", Node).__module__.startswith(("apical.", "torch."))
    return isinstance(node, BackwardCFunction) and not own


def shape_of(edge: Edge) -> Sequence[int]:
    """The shape of the tensor that an edge leads to."""
    return edge[0]._input_metadata[edge[1]].shape


def _factors(name: str, node: Node) -> list[Node | None]:
    """The nodes of the factors of a product of matrices."""
    return [node.next_functions[place][0] for place in FACTORS[name]]


def _is_data(node: Node) -> bool:
    """Whether a node is a leaf that is no parameter."""
    return not isinstance(getattr(node, "variable", None), nn.Parameter | None)


def _nodes(roots: Iterable[Node | None]) -> Iterator[Node]:
    """All nodes of a graph but those that compute the weights of transports."""
    seen = {root for root in roots if root is not None}
    pending = list(seen)
    while pending:
        node = pending.pop()
        yield node
        edges = node.next_functions
        for below, _ in edges[:1] if node.name() == _TRANSPORT else edges:
            if below is not None and below not in seen:
                seen.add(below)
                pending.append(below)
