"""Small data sets without a download: digits of scikit-learn, letters drawn with fonts, and
generated events of drifting bars, whose direction is the class: a task that needs time."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apical.data.images import ImageData, Split

DIGITS_TESTED = 360

LETTER_SIDE = 16
CANVAS = 4 * LETTER_SIDE  # letters are drawn at this size and then reduced: edges are smooth
FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta",
    "STIXGeneralItalic", "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
VARIANTS, TESTED = 4, 1  # images of a letter in a font, with random geometry; those for testing

BAR_SIDE, BAR_STEPS = 12, 12
DROPPED, NOISE = 0.3, 0.02
BAR_COUNTS = (2000, 500)


def load_digits(root: object = None, *, download: bool = True) -> ImageData:
    """Digits, 8x8 pixels, ten classes: 1,437 to train, 360 to test, always the same ones.

    Pixels 0..16 are scaled to 0..255. Mean and std are those of the training split. `root` and
    `download` have no effect: all loaders have these arguments, and these data need no folder.
    Raises: ValueError if scikit-learn is not installed.
    Source: Alpaydin & Kaynak 1998, UCI; test part as kept by scikit-learn.
    """
    pixels, labels = _arrays()
    images = torch.from_numpy(np.rint(pixels * (255 / 16)).astype(np.uint8)).view(-1, 1, 8, 8)
    # RandomState: numpy guarantees that its streams stay the same, and so does the split
    order = torch.from_numpy(np.random.RandomState(0).permutation(len(labels)))
    whole = Split(images, torch.from_numpy(labels).long())
    train, test = whole.take(order[DIGITS_TESTED:]), whole.take(order[:DIGITS_TESTED])
    return ImageData("digits", train, test, 10, *_statistics(train), source="scikit-learn")


def load_letters(root: object = None, *, download: bool = True) -> ImageData:
    """Capital letters of 21 fonts, 16x16 pixels, 26 classes: 1,638 to train, 546 to test.

    Drawn with the fonts of matplotlib, always the same images; another version of Pillow may draw
    edges slightly differently. `root` and `download` have no effect.

    Raises: ValueError if matplotlib or Pillow is not installed.
    """
    return _letters()


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
    train, test = (_recordings(count, seed) for seed, count in enumerate(BAR_COUNTS))
    mean = float(train.images.double().mean() / 255)
    channels = train.shape[0]
    # the same for all channels: ON and OFF events have the same distribution at every step
    std = (mean * (1 - mean)) ** 0.5
    return ImageData(
        "drifting_bars", train, test, 4, (mean,) * channels, (std,) * channels, source="generator"
    )


def _statistics(split: Split) -> tuple[tuple[float], tuple[float]]:
    """Mean and standard deviation of all pixels in [0, 1]."""
    scaled = split.images.double() / 255
    return (float(scaled.mean()),), (float(scaled.std()),)


@functools.cache
def _arrays() -> tuple[np.ndarray, np.ndarray]:
    """Pixels and labels of scikit-learn's file; reading it takes longer than a short training."""
    try:
        from sklearn.datasets import load_digits as read
    except ImportError as error:
        raise ValueError(
            "data set 'digits' is inside scikit-learn: pip install scikit-learn"
        ) from error
    pixels, labels = read(return_X_y=True)
    return pixels, labels


@functools.cache
def _letters() -> ImageData:
    try:
        import matplotlib
        from PIL import ImageFont
    except ImportError as error:
        raise ValueError(
            "data set 'letters' is drawn with matplotlib's fonts: pip install 'apical[bench]'"
        ) from error
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    random = np.random.RandomState(0)  # numpy guarantees that its streams stay the same
    images, labels, tested = [], [], []
    for name in FONTS:
        font = ImageFont.truetype(str(folder / f"{name}.ttf"), CANVAS * 3 // 4)
        for label in range(26):
            for variant in range(VARIANTS):
                images.append(_drawn(font, chr(ord("A") + label), random.uniform(-1, 1, 4)))
                labels.append(label)
                tested.append(variant < TESTED)
    whole = Split(torch.from_numpy(np.stack(images)).unsqueeze(1), torch.tensor(labels))
    test = torch.tensor(tested)
    train = whole.take((~test).nonzero().squeeze(1))
    held_out = whole.take(test.nonzero().squeeze(1))
    return ImageData(
        "letters", train, held_out, 26, *_statistics(train), source="fonts of matplotlib"
    )


def _drawn(font: Any, letter: str, chance: np.ndarray) -> np.ndarray:
    """White on black, uint8 (LETTER_SIDE, LETTER_SIDE).

    Args: chance: in [-1, 1]: two shifts, by 1.5 pixels; rotation, by 12 degrees; size.
    """
    from PIL import Image, ImageDraw

    middle = CANVAS / 2
    picture = Image.new("L", (CANVAS, CANVAS))
    place = (middle + 6 * chance[0], middle + 6 * chance[1])
    ImageDraw.Draw(picture).text(place, letter, fill=255, font=font, anchor="mm")
    picture = picture.rotate(12 * chance[2], Image.Resampling.BILINEAR)
    edge = round(CANVAS * 0.08 * (1 + chance[3]))
    picture = picture.crop((edge, edge, CANVAS - edge, CANVAS - edge))
    return np.asarray(picture.resize((LETTER_SIDE, LETTER_SIDE), Image.Resampling.BOX))


def _recordings(count: int, seed: int) -> Split:
    draw = np.random.RandomState(seed)  # numpy guarantees that its streams stay the same
    labels = np.arange(count) % 4
    start = draw.randint(BAR_SIDE, size=count)
    sign = np.where(labels % 2 == 0, 1, -1)
    at = (
        start[:, None] + sign[:, None] * np.arange(-1, BAR_STEPS)
    ) % BAR_SIDE  # and before the first step
    line = np.eye(BAR_SIDE, dtype=bool)[at]  # (N, 1 + T, place)
    both = np.stack([line[:, 1:], line[:, :-1]], 2)  # (N, T, ON or OFF, place)
    across = np.repeat(both[..., None, :], BAR_SIDE, 3)  # a vertical bar
    along = across.swapaxes(3, 4)
    events = np.where((labels < 2)[:, None, None, None, None], across, along)
    events = events & (draw.random_sample(events.shape) >= DROPPED)
    events = events | (draw.random_sample(events.shape) < NOISE)
    images = torch.from_numpy(events.reshape(count, -1, BAR_SIDE, BAR_SIDE).astype(np.uint8) * 255)
    return Split(images, torch.from_numpy(labels).long())
