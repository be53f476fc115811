"""Attention whose four projections go through feedback.

`nn.MultiheadAttention` calls its projections functionally, so converting its child `out_proj`
would change nothing. A converted attention computes the projections itself, and has one feedback
for each: `q`, `k`, `v` and `out`.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.core.products import apply, serves_plain
from apical.core.updates import Part
from apical.rules.ops import LinearOp

PROJECTIONS = ("q", "k", "v", "out")


class AttentionMixin:
    """The forward of `nn.MultiheadAttention`, equal to it within rounding. Dropout draws on the
    device, as torch's does."""

    def _apical_parts(self: Any) -> dict[str, Part]:
        """The weight of each projection."""
        packed = self._qkv_same_embed_dim
        return {
            name: Part(
                LinearOp(),
                weight,
                bias,
                (self.in_proj_weight if packed and name != "out" else weight,),
            )
            for name, (weight, bias) in projections(self).items()
        }

    def forward(
        self: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        if serves_plain(self.feedback.values()):
            return super().forward(  # type: ignore[misc]
                query, key, value, key_padding_mask, need_weights, attn_mask,
                average_attn_weights, is_causal,
            )  # fmt: skip
        if is_causal and attn_mask is None:
            raise RuntimeError("Need attn_mask if specifying the is_causal hint.")
        batched = query.dim() == 3
        inputs = [t if batched else t.unsqueeze(0) for t in (query, key, value)]
        if batched and not self.batch_first:
            inputs = [t.transpose(0, 1) for t in inputs]
        parts = projections(self)

        def project(name: str, x: Tensor) -> Tensor:
            return apply(self.feedback[name], LinearOp(), x, *parts[name])

        def heads(name: str, x: Tensor) -> Tensor:
            return project(name, x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

        q, k, v = heads("q", inputs[0]), heads("k", inputs[1]), heads("v", inputs[2])
        k, v = _extended(self, k, v)
        mask = _mask(attn_mask, key_padding_mask, q, k, added=k.shape[2] - inputs[1].shape[1])
        dropout = self.dropout if self.training else 0.0
        if need_weights:
            scores = q @ k.transpose(-2, -1) / math.sqrt(self.head_dim)
            weights = F.softmax(scores if mask is None else scores + mask, dim=-1)
            weights = F.dropout(weights, dropout)  # so they are returned, too
            mixed = weights @ v
        else:
            weights = None
            mixed = F.scaled_dot_product_attention(q, k, v, mask, dropout)
        output = project("out", mixed.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(dim=1)
        if not batched:
            return output.squeeze(0), None if weights is None else weights.squeeze(0)
        return output if self.batch_first else output.transpose(0, 1), weights


def projections(layer: Any) -> dict[str, tuple[Tensor, Tensor | None]]:
    """Weight and bias of each projection; q, k and v may be parts of one packed weight."""
    if layer._qkv_same_embed_dim:
        weights = layer.in_proj_weight.chunk(3)
    else:
        weights = (layer.q_proj_weight, layer.k_proj_weight, layer.v_proj_weight)
    packed = layer.in_proj_bias
    biases = (None, None, None) if packed is None else packed.chunk(3)
    pairs = [*zip(weights, biases, strict=True), (layer.out_proj.weight, layer.out_proj.bias)]
    return dict(zip(PROJECTIONS, pairs, strict=True))


def _extended(layer: Any, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values with the options `add_bias_kv` and `add_zero_attn` applied."""
    extra = []
    if layer.bias_k is not None:
        extra.append([b.view(1, layer.num_heads, 1, -1) for b in (layer.bias_k, layer.bias_v)])
    if layer.add_zero_attn:
        extra.append([torch.zeros_like(k[:, :, :1]), torch.zeros_like(v[:, :, :1])])
    for more_k, more_v in extra:
        k = torch.cat([k, more_k.expand(len(k), -1, -1, -1)], dim=2)
        v = torch.cat([v, more_v.expand(len(v), -1, -1, -1)], dim=2)
    return k, v


def _mask(
    attn_mask: Tensor | None, padding_mask: Tensor | None, q: Tensor, k: Tensor, *, added: int
) -> Tensor | None:
    """Both masks as one additive mask (samples, heads or 1, queries or 1, keys)."""
    masks = []
    if attn_mask is not None:
        additive = _additive(attn_mask, q.dtype)
        if additive.dim() == 3:
            additive = additive.view(len(q), -1, *additive.shape[1:])
        masks.append(additive)
    if padding_mask is not None:
        padding = padding_mask if padding_mask.dim() == 2 else padding_mask.unsqueeze(0)
        masks.append(_additive(padding, q.dtype)[:, None, None, :])
    if not masks:
        return None
    mask = masks[0] if len(masks) == 1 else masks[0] + masks[1]
    return F.pad(mask, (0, added)) if added else mask


def _additive(mask: Tensor, dtype: torch.dtype) -> Tensor:
    if mask.dtype != torch.bool:
        return mask.to(dtype)
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(mask, -math.inf)
