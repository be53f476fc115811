"""Image folders, read while training: PATH/SPLIT/CLASS/*.jpg or PATH/CLASS/*.jpg; ImageNet."""

import math
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from apical.data.images import ImageData
from apical.data.places import DamagedFile, candidates, damaged, missing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
SIZE = 224  # default side of ImageNet's images in pixels; the most that other folders default to
KEPT = 224 / 256  # side of the central square that is used of ImageNet, over the shorter side
HELD_OUT = 0.2  # share of each class that tests, where a folder has no splits
SIZED, MEASURED = 200, 1000  # images of a split that its size, and its mean and std, are taken from
TESTS = ("test", "val", "eval", "dev", "held")  # beginnings of names of test splits, in this order
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random zoom
FEW = 1000  # images below which starting worker processes costs more time than it saves

Box = tuple[float, float, float, float]
Item = tuple[int, tuple[float, ...] | None]


def load_imagenet(root: str | os.PathLike | None = None, *, download: bool = True) -> ImageData:
    """ImageNet (ILSVRC 2012) from a folder with train/ and val/; val is the test split here.

    It cannot be downloaded freely: `download` has no effect. Mean and std are the usual ones.
    Raises: MissingData (a ValueError), with the way to get it.     Source: Deng et al. 2009.
    """
    for place in candidates(root, ("imagenet", "ImageNet", "ILSVRC2012", "imagenet/ILSVRC2012")):
        if (place / "train").is_dir() and (place / "val").is_dir():
            classes, train, test = _split(place, "train", "val")
            return ImageData("imagenet", train, test, len(classes), MEAN, STD, source=str(place))
    files = "the folders train and val with one folder of images for each class"
    why = "It is available at https://image-net.org after registration only."
    raise missing("imagenet", root, files, why, downloads=False)


def load_folder(text: str, *, size: int | None = None) -> ImageData:
    """Any folder of images, by class, with or without splits.

    - With splits, ``PATH/SPLIT/CLASS/IMAGE``: the split whose name begins with "train" trains. If
      there is one other split, it tests; of several ones that tests whose name begins with "test"
      (else "val", "eval", "dev", "held"). ``PATH?train=A&test=B`` names the two splits.
    - Without, ``PATH/CLASS/IMAGE``: a fifth of each class tests, chosen at random and always the
      same.

    Classes are the folders of the training split, numbered in alphabetical order. Images become
    RGB, size x size: the central square, resized (bilinear, antialiased). Mean and standard
    deviation, per channel, are those of at most 1,000 training images.

    Args: text: PATH, or PATH?train=A&test=B.
        size: side in pixels; None: the median of the shorter sides of the images, at most 224.
    Raises: ValueError if folders or images are missing, the splits cannot be chosen, or the test
        split has other classes.
    """
    path, _, query = text.partition("?")
    place = Path(path).expanduser()
    if not place.is_dir():
        raise ValueError(f"folder:{text}: there is no folder {place}")
    named = dict(parse_qsl(query))
    if query and set(named) != {"train", "test"}:
        raise ValueError(f"folder:{text}: after ? name both splits, as ?train=A&test=B")
    children = _folders(place)
    splits = [child for child in children if _folders(place / child)]
    note = ""
    if splits or named:
        classes, train, test = _split(place, **(named or _chosen(text, splits)))
    else:
        classes = _classes(place)
        train, test = _held_out(_list(place, classes))
        note = f"{len(test)} of {len(test) + len(train)} images, chosen at random, are the test set"
    counts = torch.bincount(train.labels, minlength=len(classes)).tolist()
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if len(classes) < 2 or empty:
        raise ValueError(
            f"folder:{text}: needs at least two classes with training images; it has "
            f"{', '.join(classes)}" + (f", without images: {', '.join(empty)}" if empty else "")
        )
    size = size or _size(train)
    train, test = (replace(split, size=size, kept=1.0) for split in (train, test))
    mean, std = _statistics(train)
    name = f"folder:{text}"
    return ImageData(name, train, test, len(classes), mean, std, note=note, source=str(place))


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Images on disk, decoded while training.

    Every image becomes size x size: the central square, of side `kept` times the shorter side, or
    the random part that a row of `zooms` selects. workers: decoding processes; None = one for each
    core, at most 8.
    """

    paths: tuple[str, ...]
    labels: torch.Tensor
    size: int = SIZE
    workers: int | None = None
    kept: float = KEPT

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of one image."""
        return 3, self.size, self.size

    def take(self, indices: torch.Tensor) -> "FolderSplit":
        """The images at `indices`, in that order."""
        chosen = indices.tolist()
        return replace(
            self, paths=tuple(self.paths[i] for i in chosen), labels=self.labels[indices]
        )

    def to(self, device: torch.device | str) -> "FolderSplit":
        """Itself: images are decoded on the CPU, whatever the device."""
        return self

    def resized(self, size: int) -> "FolderSplit":
        """The same images, decoded to size x size pixels."""
        return replace(self, size=size)

    def batches(
        self, indices: Sequence[torch.Tensor], zooms: Sequence[torch.Tensor] | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(uint8 images, labels) for each tensor of indices.

        Shapes: zooms, one row of 5 numbers in [0, 1) for each image: area, aspect, place, mirror.
        Raises: DamagedFile (a ValueError) naming an image that cannot be read.
        """
        workers = self.workers
        if workers is None:
            workers = 0 if len(self) < FEW else min(8, os.cpu_count() or 1)
        loader = DataLoader(
            Decoder(self.paths, self.size, self.kept),
            batch_sampler=_items(indices, zooms),
            num_workers=workers,
            collate_fn=_stack,
            # its own generator: else the loader takes a seed from the global one
            generator=torch.Generator(),
        )
        for chosen, images in zip(indices, loader, strict=True):
            if isinstance(images, DamagedFile):
                raise images
            yield images, self.labels[chosen]


class Decoder(Dataset):
    """Decodes one image of a folder at a time, in a worker process."""

    def __init__(self, paths: tuple[str, ...], size: int, kept: float = KEPT) -> None:
        # one array of bytes: a million strings would be copied into every worker, page by page
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.size = size
        self.kept = kept

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: Item) -> torch.Tensor | DamagedFile:
        index, zoom = item
        path = os.fsdecode(self.paths[index])
        try:
            return decode(path, self.size, zoom, self.kept)
        except Exception as error:  # of files that are no image, decoders raise anything
            # a value, not an exception: the loader would put it inside a worker's traceback
            return damaged(path, str(error), "a whole image", "copy it from the source of the set")


def decode(
    path: str, size: int, zoom: tuple[float, ...] | None, kept: float = KEPT
) -> torch.Tensor:
    """One image, uint8 (3, size, size): its central or zoomed part, bilinear, antialiased.

    Raises: OSError if it is no image or is truncated.
    """
    from PIL import Image

    with _opened(path) as file:
        image = file.convert("RGB")
    box = _centre(image.size, kept) if zoom is None else _zoom(image.size, zoom)
    pixels = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    return tensor.flip(2) if zoom is not None and zoom[4] < 0.5 else tensor


def _opened(path: str) -> Any:
    """An image that is not decoded yet. Raises: OSError, or anything that a decoder raises."""
    from PIL import Image

    if not os.path.isfile(path):  # reading a pipe would never end
        raise OSError("no ordinary file")
    return Image.open(path)


def _centre(size: tuple[int, int], kept: float) -> Box:
    side = kept * min(size)
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return left, top, left + side, top + side


def _zoom(size: tuple[int, int], zoom: tuple[float, ...]) -> Box:
    """A part of random area and aspect ratio, clipped to the image.

    Source: Szegedy et al. 2015; one draw, where torchvision makes up to ten and then takes the
    centre.
    """
    area = size[0] * size[1] * (AREA[0] + zoom[0] * (AREA[1] - AREA[0]))
    low, high = math.log(ASPECT[0]), math.log(ASPECT[1])
    aspect = math.exp(low + zoom[1] * (high - low))
    width = min(math.sqrt(area * aspect), size[0])
    height = min(math.sqrt(area / aspect), size[1])
    left, top = zoom[2] * (size[0] - width), zoom[3] * (size[1] - height)
    return left, top, left + width, top + height


def _items(
    indices: Sequence[torch.Tensor], zooms: Sequence[torch.Tensor] | None
) -> list[list[Item]]:
    if zooms is None:
        return [[(i, None) for i in batch.tolist()] for batch in indices]
    return [
        [(i, tuple(row)) for i, row in zip(batch.tolist(), rows.tolist(), strict=True)]
        for batch, rows in zip(indices, zooms, strict=True)
    ]


def _stack(images: list[torch.Tensor | DamagedFile]) -> torch.Tensor | DamagedFile:
    whole = [image for image in images if isinstance(image, torch.Tensor)]
    bad = [image for image in images if isinstance(image, DamagedFile)]
    return bad[0] if bad else torch.stack(whole)


def _folders(place: Path) -> list[str]:
    """Names of the folders in a folder, without hidden ones, in order."""
    return sorted(e.name for e in os.scandir(place) if e.is_dir() and not e.name.startswith("."))


def _chosen(text: str, splits: list[str]) -> dict[str, str]:
    """The names of the split that trains and of the split that tests."""
    train = [name for name in splits if name.lower().startswith("train")]
    others = [name for name in splits if name not in train]
    test = others
    for beginning in TESTS if len(others) > 1 else ():
        if test := [name for name in others if name.lower().startswith(beginning)]:
            break
    if len(splits) == 1:
        raise ValueError(
            f"folder:{text} has one split, {splits[0]}: add a folder of images to test by, or "
            f"write folder:{text.rstrip('/')}/{splits[0]}, of which a fifth of each class tests"
        )
    if len(train) != 1 or len(test) != 1:
        raise ValueError(
            f"folder:{text} has the splits {', '.join(splits)}: say which is which, as "
            f"'folder:{text}?train={splits[0]}&test={splits[-1]}'"
        )
    if unused := [name for name in others if name not in test]:
        warnings.warn(
            f"folder:{text}: {', '.join(unused)} is not read; {train[0]} trains, {test[0]} tests",
            stacklevel=4,
        )
    return {"train": train[0], "test": test[0]}


def _held_out(split: "FolderSplit") -> tuple["FolderSplit", "FolderSplit"]:
    """A fifth of the images of each class, at least one, is held out."""
    generator = torch.Generator().manual_seed(0)
    test = torch.zeros(len(split), dtype=torch.bool)
    for label in split.labels.unique():
        places = (split.labels == label).nonzero()[:, 0]
        if len(places) < 2:
            raise ValueError(
                f"{Path(split.paths[int(places[0])]).parent} has one image: a class needs two, one "
                "to train and one to test"
            )
        count = max(1, round(HELD_OUT * len(places)))
        test[places[torch.randperm(len(places), generator=generator)[:count]]] = True
    return split.take((~test).nonzero()[:, 0]), split.take(test.nonzero()[:, 0])


def _some(split: "FolderSplit", count: int) -> "FolderSplit":
    """At most `count` of the images, evenly spaced."""
    return split.take(torch.arange(0, len(split), max(1, math.ceil(len(split) / count))))


def _size(split: "FolderSplit") -> int:
    """The median of the shorter sides of the images, at most 224 pixels."""
    sides = []
    for path in _some(split, SIZED).paths:
        try:
            with _opened(path) as file:
                sides.append(min(file.size))
        except Exception as error:  # of files that are no image, decoders raise anything
            remedy = "copy it from the source of the set"
            raise damaged(path, str(error), "a whole image", remedy) from error
    return min(SIZE, round(median(sides)))


def _statistics(split: "FolderSplit") -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the training images, per channel, of pixels in [0, 1]."""
    chosen = _some(split, MEASURED)
    sums, squares, count = torch.zeros(3).double(), torch.zeros(3).double(), 0
    for images, _ in chosen.batches(torch.arange(len(chosen)).split(100)):
        pixels = images.double().div_(255).transpose(0, 1).flatten(1)
        sums, squares = sums + pixels.sum(1), squares + pixels.square().sum(1)
        count += pixels.shape[1]
    mean = sums / count
    # images of one colour alone would divide by zero
    std = (squares / count - mean.square()).clamp_min(0).sqrt().clamp_min(1 / 255)
    return tuple(mean.tolist()), tuple(std.tolist())


def _split(place: Path, train: str, test: str) -> tuple[list[str], "FolderSplit", "FolderSplit"]:
    """The classes, and the splits of these names."""
    classes = _classes(place / train)
    if other := set(_classes(place / test)) - set(classes):
        raise ValueError(f"{place / test} has classes that {train} lacks: {sorted(other)[:5]}")
    return classes, _list(place / train, classes), _list(place / test, classes)


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing: an image folder holds SPLIT/CLASS/IMAGE")
    if not (found := _folders(folder)):
        raise ValueError(f"{folder} holds no class folders; expected {folder}/CLASS/IMAGE")
    return found


def _list(folder: Path, classes: list[str]) -> FolderSplit:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            entries = sorted(entry.path for entry in os.scandir(folder / name))
            images = [path for path in entries if path.lower().endswith(SUFFIXES)]
            paths.extend(images)
            labels.extend([label] * len(images))
    if not paths:
        raise ValueError(f"{folder} holds no images; recognised endings: {', '.join(SUFFIXES)}")
    return FolderSplit(tuple(paths), torch.tensor(labels, dtype=torch.int64))
