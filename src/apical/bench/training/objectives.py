"""What a run descends and what it counts as right: of scores, or of hash codes."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from apical import data
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.loss_settings import Hashing
from apical.bench.training import evaluate
from apical.bench.training.evaluate import LOSSES, Loss
from apical.data import sequences
from apical.retrieval.codes import Codes, ConstantBitWarning, pack, relax
from apical.retrieval.database import Database
from apical.retrieval.losses import CentreLoss, HashLoss
from apical.retrieval.measures import mean_average_precision, precision_recall, precision_within
from apical.retrieval.ranking import check_k

Split = data.Batches | sequences.Stream

RADIUS = 2
"""Hamming radius within which precision is measured."""


@dataclass(frozen=True, eq=False)
class OfScores:
    """Scores of classes, or numbers, as the split says; the loss goes by its name."""

    name: str
    label_smoothing: float
    train: Split

    @property
    def loss(self) -> Loss:
        """From outputs and targets; `reduction`, "mean" (default) or "sum" over examples."""
        return LOSSES[self.name]

    def training(self, step: Callable[[], int]) -> Loss:
        """The loss that is descended, a mean. Args: step: optimizer steps done so far."""
        if not self.label_smoothing:
            return self.loss
        return partial(self.loss, label_smoothing=self.label_smoothing)

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Which examples of a training batch are right, (N,) bool."""
        return self.train.correct(outputs, targets)

    def scores(self, model: nn.Module, split: Split, autocast: Any) -> dict[str, float]:
        """``loss``, ``acc`` (share that is right) and further measures of a split."""
        loss, accuracy = evaluate.evaluate(model, split, autocast, self.loss)
        return {"loss": loss, "acc": accuracy}

    def course(self, model: nn.Module, split: Split, autocast: Any) -> list[dict[str, float]]:
        """Rows of measures of the trained net on a split that are curves."""
        return []


@dataclass(frozen=True, eq=False)
class OfCodes:
    """Hash codes, with the methods of `OfScores`. An example is right if its nearest code is of its
    class: in training among the batch, of a split among the database, ties at their mean. mAP and
    precision are in [0, 1], too."""

    options: Hashing
    learned: HashLoss
    database: data.Batches

    @property
    def loss(self) -> Loss:
        return partial(self._loss, sharpness=1.0)

    def training(self, step: Callable[[], int]) -> Loss:
        steeper = self.options.continuation
        if steeper is None:
            return self.loss
        return lambda outputs, targets: self._loss(
            outputs, targets, sharpness=steeper.sharpness(step())
        )

    def correct(self, outputs: Tensor, targets: Tensor) -> Tensor:
        codes = (outputs >= 0).float() * 2 - 1
        alike = (codes @ codes.T).fill_diagonal_(-torch.inf)
        return (targets[alike.argmax(1)] == targets) & (len(targets) > 1)

    def scores(self, model: nn.Module, split: Split, autocast: Any) -> dict[str, float]:
        loss, queries, labels = self._encoded(model, split, autocast)
        database = self._database(model, autocast)
        mean = partial(mean_average_precision, queries, labels, database, ties="expected")
        return {
            "loss": loss,
            "acc": mean(k=1),
            "map": mean(k=self.options.k),
            "precision2": precision_within(
                queries, labels, database, min(RADIUS, self.options.bits)
            ),
            "constant_bits": len(database.codes.constant_bits()),
        }

    def course(self, model: nn.Module, split: Split, autocast: Any) -> list[dict[str, float]]:
        """Precision and recall within each Hamming radius, 0 to the number of bits.

        Warns: ConstantBitWarning for bits that never change, unless the loss asks for it.
        """
        _, queries, labels = self._encoded(model, split, autocast)
        database = self._database(model, autocast)
        idle = set(database.codes.constant_bits())
        if isinstance(self.learned, CentreLoss):  # some bits are alike in all its centres
            centres = pack(self.learned.centres(self.options.bits))
            idle -= set(centres.constant_bits())
        if idle:
            warnings.warn(
                f"{len(idle)} of {self.options.bits} bits are the same in all {len(database)} codes"
                f" of the database ({', '.join(map(str, sorted(idle)))}), so they find nothing: a"
                " smaller learning rate or balanced pair weights may help",
                ConstantBitWarning,
                stacklevel=2,
            )
        found = precision_recall(queries, labels, database)
        pairs = zip(found.precision.tolist(), found.recall.tolist(), strict=True)
        return [{"radius": r, "precision": p, "recall": c} for r, (p, c) in enumerate(pairs)]

    def _loss(
        self,
        outputs: Tensor,
        targets: Tensor,
        *,
        sharpness: float,
        reduction: Literal["mean", "sum"] = "mean",
    ) -> Tensor:
        # pairs are a mean over a batch: summed over batches it counts each by its images
        mean: Tensor = self.learned(relax(outputs.float(), sharpness), targets)
        return mean if reduction == "mean" else mean * len(targets)

    def _database(self, model: nn.Module, autocast: Any) -> Database:
        _, codes, labels = self._encoded(model, self.database, autocast)
        with warnings.catch_warnings():  # said at the end of a run, of what the loss did not ask
            warnings.simplefilter("ignore", ConstantBitWarning)
            return Database(codes, labels)

    @torch.no_grad()
    def _encoded(
        self, model: nn.Module, split: Split, autocast: Any
    ) -> tuple[float, Codes, Tensor]:
        """Loss, codes and labels of a split, in eval mode."""
        training = model.training
        model.eval()
        outputs, labels, loss = [], [], 0.0
        for x, y in split.epoch(0):
            with autocast():
                found = model(x)
            loss += self.loss(found, y, reduction="sum").item()
            outputs.append(found.float())
            labels.append(y)
        model.train(training)
        if not labels:
            raise ValueError("a split without images cannot be evaluated")
        targets = torch.cat(labels)
        return loss / len(targets), pack(torch.cat(outputs)), targets


Objective = OfScores | OfCodes
"""What a run descends, and what it measures of a split."""


def build(experiment: Experiment, train: Split, database: data.Batches | None) -> Objective:
    """The objective of an experiment. Args: database: what hash codes are searched in.

    Raises: ValueError if the classes or the database do not fit the options of retrieval.
    """
    if experiment.hashing is None or database is None:
        return OfScores(experiment.objective, experiment.label_smoothing, train)
    labels = database.split.labels
    check_k(experiment.hashing.k, len(labels))
    return OfCodes(experiment.hashing, experiment.hashing.loss_for(int(labels.max()) + 1), database)
