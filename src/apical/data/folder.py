"""Image folders in the layout of ImageNet, streamed: train/CLASS/*.jpg and val/CLASS/*.jpg."""

import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from apical.data.errors import DamagedFile, damaged
from apical.data.images import ImageData
from apical.data.places import candidates, missing

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")
SIZE = 224  # pixels a side unless asked otherwise
KEPT = 224 / 256  # side of the central square that is kept for testing, in shorter sides
AREA, ASPECT = (0.08, 1.0), (3 / 4, 4 / 3)  # of a random zoom
FEW = 1000  # images below which starting worker processes costs more than it brings

Box = tuple[float, float, float, float]
Item = tuple[int, tuple[float, ...] | None]


def load_imagenet(root: str | os.PathLike | None = None, *, download: bool = True) -> ImageData:
    """ImageNet (ILSVRC 2012) from a folder with train/ and val/; its val is the test split here.

    It cannot be downloaded freely: `download` changes nothing. Mean and std are the usual ones.
    Raises: MissingData (a ValueError), with the way to get it.     Source: Deng et al. 2009.
    """
    for place in candidates(root, ("imagenet", "ImageNet", "ILSVRC2012", "imagenet/ILSVRC2012")):
        if (place / "train").is_dir() and (place / "val").is_dir():
            return load_folder(place, name="imagenet")
    files = "the folders train and val with one folder of images for each class"
    why = "It is given out at https://image-net.org after registration only."
    raise missing("imagenet", root, files, why, downloads=False)


def load_folder(place: str | os.PathLike, *, name: str = "folder") -> ImageData:
    """Any folder in this layout; classes are the folders of train/, numbered by name.

    Raises: ValueError if a folder or its images are missing, or val/ has other classes.
    """
    place = Path(place).expanduser()
    classes = _classes(place / "train")
    other = set(_classes(place / "val")) - set(classes)
    if other:
        raise ValueError(f"{place / 'val'} has classes that train lacks: {sorted(other)[:5]}")
    train, test = (_list(place / part, classes) for part in ("train", "val"))
    return ImageData(name, train, test, len(classes), MEAN, STD, source=str(place))


@dataclass(frozen=True, eq=False)
class FolderSplit:
    """Images on disk, decoded while training.

    Every image becomes size x size: the central 7/8 of the shorter side, or the random part that
    a row of `zooms` names. workers: decoding processes; None = one for each core, at most 8.
    """

    paths: tuple[str, ...]
    labels: torch.Tensor
    size: int = SIZE
    workers: int | None = None

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
        loader = DataLoader(
            Decoder(self.paths, self.size),
            batch_sampler=_items(indices, zooms),
            num_workers=self._workers(),
            collate_fn=_stack,
            # its own generator: the loader would draw a seed from the global one
            generator=torch.Generator(),
        )
        for chosen, images in zip(indices, loader, strict=True):
            if isinstance(images, DamagedFile):
                raise images
            yield images, self.labels[chosen]

    def _workers(self) -> int:
        if self.workers is not None:
            return self.workers
        return 0 if len(self) < FEW else min(8, os.cpu_count() or 1)


class Decoder(Dataset):
    """Decodes one image of a folder at a time, in a worker process."""

    def __init__(self, paths: tuple[str, ...], size: int) -> None:
        # one array of bytes: a million strings would be copied into every worker, page by page
        self.paths = np.array([os.fsencode(path) for path in paths])
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: Item) -> torch.Tensor | DamagedFile:
        index, zoom = item
        path = os.fsdecode(self.paths[index])
        try:
            return decode(path, self.size, zoom)
        except Exception as error:  # of files that are no image, decoders raise anything
            # a value, not an exception: the loader would bury it in a worker's traceback
            return damaged(path, str(error), "a whole image", "copy it from the source of the set")


def decode(path: str, size: int, zoom: tuple[float, ...] | None) -> torch.Tensor:
    """One image, uint8 (3, size, size): its central or zoomed part, bilinear, antialiased.

    Raises: OSError if it is no image or is cut.
    """
    from PIL import Image

    if not os.path.isfile(path):  # a pipe would never end
        raise OSError("no ordinary file")
    with Image.open(path) as file:
        image = file.convert("RGB")
    box = _centre(image.size) if zoom is None else _zoom(image.size, zoom)
    pixels = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    tensor = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    return tensor.flip(2) if zoom is not None and zoom[4] < 0.5 else tensor


def _centre(size: tuple[int, int]) -> Box:
    side = KEPT * min(size)
    left, top = (size[0] - side) / 2, (size[1] - side) / 2
    return left, top, left + side, top + side


def _zoom(size: tuple[int, int], zoom: tuple[float, ...]) -> Box:
    """A part of random area and aspect, cut to the image where it would stick out.

    Source: Szegedy et al. 2015; one draw where torchvision tries ten, then takes the centre.
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


def _classes(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is missing: an image folder holds train/CLASS and val/CLASS")
    found = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not found:
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
