"""Bars that drift over a small event camera: which way? A task that needs time, generated."""

import numpy as np
import torch

from apical.data.images import ImageData, Split

SIDE, STEPS = 12, 12
DROPPED, NOISE = 0.3, 0.02
COUNTS = (2000, 500)


def load_drifting_bars(root: object = None, *, download: bool = True) -> ImageData:
    """2,000 + 500 recordings of 12 steps, 12x12 pixels, in four classes: right, left, down, up.

    A bar as long as the side enters anywhere, moves a pixel a step and comes back on the other
    side. Where it arrives is an ON event, where it left an OFF event; of these 30 % are dropped,
    and each of all places has an event by chance with probability 0.02. Over the recording every
    pixel sees each kind once, so that a sum over time says nothing of the class.

    Frames stand in the channels, step by step, ON before OFF: (24, 12, 12), of 0 and 255; train
    with `pixels="unit"` and a spiking net with `encoding="frames"`, `steps=12`.

    `root` and `download` are there for the common call; always the same recordings.
    """
    train, test = (_recordings(count, seed) for seed, count in enumerate(COUNTS))
    mean = float(train.images.double().mean() / 255)
    channels = train.shape[0]
    # one law for all channels: they are the same two at every step
    std = (mean * (1 - mean)) ** 0.5
    return ImageData(
        "drifting_bars", train, test, 4, (mean,) * channels, (std,) * channels, source="generator"
    )


def _recordings(count: int, seed: int) -> Split:
    draw = np.random.RandomState(seed)  # its streams are frozen by numpy
    labels = np.arange(count) % 4
    start = draw.randint(SIDE, size=count)
    sign = np.where(labels % 2 == 0, 1, -1)
    at = (start[:, None] + sign[:, None] * np.arange(-1, STEPS)) % SIDE  # one step more: the last
    line = np.eye(SIDE, dtype=bool)[at]  # (N, 1 + T, place)
    both = np.stack([line[:, 1:], line[:, :-1]], 2)  # (N, T, ON or OFF, place)
    across = np.repeat(both[..., None, :], SIDE, 3)  # a bar that stands upright
    along = across.swapaxes(3, 4)
    events = np.where((labels < 2)[:, None, None, None, None], across, along)
    events = events & (draw.random_sample(events.shape) >= DROPPED)
    events = events | (draw.random_sample(events.shape) < NOISE)
    images = torch.from_numpy(events.reshape(count, -1, SIDE, SIDE).astype(np.uint8) * 255)
    return Split(images, torch.from_numpy(labels).long())
