"""LeNet in the two forms of BioTorch: the MNIST one (1x32x32) and the CIFAR one (3x32x32)."""

from collections import OrderedDict
from typing import Literal

from torch import nn

Shape = tuple[int, int, int]


def lenet(
    *, in_shape: Shape, num_classes: int, form: Literal["auto", "mnist", "cifar"] = "auto"
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
        form = _form_of(channels)
    if form == "mnist":
        fits = (height, width) in ((28, 28), (32, 32))
        _require(fits, in_shape, "the mnist form takes 28x28 or 32x32 pixels")
        padding = (32 - height) // 2
        return _net(channels, (6, 16, 120), 5, nn.Identity(), 84, num_classes, padding)
    if form == "cifar":
        _require(min(height, width) >= 18, in_shape, "the cifar form takes 18x18 pixels or more")
        return _net(channels, (32, 64, 128), 3, nn.AdaptiveAvgPool2d(1), 256, num_classes, 0)
    raise ValueError(f"lenet: form={form!r} is unknown; allowed: auto, cifar, mnist")


def _form_of(channels: int) -> Literal["mnist", "cifar"]:
    if channels not in (1, 3):
        raise ValueError(
            f"lenet: form='auto' takes 1 or 3 channels, not {channels}; "
            "say form='mnist' or form='cifar'"
        )
    return "mnist" if channels == 1 else "cifar"


def _require(holds: bool, in_shape: Shape, need: str) -> None:
    if not holds:
        raise ValueError(
            f"lenet: in_shape {tuple(in_shape)} does not fit: {need}; load the data with size=32"
        )


def _net(
    channels: int,
    widths: tuple[int, int, int],
    kernel: int,
    gather: nn.Module,
    units: int,
    num_classes: int,
    padding: int,
) -> nn.Sequential:
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
