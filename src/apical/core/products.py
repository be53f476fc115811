"""Operations with the backward pass of a rule; and what layers compute with their weights, as
values, for classes that are no `nn.Linear` and no convolution of torch's own."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical.core import autograd
from apical.core.feedback import Feedback
from apical.core.taps import BroadcastFeedback
from apical.core.updates import Part
from apical.names import check_literals
from apical.rules.ops import ConvOp, LinearOp, Op


def apply(feedback: Feedback, op: Op, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`op(x, weight) + bias` with the backward pass of the rule.

    Where nothing is differentiated, and inside `exact_gradients`, it is the plain operation.
    Shapes: as `F.linear` or the convolution of `op`.
    Raises: RuntimeError in forward-mode differentiation.
    """
    exact = bool(feedback.exact)
    if not exact:
        autograd.refuse_forward_mode(feedback)
    acts = False
    if torch.is_grad_enabled():
        feedback.history.called = True
        acts = not exact and feedback.takes_part(x, weight)
    if isinstance(feedback, BroadcastFeedback) and not exact:
        cut = feedback.broadcast.cut(feedback, op, x, weight)
        output = autograd.exact(op, op.prepare(cut), weight, bias)
    elif acts:
        if feedback.rule.sends_nothing:
            x = x.detach()
        output = autograd.transport(op, op.prepare(x), weight, bias, feedback)
    else:
        output = autograd.exact(op, op.prepare(x), weight, bias)
    for listener in feedback.listeners:
        listener(x, output)
    return output


def serves_plain(parts: Iterable[Feedback]) -> bool:
    """Whether the plain layer's own forward computes all that is wanted of these parts: nothing is
    differentiated or all of it exactly, no feedback waits for shapes, and nothing is measured.

    Raises: RuntimeError in forward-mode differentiation.
    """
    differentiated = torch.is_grad_enabled()
    for feedback in parts:
        if differentiated:
            feedback.history.called = True
        if feedback.listeners:
            return False
        if not feedback.exact:
            autograd.refuse_forward_mode(feedback)
            if differentiated or feedback.pending:
                return False
    return True


@dataclass(frozen=True)
class Weight:
    """How a layer uses one of its parameters.

    Args:
        computes: the product, where x holds features on its last axis: "x W^T" as `nn.Linear`, or
            "x W"; "convolution" and "transposed convolution" as torch's layers, by the layer's own
            attributes `stride`, `padding`, `dilation`, `groups`, `padding_mode` and, transposed,
            `output_padding`.
        bias: name of the parameter that the product adds, if there is one.
        stacked: whether axis 0 of the parameter, and of the bias, counts weights of their own, as
            of experts or groups. Each has feedback of its own.
        value: what the layer makes of the parameter before the product (a reshaped view, a
            standardised weight), a function of the layer. None: the parameter itself.
        recurrent: whether the product reads the layer's own state. Broadcast rules send no signal
            to it; between steps the gradient is exact.
    """

    computes: Literal["x W^T", "x W", "convolution", "transposed convolution"] = "x W^T"
    bias: str | None = None
    stacked: bool = False
    value: Callable[[Any], Tensor] | None = None
    recurrent: bool = False

    def __post_init__(self) -> None:
        check_literals(self, "Weight")
        if self.stacked and "W" not in self.computes:
            raise ValueError(
                f"Weight: stacked=True is for 'x W^T' and 'x W', not {self.computes!r}"
            )

    def operation(self, layer: Any) -> Op:
        """The product with one weight, in the layout of `nn.Linear` or torch's convolutions."""
        if self.computes == "convolution":
            return convolution(layer)
        if self.computes == "transposed convolution":
            return transposed_convolution(layer)
        return LinearOp()


def convolution(layer: Any) -> ConvOp:
    """What a convolution computes, with its settings of this moment."""
    zeros = (0,) * len(layer.stride)
    pad: tuple[int, ...] = ()
    padding, mode = layer.padding, "constant"
    if layer.padding_mode != "zeros":
        mode = layer.padding_mode
        pad, padding = tuple(layer._reversed_padding_repeated_twice), zeros
    elif padding == "valid":
        padding = zeros
    elif padding == "same":
        sizes = zip(layer.dilation, layer.kernel_size, strict=True)
        total = [d * (k - 1) for d, k in sizes]
        padding = tuple(t // 2 for t in total)
        uneven = [side for t in reversed(total) for side in (0, t % 2)]
        pad = tuple(uneven) if any(uneven) else ()
    return ConvOp(layer.stride, padding, layer.dilation, False, zeros, layer.groups, pad, mode)


def transposed_convolution(layer: Any) -> ConvOp:
    """What a transposed convolution computes where no output size is asked for."""
    return ConvOp(
        layer.stride, layer.padding, layer.dilation, True, layer.output_padding, layer.groups
    )


Weights = dict[str, Weight]


@dataclass(frozen=True)
class Adapter:
    """How a class of layers uses its parameters: by name (`"weights.0"` for one of a
    `ParameterList`) how, or a function of the layer that says so; and its forward function, given
    the layer, its `Product` and the arguments of the call. None: the layer's own forward, in which
    the products are replaced (`apical.core.own_forward`).
    """

    weights: Weights | Callable[[Any], Weights]
    forward: Callable[..., Any] | None = None

    def of(self, layer: nn.Module) -> Weights:
        """By name of the parameter, how this layer uses it."""
        if isinstance(self.weights, dict):
            return self.weights
        weights = self.weights(layer)
        if isinstance(weights, dict) and all(isinstance(w, Weight) for w in weights.values()):
            return weights
        raise ValueError(
            f"the adapter of {type(layer).__name__} gives weights {weights!r}: its function must"
            " return a mapping from names of parameters to how they are used,"
            " {'weight': Weight('x W^T', bias='bias')}"
        )

    def parts(self, layer: Any) -> dict[str, Part]:
        """The weights of the layer by the names that their feedback has."""
        weights = self.of(layer)
        found = {}
        for name, weight in weights.items():
            parameter = attrgetter(name)(layer)
            value = parameter if weight.value is None else weight.value(layer)
            value = value.mT if weight.computes == "x W" else value
            bias = None if weight.bias is None else getattr(layer, weight.bias, None)
            biases = {used.bias for used in weights.values()}
            owners: tuple[Tensor | None, ...] = (parameter,)
            if weight.value is not None:
                own = layer._parameters.items()
                owners = tuple(p for key, p in own if key not in biases and p is not None)
            op, tapped = weight.operation(layer), not weight.recurrent
            if not weight.stacked:
                key = "" if len(weights) == 1 else part_name(name)
                found[key] = Part(op, value, bias, owners, tapped)
                continue
            biases_of_items = [None] * len(value) if bias is None else bias.unbind(0)
            for item, pair in enumerate(zip(value.unbind(0), biases_of_items, strict=True)):
                found[part_name(name, item)] = Part(op, *pair, owners, tapped)
        return found


def part_name(name: str, item: int | None = None) -> str:
    """The name of a weight's feedback in the layer's `feedback`."""
    plain = name.replace(".", "_")
    return plain if item is None else f"{plain}_{item}"


class Product:
    """The products of a layer with its weights, for the forward function of its adapter.

    Attributes: layer: the name of its class, for errors.
    """

    def __init__(self, layer: Any, adapter: Adapter) -> None:
        own = layer.feedback
        self._feedback = {"": own} if isinstance(own, Feedback) else own
        self._parts = layer._apical_parts()
        self._layer, self._adapter = layer, adapter
        self.layer = type(layer).plain_class.__name__

    def __call__(self, x: Tensor, name: str = "", item: int | None = None) -> Tensor:
        """`op(x, W) + bias` with the backward pass of the layer's rule.

        Args: name: of the parameter; may be left out where the layer has one weight. item: which of
            a stacked parameter's weights.
        Shapes: x as the product reads it; convolutions also without the axis of samples.
        Raises: ValueError for a name that was not registered.
        """
        key = "" if "" in self._parts else part_name(name, item)
        if key not in self._parts:
            raise ValueError(
                f"{self.layer}: no weight {key!r} was registered; there are"
                f" {', '.join(self._parts)}"
            )
        op, weight, bias = self._parts[key][:3]
        return self.with_weight(key, op, x, weight, bias)

    def with_weight(
        self, key: str, op: Op, x: Tensor, weight: Tensor, bias: Tensor | None
    ) -> Tensor:
        """The product of the part of this name, with its weight as it is given here."""
        single = isinstance(op, ConvOp) and x.dim() == weight.dim() - 1
        x = x.unsqueeze(0) if single else x
        if key in self._feedback:
            output = apply(self._feedback[key], op, x, weight, bias)
        else:
            output = autograd.exact(op, op.prepare(x), weight, bias)
        return output.squeeze(0) if single else output

    @property
    def feedback(self) -> list[Feedback]:
        """The feedback of all weights that have some."""
        return list(self._feedback.values())

    def parameters(self) -> Iterator[tuple[str, Tensor, bool]]:
        """Each part with the parameter as the layer's own forward reads it, and whether that is
        transposed to the weight of the product."""
        weights = self._adapter.of(self._layer)
        for name, weight in weights.items():
            key = "" if "" in self._parts else part_name(name)
            yield key, getattr(self._layer, name), weight.computes == "x W"
