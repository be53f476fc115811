"""A trained hash net with the database that its codes are searched in."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from apical import data, retrieval
from apical.bench.evaluate import trained_net
from apical.bench.training import build
from apical.core.convert import feedback_modules
from apical.retrieval.ranking import check_k


@dataclass(frozen=True, eq=False)
class Searched:
    """A hash net as an attacker meets it.

    Attributes: net: takes pixels in [0, 1]. images: of the database, in its order. k: of mAP@k,
        None for the whole database.
    """

    net: trained_net.Trained
    images: data.Batches
    k: int | None

    @cached_property
    def database(self) -> retrieval.Database:
        """The codes of the images. Of bits that never change whoever trained the net was warned.

        Raises: ValueError for codes that hold NaN, or a k that the database does not hold.
        """
        check_k(self.k, len(self.images.split))
        codes = [retrieval.encode(self.net.model, x).packed for x, _ in self.images.epoch(0)]
        assert self.net.bits is not None
        return _silent(retrieval.Codes(torch.cat(codes), self.net.bits), self.images.split.labels)

    @property
    def feedback(self) -> bool:
        """Whether the net has a gradient of its own, other than the exact one."""
        return any(True for _ in feedback_modules(self.net.model))

    def known(self, count: int) -> retrieval.Database:
        """A random part of the database with something of every class, the same for every net of
        these data.

        Raises: ValueError for a count below the number of classes.
        """
        whole, classes = self.database, self.database.labels.unique()
        if count < len(classes):
            raise ValueError(
                f"known={count} codes: there are {len(classes)} classes, of each of which the"
                " attacker needs one"
            )
        generator = torch.Generator().manual_seed(trained_net.CHOICE)
        order = torch.randperm(len(whole), generator=generator).tolist()
        labels = whole.labels.tolist()
        first = {labels[row]: row for row in reversed(order)}  # of each class the first drawn
        drawn = list(dict.fromkeys([*first.values(), *order]))[:count]
        rows = torch.tensor(sorted(drawn))
        return _silent(whole.codes[rows], whole.labels[rows])


def from_run(
    path: str | Path,
    *,
    device: str = "cpu",
    data_root: str | None = None,
    download: bool = True,
    trust: bool = False,
) -> Searched:
    """The hash net of a finished run.

    Args: trust: as of `trained_net.load_run`.
    Raises: ValueError as `trained.from_run`, and for a run that learned no codes.
    """
    net = trained_net.from_run(
        path, device=device, data_root=data_root, download=download, trust=trust
    )
    folder = Path(path)
    folder = folder.parent if folder.is_file() else folder
    experiment = trained_net.experiment_of(folder, trust=trust)
    if experiment.hashing is None:
        raise ValueError(f"{folder} learned classes, no codes: there is no retrieval to attack")
    unit = dataclasses.replace(experiment, pixels="unit")
    images = build.database(unit, net.images, torch.device(device))
    assert images is not None
    return Searched(net, images, experiment.hashing.k)


def _silent(codes: retrieval.Codes, labels: torch.Tensor) -> retrieval.Database:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", retrieval.ConstantBitWarning)
        return retrieval.Database(codes, labels)
