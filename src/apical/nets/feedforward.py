"""Feed-forward nets that are plain sequences of layers: MLP, LeNet (forms of BioTorch), VGG."""

import itertools
import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal

from torch import nn

from apical.names import unknown

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


def mlp(
    *,
    in_shape: tuple[int, ...],
    num_classes: int,
    hidden: Sequence[int] = (1024, 1024),
    activation: Literal["relu", "sigmoid", "tanh"] = "relu",
) -> nn.Sequential:
    """Multilayer perceptron; layers are named fc1, fc2, ...

    Args: in_shape: of one input, flattened.     num_classes: number of outputs.
        hidden: units of each hidden layer, each >= 1; empty = a linear classifier.
        activation: between the layers, none after the last.
    Raises: ValueError for an unknown activation or a width below 1.
    >>> [tuple(p.shape) for p in mlp(in_shape=(1, 2, 2), num_classes=3, hidden=[5]).parameters()]
    [(5, 4), (5,), (3, 5), (3,)]
    """
    if activation not in ACTIVATIONS:
        raise unknown("activation of mlp", activation, ACTIVATIONS)
    if isinstance(hidden, (int, str)) or any(not isinstance(h, int) or h < 1 for h in hidden):
        raise ValueError(f"mlp: hidden={hidden!r} must list widths of at least 1, e.g. [256, 128]")
    widths = [math.prod(in_shape), *hidden, num_classes]
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    for i, (fan_in, fan_out) in enumerate(itertools.pairwise(widths), start=1):
        layers[f"fc{i}"] = nn.Linear(fan_in, fan_out)
        if i < len(widths) - 1:
            layers[f"{activation}{i}"] = ACTIVATIONS[activation]()
    return nn.Sequential(OrderedDict(layers))


def lenet(
    *,
    in_shape: tuple[int, int, int],
    num_classes: int,
    form: Literal["auto", "mnist", "cifar"] = "auto",
) -> nn.Sequential:
    """LeNet; layers are named conv1, conv2, conv3, fc1, fc2.

    Args: in_shape: (channels, height, width).     num_classes: number of outputs.
        form: "mnist" (conv 5x5 of 6, 16, 120 channels, then 84 units; 32x32 pixels, or 28x28,
            which conv1 pads by 2), "cifar" (conv 3x3 of 32, 64, 128 channels, mean over positions,
            then 256 units; 18 pixels a side or more), "auto" = "mnist" for one channel, "cifar"
            for three.
    Both forms: relu after every layer but the last, 2x2 max pooling after conv1 and conv2.
    Raises: ValueError for a shape the form cannot take.
    Source: LeCun et al. 1998; layout of jsalbert/biotorch, models/le_net.py (release 0.0.16).
    """
    channels, height, width = in_shape
    if form == "auto":
        if channels not in (1, 3):
            raise ValueError(
                f"lenet: form='auto' takes 1 or 3 channels, not {channels}; "
                "say form='mnist' or form='cifar'"
            )
        form = "mnist" if channels == 1 else "cifar"
    gather: nn.Module
    if form == "mnist":
        fits = (height, width) in ((28, 28), (32, 32))
        need = "28x28 or 32x32 pixels"
        widths, kernel, padding, units = (6, 16, 120), 5, (32 - height) // 2, 84
        gather = nn.Identity()
    elif form == "cifar":
        fits = min(height, width) >= 18
        need = "18x18 pixels or more"
        widths, kernel, padding, units = (32, 64, 128), 3, 0, 256
        gather = nn.AdaptiveAvgPool2d(1)
    else:
        raise unknown("form of lenet", form, ("auto", "cifar", "mnist"))
    if not fits:
        raise ValueError(
            f"lenet: in_shape {tuple(in_shape)} does not fit: the {form} form takes {need}; load "
            "the data with size=32"
        )
    first, second, third = widths
    layers: dict[str, nn.Module] = {
        "conv1": nn.Conv2d(channels, first, kernel, padding=padding),
        "relu1": nn.ReLU(),
        "pool1": nn.MaxPool2d(2),
        "conv2": nn.Conv2d(first, second, kernel),
        "relu2": nn.ReLU(),
        "pool2": nn.MaxPool2d(2),
        "conv3": nn.Conv2d(second, third, kernel),
        "relu3": nn.ReLU(),
        "gather": gather,
        "flatten": nn.Flatten(),
        "fc1": nn.Linear(third, units),
        "relu4": nn.ReLU(),
        "fc2": nn.Linear(units, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))


def vgg(
    *,
    in_shape: tuple[int, int, int],
    num_classes: int,
    widths: Sequence[int] = (64, 128, 256, 512),
    convolutions: int = 1,
    dropout: float = 0.0,
) -> nn.Sequential:
    """VGG-like net with batch norm; layers are named conv1_1, norm1_1, ..., then fc.

    Each block: `convolutions` times (3x3 convolution, batch norm, relu), 2x2 max pooling,
    dropout. Then the mean over positions and one linear layer.

    Args: in_shape: (channels, height, width); both sides at least 2 to the number of blocks.
        num_classes: number of outputs.     widths: channels of each block, each >= 1.
        convolutions: of a block, >= 1.     dropout: share of whole channels, in [0, 1).
    Raises: ValueError for an option out of range, or images that the pooling would use up.
    Source: after Simonyan, Zisserman 2015 (arXiv 1409.1556); batch norm and one classifier layer
        as usual for small images.
    """
    if isinstance(widths, int | str) or any(not isinstance(w, int) or w < 1 for w in widths):
        raise ValueError(f"vgg: widths={widths!r} must list channels of at least 1 for each block")
    if not widths or convolutions < 1 or not 0 <= dropout < 1:
        raise ValueError(
            f"vgg: widths={list(widths)}, convolutions={convolutions}, dropout={dropout}: needs at"
            " least one block, at least one convolution, and dropout in [0, 1)"
        )
    if min(in_shape[1:]) < 2 ** len(widths):
        raise ValueError(
            f"vgg: in_shape {tuple(in_shape)} is too small for {len(widths)} halvings; use fewer"
            f" widths, or load the data with size={2 ** len(widths)} or more"
        )
    layers: dict[str, nn.Module] = {}
    channels = in_shape[0]
    for block, width in enumerate(widths, start=1):
        for number in range(1, convolutions + 1):
            place = f"{block}_{number}"
            layers[f"conv{place}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            layers[f"norm{place}"] = nn.BatchNorm2d(width)
            layers[f"relu{place}"] = nn.ReLU()
            channels = width
        layers[f"pool{block}"] = nn.MaxPool2d(2)
        if dropout:
            layers[f"dropout{block}"] = nn.Dropout2d(dropout)
    layers["gather"] = nn.AdaptiveAvgPool2d(1)
    layers["flatten"] = nn.Flatten()
    layers["fc"] = nn.Linear(channels, num_classes)
    return nn.Sequential(OrderedDict(layers))
