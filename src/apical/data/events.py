"""Events of cameras: .bin files of N-MNIST, frames of events, and simulated recordings of images.

A .bin file is a sequence of events of 5 bytes: x, y, then 1 bit of polarity (1 = ON) and 23 bits of
time in microseconds, the high byte first.
"""

import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from apical.data.images import ImageData, Images
from apical.data.mnist import load_mnist
from apical.data.places import DamagedFile, MissingData, candidates, missing

SIDE, RECORDING_STEPS = 34, 10  # of N-MNIST
EVENT = 5  # bytes
SACCADE_STEPS, REACH, THRESHOLD = 12, 2, 0.2


class Events(NamedTuple):
    """The events of a recording, in order. Shapes: each (events,), whole numbers.

    x, y: column and row.     polarity: 1 for ON, 0 for OFF.     t: in microseconds.
    """

    x: np.ndarray
    y: np.ndarray
    polarity: np.ndarray
    t: np.ndarray


def read_events(path: str | os.PathLike, *, height: int = SIDE, width: int = SIDE) -> Events:
    """The events of a .bin file of N-MNIST.

    Args: height, width: of the camera in pixels.
    Raises: DamagedFile, naming the file, if it is empty or ends within an event, or if an event
        lies outside the camera or before the one before it.
    """
    if not os.path.isfile(path):
        raise DamagedFile(f"{path} is no ordinary file, or is missing; fetch it again")
    raw = np.fromfile(path, dtype=np.uint8)
    if not len(raw) or len(raw) % EVENT:
        raise DamagedFile(
            f"{path}: {len(raw)} bytes are no whole number of events of {EVENT} bytes: truncated, "
            "or no recording; fetch it again"
        )
    bytes_5 = raw.reshape(-1, EVENT).astype(np.int64)
    x, y = bytes_5[:, 0], bytes_5[:, 1]
    t = (bytes_5[:, 2] & 127) << 16 | bytes_5[:, 3] << 8 | bytes_5[:, 4]
    outside = np.flatnonzero((x >= width) | (y >= height))
    if len(outside):
        first = int(outside[0])
        raise DamagedFile(
            f"{path}: event {first} at x={x[first]}, y={y[first]} is outside the camera's "
            f"{width}x{height} pixels ({len(outside)} such events)"
        )
    back = np.flatnonzero(np.diff(t) < 0)
    if len(back):
        first = int(back[0]) + 1
        raise DamagedFile(
            f"{path}: event {first} at {t[first]} microseconds comes before the one before it, at "
            f"{t[first - 1]}: no recording of this format"
        )
    return Events(x, y, bytes_5[:, 2] >> 7, t)


def frames(events: Events, steps: int, *, height: int = SIDE, width: int = SIDE) -> np.ndarray:
    """Binary frames of time intervals of equal length: 1 where there was an event.

    Args: steps: >= 1.     Returns: uint8 (steps, 2, height, width), ON before OFF.
    Raises: ValueError for steps below 1, events outside the pixels, or a polarity other than 0, 1.
    """
    x, y, polarity, t = (np.asarray(part) for part in events)
    if steps < 1:
        raise ValueError(f"frames: steps={steps} must be at least 1")
    for name, part, most in (("x", x, width), ("y", y, height), ("polarity", polarity, 2)):
        if len(part) and not 0 <= part.min() <= part.max() < most:
            raise ValueError(
                f"frames: {name} from {part.min()} to {part.max()} is outside 0 to {most - 1}"
            )
    found = np.zeros((steps, 2, height, width), dtype=np.uint8)
    if len(t):
        begin = int(t.min())
        span = int(t.max()) - begin + 1
        found[(t - begin) * steps // span, 1 - polarity, y, x] = 1
    return found


@dataclass(frozen=True, eq=False)
class RecordingSplit:
    """Recordings in files, read for each batch.

    Args: paths: of .bin files.     labels: int64 (N,).     steps: frames of each, >= 1.
    Shapes: (N, steps * 2, 34, 34), of 0 and 255.
    """

    paths: tuple[Path, ...]
    labels: torch.Tensor
    steps: int = RECORDING_STEPS

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.steps * 2, SIDE, SIDE

    def __len__(self) -> int:
        return len(self.paths)

    def take(self, indices: torch.Tensor) -> "RecordingSplit":
        """The recordings at `indices`, in that order."""
        paths = tuple(self.paths[i] for i in indices.tolist())
        return RecordingSplit(paths, self.labels[indices], self.steps)

    def to(self, device: torch.device | str) -> "RecordingSplit":
        """The same recordings; their frames are moved when they are read."""
        return RecordingSplit(self.paths, self.labels.to(device), self.steps)

    def resized(self, size: int) -> "RecordingSplit":
        """Raises: ValueError: events have no values to interpolate."""
        raise ValueError(f"size={size}: recordings of events are not resized; leave it out")

    def batches(
        self, indices: Sequence[torch.Tensor], zooms: Sequence[torch.Tensor] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(frames as uint8, labels) for each tensor of indices."""
        if zooms is not None:
            raise ValueError("augment='zoom_flip' is for image folders, not for recordings")
        for chosen in indices:
            whole = [frames(read_events(self.paths[i]), self.steps) for i in chosen.tolist()]
            x = torch.from_numpy(np.stack(whole)).flatten(1, 2) * 255
            yield x.to(self.labels.device), self.labels[chosen.to(self.labels.device)]


def load_nmnist(root: str | os.PathLike | None = None, *, download: bool = True) -> ImageData:
    """N-MNIST from its folders Train/0 to Train/9 and Test/0 to Test/9 of .bin files.

    Ten frames of 34x34 pixels, ON before OFF, in the channels: (20, 34, 34), of 0 and 255. There
    is no download: its hosts require a browser.

    Raises: MissingData, saying where it was searched; DamagedFile, naming the file, when a damaged
        recording is read.
    Source: Orchard et al. 2015.
    """
    places = candidates(root, ("nmnist", "N-MNIST", "NMNIST"))
    found = next((place for place in places if (place / "Train").is_dir()), None)
    if found is None:
        files, why = "the folders Train and Test of N-MNIST", "Its hosts require a browser."
        raise missing("nmnist", root, files, why, downloads=False)
    train, test = (_split(found / name) for name in ("Train", "Test"))
    mean, std = (0.0,) * train.shape[0], (1.0,) * train.shape[0]
    return ImageData("nmnist", train, test, 10, mean, std, source=str(found))


def _split(folder: Path) -> RecordingSplit:
    paths = [
        (path, digit) for digit in range(10) for path in sorted((folder / str(digit)).glob("*.bin"))
    ]
    if not paths:
        raise MissingData(f"{folder} has no .bin files in folders 0 to 9")
    files, labels = zip(*paths, strict=True)
    return RecordingSplit(files, torch.tensor(labels))


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
    steps: int = SACCADE_STEPS

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
    few = events(next(mnist.train.batches([torch.arange(1000)]))[0], SACCADE_STEPS)
    mean = float(few.double().mean() / 255)  # of the first 1,000 images: pixels="unit" is usual
    std = (mean * (1 - mean)) ** 0.5
    note = "events made from MNIST, not recorded by a camera"
    means, stds = (mean,) * train.shape[0], (std,) * train.shape[0]
    return ImageData("event_mnist", train, test, 10, means, stds, note, mnist.source)
