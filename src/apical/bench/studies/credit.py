"""Which layers' learning helps: each layer in turn keeps its initial weights, the others learn.

A low error does not say which layers earned it. Where the error without the learning of a layer is
no higher, that layer's credit is worth nothing to the net; where it is lower, it does harm.
"""

import dataclasses
from typing import Any

from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.studies import smoke
from apical.bench.studies.base import CONTROLS, Entry, Search, Study, entries, with_rules
from apical.bench.studies.rules_overview import IMAGES, PARTS_NOTE
from apical.nets.pretrained import Start

TITLE = "What the learning of each layer is worth"
DIGITS, MNIST, LENET = smoke.SETTING, "MNIST MLP", "MNIST LeNet"
LAYERS = {
    DIGITS: ("fc1", "fc2", "fc3"),
    MNIST: ("fc1", "fc2", "fc3"),
    LENET: ("conv1", "conv2", "conv3", "fc1", "fc2"),
}
"""From input to output."""
ROWS: dict[str, str | dict[str, Any]] = {
    name: smoke.ROWS[name] for name in ("bp", "fa", "dfa", "usf", "kp")
}
NOTES = (
    "A row without the learning of a layer has the learning rate that was chosen for its rule with "
    "all layers learning, and is trained from the same initial weights, as long.",
)


def credit(tier: str, seeds: int) -> Study:
    """One layer at a time keeps its initial weights: does its learning help, or harm?"""
    runs: list[Entry] = []
    follows = {}
    for setting, base in settings(tier).items():
        rows = with_rules(base, ROWS)
        for label, experiment in with_rules(base, ROWS).items():
            for layer in LAYERS[setting]:
                name = f"{label}, without {layer}"
                follows[name] = label
                start = Start(freeze=(f"{layer}.*",))
                rows[name] = dataclasses.replace(experiment, start=start)
        runs += entries(setting, rows | with_rules(base, CONTROLS), seeds)
    return Study(
        "credit",
        TITLE,
        tier,
        tuple(runs),
        notes=(*NOTES, *[PARTS_NOTE] * (tier == "short")),
        search=searches(tier),
        follows=follows,
    )


def settings(tier: str) -> dict[str, Experiment]:
    """What is trained on what, without a rule."""
    if tier == "smoke":
        return {DIGITS: smoke.BASE}
    size: dict[str, Any] = {"epochs": 20}
    if tier == "short":
        size = {"epochs": 5, "train_images": IMAGES}
    mlp = dataclasses.replace(smoke.BASE, data="mnist", batch_size=64, probe_every=0, **size)
    lenet = dataclasses.replace(mlp, net="lenet", net_options={}, size=32, channels_last=True)
    return {DIGITS: smoke.BASE, MNIST: mlp, LENET: lenet}


def searches(tier: str) -> dict[str, Search]:
    """The same values for every rule of a net; that of the demonstration on its net."""
    falling = Schedule("cosine")
    epochs, images = (5, 2_000) if tier == "short" else (10, 5_000)
    mnist = Search((0.003, 0.01, 0.03, 0.1), epochs, falling, images)
    return {name: smoke.SEARCH if name == DIGITS else mnist for name in settings(tier)}
