"""The benchmarks of BioTorch (Sanfiz and Akrout 2021): its settings and its published values.

Hyper-parameters: its configuration files and ``Benchmarks.md`` (release 0.0.16, commit 74fad0d).
Published values: top-1 test errors in %, one seed each. Differences that stay, all said in the
notes of each study: its "validation" split was the test split for all but CIFAR-10, where the
best of all epochs on validation was reported; here the last epoch is, and the test split is read
once.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.studies.base import CONTROLS, RULES, Search, Study, entries, with_rules
from apical.bench.studies.published import Published

SOURCE = "BioTorch, Benchmarks.md (2021)"
LABELS = tuple(RULES)
TUNED: dict[str, str | dict[str, Any]] = {
    **RULES,
    "kp": {"rule": "kp", "decay": 1e-4},
    **CONTROLS,
}

MNIST = (0.91, 1.7, 1.61, 0.94, 0.91, 0.97)
FASHION = (9.2, 13.06, 12.81, 9.69, 10.02, 9.61)
CIFAR10 = {
    "LeNet SGD": (14.23, 46.69, 54.21, 16.22, 16.02, 16.86),
    "LeNet Adam": (15.92, 40.67, 37.59, 16.34, 17.08, 16.83),
    "ResNet-20 SGD": (8.63, 32.16, 45.94, 10.05, 11.02, 11.2),
    "ResNet-20 Adam": (10.01, 29.59, 32.16, 10.59, 11.08, 11.22),
}
IMAGENET = (30.39, 85.25, 82.45, 34.97, 37.21, 36.5)

CIFAR10_RATES = {
    "LeNet SGD": (0.1, 0.001, 1e-4, 0.1, 0.1, 0.1),
    "LeNet Adam": (0.001, 1e-4, 1e-4, 0.001, 0.001, 0.001),
    "ResNet-20 SGD": (0.1, 0.1, 0.001, 0.1, 0.1, 0.1),
    "ResNet-20 Adam": (0.001, 0.001, 0.001, 0.001, 0.001, 0.001),
}

PUBLISHED_RATE = ", published rate"
"""Behind the labels of rows that keep the rate of the source."""

RATES = {"sgd": (0.001, 0.003, 0.01, 0.03), "adam": (1e-4, 3e-4, 0.001)}
"""Learning rates tried by optimizer. With two extensions they reach 0.3, and 1e-4, which direct
feedback of the kernel layout needs."""


def mnist(tier: str, seeds: int) -> Study:
    """LeNet on MNIST: 100 epochs, SGD, x0.1 after 50 and 75; the initial rate is chosen."""
    return _mnist_like("mnist", "MNIST", MNIST, tier, seeds)


def fashion(tier: str, seeds: int) -> Study:
    """LeNet on Fashion-MNIST, as on MNIST."""
    return _mnist_like("fashion_mnist", "Fashion-MNIST", FASHION, tier, seeds)


def cifar10(tier: str, seeds: int) -> Study:
    """LeNet and ResNet-20 on CIFAR-10, SGD and Adam: 250 epochs, x0.1 after 100, 150, 200.

    At the published rates; in tier full also tuned. The controls and Kolen-Pollack have no
    published rate.
    """
    epochs = {"smoke": 1, "short": 20, "full": 250}[tier]
    schedule = _steps(epochs, 250, (100, 150, 200))
    runs, published, searches = [], [], {}
    for setting, rates in CIFAR10_RATES.items():
        net, optimizer = setting.split()
        adam = optimizer == "Adam"
        base = Experiment(
            data="cifar10",
            net="lenet" if net == "LeNet" else "resnet20",
            init="xavier",
            epochs=epochs,
            batch_size=128,
            optimizer=optimizer.lower(),
            optimizer_options={"weight_decay": 1e-4} | ({} if adam else {"momentum": 0.9}),
            schedule=schedule,
            augment="flip_crop",
            channels_last=True,
        )
        fixed = {
            label + PUBLISHED_RATE: dataclasses.replace(base, rule=RULES[label], lr=rate)
            for label, rate in zip(LABELS, rates, strict=True)
        }
        runs += entries(setting, fixed, seeds, seed_by_seed=True)
        published += _published(setting, CIFAR10[setting], PUBLISHED_RATE)
        if tier == "smoke":
            continue
        tuned = with_rules(base, TUNED if tier == "full" else CONTROLS)
        runs += entries(setting, tuned, seeds, seed_by_seed=True)
        tried = {"short": 3, "full": 20}[tier]
        searches[setting] = Search(RATES[base.optimizer], tried, Schedule("cosine"), 5000)
    notes = (
        "Published: the best of 250 epochs by 5,000 validation images, trained on 45,000. Here: "
        "trained on all 50,000, the last epoch counts.",
        f"Rows '{PUBLISHED_RATE.strip(', ')}' have the learning rates of the source, and the "
        "published values beside. The rate of every other row is chosen alike, by three seeds on "
        "5,000 held-out training images; tier smoke has no such rows, tier short the controls.",
        *(["KP loses 1e-4 of W and B per update."] if tier == "full" else []),
        *_tier_note(tier, epochs, 250),
    )
    title = "CIFAR-10: LeNet and ResNet-20"
    return Study(
        "biotorch-cifar10",
        title,
        tier,
        tuple(runs),
        tuple(published),
        notes,
        searches,
        fixed=tuple(label + PUBLISHED_RATE for label in LABELS),
    )


def imagenet(tier: str, seeds: int) -> Study:
    """ResNet-18 on ImageNet: 75 epochs, SGD, x0.1 after 20, 40, 60; DFA with Adam."""
    epochs = {"smoke": 1, "short": 15, "full": 75}[tier]
    base = Experiment(
        data="imagenet",
        size=224,
        net="torchvision:resnet18",
        init="xavier",
        epochs=epochs,
        batch_size=256,
        lr=0.1,
        optimizer_options={"momentum": 0.9, "weight_decay": 1e-4},
        schedule=_steps(epochs, 75, (20, 40, 60)),
        augment="zoom_flip",
        channels_last=True,
        probe_images=32,
    )
    adam: dict[str, Any] = {"optimizer": "adam", "optimizer_options": {"weight_decay": 1e-4}}
    rows = with_rules(base, RULES)
    rows["dfa"] = dataclasses.replace(rows["dfa"], lr=0.001, **adam)
    runs = entries("ResNet-18", rows, seeds, seed_by_seed=True)
    notes = (
        "DFA is trained with Adam at 0.001, as in the source, the others with SGD at 0.1.",
        *_tier_note(tier, epochs, 75),
    )
    title = "ImageNet: ResNet-18"
    published = tuple(_published("ResNet-18", IMAGENET))
    return Study("biotorch-imagenet", title, tier, tuple(runs), published, notes)


def _mnist_like(data: str, title: str, values: tuple[float, ...], tier: str, seeds: int) -> Study:
    epochs = {"smoke": 1, "short": 20, "full": 100}[tier]
    base = Experiment(
        data=data,
        size=32,
        net="lenet",
        init="xavier",
        epochs=epochs,
        batch_size=64,
        lr=0.01,
        optimizer_options={"momentum": 0.9, "weight_decay": 1e-3},
        schedule=_steps(epochs, 100, (50, 75)),
        channels_last=True,
    )
    name = "biotorch-" + data.partition("_")[0]
    search, rate_note = None, "Learning rate 0.01 for every rule; not chosen in this tier."
    if tier != "smoke":
        search = Search(RATES["sgd"], 5, Schedule("multistep", (3, 4)), 5000)
        rate_note = (
            "The source does not state the initial learning rate. It was chosen for every row "
            f"from {', '.join(map(str, RATES['sgd']))}, and beyond where a choice lay at an edge, "
            "by the accuracy of three seeds on 5,000 held-out training images after 5 epochs on "
            "the others; the choice and all tries are in study.json."
        )
    notes = (
        rate_note,
        "Published: the best epoch by the 10,000 test images. Here: the last epoch.",
        *_tier_note(tier, epochs, 100),
    )
    setting = f"{title} LeNet"
    return Study(
        name,
        f"{title}: LeNet",
        tier,
        (
            *entries(setting, with_rules(base, RULES), seeds, seed_by_seed=True),
            *entries(setting, with_rules(base, CONTROLS), seeds, seed_by_seed=True),
        ),
        tuple(_published(setting, values)),
        notes,
        search,
    )


def _published(setting: str, values: Iterable[float], mark: str = "") -> list[Published]:
    return [
        Published(setting, label + mark, value, SOURCE)
        for label, value in zip(LABELS, values, strict=True)
    ]


def _steps(epochs: int, published: int, milestones: tuple[int, ...]) -> Schedule:
    """Milestones scaled to a run of another length; constant if they would all fall on its end."""
    scaled = sorted({round(m * epochs / published) for m in milestones} - {0, epochs})
    return Schedule("multistep", tuple(scaled)) if scaled else Schedule()


def _tier_note(tier: str, epochs: int, published: int) -> tuple[str, ...]:
    if epochs == published:
        return ()
    return (f"Tier {tier}: {epochs} of the {published} published epochs, milestones scaled alike.",)
