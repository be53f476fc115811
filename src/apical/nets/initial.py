"""Initialisation of weights by name, with an explicit generator."""

import math
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from apical.names import unknown

LAWS = ("default", "normal", "xavier")


@torch.no_grad()
def initialise(
    model: nn.Module,
    law: Literal["default", "normal", "xavier"],
    generator: torch.Generator | None = None,
) -> nn.Module:
    """Initialise the weights of every linear, convolution and attention layer again, in place.

    "xavier": weights U(+-sqrt(6 / (fan_in + fan_out))), biases 0: the setting of the published
    BioTorch benchmarks. "normal": weights and biases N(0, 1 / (fan_in + fan_out)), as the code
    released with Akrout et al. 2019 (in attention: zero biases). "default": PyTorch's own law of
    these layers, weights and biases U(+-1 / sqrt(fan_in)) (in attention: xavier weights, zero
    biases): BioTorch's `init: kaiming`.
    Norms, embeddings and parameters that a container holds are not changed. To keep the initial
    weights that a model has, do not call this.

    Args: generator: on the device of the weights; None = PyTorch's global one.
    Returns: the model.     Raises: ValueError for another law.
    """
    if law not in LAWS:
        raise unknown("law of initial weights", law, LAWS)
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention):
            _attention(module, law, generator)
        elif isinstance(module, (nn.Linear, nn.Bilinear, _ConvNd)):
            _layer(module, law, generator)
    return model


def _layer(
    layer: nn.Linear | nn.Bilinear | _ConvNd, law: str, generator: torch.Generator | None
) -> None:
    weight, bias = layer.weight, layer.bias
    if law == "normal":
        std = sum(nn.init._calculate_fan_in_and_fan_out(weight)) ** -0.5
        for tensor in (weight, bias):
            if tensor is not None:
                tensor.normal_(0, std, generator=generator)
        return
    if law == "xavier":
        nn.init.xavier_uniform_(weight, generator=generator)
        if bias is not None:
            bias.zero_()
        return
    bound = 1 / math.sqrt(nn.init._calculate_fan_in_and_fan_out(weight)[0])
    weight.uniform_(-bound, bound, generator=generator)
    if bias is not None:
        bias.uniform_(-bound, bound, generator=generator)


def _attention(layer: nn.MultiheadAttention, law: str, generator: torch.Generator | None) -> None:
    # the output projection is an nn.Linear of its own and is met by the walk over modules
    for name in ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
        weight = getattr(layer, name)
        if weight is not None and law == "normal":
            nn.init.xavier_normal_(weight, gain=0.5**0.5, generator=generator)
        elif weight is not None:
            nn.init.xavier_uniform_(weight, generator=generator)
    for bias in (layer.in_proj_bias, layer.bias_k, layer.bias_v):
        if bias is not None:
            bias.zero_()
