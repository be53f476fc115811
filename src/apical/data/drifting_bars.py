"""Generated events of drifting bars, whose direction is the class: a task that needs time."""

import numpy as np
import torch

from apical.data.images import ImageData, Split

SIDE, STEPS = 12, 12
DROPPED, NOISE = 0.3, 0.02
COUNTS = (2000, 500)


def load_drifting_bars(root: object = None, *, download: bool = True) -> ImageData:
    """2,000 + 500 recordings of 12 steps, 12x12 pixels, in four classes: right, left, down, up.

    A bar of the length of the side starts at a random position, moves one pixel per step and
    re-enters on the opposite side. Its new position has ON events, its old one OFF events; 30 % of
    these are dropped, and every pixel has a random event of each kind with probability 0.02. During
    a recording every pixel has one event of each kind (before dropping), so that a sum over time
    contains no information on the class.

    Frames are in the channels, step by step, ON before OFF: (24, 12, 12), of 0 and 255; train with
    `pixels="unit"` and a spiking net with `encoding="frames"`, `steps=12`. Always the same
    recordings; `root` and `download` have no effect.
    """
    train, test = (_recordings(count, seed) for seed, count in enumerate(COUNTS))
    mean = float(train.images.double().mean() / 255)
    channels = train.shape[0]
    # the same for all channels: ON and OFF events have the same distribution at every step
    std = (mean * (1 - mean)) ** 0.5
    return ImageData(
        "drifting_bars", train, test, 4, (mean,) * channels, (std,) * channels, source="generator"
    )


def _recordings(count: int, seed: int) -> Split:
    draw = np.random.RandomState(seed)  # numpy guarantees that its streams stay the same
    labels = np.arange(count) % 4
    start = draw.randint(SIDE, size=count)
    sign = np.where(labels % 2 == 0, 1, -1)
    at = (start[:, None] + sign[:, None] * np.arange(-1, STEPS)) % SIDE  # and before the first step
    line = np.eye(SIDE, dtype=bool)[at]  # (N, 1 + T, place)
    both = np.stack([line[:, 1:], line[:, :-1]], 2)  # (N, T, ON or OFF, place)
    across = np.repeat(both[..., None, :], SIDE, 3)  # a vertical bar
    along = across.swapaxes(3, 4)
    events = np.where((labels < 2)[:, None, None, None, None], across, along)
    events = events & (draw.random_sample(events.shape) >= DROPPED)
    events = events | (draw.random_sample(events.shape) < NOISE)
    images = torch.from_numpy(events.reshape(count, -1, SIDE, SIDE).astype(np.uint8) * 255)
    return Split(images, torch.from_numpy(labels).long())
