"""Spiking nets, fully connected and convolutional: ordinary layers with spiking neurons between."""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from apical.names import unknown
from apical.nets.spiking import ENCODINGS, LIF, Count, Membrane, SpikingNet

Shape = tuple[int, int, int]
Layers = dict[str, nn.Module]


def spiking_mlp(
    *,
    in_shape: Shape,
    num_classes: int,
    hidden: Sequence[int] = (200, 100),
    steps: int = 10,
    encoding: Literal["delta", "direct", "frames", "latency", "poisson"] = "direct",
    output: Literal["count", "membrane"] = "membrane",
    gain: float = 2.0,
    decay: float = 0.8,
    threshold: float = 1.0,
    reset: Literal["none", "subtract", "zero"] = "subtract",
    surrogate: str = "arctan",
    slope: float | None = None,
) -> SpikingNet:
    """Fully connected spiking net; layers are named fc1, fc2, ..., neurons lif1, lif2, ...

    Args: in_shape: (channels, height, width).     num_classes: number of outputs.
        hidden: neurons of each hidden layer, each >= 1.     steps: of the simulation, >= 1.
        encoding: "direct": the image as a constant current; "poisson", "latency": spikes of pixels
            in [0, 1]; "frames", "delta": the channels contain the frames of all steps, used as they
            are or as events where they change.
        output: scores are the mean "membrane" potential of neurons that do not fire, or the "count"
            of spikes.
        gain: factor (> 0) on PyTorch's initial weights, with which alone neurons would not fire.
        decay: of all membranes, the readout's too, in [0, 1].
        threshold, reset, surrogate, slope: of the neurons that fire, as of `spiking.LIF`.
    Raises: ValueError for a value out of range, or channels that do not fit the steps.
    """
    _check_widths("spiking_mlp", hidden)
    options: dict[str, Any] = {"reset": reset, "surrogate": surrogate, "slope": slope}
    neurons = partial(LIF, steps, decay=decay, threshold=threshold, **options)
    encode, channels = _encoding(encoding, steps, in_shape[0])
    widths = [channels * math.prod(in_shape[1:]), *hidden, num_classes]
    layers: Layers = {"encode": encode, "flatten": nn.Flatten()}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), 1):
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
        if i < len(widths) - 1:
            layers[f"lif{i}"] = neurons()
    return _finished(layers, "fc1", output, gain, neurons())


def spiking_conv(
    *,
    in_shape: Shape,
    num_classes: int,
    channels: Sequence[int] = (32, 64),
    kernel: int = 3,
    hidden: Sequence[int] = (128,),
    steps: int = 10,
    encoding: Literal["delta", "direct", "frames", "latency", "poisson"] = "direct",
    output: Literal["count", "membrane"] = "membrane",
    gain: float = 2.0,
    decay: float = 0.8,
    threshold: float = 1.0,
    reset: Literal["none", "subtract", "zero"] = "subtract",
    surrogate: str = "arctan",
    slope: float | None = None,
) -> SpikingNet:
    """Convolutional spiking net: conv1, lif1, pool1, conv2, ..., fc1, ...

    Args: channels: of each convolution, each >= 1.     kernel: their side, odd; the image keeps its
            size, then means over 2x2 pixels halve it.
        hidden: neurons of each fully connected layer but the last; may be empty.
        All others: as of `spiking_mlp`.
    Raises: ValueError for a value out of range, or an image that is too small to be halved.
    """
    _check_widths("spiking_conv", channels)
    if hidden:
        _check_widths("spiking_conv", hidden)
    if type(kernel) is not int or kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"spiking_conv: kernel={kernel!r} must be an odd whole number")
    side = min(in_shape[1:]) >> len(channels)
    if not side:
        raise ValueError(
            f"spiking_conv: {len(channels)} convolutions halve {in_shape[1]}x{in_shape[2]} pixels "
            "to none; use fewer"
        )
    options: dict[str, Any] = {"reset": reset, "surrogate": surrogate, "slope": slope}
    neurons = partial(LIF, steps, decay=decay, threshold=threshold, **options)
    encode, before = _encoding(encoding, steps, in_shape[0])
    layers: Layers = {"encode": encode}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise([before, *channels]), 1):
        layers[f"conv{i}"] = nn.Conv2d(fan_in, fan_out, kernel, padding=kernel // 2)
        layers[f"lif{i}"] = neurons()
        layers[f"pool{i}"] = nn.AvgPool2d(2)
    layers["flatten"] = nn.Flatten()
    pixels = math.prod(n >> len(channels) for n in in_shape[1:])
    widths = [channels[-1] * pixels, *hidden, num_classes]
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), 1):
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
        if i < len(widths) - 1:
            layers[f"lif{len(channels) + i}"] = neurons()
    return _finished(layers, "conv1", output, gain, neurons())


def _encoding(name: str, steps: int, channels: int) -> tuple[nn.Module, int]:
    """The encoding, and its number of output channels."""
    if name not in ENCODINGS:
        raise unknown("encoding of a spiking net", name, ENCODINGS)
    encode = ENCODINGS[name](steps)
    if name not in ("delta", "frames"):
        return encode, channels
    if channels % steps:
        raise ValueError(
            f"encoding={name!r} reads the frames of all steps from the channels: {channels} are no "
            f"multiple of steps={steps}"
        )
    return encode, channels // steps * (2 if name == "delta" else 1)


def _finished(layers: Layers, first: str, output: str, gain: float, last: LIF) -> SpikingNet:
    """The net with its readout and its initial weights.

    Args: first: layer with the first synapses.     last: neurons of the output layer, for counts.
    """
    if not gain > 0:
        raise ValueError(f"a spiking net with gain={gain}: must be above 0")
    if output == "count":
        layers["lif_out"] = last
        layers["read"] = Count(last.steps)
    elif output == "membrane":
        layers["read"] = Membrane(last.steps, last.decay)
    else:
        raise unknown("output of a spiking net", output, ("count", "membrane"))
    for layer in layers.values():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            with torch.no_grad():
                layer.weight.mul_(gain)
    named = list(layers.items())
    if type(layers["encode"]) is ENCODINGS["direct"]:
        # a constant current is repeated after the first synapses, which then compute only once
        encode = named.pop(0)
        named.insert([name for name, _ in named].index(first) + 1, encode)
    return SpikingNet(dict(named))


def _check_widths(owner: str, widths: Sequence[int]) -> None:
    if (
        isinstance(widths, int | str)
        or not widths
        or any(type(w) is not int or w < 1 for w in widths)
    ):
        raise ValueError(f"{owner}: {widths!r} must list widths of at least 1, e.g. [200, 100]")
