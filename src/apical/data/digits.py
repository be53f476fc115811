"""The 1,797 handwritten digits inside scikit-learn: real data without a download."""

import functools

import numpy as np
import torch

from apical.data.images import ImageData, Split

TEST_COUNT = 360


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
    train, test = whole.take(order[TEST_COUNT:]), whole.take(order[:TEST_COUNT])
    scaled = train.images.double() / 255
    mean, std = (float(scaled.mean()),), (float(scaled.std()),)
    return ImageData("digits", train, test, 10, mean, std, source="scikit-learn")


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
