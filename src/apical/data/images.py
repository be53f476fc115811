"""Labelled images as values: a split, and a data set of two splits."""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F


class Images(Protocol):
    """What batches are taken from: images in memory (`Split`) or on disk (`FolderSplit`), or the
    user's inputs (`apical.data.own`), whose shape need not be that of images."""

    @property
    def labels(self) -> torch.Tensor: ...
    @property
    def shape(self) -> tuple[int, ...]: ...
    def __len__(self) -> int: ...
    def take(self, indices: torch.Tensor) -> "Images": ...
    def to(self, device: torch.device | str) -> "Images": ...
    def resized(self, size: int) -> "Images": ...
    def batches(
        self, indices: Sequence[torch.Tensor], zooms: Sequence[torch.Tensor] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]: ...


@dataclass(frozen=True, eq=False)
class Split:
    """Images held in memory.

    Shapes: images uint8 (N, C, H, W); labels int64 (N,).
    Raises: ValueError for other types or shapes, or counts that differ.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4:
            got = f"{self.images.dtype} {tuple(self.images.shape)}"
            raise ValueError(f"Split: images must be uint8 (N, C, H, W), not {got}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            got = f"{self.labels.dtype} {tuple(self.labels.shape)}"
            raise ValueError(f"Split: labels must be int64 ({len(self.images)},), not {got}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def take(self, indices: torch.Tensor) -> "Split":
        """The images at `indices`, copied, in that order."""
        return Split(self.images[indices], self.labels[indices])

    def to(self, device: torch.device | str) -> "Split":
        """The same images on another device."""
        return Split(self.images.to(device), self.labels.to(device))

    def resized(self, size: int) -> "Split":
        """The images in size x size pixels: bilinear, antialiased, then rounded to uint8.

        Raises: ValueError if they would not fit into memory.
        """
        if self.shape[1:] == (size, size):
            return self
        check_memory(f"size={size}", len(self) * self.shape[0] * size * size)
        chunks = [
            F.interpolate(chunk.float(), (size, size), mode="bilinear", antialias=True)
            .round_()
            .clamp_(0, 255)
            .to(torch.uint8)
            for chunk in self.images.split(4096)
        ]
        return Split(torch.cat(chunks), self.labels)

    def batches(
        self, indices: Sequence[torch.Tensor], zooms: Sequence[torch.Tensor] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(uint8 images, labels) for each tensor of indices.

        Raises: ValueError if zooms are given: they are applied while image files are decoded.
        """
        if zooms is not None:
            raise ValueError("augment='zoom_flip' is for image folders; here use 'flip_crop'")
        for chosen in indices:
            chosen = chosen.to(self.labels.device)
            yield self.images.index_select(0, chosen), self.labels.index_select(0, chosen)


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set: the training split, the test split, and how to normalise both.

    mean, std: per channel, of pixels on the scale [0, 1].
    note: what must be stated with every number measured on it, e.g. "JPEG re-compressed"; "": none.
    source: where it was read from.
    loader: settings (batch_size, shuffle, drop_last) of the DataLoader that it was made from; an
        experiment must have the same ones.
    unit: whether its inputs are images on the scale [0, 1], as attacks need them.
    """

    name: str
    train: Images
    test: Images
    num_classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""
    source: str = ""
    loader: Mapping[str, Any] = field(default_factory=dict)
    unit: bool = True

    @property
    def shape(self) -> tuple[int, ...]:
        """(channels, height, width) of one image; the user's inputs have any shape."""
        return self.train.shape

    def resized(self, size: int) -> "ImageData":
        """The same data with images of size x size pixels."""
        return replace(self, train=self.train.resized(size), test=self.test.resized(size))


def check_memory(what: str, needed: int) -> None:
    """Raises: ValueError if `needed` bytes are more than the memory of this machine."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return
    if needed > total:
        raise ValueError(
            f"{what}: the images would take {needed / 1e9:,.0f} GB, this machine has "
            f"{total / 1e9:,.0f} GB of memory"
        )


def split_validation(split: Images, count: int, seed: int) -> tuple[Images, Images]:
    """Hold out `count` random images, so that settings are chosen without the test split.

    Args: count: 0 <= count < len(split).     seed: of the random choice.
    Returns: (the remaining images, the held-out images), each in their old order.
    Raises: ValueError if count is out of range.
    """
    if not 0 <= count < len(split):
        raise ValueError(f"validation: count={count} must be in [0, {len(split)})")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(split), generator=generator)
    return split.take(order[count:].sort().values), split.take(order[:count].sort().values)
