"""A trained hash net with the database that its codes are searched in."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from apical import data, hashing, prepare, trained
from apical.convert import feedback_modules
from apical.hashing.ranking import check_k


@dataclass(frozen=True, eq=False)
class Searched:
    """A hash net as an attacker meets it.

    Attributes: net: takes pixels in [0, 1]. images: of the database, in its order. k: of mAP@k,
        None for the whole database.
    """

    net: trained.Trained
    images: data.Batches
    k: int | None

    @cached_property
    def database(self) -> hashing.Database:
        """The codes of the images.

        Warns: ConstantBitWarning for bits that never change.
        Raises: ValueError for codes that hold NaN, or a k that the database does not hold.
        """
        check_k(self.k, len(self.images.split))
        codes = [hashing.encode(self.net.model, x).packed for x, _ in self.images.epoch(0)]
        assert self.net.bits is not None
        labels = self.images.split.labels
        return hashing.Database(hashing.Codes(torch.cat(codes), self.net.bits), labels)

    @property
    def feedback(self) -> bool:
        """Whether the net has a gradient of its own, other than the exact one."""
        return any(True for _ in feedback_modules(self.net.model))

    def known(self, count: int) -> hashing.Database:
        """A random part of the database, the same for every net of these data."""
        whole = self.database
        if count >= len(whole):
            return whole
        generator = torch.Generator().manual_seed(trained.CHOICE)
        rows = torch.randperm(len(whole), generator=generator)[:count].sort().values
        return hashing.Database(whole.codes[rows], whole.labels[rows])


def from_run(
    path: str | Path, *, device: str = "cpu", data_root: str | None = None, download: bool = True
) -> Searched:
    """The hash net of a finished run.

    Raises: ValueError as `trained.from_run`, and for a run that learned no codes.
    """
    net = trained.from_run(path, device=device, data_root=data_root, download=download)
    folder = Path(path)
    experiment = trained.experiment_of(folder.parent if folder.is_file() else folder)
    if experiment.hashing is None:
        raise ValueError(f"{folder} learned classes, no codes: there is no retrieval to attack")
    unit = dataclasses.replace(experiment, pixels="unit")
    images = prepare.database(unit, net.images, torch.device(device))
    assert images is not None
    return Searched(net, images, experiment.hashing.k)
