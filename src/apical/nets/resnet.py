"""Residual nets for small images (CIFAR), with the parameter-free option-A shortcuts."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import nn

Shape = tuple[int, int, int]


class Halve(nn.Module):
    """Option-A shortcut: every second pixel, and zeros for the new channels, half on each side."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.each_side = new_channels // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.each_side, self.each_side))


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, added to the shortcut."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        grows = channels != channels_in
        self.conv1 = nn.Conv2d(channels_in, channels, 3, 2 if grows else 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu1 = nn.ReLU()
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = Halve(channels - channels_in) if grows else nn.Identity()
        self.relu2 = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.relu1(self.bn1(self.conv1(x)))
        return self.relu2(self.bn2(self.conv2(h)) + self.shortcut(x))


class ResNet(nn.Module):
    """Three stages of 16, 32, 64 channels with `blocks` blocks each, mean pooling, one linear."""

    def __init__(self, channels_in: int, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU()
        self.layer1 = _stage(16, 16, blocks)
        self.layer2 = _stage(16, 32, blocks)
        self.layer3 = _stage(32, 64, blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(self.flatten(self.pool(x)))


def resnet(*, depth: int, in_shape: Shape, num_classes: int) -> ResNet:
    """Residual net for small images.

    Args: depth: 6n + 2 layers with weights (20, 32, 44, 56, 110).
        in_shape: (channels, height, width), any number of channels, 4 pixels a side or more.
        num_classes: number of outputs.
    Raises: ValueError for a depth that is not 6n + 2, or too small an image.
    Source: He et al. 2016 (arXiv 1512.03385), section 4.2.
    >>> sum(p.numel() for p in resnet(depth=20, in_shape=(3, 32, 32), num_classes=10).parameters())
    269722
    """
    if depth < 8 or depth % 6 != 2:
        raise ValueError(f"resnet: depth={depth} is not 6n + 2; e.g. 20, 32, 44, 56, 110")
    channels, height, width = in_shape
    if min(height, width) < 4:
        raise ValueError(
            f"resnet: in_shape {tuple(in_shape)} is too small: 4x4 pixels at least; load with size="
        )
    return ResNet(channels, (depth - 2) // 6, num_classes)


def _stage(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
    first = Block(channels_in, channels)
    return nn.Sequential(first, *(Block(channels, channels) for _ in range(blocks - 1)))


def _of_depth(depth: int) -> Callable[..., ResNet]:
    def build(*, in_shape: Shape, num_classes: int) -> ResNet:
        return resnet(depth=depth, in_shape=in_shape, num_classes=num_classes)

    build.__name__ = build.__qualname__ = f"resnet{depth}"
    build.__doc__ = f"ResNet-{depth} for small images, as `resnet` of depth {depth}."
    return build


resnet20, resnet32, resnet44, resnet56, resnet110 = map(_of_depth, (20, 32, 44, 56, 110))
