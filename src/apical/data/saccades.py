"""Event versions of image sets, as recorded by a simulated event camera that moves."""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from apical.data.images import ImageData, Images
from apical.data.mnist import load_mnist

STEPS, REACH, THRESHOLD = 12, 2, 0.2


@dataclass(frozen=True, eq=False)
class SaccadeSplit:
    """Events of images during three saccades, computed for each batch.

    The camera moves along the sides of a triangle, in `steps` steps. A pixel that is brighter than
    one step before by at least `THRESHOLD` (of the range) has an ON event, one that is darker by as
    much an OFF event. Frames are in the channels, step by step, ON before OFF.

    Args: base: the images.     steps: of a recording, a multiple of 3, >= 3.
    Shapes: images (N, C, H, W) -> (N, steps * 2 * C, H, W), of 0 and 255.
    Raises: ValueError for other numbers of steps.
    Source: the recording protocol of Orchard et al. 2015 (N-MNIST), simulated.
    """

    base: Images
    steps: int = STEPS

    def __post_init__(self) -> None:
        if self.steps < 3 or self.steps % 3:
            raise ValueError(
                f"saccades: steps={self.steps} must be a multiple of 3: there are three saccades"
            )

    @property
    def labels(self) -> torch.Tensor:
        return self.base.labels

    @property
    def shape(self) -> tuple[int, int, int]:
        channels, height, width = self.base.shape
        return self.steps * 2 * channels, height, width

    def __len__(self) -> int:
        return len(self.base)

    def take(self, indices: torch.Tensor) -> "SaccadeSplit":
        """The recordings at `indices`, in that order."""
        return SaccadeSplit(self.base.take(indices), self.steps)

    def to(self, device: torch.device | str) -> "SaccadeSplit":
        """The same recordings on another device."""
        return SaccadeSplit(self.base.to(device), self.steps)

    def resized(self, size: int) -> "SaccadeSplit":
        """Recordings of the images at another size."""
        return SaccadeSplit(self.base.resized(size), self.steps)

    def batches(
        self, indices: Sequence[torch.Tensor], zooms: Sequence[torch.Tensor] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(events as uint8, labels) for each tensor of indices."""
        for images, labels in self.base.batches(indices, zooms):
            yield events(images, self.steps), labels


def gaze(steps: int) -> list[tuple[int, int]]:
    """The position of the image, in pixels down and right, before the first step and after each.

    >>> gaze(6)
    [(-2, 0), (0, -1), (2, -2), (2, 0), (2, 2), (0, 1), (-2, 0)]
    """
    corners = [(-REACH, 0), (REACH, -REACH), (REACH, REACH), (-REACH, 0)]
    side = steps // 3
    path = [corners[0]]
    for (y0, x0), (y1, x1) in itertools.pairwise(corners):
        for part in range(1, side + 1):
            path.append((y0 + round((y1 - y0) * part / side), x0 + round((x1 - x0) * part / side)))
    return path


def events(images: torch.Tensor, steps: int) -> torch.Tensor:
    """The events of uint8 images (N, C, H, W), as of `SaccadeSplit`."""
    height, width = images.shape[2:]
    padded = torch.nn.functional.pad(images, (REACH,) * 4)
    moved = [
        padded[:, :, REACH - y : REACH - y + height, REACH - x : REACH - x + width]
        for y, x in gaze(steps)
    ]
    seen = torch.stack(moved, 1).to(torch.int16)
    change = seen[:, 1:] - seen[:, :-1]
    least = round(255 * THRESHOLD)
    both = torch.stack([change >= least, change <= -least], 2)  # (N, T, ON or OFF, C, H, W)
    return both.flatten(1, 3).to(torch.uint8) * 255


def load_event_mnist(root: str | os.PathLike | None = None, *, download: bool = True) -> ImageData:
    """Events of MNIST during three saccades of 4 steps each: (24, 28, 28), of 0 and 255.

    `root`, `download`: as of `load_mnist`. Train with `pixels="unit"`.
    """
    mnist = load_mnist(root, download=download)
    train, test = SaccadeSplit(mnist.train), SaccadeSplit(mnist.test)
    few = events(next(mnist.train.batches([torch.arange(1000)]))[0], STEPS)
    mean = float(few.double().mean() / 255)  # of the first 1,000 images: pixels="unit" is usual
    std = (mean * (1 - mean)) ** 0.5
    note = "events made from MNIST, not recorded by a camera"
    means, stds = (mean,) * train.shape[0], (std,) * train.shape[0]
    return ImageData("event_mnist", train, test, 10, means, stds, note, mnist.source)
