"""LeNet in the two forms of BioTorch: the MNIST one (1x32x32) and the CIFAR one (3x32x32)."""

from collections import OrderedDict
from typing import Literal

from torch import nn

from apical.names import unknown


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
