"""Capital letters drawn with fonts: data for pretraining, without a download."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from apical.data.images import ImageData, Split

SIDE = 16
CANVAS = 4 * SIDE  # letters are drawn at this size and then reduced, so that edges are smooth

FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-BoldOblique",
    "DejaVuSansMono-Oblique", "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-BoldItalic",
    "DejaVuSerif-Italic", "STIXGeneral", "STIXGeneralBol", "STIXGeneralBolIta",
    "STIXGeneralItalic", "cmb10", "cmr10", "cmss10", "cmti10", "cmtt10",
)  # fmt: skip
VARIANTS, TESTED = 4, 1  # images of a letter in a font, with random geometry; those for testing


def load_letters(root: object = None, *, download: bool = True) -> ImageData:
    """Capital letters of 21 fonts, 16x16 pixels, 26 classes: 1,638 to train, 546 to test.

    Drawn with the fonts of matplotlib, always the same images; another version of Pillow may draw
    edges slightly differently. `root` and `download` have no effect.

    Raises: ValueError if matplotlib or Pillow is not installed.
    """
    return _letters()


@cache
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
    scaled = train.images.double() / 255
    mean, std = (float(scaled.mean()),), (float(scaled.std()),)
    held_out = whole.take(test.nonzero().squeeze(1))
    return ImageData("letters", train, held_out, 26, mean, std, source="fonts of matplotlib")


def _drawn(font: Any, letter: str, chance: np.ndarray) -> np.ndarray:
    """White on black, uint8 (SIDE, SIDE).

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
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.BOX))
