"""The classes of converted layers: each a subclass of the layer's own class that computes the same
output, with the backward pass of the rule; and finding such layers in a model.

Conversion assigns `layer.__class__`. Parameters, hooks, names and `isinstance` stay as they are;
the only addition is the child module `feedback`.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

from torch import Tensor, nn
from torch.nn.utils import parametrize

from apical.core import updates
from apical.core.feedback import NO_TENSOR_PARALLELISM, Feedback
from apical.core.products import apply, convolution, transposed_convolution
from apical.core.updates import Part, only_part
from apical.rules.ops import LinearOp


class LinearMixin:
    """The forward of `nn.Linear` through the layer's feedback."""

    def forward(self: Any, input: Tensor) -> Tensor:
        return apply(self.feedback, LinearOp(), input, self.weight, self.bias)

    def _apical_parts(self) -> dict[str, Part]:
        """Its weight."""
        return only_part(self, LinearOp())


class ConvMixin:
    """The forward of `nn.Conv1d`, `nn.Conv2d` and `nn.Conv3d` through the layer's feedback."""

    def _apical_parts(self) -> dict[str, Part]:
        """Its weight."""
        return only_part(self, convolution(self))

    def _conv_forward(self: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        axes = weight.dim() - 2
        batched = input.dim() == axes + 2
        x = input if batched else input.unsqueeze(0)
        output = apply(self.feedback, convolution(self), x, weight, bias)
        return output if batched else output.squeeze(0)


class ConvTransposeMixin:
    """The forward of the transposed convolutions through the layer's feedback."""

    def _apical_parts(self) -> dict[str, Part]:
        """Its weight; the operation is that where no output size is asked for."""
        return only_part(self, transposed_convolution(self))

    def forward(self: Any, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        axes = self.weight.dim() - 2
        batched = input.dim() == axes + 2
        x = input if batched else input.unsqueeze(0)
        output_padding = self._output_padding(
            x, output_size, self.stride, self.padding, self.kernel_size, axes, self.dilation
        )
        op = transposed_convolution(self)._replace(output_padding=tuple(output_padding))
        output = apply(self.feedback, op, x, self.weight, self.bias)
        return output if batched else output.squeeze(0)


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
        "register_parameter": _register_parameter,
    }
    if not hasattr(plain, "__deepcopy__"):
        names["__deepcopy__"] = property(_copier)
    return type(f"Feedback{plain.__name__}", (mixin, plain), names)


def modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of all modules of a model, each module once.

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


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """After the block `training` of every module is as before."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def is_converted(layer: nn.Module) -> bool:
    """Whether `apical.convert` has converted this layer."""
    return "feedback" in layer._modules and hasattr(type(layer), "plain_class")


def converted_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Name and module of every converted layer, each module once."""
    for name, module in modules(model):
        if is_converted(module):
            yield name, module


def feedback_modules(model: nn.Module) -> Iterator[Feedback]:
    """Every feedback module of the model, once."""
    return (module for _, module in modules(model) if isinstance(module, Feedback))


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
        if isinstance(own, Feedback):
            name = own.layer
        else:
            part, feedback = next(iter(own.items()))
            name = feedback.layer.removesuffix(f".{part}")
        raise ValueError(f"{name}: {text}")
    warnings.warn(text, stacklevel=2)


_QCONFIG = property(_no_qconfig, _refuse_qconfig)


def _register_parameter(layer: Any, name: str, parameter: Any) -> None:
    """`parallelize_module` registers every parameter below a layer with the layer again."""
    if name.startswith("feedback."):
        raise ValueError(
            f"{name}: partitioning the layer would take its feedback for a weight;"
            f" {NO_TENSOR_PARALLELISM}"
        )
    super(layer.plain_class, layer).register_parameter(name, parameter)


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
    if isinstance(twin, nn.RNNBase):
        twin._init_flat_weights()  # it refers to its weights a second time, weakly
    updates.watch(twin)
    return twin


def _restore(layer: Any, state: dict[str, Any]) -> None:
    """The rule of a copy acts on the updates of the copy."""
    super(type(layer), layer).__setstate__(state)
    updates.watch(layer)
