"""The kinds of layers that can be converted: torch's own by their mixins, others by adapters.

`apical.adapters` is this file.
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from torch import Tensor, nn

from apical.core import libraries
from apical.core.attention import AttentionMixin
from apical.core.feedback import Feedback
from apical.core.layers import ConvMixin, ConvTransposeMixin, LinearMixin, converted_class
from apical.core.own_forward import OwnForward, Uses
from apical.core.products import Adapter, Product, Weight, serves_plain
from apical.core.recurrent import ONE_STEP, STEPS
from apical.core.updates import Part

__all__ = ["Adapter", "Product", "Weight", "adapter_of", "register"]

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
"""Torch's own layers and what converts them; subclasses must keep the forward. Others have an
adapter."""


def register(
    kind: type[nn.Module] | str,
    weights: Mapping[str, Weight] | Callable[[Any], dict[str, Weight]],
    forward: Callable[..., Any] | None = None,
) -> None:
    """Let `convert` convert the layers of a class, and of its subclasses with the same forward.

    Args:
        kind: the class, or its name `"package.module.Class"`, which imports nothing.
        weights: by name of the parameter, how the layer uses it; a function of the layer where that
            differs between layers. Other parameters keep their exact gradient; one with a matrix is
            refused.
        forward: what the layer computes, as `forward(layer, product, *args)` with the arguments of
            the layer's own forward, where `product(x, name)` stands for each product with a weight
            (see `Product`). None: the layer's own forward, in which each call of torch with a
            registered weight (`F.linear`, `@`, `matmul`, `mm`, `addmm`, `F.conv2d` and the like) is
            replaced; another use of the weight is an error.

    A class that is registered again gets the new entry. `apical.check_adapter(layer, *inputs)`
    compares what is registered with the layer's own forward and its gradients.

    Raises: ValueError for what is no class or use of parameters.

    >>> import apical, torch
    >>> class Scaled(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.matrix = nn.Parameter(torch.randn(4, 3))
    ...     def forward(self, x):
    ...         return 0.5 * (x @ self.matrix)
    >>> register(Scaled, {"matrix": Weight("x W")})
    >>> type(apical.convert(Scaled(), "fa")).__name__
    'FeedbackScaled'
    """
    if not (isinstance(kind, str) and "." in kind):
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise ValueError(
                f"adapters.register: {kind!r} is neither a class of modules nor the name of one,"
                " 'package.module.Class'"
            )
    if kind in KINDS:
        raise ValueError(
            f"adapters.register: {kind.__name__} is converted as it is; register a subclass whose"
            " forward differs"
        )
    if not callable(weights):
        uses = list(weights.values()) if isinstance(weights, Mapping) else []
        if not uses or not all(isinstance(use, Weight) for use in uses):
            raise ValueError(
                "adapters.register: weights are a mapping from names of parameters to how they are"
                f" used, {{'weight': Weight('x W^T', bias='bias')}}, not {weights!r}"
            )
        by_hand = [name for name, use in weights.items() if use.stacked or use.value or "." in name]
        if forward is None and by_hand:
            raise ValueError(
                f"adapters.register: {', '.join(by_hand)}: what is stacked, computed or in a list"
                " needs a forward function, forward(layer, product, *args), that says which product"
                " reads what"
            )
    _REGISTERED[kind] = Adapter(weights if callable(weights) else dict(weights), forward)
    _by_type.cache_clear()
    converted_class.cache_clear()


def find(layer: nn.Module) -> tuple[type[nn.Module] | None, Adapter | None]:
    """The class in the ancestry of a layer that has an adapter, and the adapter; None for both
    where it names no weight of the layer."""
    kind: Any = getattr(type(layer), "plain_class", type(layer))
    base, adapter = _by_type(kind)
    return (base, adapter) if adapter is not None and adapter.of(layer) else (None, None)


def adapter_of(layer: nn.Module) -> Adapter | None:
    """The adapter of a layer, or None."""
    return find(layer)[1]


def kind_of(layer: nn.Module) -> type[nn.Module] | None:
    """The class that says how this layer is converted, or None."""
    adapted = find(layer)[0]
    return adapted or next((kind for kind in KINDS if isinstance(layer, kind)), None)


def mixin_for(layer: nn.Module) -> type | None:
    """The mixin that converts this kind of layer, or None."""
    kind = kind_of(layer)
    return None if kind is None else KINDS.get(kind, AdapterMixin)


def parts(layer: nn.Module) -> dict[str, Part]:
    """The weights of a layer of these kinds, converted or plain, by the names of their feedback."""
    adapter = adapter_of(layer)
    if adapter is not None:
        return adapter.parts(layer)
    return mixin_for(layer)._apical_parts(layer)  # type: ignore[union-attr]


@cache
def _by_type(kind: type[nn.Module]) -> tuple[type[nn.Module] | None, Adapter | None]:
    for base in kind.__mro__:
        name = f"{base.__module__}.{base.__qualname__}"
        adapter = _REGISTERED.get(base) or _REGISTERED.get(name) or libraries.find(base)
        if adapter is not None:
            return base, adapter
    return None, None


class AdapterMixin:
    """The forward of a layer's adapter; inside `exact_gradients`, and where nothing is
    differentiated, the layer's own."""

    adapter: Adapter
    plain_class: type[nn.Module]

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.adapter = _of(cls.plain_class)

    def _apical_parts(self: Any) -> dict[str, Part]:
        """The weights that its adapter names."""
        return self.adapter.parts(self)

    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        own = self.feedback
        if serves_plain([own] if isinstance(own, Feedback) else own.values()):
            return super().forward(*args, **kwargs)  # type: ignore[misc]
        product = Product(self, self.adapter)
        if self.adapter.forward is not None:
            return self.adapter.forward(self, product, *args, **kwargs)
        uses = Uses(product)
        with OwnForward(uses):
            output = super().forward(*args, **kwargs)  # type: ignore[misc]
        uses.check()
        return output


def _of(kind: Any) -> Adapter:
    adapter = _by_type(kind)[1]
    if adapter is None:
        raise ValueError(
            f"{kind.__module__}.{kind.__qualname__} has no adapter in this process: call"
            " apical.adapters.register as before, then load"
        )
    return adapter


def _pairs(layer: Any, product: Product, first: Tensor, second: Tensor) -> Tensor:
    """`nn.Bilinear`: linear in the products of all pairs of entries."""
    return product((first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2))


_REGISTERED: dict[type[nn.Module] | str, Adapter] = {
    nn.Bilinear: Adapter(
        {"weight": Weight(bias="bias", value=lambda layer: layer.weight.flatten(1))}, _pairs
    ),
    nn.GRU: STEPS,
    nn.GRUCell: ONE_STEP,
    nn.LSTM: STEPS,
    nn.LSTMCell: ONE_STEP,
    nn.RNN: STEPS,
    nn.RNNCell: ONE_STEP,
}
