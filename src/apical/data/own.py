"""The user's data: tensors, datasets or loaders, checked once, then like any other data set."""

import hashlib
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
)

from apical.data import generators
from apical.data.images import ImageData, Split
from apical.data.own_splits import DatasetSplit, Seeded, TensorSplit, checked_labels
from apical.names import from_path

CONTRACT = (
    "give (inputs, labels) as tensors or arrays, a Dataset of (input, label), or a DataLoader or "
    "other iterable of batches (inputs, labels)"
)


def load_own(path: str) -> ImageData:
    """The data set that a function of the user returns.

    Random steps in it, such as a split, are the same in every run: the global generators of torch,
    NumPy and Python are seeded with 0 before the call.

    Args: path: ``package.module:function``, called without arguments; it returns ``(train, test)``,
        each as `from_splits` takes it, or an `ImageData`.
    Raises: ValueError naming what does not fit the contract.
    """
    with generators.kept():
        generators.seed(0)
        return _load_own(path)


def _load_own(path: str) -> ImageData:
    make = from_path(path, "data")
    if not callable(make):
        raise ValueError(f"data {path!r} is a {type(make).__name__}, not a function")
    try:
        made = make()
    except Exception as error:  # code of the user may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        place = f" ({frames[-1].filename}, line {frames[-1].lineno})"
        raise ValueError(
            f"data {path!r} raised {type(error).__name__}: {error}{place if frames[1:] else ''}. "
            "It is called without arguments and must return (train, test)"
        ) from error
    if isinstance(made, ImageData):
        return replace(made, name=path)
    if not isinstance(made, (tuple, list)) or len(made) != 2:
        count = f" of {len(made)} values" if isinstance(made, (tuple, list)) else ""
        raise ValueError(
            f"data {path!r} returned a {type(made).__name__}{count}: it must return (train, test). "
            "Images to select by are held out of train with --validation N"
        )
    return from_splits(*made, name=path)


def from_splits(train: Any, test: Any, *, name: str | None = None) -> ImageData:
    """A data set of two splits. Each is

    - ``(inputs, labels)``: tensors or NumPy arrays, held in memory;
    - a ``Dataset`` of (input, label), read item by item in every epoch: its random transforms are
      applied again, with seeds from the order of the epoch, so that a resumed run gets the same;
    - a ``DataLoader``: its dataset and ``collate_fn`` are used; its batch size, order and
      ``drop_last`` must be those of the experiment (see ``ImageData.loader``);
    - another iterable of batches (inputs, labels): read once into memory.

    Inputs of type uint8 are images (N, C, H, W) or (N, H, W) in [0, 255]; nets receive them
    normalised by the mean and the standard deviation of the training split, per channel. Inputs of
    a floating type have any shape (N, ...) and reach the net as they are, in float32. Labels are
    whole numbers from 0 to K - 1, (N,); K is one more than the largest of the training split.

    Every item is read once here, for the checks, the statistics and the digest.

    Args: name: of the data set; None: ``given:`` and the digest of the content.
    Raises: ValueError naming the split, what is wrong, and what is allowed.
    """
    splits: dict[str, Any] = {}
    found: dict[str, _Content] = {}
    loader: Mapping[str, Any] = {}
    for part, given in (("train", train), ("test", test)):
        split, options = _split(given, part)
        content = found[part] = _read(split, part)
        if isinstance(split, DatasetSplit):
            split = replace(split, labels=content.labels, shape=content.shape)
        splits[part] = split
        loader = options if part == "train" else loader
    first, second = found["train"], found["test"]
    if (first.shape, first.dtype) != (second.shape, second.dtype):
        raise ValueError(
            f"data: train has inputs {first.shape} of {first.dtype}, test has {second.shape} of "
            f"{second.dtype}: they must be alike"
        )
    classes = int(first.labels.max()) + 1
    if classes < 2:
        raise ValueError("data: all labels of train are 0: one class leaves nothing to learn")
    if int(second.labels.max()) >= classes:
        raise ValueError(
            f"data: test has the label {int(second.labels.max())}, train only 0 to {classes - 1}"
        )
    digest = hashlib.sha256((first.digest + second.digest).encode()).hexdigest()[:16]
    mean, std = first.statistics
    return ImageData(
        name or f"given:{digest}",
        splits["train"],
        splits["test"],
        classes,
        mean,
        std,
        source="in memory",
        loader=loader,
        unit=first.unit and second.unit,
    )


@dataclass
class _Content:
    """What is known of a split after reading it once."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    labels: Tensor
    digest: str
    statistics: tuple[tuple[float, ...], tuple[float, ...]]
    unit: bool


def _split(given: Any, part: str) -> tuple[Any, dict[str, Any]]:
    """The split of what was given, and the settings of its loader."""
    if isinstance(given, DataLoader) and not isinstance(given.dataset, IterableDataset):
        dataset = given.dataset
        if isinstance(dataset, TensorDataset) and len(dataset.tensors) == 2:
            return _in_memory(*dataset.tensors, part), _options(given, part)
        return _lazy(dataset, given.collate_fn, given.num_workers, part), _options(given, part)
    if isinstance(given, TensorDataset) and len(given.tensors) == 2:
        return _in_memory(*given.tensors, part), {}
    if isinstance(given, (tuple, list)) and len(given) == 2 and _is_array(given[0]):
        return _in_memory(given[0], given[1], part), {}
    if isinstance(given, Dataset) and not isinstance(given, IterableDataset):
        return _lazy(given, torch.utils.data.default_collate, 0, part), {}
    if _is_array(given) or isinstance(given, (str, Mapping)) or not isinstance(given, Iterable):
        raise ValueError(f"data: {part} is a {type(given).__name__}: {CONTRACT}")
    return _in_memory(*_gathered(given, part), part), {}


def _options(loader: DataLoader, part: str) -> dict[str, Any]:
    """The settings of an experiment that a loader contains."""
    if loader.batch_size is None or type(loader.sampler) not in (RandomSampler, SequentialSampler):
        raise ValueError(
            f"data: the loader of {part} has a sampler of its own ({type(loader.sampler).__name__})"
            ": runs choose the order themselves. Give its dataset, or the batches as a list"
        )
    return {
        "batch_size": loader.batch_size,
        "shuffle": isinstance(loader.sampler, RandomSampler),
        "drop_last": loader.drop_last,
    }


def _is_array(value: Any) -> bool:
    return isinstance(value, (Tensor, np.ndarray))


def _lazy(dataset: Any, collate: Any, workers: int, part: str) -> DatasetSplit:
    if not hasattr(dataset, "__len__"):
        raise ValueError(f"data: the dataset of {part} has no length: give it __len__")
    count = len(dataset)
    if not count:
        raise ValueError(f"data: {part} is empty")
    none = torch.zeros(count, dtype=torch.int64)  # until all items were read
    return DatasetSplit(dataset, torch.arange(count), none, (), collate, workers)


def _gathered(batches: Iterable[Any], part: str) -> tuple[Tensor, Tensor]:
    """All batches of an iterable, in memory."""
    inputs, labels = [], []
    for number, batch in enumerate(batches):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2 or not _is_array(batch[0]):
            kind = type(batch).__name__
            raise ValueError(f"data: batch {number} of {part} is a {kind}: {CONTRACT}")
        inputs.append(torch.as_tensor(batch[0]))
        labels.append(checked_labels(batch[1], part))
        if inputs[-1].dim() < 2 or inputs[-1].shape[1:] != inputs[0].shape[1:]:
            raise ValueError(
                f"data: batch {number} of {part} has inputs {tuple(inputs[-1].shape)}, the first "
                f"{tuple(inputs[0].shape)}: batches must be (N, ...), alike but for N"
            )
    if not inputs:
        raise ValueError(f"data: {part} gave no batch")
    return torch.cat(inputs), torch.cat(labels)


def _in_memory(inputs: Any, labels: Any, part: str) -> Split | TensorSplit:
    """Tensors or arrays, checked."""
    inputs, labels = torch.as_tensor(inputs).detach(), checked_labels(labels, part)
    if inputs.dim() < 2 or len(inputs) != len(labels) or not len(labels):
        raise ValueError(
            f"data: {part} has inputs {tuple(inputs.shape)} and {len(labels)} labels: inputs must "
            "be (N, ...) with one label for each"
        )
    if inputs.dtype == torch.uint8:
        if inputs.dim() == 3:
            inputs = inputs[:, None]
        _check_image(tuple(inputs.shape[1:]), part)
        return Split(inputs, labels)
    _check_float(inputs, part)
    return TensorSplit(inputs.float(), labels)


def _check_image(shape: tuple[int, ...], part: str) -> None:
    if len(shape) != 3:
        raise ValueError(
            f"data: {part} has uint8 inputs of shape {shape}: uint8 means images (C, H, W) in "
            "[0, 255]; for other numbers give inputs.float()"
        )
    if shape[2] <= 4 < shape[0]:
        raise ValueError(
            f"data: {part} has images of shape {shape}, channels last: give "
            "images.permute(0, 3, 1, 2)"
        )


def _check_float(inputs: Tensor, part: str) -> None:
    if inputs.layout != torch.strided:
        raise ValueError(f"data: {part} has inputs of layout {inputs.layout}: give .to_dense()")
    if not inputs.is_floating_point():
        raise ValueError(
            f"data: {part} has inputs of {inputs.dtype}: give uint8 images (N, C, H, W), or a "
            "floating type for inputs that the net receives as they are"
        )
    if not inputs.isfinite().all():
        raise ValueError(f"data: {part} has inputs that are infinite or not a number")


def _read(split: Any, part: str) -> _Content:
    """Read every item of a split once."""
    digest, sums, squares = hashlib.sha256(), torch.zeros(()), torch.zeros(())
    labels: list[Tensor] = []
    pixels, unit, shape, dtype = 0, True, None, torch.float32
    one_by_one = [torch.tensor([i]) for i in range(len(split))]
    chunks = one_by_one if isinstance(split, DatasetSplit) else torch.arange(len(split)).split(1024)
    for number, (x, y) in enumerate(_items(split, chunks, part)):
        if shape is None:
            shape, dtype = tuple(x.shape[1:]), x.dtype
            if not shape or 0 in shape:
                raise ValueError(
                    f"data: an input of {part} has shape {shape}: it must hold numbers along at "
                    "least one axis, as (features,) or (C, H, W)"
                )
            (_check_image(shape, part) if dtype == torch.uint8 else _check_float(x, part))
        if (tuple(x.shape[1:]), x.dtype) != (shape, dtype):
            raise ValueError(
                f"data: item {number} of {part} has shape {tuple(x.shape[1:])} and {x.dtype}, "
                f"the first {shape} and {dtype}: give them one shape (a transform that resizes)"
            )
        if dtype == torch.uint8:
            wide = x.double().transpose(0, 1).flatten(1)
            sums, squares = sums + wide.sum(1), squares + wide.square().sum(1)
            pixels += wide.shape[1]
        else:
            _check_float(x, part)
            unit = unit and x.min().item() >= 0 and x.max().item() <= 1
        labels.append(checked_labels(y, part))
        digest.update(x.contiguous().numpy().tobytes())
        digest.update(labels[-1].numpy().tobytes())
    assert shape is not None
    digest.update(f"{dtype} {shape}".encode())
    channels = shape[0]
    if dtype == torch.uint8:
        mean = sums / pixels
        # an image set of one colour would divide by zero
        std = (squares / pixels - mean.square()).clamp_min(0).sqrt().clamp_min(1)
        statistics = tuple((mean / 255).tolist()), tuple((std / 255).tolist())
    else:
        statistics = (0.0,) * channels, (1.0,) * channels
    unit = unit and len(shape) == 3
    return _Content(shape, dtype, torch.cat(labels), digest.hexdigest(), statistics, unit)


def _items(split: Any, chunks: Sequence[Tensor], part: str) -> Iterator[tuple[Tensor, Tensor]]:
    if not isinstance(split, DatasetSplit):
        yield from split.batches(chunks)
        return
    first = Seeded(split.dataset)[0, 0]
    if not isinstance(first, (tuple, list)) or len(first) != 2:
        raise ValueError(f"data: item 0 of {part} is a {type(first).__name__}: {CONTRACT}")
    if not isinstance(first[0], (Tensor, np.ndarray)):
        raise ValueError(
            f"data: item 0 of {part} has an input of type {type(first[0]).__name__}: give the "
            "dataset a transform that makes tensors, as torchvision.transforms.ToTensor()"
        )
    yield from replace(split, workers=0).batches(chunks)
