"""Epochs of normalised batches, each a function of (seed, epoch) only, and their augmentation."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F

from apical.data.images import Images
from apical.names import unknown

PAD = 4
"""Pixels of padding on each side before a random crop."""
AUGMENTS = ("flip_crop", "none", "zoom_flip")
Batch = tuple[torch.Tensor, torch.Tensor]


class Batches:
    """Batches of a split, on a device.

    The order and the augmentation of epoch e depend on (shuffle_seed, e) only, so that a resumed
    run gets the same bits, and the CPU and a GPU the same images. Global generators are not used.

    Args: batch_size: images in a batch, >= 1.
        mean, std: per channel, of pixels in [0, 1]; for uint8 images, other inputs are not
            normalised.
        augment: "none"; "flip_crop" (4 pixels of padding, random crop, mirrored with probability
            1/2); "zoom_flip" (image folders only: random area and aspect, mirrored likewise).
        shuffle_seed: None = the order of the split, without augmentation.
        drop_last: leave out a last batch of fewer images.
        device: where the batches go; images in memory are moved there once.
        channels_last: memory layout of the images.
        shard: (rank, world): this process's equal part of every batch. A last batch that does
            not divide loses at most world - 1 images.
    Raises: ValueError for settings out of range.
    """

    def __init__(
        self,
        split: Images,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        augment: Literal["flip_crop", "none", "zoom_flip"] = "none",
        shuffle_seed: int | None = None,
        drop_last: bool = False,
        device: torch.device | str = "cpu",
        channels_last: bool = False,
        shard: tuple[int, int] = (0, 1),
    ) -> None:
        self.batch_size = batch_size
        self.augment = augment
        self.shuffle_seed = shuffle_seed
        self.drop_last = drop_last
        self.device = torch.device(device)
        self.channels_last = channels_last
        self.shard = shard
        self._check(split, mean, std)
        self.split = split.to(device)
        # (pixel / 255 - mean) / std as one product and one sum
        std_C11 = torch.tensor(std, dtype=torch.float64).view(-1, 1, 1)
        mean_C11 = torch.tensor(mean, dtype=torch.float64).view(-1, 1, 1)
        self._scale = (1 / (255 * std_C11)).float().to(self.device)
        self._shift = (-mean_C11 / std_C11).float().to(self.device)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return len(self._cut(torch.arange(len(self.split))))

    def epoch(self, number: int) -> Iterator[Batch]:
        """The batches of epoch `number`: (x float32 normalised (N, C, H, W), y int64 (N,))."""
        count = len(self.split)
        if self.shuffle_seed is None:
            order = torch.arange(count)
        else:
            order = torch.randperm(count, generator=self._generator("order", number))
        draws = self._draws(number, count)
        zooms = draws if self.augment == "zoom_flip" else None
        crops = draws if self.augment == "flip_crop" else None
        for i, (images, labels) in enumerate(self.split.batches(self._cut(order), zooms)):
            images = images.to(self.device, non_blocking=True)
            if crops is not None:
                images = flip_crop(images, crops[i])
            yield self._normalised(images), labels.to(self.device, non_blocking=True)

    def correct(self, scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Which inputs are classified correctly, (N,) bool."""
        return scores.argmax(1) == labels

    def _check(self, split: Images, mean: Sequence[float], std: Sequence[float]) -> None:
        if self.augment not in AUGMENTS:
            raise unknown("augmentation", self.augment, AUGMENTS)
        random = self.augment != "none"
        problems = []
        if not isinstance(self.batch_size, int) or self.batch_size < 1:
            problems.append(f"batch_size={self.batch_size} must be a whole number of at least 1")
        positive = all(each > 0 for each in std)
        if len(mean) != split.shape[0] or len(std) != split.shape[0] or not positive:
            problems.append(
                f"mean={tuple(mean)} and std={tuple(std)} must have one value for each of the "
                f"{split.shape[0]} channels, std above 0"
            )
        if len(split.shape) != 3 and (random or self.channels_last):
            problems.append(f"augment and channels_last need images, not inputs of {split.shape}")
        if random and self.shuffle_seed is None:
            problems.append(f"augment={self.augment!r} is random: it needs a shuffle_seed")
        rank, world = self.shard
        if not 0 <= rank < world or self.batch_size % max(world, 1):
            problems.append(
                f"shard={self.shard} must be (rank, world), world dividing {self.batch_size}"
            )
        if problems:
            raise ValueError("Batches: " + "; ".join(problems))

    def _normalised(self, images: torch.Tensor) -> torch.Tensor:
        if images.dtype == torch.uint8:
            x = images.float().mul_(self._scale).add_(self._shift)
        else:  # the user's inputs reach the net as they are
            x = images
        # last: on the CPU floats change their layout three times faster than bytes
        return x.contiguous(memory_format=torch.channels_last) if self.channels_last else x

    def _draws(self, number: int, count: int) -> list[torch.Tensor] | None:
        if self.augment == "none":
            return None
        generator = self._generator(self.augment, number)
        if self.augment == "flip_crop":
            return self._cut(flip_crop_draws(count, generator))
        return self._cut(torch.rand(count, 5, generator=generator))

    def _cut(self, rows: torch.Tensor) -> list[torch.Tensor]:
        """`rows` (one for each image of the epoch) as this process's batches."""
        rank, world = self.shard
        batches = list(rows.split(self.batch_size))
        if self.drop_last and batches and len(batches[-1]) < self.batch_size:
            batches.pop()
        parts = [batch[: len(batch) // world * world].chunk(world) for batch in batches]
        return [part[rank] for part in parts if len(part) == world and len(part[0])]

    def _generator(self, purpose: str, number: int) -> torch.Generator:
        # hashed: neighbouring seeds and epochs must not give related streams
        text = f"{purpose}:{self.shuffle_seed}:{number}".encode()
        seed = int.from_bytes(hashlib.sha256(text).digest()[:8], "big") >> 1
        return torch.Generator().manual_seed(seed)


def flip_crop_draws(count: int, generator: torch.Generator) -> torch.Tensor:
    """Random numbers for `flip_crop`: row offset, column offset in [0, 2 PAD], flip in {0, 1}.

    Shapes: (count, 3), int64, on the CPU.
    """
    offsets = torch.randint(0, 2 * PAD + 1, (count, 2), generator=generator)
    flips = torch.randint(0, 2, (count, 1), generator=generator)
    return torch.cat([offsets, flips], dim=1)


def flip_crop(images: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Pad by PAD zero pixels, crop to the old size at a random place, mirror with probability 1/2.

    One gather for the whole batch: 5 times faster than a loop over images, on any device.
    Shapes: images uint8 (N, C, H, W); draws (N, 3) of `flip_crop_draws`.
    Source: He et al. 2016 (arXiv 1512.03385), section 4.2; Lee et al. 2015.
    """
    count, channels, height, width = images.shape
    row, column, flip = draws.to(images.device).unbind(1)
    rows = row[:, None] + torch.arange(height, device=images.device)
    columns = torch.arange(width, device=images.device).expand(count, width)
    columns = torch.where(flip[:, None] == 1, width - 1 - columns, columns) + column[:, None]
    flat = rows[:, :, None] * (width + 2 * PAD) + columns[:, None, :]
    flat = flat.reshape(count, 1, height * width).expand(count, channels, height * width)
    padded = F.pad(images, (PAD, PAD, PAD, PAD))
    return padded.flatten(2).gather(2, flat).view(count, channels, height, width)
