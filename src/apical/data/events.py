"""Recordings of event cameras: the .bin files of N-MNIST, and frames made of events.

A file is a sequence of events of 5 bytes: x, y, then 1 bit of polarity (1 = ON) and 23 bits of time
in microseconds, the high byte first.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from apical.data.images import ImageData
from apical.data.places import DamagedFile, MissingData, candidates, missing

SIDE, STEPS = 34, 10
EVENT = 5


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
    steps: int = STEPS

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
