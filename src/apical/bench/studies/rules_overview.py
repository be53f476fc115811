"""Every rule of the library on the same nets, data and budget: one line each.

It compares rules as the library has them, not papers: there are no published values. Each rule's
learning rate is chosen for each net on held-out training images, from the same values.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from apical import rules
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.rule_settings import rule_assignment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.studies.base import Entry, Overview, Search, Study

TITLE = "Every rule of the library in one table"
ORDER = (
    "bp", "usf", "frsf", "brsf", "fa", "sparse(fa)", "quantised(fa)",
    "kp", "wm", "sa", "aa", "ia", "pfa", "ldfa",
    "dfa", "sdfa", "drtp", "dkp", "dldfa", "le",
    "frozen", "redrawn",
)  # fmt: skip
"""Lines of the table: backprop; fixed feedback through the layers; learned; straight from the
output; from a loss of each layer's own; both controls."""

SHORT_RUN: dict[str, dict[str, float]] = {
    "kp": {"decay": 2e-3},
    "pfa": {"decay": 2e-3},
    "ldfa": {"decay": 2e-3},
    "sa": {"decay": 1e-2, "amp": 2e-2},
    "aa": {"decay": 1e-2, "amp": 2e-2},
    "ia": {"decay": 1e-2, "amp": 2e-2, "null": 1e-2},
}
"""What feedback that learns needs to arrive within some hundred updates; the defaults of the
library are for runs of ten thousands."""

DIGITS, MNIST, CIFAR10 = "digits MLP", "MNIST LeNet", "CIFAR-10 LeNet"
RATES = {DIGITS: (0.01, 0.03, 0.1), MNIST: (0.003, 0.01, 0.03), CIFAR10: (0.003, 0.01, 0.03)}
IMAGES = 10_000
"""Of the training split of MNIST, below tier full."""

NOTES = (
    "All rules of a net have the same optimizer (SGD, momentum 0.9), epochs and initial weights;"
    " none was tuned beyond its learning rate.",
    "DRTP and LE wait for the output only to scale their signal with the error; with"
    " magnitude='one' they wait for nothing.",
)
SHORT_NOTE = (
    "Options are the library's defaults, but for these, which would need ten thousands of updates:"
    " decay 0.002 for KP, PFA and LDFA, ten times the rates of SA, AA and IA."
)
PARTS_NOTE = f"MNIST: {IMAGES:,} training images, all test images."


def rules_overview(tier: str, seeds: int) -> Study:
    """Every rule on digits and MNIST (in full CIFAR-10 too): accuracy, alignment, cost, needs."""
    nets = settings(tier)
    entries = [
        Entry(setting, label, dataclasses.replace(base, rule=rule, seed=seed))
        for seed in range(seeds)
        for setting, base in nets.items()
        for label, rule in every_rule(tier).items()
    ]
    more = {"smoke": (SHORT_NOTE,), "short": (SHORT_NOTE, PARTS_NOTE), "full": ()}
    return Study(
        "rules-overview",
        TITLE,
        tier,
        tuple(entries),
        notes=NOTES + more[tier],
        search=searches(tier),
        overview=Overview(
            facts={label: facts(rule) for label, rule in every_rule(tier).items()},
            detail={"smoke": DIGITS, "short": MNIST}.get(tier, CIFAR10),
            timed="lenet",
            timed_as={"bp": "bp (control)", "dfa": "dfa full"},
        ),
    )


def every_rule(tier: str) -> dict[str, str | dict[str, Any]]:
    """The rules by their labels, in the order of the table."""
    changed: Mapping[str, Any] = {} if tier == "full" else SHORT_RUN
    return {name: {"rule": name, **changed[name]} if name in changed else name for name in ORDER}


def facts(rule: str | dict[str, Any]) -> dict[str, str]:
    """What a rule needs, by heading of the table."""
    built = rule_assignment(rule)
    assert isinstance(built, rules.Rule) and built.needs is not None
    return {
        "reads of the weights": built.needs.weights,
        "waits for": built.needs.waits_for,
        "labels": "yes" if built.needs.labels else "no",
        "own phase": "yes" if built.needs.phase else "no",
    }


def settings(tier: str) -> dict[str, Experiment]:
    """What is trained on what, without a rule."""
    base = Experiment(
        init="xavier", lr=0.015, optimizer_options={"momentum": 0.9}, batch_size=64,
        schedule=Schedule("cosine"),
    )  # fmt: skip
    # tanh, as DRTP wants it; narrow, so that hidden layers that do not learn are seen
    narrow: dict[str, Any] = {"hidden": [32, 32], "activation": "tanh"}
    digits = dataclasses.replace(
        base, net="mlp", net_options=narrow, epochs=15, batch_size=32, probe_every=5
    )
    lenet = dataclasses.replace(base, net="lenet", channels_last=True)
    mnist = dataclasses.replace(lenet, data="mnist", size=32)
    if tier == "smoke":
        return {DIGITS: digits}
    if tier == "short":
        part = dataclasses.replace(mnist, epochs=5, train_images=IMAGES)
        return {DIGITS: digits, MNIST: part}
    cifar10 = dataclasses.replace(
        lenet, data="cifar10", epochs=60, augment="flip_crop", probe_every=10
    )
    mnist = dataclasses.replace(mnist, epochs=20, probe_every=5)
    return {DIGITS: digits, MNIST: mnist, CIFAR10: cifar10}


def searches(tier: str) -> dict[str, Search]:
    """The same values for every rule, each for the length of the run but in tier full: a rate that
    is too large may show late. On images apart from those trained on."""
    epochs = {DIGITS: 15, MNIST: 5} if tier != "full" else {DIGITS: 15, MNIST: 10, CIFAR10: 20}
    images = {DIGITS: 300, MNIST: 2_000 if tier == "short" else 5_000, CIFAR10: 5_000}
    return {
        setting: Search(RATES[setting], epochs[setting], base.schedule, images[setting])
        for setting, base in settings(tier).items()
    }
