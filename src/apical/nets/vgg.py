"""VGG-like nets: blocks of 3x3 convolutions, each halved in size by max pooling."""

from collections import OrderedDict
from collections.abc import Sequence

from torch import nn


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
