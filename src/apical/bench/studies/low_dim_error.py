"""Low-dimensional error feedback: rank against the number of classes, learned or fixed.

Hanut and Kadmon (arXiv 2502.20580) say that feedback of as many dimensions as the task has suffices
if the projection learns, whatever the width, and that a fixed one misassigns credit. They give no
table of accuracies to compare with; what can be checked is the angle of each layer's update to
backprop's: learned below fixed at rank 10 (the classes), and worse below that rank.
"""

import dataclasses
from typing import Any

from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.studies.base import CONTROLS, Entry, Search, Study, entries, with_rules

TITLE = "Low-dimensional error feedback: ranks below, at and above the number of classes"
ACCURACY_TITLE = "Low-dimensional error feedback: accuracy at the rank of the task"
CLASSES = 10
RANKS = (CLASSES // 2, CLASSES, 2 * CLASSES)
NOTES = (
    "Published values: none; the source gives figures without numbers.",
    "r: dimensions of the error each layer sends down. The output layer sends at most as many as"
    " it has units. Learned: Oja's rule on the error. P is orthonormal and Q drawn alike in both.",
)
ANGLES_NOTE = (
    "Every row of a setting has the same learning rate and epochs; none was tuned. The share of W"
    " that KP and the low-dimensional rules lose at every update, without which feedback does not"
    " align, BP and FA lose in the rows named so, by the optimizer's weight decay, of biases too."
    " A fixed P passes a small part of W's norm, |B| = |W| restores it in every layer at every"
    " step."
)
SHORT_NOTE = (
    "Tier short trains on parts of the training splits, for a few epochs, and has the rows with"
    " decay and |B| = |W| for the dense nets only."
)

TEN, FIVE = "CIFAR-10 VGG", "CIFAR-10 VGG, 5 classes"
TRAINED_EPOCHS = {"smoke": 1, "short": 10, "full": 100}
TRIED_EPOCHS = {"short": 2, "full": 10}
RATES = (0.003, 0.01, 0.03)
TRAINED_DECAY = 5e-4
"""Share of W that low-dimensional rules lose at every update at full training, of some 8,000
updates and more: alignment takes some 5 / decay."""
TRAINED_NOTE = (
    "The learning rate of every row is chosen alike, from "
    + ", ".join(map(str, RATES))
    + " and beyond where a choice lies at an edge, by three seeds on 5,000 held-out training "
    "images (not in tier smoke). Of five classes (the first five of CIFAR-10) the error has five "
    "dimensions: rank 5 should do for them what rank 10 does for ten classes."
)

VGG: dict[str, dict[str, Any]] = {
    "smoke": {"widths": [32, 32, 32, 32]},
    "short": {"widths": [32, 64, 64, 64]},
    "full": {"widths": [64, 128, 256, 512], "dropout": 0.4},
}
VIT: dict[str, dict[str, Any]] = {
    "smoke": {"dim": 32, "depth": 1},
    "short": {"dim": 64, "depth": 2, "mlp_ratio": 2},
    "full": {"dim": 128, "depth": 4},
}
PROJECTIONS = {"oja": "learned", "fixed": "fixed"}
OUTPUT = {"mlp": "fc5", "vgg": "fc", "vit": "head"}
"""The output layer of each net."""


def low_dim_error(tier: str, seeds: int) -> Study:
    """Backprop, FA, Kolen-Pollack, low-dimensional rules and both controls on four nets: angles."""
    runs: list[Entry] = []
    for setting, base in settings(tier).items():
        runs += entries(setting, rows(base, tier), seeds)
    notes = (*NOTES, ANGLES_NOTE, *([] if tier == "full" else [SHORT_NOTE]))
    return Study("low-dim-error", TITLE, tier, tuple(runs), notes=notes)


def low_dim_accuracy(tier: str, seeds: int) -> Study:
    """Accuracies on all training images, for tasks of ten and five classes; every row tuned."""
    runs, searches = [], {}
    for setting, base in trained_nets(tier).items():
        runs += entries(setting, with_rules(base, trained_rows(base)), seeds)
        if tier != "smoke":
            searches[setting] = Search(
                RATES,
                TRIED_EPOCHS[tier],
                Schedule("cosine"),
                5000,
                chance=0.8 if setting == FIVE else 0.9,
            )
    notes = (*NOTES, TRAINED_NOTE)
    return Study(
        "low-dim-accuracy", ACCURACY_TITLE, tier, tuple(runs), notes=notes, search=searches
    )


def settings(tier: str) -> dict[str, Experiment]:
    """What is trained on what, without a rule."""
    sgd: dict[str, Any] = {"lr": 0.01, "optimizer_options": {"momentum": 0.9}}
    adamw: dict[str, Any] = {"lr": 1e-3, "optimizer": "adamw"}
    mlp: dict[str, Any] = {"net": "mlp", "net_options": {"hidden": [512] * 4}, **sgd}
    vgg: dict[str, Any] = {"net": "vgg", "net_options": VGG[tier], "channels_last": True, **sgd}
    vit: dict[str, Any] = {"net": "vit", "net_options": VIT[tier], **adamw}
    nets = {
        "MNIST MLP": ("mnist", mlp, 20_000, 64, 5),
        "CIFAR-10 MLP": ("cifar10", mlp, 15_000, 64, 6),
        "CIFAR-10 VGG": ("cifar10", vgg, 8_000, 32, 5),
        "CIFAR-10 ViT": ("cifar10", vit, 8_000, 32, 5),
    }
    return {
        setting: _sized(Experiment(data=data, batch_size=batch, **net), tier, images, epochs)
        for setting, (data, net, images, batch, epochs) in nets.items()
    }


def trained_nets(tier: str) -> dict[str, Experiment]:
    """The VGG-like net on all training images, until it has learned: ten classes, and five."""
    base = Experiment(
        data="cifar10",
        train_images=320 if tier == "smoke" else None,
        net="vgg",
        net_options=VGG[tier],
        channels_last=True,
        batch_size=64,
        optimizer_options={"momentum": 0.9},
        epochs=TRAINED_EPOCHS[tier],
        schedule=Schedule("cosine"),
        augment="flip_crop",
        probe_every=4,
    )
    return {TEN: base, FIVE: dataclasses.replace(base, data="cifar10_first5")}


def trained_rows(base: Experiment) -> dict[str, str | dict[str, Any]]:
    """What is compared at full training, by label."""
    outputs = 5 if base.data == "cifar10_first5" else CLASSES
    ranks = low_dimensional(base, (CLASSES // 2, CLASSES), TRAINED_DECAY, outputs)
    return {"bp": "bp", "fa": "fa", **ranks, **CONTROLS}


def rows(base: Experiment, tier: str) -> dict[str, Experiment]:
    """What is compared in a setting, by label."""
    decay = 1e-4 if tier == "full" else 2e-3  # alignment takes some 5 / decay steps
    table = with_rules(base, rules(base, decay))
    if tier == "full" or base.net == "mlp":
        table |= controls(base, decay)
    return table


def controls(base: Experiment, decay: float) -> dict[str, Experiment]:
    """Backprop and FA with the decay of the others, and feedback of one norm, learned and fixed."""
    decaying = losing(base, decay)
    made = with_rules(decaying, {"bp decay": "bp", "fa decay": "fa"})
    for projection, label in PROJECTIONS.items():
        rule = {**factored(base, CLASSES, projection, decay), "scale": "norm"}
        made[f"r={CLASSES} {label}, |B| = |W|"] = dataclasses.replace(base, rule=rule)
    return made


def losing(base: Experiment, decay: float) -> Experiment:
    """The experiment with an optimizer that takes this share of the weights at every update.

    Of SGD with momentum it is the share once the momentum has settled.
    """
    options = base.optimizer_options
    pace = base.lr / (1 - options.get("momentum", 0.0))
    return dataclasses.replace(base, optimizer_options={**options, "weight_decay": decay / pace})


def rules(base: Experiment, decay: float) -> dict[str, str | dict[str, Any]]:
    """The rules of a setting by their labels."""
    kp = {"rule": "kp", "decay": decay}
    ranks = low_dimensional(base, RANKS, decay, CLASSES)
    return {"bp": {"rule": "bp"}, "fa": "fa", "kp": kp, **ranks, **CONTROLS}


def low_dimensional(
    base: Experiment, ranks: tuple[int, ...], decay: float, outputs: int
) -> dict[str, dict[str, Any]]:
    """A learned and a fixed projection of each rank, by label; of the output layer the rank is at
    most the number of outputs."""
    made = {}
    for rank in ranks:
        for projection, label in PROJECTIONS.items():
            rule = factored(base, rank, projection, decay)
            if rank > outputs:
                rule = {OUTPUT[base.net]: {**rule, "rank": outputs}, "*": rule}
            made[f"r={rank} {label}"] = rule
    return made


def factored(base: Experiment, rank: int, projection: str, decay: float) -> dict[str, Any]:
    """Low-dimensional feedback that follows the updates of the experiment's optimizer."""
    rule = {"rule": "ldfa", "decay": decay, "rank": rank, "projection": projection}
    # the gradient's law holds under SGD alone
    return rule if base.optimizer == "sgd" else {**rule, "follows": "update"}


def _sized(base: Experiment, tier: str, images: int, epochs: int) -> Experiment:
    if tier == "smoke":
        return dataclasses.replace(base, train_images=320, epochs=1)
    if tier == "short":
        return dataclasses.replace(base, train_images=images, epochs=epochs)
    augment: Any = "flip_crop" if base.data == "cifar10" and base.net != "mlp" else "none"
    schedule = Schedule("cosine")
    return dataclasses.replace(
        base, epochs=100, augment=augment, schedule=schedule, probe_every=5, batch_size=128
    )
