"""How layers of other libraries use their parameters; none of these libraries is imported before a
layer of it is converted."""

from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.core.products import Adapter, Product, Weight, Weights


def find(kind: type) -> Adapter | None:
    """The adapter of a class of a library, by its name."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    for pattern, adapter in LIBRARIES.items():
        if fnmatchcase(name, pattern):
            return adapter
    return None


def only(layer: Any, product: Product, x: Tensor) -> Tensor:
    """One product."""
    return product(x)


def over_steps(layer: Any, product: Product, x: Tensor) -> Tensor:
    """SpikingJelly: in step mode "m" axes 0 and 1 are (time, samples), one row after the other."""
    if layer.step_mode == "s":
        return product(x)
    return product(x.flatten(0, 1)).unflatten(0, x.shape[:2])


def padded(layer: Any, product: Product, x: Tensor) -> Tensor:
    """timm's "same" padding, which depends on the size of the input."""
    if getattr(layer, "same_pad", True):
        sides = zip(layer.kernel_size, layer.stride, layer.dilation, strict=True)
        for axis, (kernel, stride, dilation) in enumerate(reversed(list(sides))):
            size = x.shape[-1 - axis]
            total = max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            before = total // 2
            x = F.pad(x, (0, 0) * axis + (before, total - before))
    return product(x)


def standardised(layer: Any) -> Tensor:
    """The weight of timm's `StdConv2d` and `ScaledStdConv2d`."""
    gain = getattr(layer, "gain", None)
    scale = None if gain is None else (gain * layer.scale).view(-1)
    flat = layer.weight.reshape(1, layer.out_channels, -1)
    # as timm writes it: batch norm over the inputs of each output
    normed = F.batch_norm(flat, None, None, scale, training=True, momentum=0.0, eps=layer.eps)
    return normed.reshape_as(layer.weight)


def weights_of_experts(layer: Any) -> Weights:
    """Experts of transformers that share its interface, stacked along axis 0 of parameters."""
    if not hasattr(layer, "_apply_gate"):
        return {}
    computes = "x W" if layer.is_transposed else "x W^T"
    first = "gate_up_proj" if layer.has_gate else "up_proj"
    return {name: Weight(computes, f"{name}_bias", stacked=True) for name in (first, "down_proj")}  # type: ignore[arg-type]


def weights_of_routers(layer: Any) -> Weights:
    """Routers of transformers that hold their matrix themselves."""
    return {"weight": Weight("x W^T")} if "weight" in layer._parameters else {}


def experts(layer: Any, product: Product, *args: Tensor, **kwargs: Tensor) -> Tensor:
    """The eager forward that transformers' experts share; names of arguments differ by model.

    Each expert is called, also where no token chose it, so that all feedback counts every pass.
    """
    x_TF, chosen_TK, weights_TK = (*args, *kwargs.values())
    result = torch.zeros_like(x_TF)
    for expert in range(layer.num_experts):
        place, token = torch.where((chosen_TK == expert).t())
        if layer.has_gate:
            hidden = layer._apply_gate(product(x_TF[token], "gate_up_proj", expert))
        else:
            hidden = layer.act_fn(product(x_TF[token], "up_proj", expert))
        output = product(hidden, "down_proj", expert)
        if getattr(layer, "has_post_expert_norm", False):
            output = layer.post_expert_norm(output)
        output = output * weights_TK[token, place, None]
        result = result.index_add(0, token, output.to(result.dtype))
    return result


def llama_experts(layer: Any, product: Product, x: Tensor) -> Tensor:
    """Llama 4: all tokens once for each expert, one expert after the other."""
    outputs = []
    for expert, rows in enumerate(x.view(layer.num_experts, -1, layer.hidden_size).unbind(0)):
        gate, up = product(rows, "gate_up_proj", expert).chunk(2, -1)
        outputs.append(product(up * layer.act_fn(gate), "down_proj", expert))
    return torch.cat(outputs)


def sorted_experts(layer: Any, product: Product, x: Tensor, counts: list[int]) -> Tensor:
    """JetMoe: rows sorted by expert."""
    parts = enumerate(x.split(counts))
    return torch.cat([product(rows, "weight", expert) for expert, rows in parts])


def by_type(layer: Any, product: Product, x: Tensor, types: Tensor) -> Tensor:
    """torch_geometric's `HeteroLinear`: a weight for each type of node."""
    rows = [torch.where(types == kind)[0] for kind in range(layer.num_types)]
    outputs = [product(x[where], "weight", kind) for kind, where in enumerate(rows)]
    return torch.cat(outputs)[torch.cat(rows).argsort()]


_SPIKING = "spikingjelly.activation_based.layer.stateless_wrapper."
_STEPPED = Adapter({"weight": Weight("convolution", "bias")}, over_steps)
_STEPPED_TRANSPOSED = Adapter({"weight": Weight("transposed convolution", "bias")}, over_steps)
_STANDARDISED = Adapter({"weight": Weight("convolution", "bias", value=standardised)}, only)
_STANDARDISED_SAME = Adapter({"weight": Weight("convolution", "bias", value=standardised)}, padded)

LIBRARIES: dict[str, Adapter] = {
    **{f"{_SPIKING}Conv{axes}d": _STEPPED for axes in (1, 2, 3)},
    **{f"{_SPIKING}ConvTranspose{axes}d": _STEPPED_TRANSPOSED for axes in (1, 2, 3)},
    f"{_SPIKING}WSConv2d": Adapter(
        {"weight": Weight("convolution", "bias", value=lambda layer: layer.get_weight())},
        over_steps,
    ),
    f"{_SPIKING}WSLinear": Adapter(
        {"weight": Weight("x W^T", "bias", value=lambda layer: layer.get_weight())}, only
    ),
    "timm.layers.conv2d_same.Conv2dSame": Adapter(
        {"weight": Weight("convolution", "bias")}, padded
    ),
    "timm.layers.std_conv.ScaledStdConv2d": _STANDARDISED,
    "timm.layers.std_conv.ScaledStdConv2dSame": _STANDARDISED_SAME,
    "timm.layers.std_conv.StdConv2d": _STANDARDISED,
    "timm.layers.std_conv.StdConv2dSame": _STANDARDISED_SAME,
    "torch_geometric.nn.dense.linear.Linear": Adapter({"weight": Weight("x W^T", "bias")}, only),
    "torch_geometric.nn.dense.linear.HeteroLinear": Adapter(
        {"weight": Weight("x W", "bias", stacked=True)}, by_type
    ),
    "transformers.models.jetmoe.modeling_jetmoe.JetMoeParallelExperts": Adapter(
        {"weight": Weight("x W^T", stacked=True)}, sorted_experts
    ),
    "transformers.models.llama4.modeling_llama4.Llama4Router": Adapter({"weight": Weight("x W^T")}),
    "transformers.models.llama4.modeling_llama4.Llama4TextExperts": Adapter(
        {"gate_up_proj": Weight("x W", stacked=True), "down_proj": Weight("x W", stacked=True)},
        llama_experts,
    ),
    "transformers.models.*Experts": Adapter(weights_of_experts, experts),
    "transformers.models.*Top[Kk]Router": Adapter(weights_of_routers),
    "transformers.pytorch_utils.Conv1D": Adapter({"weight": Weight("x W", "bias")}, only),
}
"""By the name of the class, which may be a pattern."""
