"""Data sets by name, and batches of them.

>>> digits = load("digits")
>>> digits.shape, len(digits.train), len(digits.test)
((1, 8, 8), 1437, 360)
"""

import os
from collections.abc import Callable

from apical.data.batches import AUGMENTS, Batches
from apical.data.bundled import load_digits, load_drifting_bars, load_letters
from apical.data.cifar import load_cifar10, load_cifar10_first5, load_cifar10_unseen, load_cifar100
from apical.data.events import load_event_mnist, load_nmnist
from apical.data.folder import load_folder, load_imagenet
from apical.data.images import ImageData, Images, Split, split_validation
from apical.data.mnist import load_fashion_mnist, load_mnist
from apical.data.own import from_splits, load_own
from apical.data.own_splits import TensorSplit
from apical.data.places import DamagedFile, MissingData, roots
from apical.names import is_whole, unknown

__all__ = [
    "AUGMENTS",
    "DATA",
    "Batches",
    "DamagedFile",
    "ImageData",
    "Images",
    "MissingData",
    "Split",
    "TensorSplit",
    "from_splits",
    "load",
    "split_validation",
]


def load(
    name: str,
    *,
    root: str | os.PathLike | None = None,
    size: int | None = None,
    download: bool = True,
) -> ImageData:
    """A data set by name, from the first place that has it.

    Places: `root`, the folder in APICAL_DATA, the cache (APICAL_CACHE, else ~/.cache/apical),
    then a download into the cache.

    Args: name: one of DATA; "folder:PATH" for images in PATH/SPLIT/CLASS or PATH/CLASS (see
        `folder.load_folder`); or "package.module:function" (see `own.load_own`).
        root: folder of data sets, or of this one.
        size: side in pixels to resize images to (bilinear, antialiased); None = as they are.
        download: whether the network may be used.
    Raises: ValueError for an unknown name or size; MissingData, with all the ways to get it;
        DamagedFile, naming the file. Both are ValueErrors.
    """
    if size is not None and (not is_whole(size) or size < 1):
        raise ValueError(f"size={size!r} must be a whole number of at least 1 pixel")
    roots(root)  # a folder that was given must exist, whether or not these data need it
    if name.startswith("folder:"):
        return load_folder(name.removeprefix("folder:"), size=size)
    if name in DATA:
        data = DATA[name](root, download=download)
    elif ":" in name:
        data = load_own(name)
    else:
        forms = ("folder:PATH", "package.module:function")
        first = [f"folder:{name}"] if os.path.isdir(name) else []
        raise unknown("data set", name, [*DATA, *forms], first=first)
    return data if size is None else data.resized(size)


DATA: dict[str, Callable[..., ImageData]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "cifar10_first5": load_cifar10_first5,
    "cifar10_unseen": load_cifar10_unseen,
    "digits": load_digits,
    "drifting_bars": load_drifting_bars,
    "event_mnist": load_event_mnist,
    "fashion_mnist": load_fashion_mnist,
    "imagenet": load_imagenet,
    "letters": load_letters,
    "mnist": load_mnist,
    "nmnist": load_nmnist,
}
