"""The splits of a data set as an experiment uses them: training, validation, test."""

import hashlib
from typing import Any

import torch
from torch import Tensor

from apical import data
from apical.bench.experiment.experiment import Experiment

EVALUATION_BATCH = 500
"""Examples in a batch that is only evaluated."""


def of_images(
    experiment: Experiment,
    images: data.ImageData,
    device: torch.device,
    *,
    shard: tuple[int, int] = (0, 1),
) -> tuple[tuple[data.Batches, data.Batches | None, data.Batches], tuple[Tensor, Tensor] | None]:
    """Batches of the training, validation and test splits; and the batch that is measured: the
    first training images, never augmented or shuffled; where these are of one class, evenly spaced.

    Args: shard: number of this process, and how many share the training split.
    """
    _check_loader(experiment, images)
    shared = common(experiment, images, device)
    split, validation = images.train, None
    # chosen alike for every seed and rule, so that what is compared is compared on one split
    if experiment.validation:
        split, held_out = data.split_validation(split, experiment.validation, 0)
        validation = data.Batches(held_out, EVALUATION_BATCH, **shared)
    split = _some(split, experiment.train_images, "train_images", "training split")
    train = data.Batches(
        split,
        experiment.batch_size,
        augment=experiment.augment,
        shuffle_seed=experiment.seed if experiment.shuffle else None,
        drop_last=experiment.drop_last,
        shard=shard,
        **shared,
    )
    if not len(train):
        raise ValueError(
            f"drop_last with batch_size={experiment.batch_size}: the {len(split)} training"
            " images fill no batch; use a smaller batch or drop_last=False"
        )
    read = _some(images.test, experiment.test_images, "test_images", "test split")
    batches = train, validation, data.Batches(read, EVALUATION_BATCH, **shared)
    if not experiment.probe_every:
        return batches, None
    count = min(experiment.probe_images, len(split))
    places = torch.arange(count)
    if len(split.labels[:count].unique()) == 1:  # sorted by class, as image folders are
        places = torch.linspace(0, len(split) - 1, count).long()
    measured = data.Batches(split.take(places), count, **shared)
    return batches, next(iter(measured.epoch(0)))


def content(*splits: Any) -> str:
    """Digest of the images and labels of splits; of images on disk, of their labels alone, and of
    tasks, whose sequences follow from the settings, of nothing."""
    total = hashlib.sha256()
    for split in (batches.split for batches in splits if isinstance(batches, data.Batches)):
        for value in vars(split).values():
            if isinstance(value, Tensor):
                flat = value.cpu().contiguous().view(-1).view(torch.uint8)
                total.update(flat.numpy().data)
    return total.hexdigest()


def normalisation(
    experiment: Experiment, images: data.ImageData
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """What is taken from pixels in [0, 1], and what then divides them, per channel."""
    if experiment.pixels == "unit":
        channels = images.shape[0]
        return (0.0,) * channels, (1.0,) * channels
    return images.mean, images.std


def common(experiment: Experiment, images: data.ImageData, device: torch.device) -> dict[str, Any]:
    """What all batches of images share."""
    mean, std = normalisation(experiment, images)
    layout = experiment.channels_last
    return {"mean": mean, "std": std, "device": device, "channels_last": layout}


def _check_loader(experiment: Experiment, images: data.ImageData) -> None:
    """Data that came as a loader say how they are cut into batches, and so does the experiment."""
    other = [
        f"{name}={value} (here {getattr(experiment, name)})"
        for name, value in images.loader.items()
        if value != getattr(experiment, name)
    ]
    if other:
        flags = " ".join(f"--{name} {str(v).lower()}" for name, v in images.loader.items())
        raise ValueError(
            f"data={images.name!r} are a DataLoader with {', '.join(other)}: give its settings to "
            f"the experiment ({flags}), or return its dataset"
        )


def _some(split: data.Images, wanted: int | None, field: str, name: str) -> data.Images:
    """So many images of a split, always the same ones; all of them for None."""
    if wanted is not None and wanted > len(split):
        raise ValueError(f"{field}={wanted}: the {name} has {len(split)} images")
    if wanted is None or wanted == len(split):
        return split
    return data.split_validation(split, wanted, 1)[1]
