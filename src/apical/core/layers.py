"""The classes of converted layers: each a subclass of the layer's own class that computes the same
output, with the backward pass of the rule.

Conversion assigns `layer.__class__`. Parameters, hooks, names and `isinstance` stay as they are;
the only addition is the child module `feedback`.
"""

from __future__ import annotations

import copy
import warnings
from functools import cache, partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from apical.core import updates
from apical.core.attention import AttentionMixin, projections
from apical.core.feedback import Feedback
from apical.core.forward import apply
from apical.rules.ops import ConvOp, LinearOp, Op


class LinearMixin:
    """The forward of `nn.Linear` through the layer's feedback."""

    def forward(self: Any, input: Tensor) -> Tensor:
        return apply(self.feedback, LinearOp(), input, self.weight, self.bias)

    def operation(self) -> LinearOp:
        """What the layer computes."""
        return LinearOp()


class ConvMixin:
    """The forward of `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` through the layer's feedback."""

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        axes = weight.dim() - 2
        batched = input.dim() == axes + 2
        x = input if batched else input.unsqueeze(0)
        output = apply(self.feedback, self.operation(), x, weight, bias)
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
        output = apply(self.feedback, op, x, self.weight, self.bias)
        return output if batched else output.squeeze(0)

    def operation(self: Any) -> ConvOp:
        """What the layer computes where no output size is asked for."""
        return ConvOp(
            self.stride, self.padding, self.dilation, True, self.output_padding, self.groups
        )


KINDS: dict[type[nn.Module], type] = {
    nn.Conv1d: ConvMixin,
    nn.Conv2d: ConvMixin,
    nn.Conv3d: ConvMixin,
    nn.ConvTranspose1d: ConvTransposeMixin,
    nn.ConvTranspose2d: ConvTransposeMixin,
    nn.ConvTranspose3d: ConvTransposeMixin,
    nn.Linear: LinearMixin,
    nn.MultiheadAttention: AttentionMixin,
}
"""The layers that can be converted, and what converts them; subclasses must keep the forward."""


def kind_of(layer: nn.Module) -> type[nn.Module] | None:
    """The class of `KINDS` that this layer belongs to, or None."""
    return next((kind for kind in KINDS if isinstance(layer, kind)), None)


def mixin_for(layer: nn.Module) -> type | None:
    """The mixin that converts this kind of layer, or None."""
    kind = kind_of(layer)
    return None if kind is None else KINDS[kind]


def operations(layer: nn.Module) -> list[tuple[Op, Tensor]]:
    """Operation and weight of a layer that is still plain; attention has four, others one."""
    mixin = mixin_for(layer)
    if isinstance(layer, nn.MultiheadAttention):
        return [(LinearOp(), weight) for weight, _ in projections(layer).values()]
    return [(mixin.operation(layer), layer.weight)]  # type: ignore[union-attr,list-item]


@cache
def converted_class(mixin: type, plain: type) -> type:
    """The class of a converted layer: `Feedback<Name>`, a subclass of its plain class.

    It is made by `type` because any subclass of `nn.Linear` and the like may be converted.
    """
    names = {
        "plain_class": plain,
        "__module__": plain.__module__,
        "__reduce_ex__": _reduce,
        "__setstate__": _restore,
        "qconfig": _QCONFIG,
    }
    if not hasattr(plain, "__deepcopy__"):
        names["__deepcopy__"] = property(_copier)
    return type(f"Feedback{plain.__name__}", (mixin, plain), names)


def _no_qconfig(layer: Any) -> None:
    raise AttributeError("qconfig")  # as of a layer that quantisation has not visited


def _refuse_qconfig(layer: Any, qconfig: object) -> None:
    """Called by the quantisation of torch for every layer that it visits.

    It replaces layers by their exact class, so it passes by a converted one. A qconfig is a wish
    to quantise the layer; None is what `quantize_dynamic({nn.Linear})` gives it, or a user who
    leaves the layer out.
    """
    text = (
        "quantisation replaces layers by their exact class and leaves converted layers as they"
        " are. Train first, then apical.revert(model), then quantise"
    )
    if qconfig is not None:
        own = layer.feedback
        name = own.layer if isinstance(own, Feedback) else own["q"].layer.removesuffix(".q")
        raise ValueError(f"{name}: {text}")
    warnings.warn(text, stacklevel=2)


_QCONFIG = property(_no_qconfig, _refuse_qconfig)


def _rebuild(mixin: type, plain: type) -> nn.Module:
    layer_class = converted_class(mixin, plain)
    return layer_class.__new__(layer_class)  # type: ignore[call-overload]


def _reduce(layer: Any, protocol: int) -> Any:
    """Pickle cannot find the class of a converted layer by name, only what it is made of."""
    layer_class = type(layer)
    mixin = layer_class.__mro__[1]
    return _rebuild, (mixin, layer_class.plain_class), layer.__getstate__()


def _copier(layer: Any) -> Any:
    """`__deepcopy__` of a parametrized layer, whose class keeps no `__setstate__`; else none.

    A wrapper that passes on what it lacks, as PEFT's does, would copy its layer in its own place.
    """
    if not parametrize.is_parametrized(layer):
        raise AttributeError("__deepcopy__")
    return partial(_copy, layer)


def _copy(layer: Any, memo: dict[int, Any]) -> Any:
    """As any module is copied."""
    twin = layer.__class__.__new__(layer.__class__)
    memo[id(layer)] = twin
    twin.__dict__ = copy.deepcopy(layer.__dict__, memo)
    updates.watch(twin)
    return twin


def _restore(layer: Any, state: dict[str, Any]) -> None:
    """The rule of a copy acts on the updates of the copy."""
    super(type(layer), layer).__setstate__(state)
    updates.watch(layer)
