"""Parts of data sets that ask another question than the whole."""

import os
from dataclasses import replace

import torch

from apical.data.cifar import load_cifar10
from apical.data.images import ImageData, Images


def load_cifar10_first5(
    root: str | os.PathLike | None = None, *, download: bool = True
) -> ImageData:
    """The first five classes of CIFAR-10: 25,000 + 5,000 photographs, a task of five dimensions."""
    data = load_cifar10(root, download=download)
    note = _joined(data.note, "the first five of ten classes")
    return replace(
        data, name="cifar10_first5", train=_below(data.train, 5), test=_below(data.test, 5),
        num_classes=5, note=note,
    )  # fmt: skip


def load_cifar10_unseen(
    root: str | os.PathLike | None = None, *, download: bool = True
) -> ImageData:
    """The test split of CIFAR-10 in two halves of 5,000, to tune nets that have seen all the rest.

    The first half trains, the second tests. For nets whose weights were trained on CIFAR-10: on its
    training split nothing can be chosen, because they have seen every image of it.
    """
    data = load_cifar10(root, download=download)
    half = len(data.test) // 2
    places = torch.arange(len(data.test))
    note = _joined(data.note, "first half of the test split for training, second half for testing")
    return replace(
        data, name="cifar10_unseen", train=data.test.take(places[:half]),
        test=data.test.take(places[half:]), note=note,
    )  # fmt: skip


def _below(split: Images, classes: int) -> Images:
    return split.take(torch.nonzero(split.labels < classes).flatten())


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
