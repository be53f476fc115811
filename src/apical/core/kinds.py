"""The kinds of layers that can be converted."""

from __future__ import annotations

from torch import nn

from apical.core.adapters import AdapterMixin, adapter_of, find
from apical.core.attention import AttentionMixin
from apical.core.layers import ConvMixin, ConvTransposeMixin, LinearMixin
from apical.core.updates import Part

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
adapter (`apical.core.adapters`)."""


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
