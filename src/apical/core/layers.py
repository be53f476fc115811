"""The classes that converted layers are given: their own class, with the rule's backward.

Conversion assigns `layer.__class__`. Parameters, hooks, names and `isinstance` stay as they are;
the only addition is the child module `feedback`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

from torch import Tensor, nn

from apical.core import updates
from apical.core.attention import AttentionMixin, projections
from apical.rules.ops import ConvOp, LinearOp, Op

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


class LinearMixin:
    """The forward of `nn.Linear` through the layer's feedback."""

    def forward(self: Any, input: Tensor) -> Tensor:
        return self.feedback.apply_op(LinearOp(), input, self.weight, self.bias)

    def operation(self) -> LinearOp:
        """What the layer computes."""
        return LinearOp()


class ConvMixin:
    """The forward of `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` through the layer's feedback."""

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        axes = weight.dim() - 2
        batched = input.dim() == axes + 2
        x = input if batched else input.unsqueeze(0)
        output = self.feedback.apply_op(self.operation(), x, weight, bias)
        return output if batched else output.squeeze(0)

    def operation(self: Any) -> ConvOp:
        """What the layer computes, with its settings of this moment."""
        zeros = (0,) * len(self.stride)
        pad: tuple[int, ...] = ()
        padding, mode = self.padding, "constant"
        if self.padding_mode != "zeros":
            mode = self.padding_mode
            pad, padding = tuple(self._reversed_padding_repeated_twice), zeros
        elif padding == "valid":
            padding = zeros
        elif padding == "same":
            total = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            padding = tuple(t // 2 for t in total)
            uneven = [side for t in reversed(total) for side in (0, t % 2)]
            pad = tuple(uneven) if any(uneven) else ()
        return ConvOp(self.stride, padding, self.dilation, False, zeros, self.groups, pad, mode)


class ConvTransposeMixin:
    """The forward of the transposed convolutions through the layer's feedback."""

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        axes = self.weight.dim() - 2
        batched = input.dim() == axes + 2
        x = input if batched else input.unsqueeze(0)
        output_padding = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, axes, self.dilation
        )
        op = self.operation()._replace(output_padding=tuple(output_padding))
        output = self.feedback.apply_op(op, x, self.weight, self.bias)
        return output if batched else output.squeeze(0)

    def operation(self: Any) -> ConvOp:
        """What the layer computes where no output size is asked for."""
        return ConvOp(
            self.stride, self.padding, self.dilation, True, self.output_padding, self.groups
        )


def mixin_for(layer: nn.Module) -> type | None:
    """The mixin that converts this kind of layer, or None."""
    for kinds, mixin in (
        ((nn.Linear,), LinearMixin),
        (CONVOLUTIONS, ConvMixin),
        (TRANSPOSED, ConvTransposeMixin),
        ((nn.MultiheadAttention,), AttentionMixin),
    ):
        if isinstance(layer, kinds):
            return mixin
    return None


def operations(layer: nn.Module) -> list[tuple[Op, Tensor]]:
    """Operation and weight of a layer that is still plain; attention has four, others one."""
    mixin = mixin_for(layer)
    if isinstance(layer, nn.MultiheadAttention):
        return [(LinearOp(), weight) for weight, _ in projections(layer).values()]
    return [(mixin.operation(layer), layer.weight)]  # type: ignore[union-attr,list-item]


@cache
def converted_class(mixin: type, plain: type) -> type:
    """The class of a converted layer: `Feedback<Name>`, a subclass of its plain class."""
    names = {
        "plain_class": plain,
        "__module__": plain.__module__,
        "__reduce_ex__": _reduce,
        "__setstate__": _restore,
    }
    if not hasattr(plain, "__deepcopy__"):
        names["__deepcopy__"] = _copy
    return type(f"Feedback{plain.__name__}", (mixin, plain), names)


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of all of a model, each module once.

    Raises: ValueError if it is no model.
    """
    if isinstance(model, type):
        raise ValueError(
            f"{model.__name__} is a class; a model is an instance of one: {model.__name__}(...)"
        )
    if not isinstance(model, nn.Module):
        given = repr(model)
        shown = given if len(given) <= 40 else f"a {type(model).__name__}"
        raise ValueError(f"the model is a torch.nn.Module, not {shown}")
    return model.named_modules()


def is_converted(layer: nn.Module) -> bool:
    """Whether `apical.convert` has converted this layer."""
    return "feedback" in layer._modules and hasattr(type(layer), "plain_class")


def converted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every converted layer, each module once."""
    for name, module in modules(model):
        if is_converted(module):
            yield name, module


def _rebuild(mixin: type, plain: type) -> nn.Module:
    layer_class = converted_class(mixin, plain)
    return layer_class.__new__(layer_class)  # type: ignore[call-overload]


def _reduce(layer: Any, protocol: int) -> Any:
    """A class made on the fly cannot be found by name: name what it is made of instead."""
    layer_class = type(layer)
    mixin = layer_class.__mro__[1]
    return _rebuild, (mixin, layer_class.plain_class), layer.__getstate__()


def _copy(layer: Any, memo: dict[int, Any]) -> Any:
    """As any module is copied; a parametrized layer keeps this, but not `__setstate__`."""
    twin = layer.__class__.__new__(layer.__class__)
    memo[id(layer)] = twin
    twin.__dict__ = copy.deepcopy(layer.__dict__, memo)
    updates.watch(twin)
    return twin


def _restore(layer: Any, state: dict[str, Any]) -> None:
    """A copy hears of updates as its original does."""
    super(type(layer), layer).__setstate__(state)
    updates.watch(layer)
