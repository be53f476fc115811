"""CIFAR-10 and CIFAR-100: python or binary archives (unpacked or not), or Parquet tables."""

import codecs
import hashlib
import io
import os
import pickle
import tarfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from apical.data.images import ImageData, Split
from apical.data.parquet import check_images, find_parquet, read_parquet
from apical.data.places import MissingData, cache_folder, candidates, damaged, download, missing

PIXELS = 3 * 32 * 32
# What a pickled dictionary of numpy arrays needs, under its old and its new name. The two
# functions are private to numpy and have moved; an array refers to their present place.
_RECONSTRUCT = np.zeros(1).__reduce__()[0]
_FROMBUFFER = np.zeros(1).__reduce_ex__(5)[0]
HARMLESS: dict[tuple[str, str], object] = {
    ("_codecs", "encode"): codecs.encode,
    ("numpy", "dtype"): np.dtype,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.numeric", "_frombuffer"): _FROMBUFFER,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROMBUFFER,
}
SITE = "https://www.cs.toronto.edu/~kriz/"
TRAIN_COUNT, TEST_COUNT = 50_000, 10_000
SIZE = (32, 32)  # pixels
Arrays = tuple[np.ndarray, np.ndarray]


class ArraysOnly(pickle.Unpickler):
    """Reads dictionaries, lists, numbers, bytes and numpy arrays; runs no code of the file."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in HARMLESS:
            raise pickle.UnpicklingError(f"it imports {module}.{name}, which is no data")
        return HARMLESS[module, name]


def read_python(content: bytes, label_key: str) -> Arrays:
    """Images and labels of one pickled batch.

    Shapes: uint8 (N, 3072), int64 (N,).     Raises: ValueError if it is something else.
    """
    try:
        batch = ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        images, labels = batch[b"data"], np.asarray(batch[label_key.encode()], dtype=np.int64)
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"no batch of arrays: {error}") from error
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8:
        raise ValueError("no batch of arrays: data is not uint8")
    if images.shape != (len(labels), PIXELS):
        raise ValueError(f"data {images.shape} does not fit {len(labels)} labels")
    return images, labels


def read_binary(content: bytes, label_bytes: int) -> Arrays:
    """Images and labels of one binary batch; the last of `label_bytes` is the (fine) label.

    Shapes: uint8 (N, 3072), int64 (N,).     Raises: ValueError for a cut file.
    """
    row = label_bytes + PIXELS
    if len(content) % row or not content:
        raise ValueError(f"{len(content)} bytes, no whole number of {row}-byte images")
    rows = np.frombuffer(content, np.uint8).reshape(-1, row)
    return rows[:, label_bytes:], rows[:, label_bytes - 1].astype(np.int64)


@dataclass(frozen=True)
class Form:
    """One published form of a data set.

    Args: md5: of the archive.     train, test: name -> md5 of each file; None: only its size is
        checked.     read: from the content of a file to uint8 images (N, 3072), int64 labels (N,).
    """

    archive: str
    md5: str
    folder: str
    train: dict[str, str | None]
    test: dict[str, str | None]
    read: Callable[[bytes], Arrays]


@dataclass(frozen=True)
class Cifar:
    """A data set: its classes, normalisation and published forms; the first one is downloaded."""

    name: str
    subfolders: tuple[str, ...]
    classes: int
    label_column: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    forms: tuple[Form, ...]


CIFAR10 = Cifar(
    name="cifar10",
    subfolders=("cifar10", "cifar10/plain_text", "CIFAR10", "cifar-10", "."),
    classes=10,
    label_column="label",
    mean=(0.4914, 0.4821, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    forms=(
        Form(
            archive="cifar-10-python.tar.gz",
            md5="c58f30108f718f92721af3b95e74349a",
            folder="cifar-10-batches-py",
            train={
                "data_batch_1": "c99cafc152244af753f735de768cd75f",
                "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                "data_batch_4": "634d18415352ddfa80567beed471001a",
                "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            },
            test={"test_batch": "40351d587109b95175f43aff81a1287e"},
            read=lambda content: read_python(content, "labels"),
        ),
        Form(
            archive="cifar-10-binary.tar.gz",
            md5="c32a1d4ab5d03f1284b67883e8d87530",
            folder="cifar-10-batches-bin",
            train={f"data_batch_{i}.bin": None for i in range(1, 6)},
            test={"test_batch.bin": None},
            read=lambda content: read_binary(content, 1),
        ),
    ),
)
CIFAR100 = Cifar(
    name="cifar100",
    subfolders=("cifar100", "cifar100/cifar100", "CIFAR100", "cifar-100", "."),
    classes=100,
    label_column="fine_label",
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    forms=(
        Form(
            archive="cifar-100-python.tar.gz",
            md5="eb9058c3a382ffc7106e4002c42a8d85",
            folder="cifar-100-python",
            train={"train": "16019d7e3df5f24257cddd939b257f8d"},
            test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
            read=lambda content: read_python(content, "fine_labels"),
        ),
        Form(
            archive="cifar-100-binary.tar.gz",
            md5="03b5dce01913d631647c71ecec9e9cb8",
            folder="cifar-100-binary",
            train={"train.bin": None},
            test={"test.bin": None},
            read=lambda content: read_binary(content, 2),
        ),
    ),
)


def load_cifar10(root: str | os.PathLike | None = None, *, download: bool = True) -> ImageData:
    """CIFAR-10: 50,000 + 10,000 photographs, 32x32, three channels, ten classes.

    Mean and std are the constants of BioTorch.     Source: Krizhevsky 2009.
    """
    return _load(CIFAR10, root, download)


def load_cifar100(root: str | os.PathLike | None = None, *, download: bool = True) -> ImageData:
    """CIFAR-100: as CIFAR-10 with a hundred (fine) classes.

    Mean and std are the constants of BioTorch.     Source: Krizhevsky 2009.
    """
    return _load(CIFAR100, root, download)


def load_cifar10_first5(
    root: str | os.PathLike | None = None, *, download: bool = True
) -> ImageData:
    """The first five classes of CIFAR-10: 25,000 + 5,000 photographs, a task of five dimensions."""
    data = load_cifar10(root, download=download)
    train, test = (
        split.take(torch.nonzero(split.labels < 5).flatten()) for split in (data.train, data.test)
    )
    note = _joined(data.note, "the first five of ten classes")
    return replace(data, name="cifar10_first5", train=train, test=test, num_classes=5, note=note)


def load_cifar10_unseen(
    root: str | os.PathLike | None = None, *, download: bool = True
) -> ImageData:
    """The test split of CIFAR-10 in two halves of 5,000: the first trains, the second tests.

    For nets whose weights were trained on CIFAR-10: its training split cannot serve to choose
    settings for them, as it contains no image that they were not trained on.
    """
    data = load_cifar10(root, download=download)
    first, second = torch.arange(len(data.test)).tensor_split(2)
    note = _joined(data.note, "first half of the test split for training, second half for testing")
    train, test = data.test.take(first), data.test.take(second)
    return replace(data, name="cifar10_unseen", train=train, test=test, note=note)


def _load(which: Cifar, root: str | os.PathLike | None, allowed: bool) -> ImageData:
    for place in candidates(root, which.subfolders):
        found = _published(which, place) or _parquet(which, place)
        if found is not None:
            return found
    files = " or ".join(form.archive for form in which.forms)
    files += " (unpacked or not), or train-*.parquet and test-*.parquet,"
    if not allowed:
        raise missing(which.name, root, files, "Downloading was not allowed.")
    form = which.forms[0]
    target = cache_folder() / "data" / which.name / form.archive
    try:
        download((SITE + form.archive,), target, md5=form.md5)
    except MissingData as error:
        raise missing(which.name, root, files, str(error)) from error
    return _from_archive(which, form, target)


def _published(which: Cifar, place: Path) -> ImageData | None:
    for form in which.forms:
        for folder in (place / form.folder, place):

            def read(file: str, folder: Path = folder) -> bytes:
                return (folder / file).read_bytes()

            if all((folder / file).is_file() for file in (*form.train, *form.test)):
                return _assemble(which, form, read, folder)
        if (place / form.archive).is_file():
            return _from_archive(which, form, place / form.archive)
    return None


def _from_archive(which: Cifar, form: Form, path: Path) -> ImageData:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != form.md5:
        size = path.stat().st_size
        raise damaged(path, f"md5 {found}, {size} bytes", f"md5 {form.md5}", _again(form))
    with tarfile.open(path, "r:gz") as archive:

        def content(file: str) -> bytes:
            member = archive.extractfile(f"{form.folder}/{file}")
            assert member is not None
            return member.read()

        return _assemble(which, form, content, path)


def _assemble(which: Cifar, form: Form, content: Callable[[str], bytes], source: Path) -> ImageData:
    splits = []
    for files, count in ((form.train, TRAIN_COUNT), (form.test, TEST_COUNT)):
        parts = [
            _batch(form, source / name, content(name), md5, count // len(files), which.classes)
            for name, md5 in files.items()
        ]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        splits.append((images.reshape(-1, 3, 32, 32), labels))
    return _data(which, splits, "", source)


def _batch(
    form: Form, path: Path, content: bytes, md5: str | None, count: int, classes: int
) -> Arrays:
    found = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if md5 and found != md5:
        raise damaged(path, f"md5 {found}, {len(content)} bytes", f"md5 {md5}", _again(form))
    try:
        images, labels = form.read(content)
    except ValueError as error:
        raise damaged(path, str(error), f"{count} images", _again(form)) from error
    again = _again(form)
    check_images(path, images, labels, count=count, classes=classes, size=SIZE, again=again)
    return images, labels


def _again(form: Form) -> str:
    return f"delete it and fetch {SITE}{form.archive}"


def _parquet(which: Cifar, place: Path) -> ImageData | None:
    if place.name == "." or not (find_parquet(place, "train") and find_parquet(place, "test")):
        return None
    splits, jpeg = [], False
    for split, count in (("train", TRAIN_COUNT), ("test", TEST_COUNT)):
        images, labels, is_jpeg = read_parquet(
            find_parquet(place, split),
            count=count,
            classes=which.classes,
            size=SIZE,
            label=which.label_column,
            mode="RGB",
            again=f"delete it and copy the Parquet files of {which.name!r} again, or use "
            f"{SITE}{which.forms[0].archive}",
        )
        splits.append((images, labels))
        jpeg = jpeg or is_jpeg
    note = "JPEG re-compressed" if jpeg else ""
    return _data(which, splits, note, place)


def _data(which: Cifar, splits: list[Arrays], note: str, source: Path) -> ImageData:
    train, test = (Split(torch.from_numpy(x), torch.from_numpy(y)) for x, y in splits)
    return ImageData(
        which.name, train, test, which.classes, which.mean, which.std, note, str(source)
    )


def _joined(*notes: str) -> str:
    return "; ".join(note for note in notes if note)
