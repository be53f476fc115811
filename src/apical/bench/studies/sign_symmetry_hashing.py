"""Hash nets fine-tuned without weight transport, and attacks on their retrieval.

A paper proposes to fine-tune trained nets by sign-symmetric rules, for retrieval by hash codes too,
and finds retrieval kept and robustness gained (Berriche, Adjal, Baghdadi 2025, arXiv 2502.05925).
Its settings and tables are not known to us: everything here is our preset. Its attacks follow the
gradient that the net learns from; here they follow the exact one as well.
"""

import dataclasses
from collections.abc import Iterator
from typing import Any

from apical.bench.evaluate.retrieval import Evaluation
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.loss_settings import Hashing
from apical.bench.experiment.training_settings import Schedule
from apical.bench.studies.base import FROZEN, REDRAWN, Entry, Search, Study
from apical.nets.pretrained import Start

TITLE = "Hash nets fine-tuned by sign-symmetric rules, under attack"
RULES = ("bp", "usf", "brsf", "frsf", "fa", FROZEN, REDRAWN)
LOSSES: dict[str, str | dict[str, Any]] = {
    "CSQ": "csq",
    "DPSH": {"loss": "dpsh", "pair_weight": "balanced"},
    "HashNet": "hashnet",
    "DPH": {"loss": "dph", "pair_weight": "balanced"},
    "DSH": {"loss": "dsh", "pair_weight": "balanced"},
    "DPN": "dpn",
}
LENGTHS: dict[str, tuple[int, ...]] = {"smoke": (16,), "short": (32,), "full": (16, 32, 64)}
"""Bits of the codes, by tier."""
SMALL = {"net": "vgg", "net_options": {"widths": [16, 32, 64]}}
MOMENTUM = {"momentum": 0.9}
SEARCHED = (0.01, 0.03, 0.1, 0.3)
"""Learning rates tried for every rule and loss."""


def sign_symmetry_hashing(tier: str, seeds: int) -> Study:
    """Codes by BP, uSF, brSF, frSF, FA from trained nets; HAG and SDHA by both gradients."""
    losses = tuple(LOSSES) if tier == "full" else ("CSQ", "DPSH")
    entries, searches, attacked = [], {}, {}
    for name, base, evaluation in _data(tier):
        held_out = 300 if base.data == "digits" else 5000
        for loss in losses:
            for bits in LENGTHS[tier]:
                setting = f"{name}, {loss} {bits} bits"
                hashed = dataclasses.replace(base, hashing=Hashing(bits, LOSSES[loss]))
                entries += list(_entries(setting, hashed, seeds))
                searches[setting] = Search(
                    SEARCHED, max(base.epochs // 2, 1), base.schedule, held_out
                )
                attacked[setting] = evaluation
    return Study(
        "sign-symmetry-hashing",
        TITLE,
        tier,
        tuple(entries),
        notes=_notes(tier),
        search=searches,
        evaluations=attacked,
        surrogate="bp",
    )


def _data(tier: str) -> Iterator[tuple[str, Experiment, Evaluation]]:
    """Name, experiment and attack of each data set of a tier."""
    if tier == "smoke":
        yield (
            "digits",
            _tuned("digits", "letters", SMALL, size=8, epochs=12, before=12),
            Evaluation(eps=(0.05, 0.1), queries=150, known=300, steps=30),
        )
        return
    cifar = {"net": "resnet20", "augment": "flip_crop"}
    if tier == "full":
        wide = {"net": "vgg", "net_options": {"widths": [16, 32, 64, 128]}}
        yield (
            "MNIST",
            _tuned("mnist", "fashion_mnist", wide, epochs=3, before=3),
            Evaluation(eps=(0.1, 0.2), queries=300),
        )
    epochs, before = (20, 100) if tier == "full" else (3, 10)
    yield (
        "CIFAR-10",
        _tuned("cifar10", "cifar10", cifar, epochs=epochs, before=before),
        Evaluation(
            eps=(2 / 255, 8 / 255),
            queries=1000 if tier == "full" else 300,
            steps=100 if tier == "full" else 50,
        ),
    )


def _tuned(
    source: str,
    first: str,
    net: dict[str, Any],
    *,
    epochs: int,
    before: int,
    size: int | None = None,
) -> Experiment:
    """Codes of one data set from a classifier of another.

    Args: before: epochs of the classifier. size: of the images of both.
    """
    schedule = Schedule("cosine")
    common = {**net, "size": size, "batch_size": 64 if source == "digits" else 128}
    common |= {"optimizer_options": MOMENTUM, "lr": 0.05}
    start = {**common, "data": first, "epochs": before, "probe_every": 0}
    start |= {"schedule": dataclasses.asdict(schedule)}
    return Experiment(data=source, epochs=epochs, schedule=schedule, start=Start(start), **common)


def _entries(setting: str, base: Experiment, seeds: int) -> Iterator[Entry]:
    """Each seed has a start of its own, which its rules share."""
    for rule in RULES:
        for seed in range(seeds):
            source = base.start.source
            assert isinstance(source, dict)
            start = dataclasses.replace(base.start, source={**source, "seed": seed})
            experiment = dataclasses.replace(base, rule=rule, seed=seed, start=start)
            yield Entry(setting, rule, experiment)


def _notes(tier: str) -> tuple[str, ...]:
    notes = [
        "Presets of ours: the settings of the paper that proposes this are not known.",
        "Every net starts from a classifier that backprop trained, one for each seed "
        f"({'capital letters' if tier == 'smoke' else 'MNIST: Fashion-MNIST; CIFAR-10: itself'}); "
        "its last layer is new. Rules take the size of their feedback from the weights (scale "
        "norm) and hold for all layers, the last one too. Frozen: the last layer alone learns.",
        "Queries are test images, the database is the training split. Average precision over the "
        "whole ranking, ties at their mean.",
        "DPSH is balanced (alike and other pairs count half each).",
    ]
    if tier == "smoke":
        notes.append("150 queries, attacks of 30 steps: published ones have 1,500 and more.")
    return tuple(notes)
