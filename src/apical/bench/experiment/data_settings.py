"""Settings of the data."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from apical.bench.experiment.settings import Settings, setting


@dataclass(frozen=True)
class DataSettings(Settings):
    """The data set, how it is split, and in which form the net receives it.

    Args:
        data: name of a data set (``apical list data``), ``folder:PATH`` of images, or
            ``package.module:function`` that returns them.
        size: side of the images in pixels; absent: as stored.
        train_images: images of the training split that are trained on, the same for every seed
            (>= 1; absent: all). To compare rules where the whole set would take too long.
        validation: images, or sequences of a task, to select by (0: none). Images are held out of
            the training split.
        test: read the test split, once, at the end. Runs that only serve to choose do not.
        test_images: images of the test split that are read, the same for every net (>= 1; absent:
            all).
        test_at: epochs, rising, after which the test split is read as well, to follow a published
            curve; nothing is selected by it.
        pixels: ``standard``: less the mean, over the standard deviation of the data set, per
            channel; ``unit``: in [0, 1].
        shuffle: a new random order of the training images in every epoch; else as stored.
        drop_last: leave out the images at the end of an epoch that fill no batch.
        augment: ``flip_crop``: mirror and crop after padding by 4 pixels, as usual for CIFAR;
            ``zoom_flip``: random area and aspect, mirror (image folders only).
    """

    data: str = setting("digits", not_with=("task",))
    size: int | None = setting(None, "[1, inf)", not_with=("task",))
    train_images: int | None = setting(None, "[1, inf)", not_with=("task",))
    validation: int = setting(0, "[0, inf)")
    test: bool = True
    test_images: int | None = setting(None, "[1, inf)", not_with=("task",))
    test_at: tuple[int, ...] = ()
    pixels: Literal["standard", "unit"] = setting("standard", not_with=("task",))
    shuffle: bool = setting(True, not_with=("task", "augment"))
    drop_last: bool = setting(False, not_with=("task",))
    augment: Literal["none", "flip_crop", "zoom_flip"] = setting("none", not_with=("task",))

    label: ClassVar[str] = "data"

    def problems(self) -> list[str]:
        found = super().problems()
        if not (self.test or self.validation):
            found.append("test=False without validation: nothing would be measured")
        if self.test_at and not self.test:
            found.append(f"test_at={self.test_at} cannot be combined with test=False")
        return found
