"""Spiking nets that learn by local rules, under attack: is the robustness theirs?

Lin and Sengupta (2025, arXiv 2504.08897) compare backpropagation, feedback alignment, direct
feedback alignment and local errors; their abstract says that gradient attacks are ineffective on
the local ones, and that a hybrid attack which uses transferability is stronger. More could not be
read: what they transfer from is not known, no number of theirs is here, and the claim is tested as
a direction, by two sources, each alone and both together. Non-spiking nets stand beside.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from apical.attacks import Effort
from apical.bench.evaluate.robustness import Evaluation
from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.studies.base import FROZEN, REDRAWN, Entry, Search, Study, entries, with_rules

TITLE = "Spiking nets by local and global trainings, under attack"
DIGITS, DIGITS_MLP = "digits SNN", "digits MLP"
EVENTS, EVENTS_MLP = "drifting bars SNN", "drifting bars MLP"
MNIST, EVENT_MNIST = "MNIST SNN", "event MNIST SNN"
CIFAR10, NMNIST = "CIFAR-10 conv SNN", "N-MNIST conv SNN"

NOTES = (
    "Exact: the gradient by backpropagation through time of the same weights, surrogates included "
    "(a twin by backprop). Transfer: attacks made on the net of the same setting and seed that "
    "backpropagation trained. Hybrid: per image, the worst of these two, by the same attacks as "
    "own; own is the gradient that the net learns by.",
    "The first synapses send the exact gradient on in all nets, so that the own gradient of DFA "
    "and LE at the image comes from the local signal of the first layer.",
    "ELL (Ma et al. 2022) and DECOLLE (Kaiser, Mostafa and Neftci 2020) train each layer by a "
    "local classifier; dense spiking nets only. Frozen: hidden layers keep their initial weights.",
    "The learning rate of every row is chosen alike, from 0.001, 0.003 and 0.01 and beyond where a "
    "choice lies at an edge, on held-out training images.",
    "No values of the paper stand beside: its tables could not be read. Which nets it transfers "
    "attacks from is not known from its abstract.",
)
LOCAL = {"ELL": ("ell", "count"), "DECOLLE": ("decolle", "membrane")}
"""Local classifiers on dense spiking nets, by label: their form, and what the net gives out."""
RATES = (1e-3, 3e-3, 1e-2)
"""Of Adam."""
FRAMES, RECORDINGS = 8_000, 3_000
"""Of the training split of MNIST, as frames and as events, below tier full."""

SHORT_NOTE = (
    f"MNIST: {FRAMES:,} training images as frames, {RECORDINGS:,} as events; 4 epochs each."
)
EVENT_NOTE = (
    "Radii of events count flips: events added or removed. A recording of drifting bars has some "
    "270 events, of MNIST some 1,160."
)


def snn_robustness(tier: str, seeds: int) -> Study:
    """Spiking nets, trained globally or locally, attacked by own, exact, transferred gradients."""
    runs: list[Entry] = []
    searches = {}
    for setting, base in settings(tier).items():
        runs += entries(setting, _trainings(base), seeds)
        held_out = 300 if base.data in ("digits", "drifting_bars") else 1000
        searches[setting] = Search(RATES, base.epochs, Schedule(), held_out)
    return Study(
        "snn-robustness",
        TITLE,
        tier,
        tuple(runs),
        notes=(*NOTES, EVENT_NOTE, *[SHORT_NOTE] * (tier == "short")),
        evaluations=evaluations(tier),
        surrogate="bp",
        search=searches,
    )


def trainings(*, spiking: bool, first: str) -> dict[str, str | dict[str, Any]]:
    """The rules by their labels.     Args: first: name of the first layer with weights."""
    steps: Mapping[str, Any] = {"sample_axis": "steps"} if spiking else {}
    return {
        "bp": "bp",
        "fa": {first: "bp", "*": "fa"},
        "dfa": {first: "bp", "*": {"rule": "dfa", **steps}},
        "le": {first: "bp", "*": {"rule": "le", "magnitude": "one", **steps}},
        FROZEN: {first: "bp", "*": "frozen"},
        REDRAWN: {first: "bp", "*": "redrawn"},
    }


def settings(tier: str) -> dict[str, Experiment]:
    """What is trained on what, without a rule."""
    frames = Experiment(
        data="digits", net="spiking_mlp", epochs=25, optimizer="adam", lr=2e-3, probe_every=5
    )
    events = replace(frames, data="drifting_bars", pixels="unit", epochs=6)
    bars = replace(events, net_options={"encoding": "frames", "steps": 12, "hidden": [100, 50]})
    small: dict[str, Any] = {"net": "mlp", "net_options": {"hidden": [200, 100]}}
    if tier == "smoke":
        return {
            DIGITS: frames,
            DIGITS_MLP: replace(frames, **small),
            EVENTS: bars,
            EVENTS_MLP: replace(events, **small),
        }
    wide = {"hidden": [400, 200]}
    saccades = {"encoding": "frames", "steps": 12, "hidden": [200, 100]}
    mnist = replace(frames, data="mnist", net_options=wide, epochs=10, lr=1e-3)
    seen = replace(events, data="event_mnist", net_options=saccades, epochs=10, lr=1e-3)
    if tier == "short":
        few: dict[str, Any] = {"epochs": 4, "lr": 2e-3}
        return {
            MNIST: replace(mnist, train_images=FRAMES, **few),
            EVENT_MNIST: replace(seen, train_images=RECORDINGS, **few),
        }
    conv = {"channels": [32, 64, 128], "hidden": [256]}
    recorded = {"encoding": "frames", "steps": 10, "channels": [32, 64], "hidden": [128]}
    return {
        MNIST: mnist,
        EVENT_MNIST: seen,
        CIFAR10: replace(
            frames, data="cifar10", net="spiking_conv", net_options=conv, epochs=60, lr=1e-3
        ),
        NMNIST: replace(
            events, data="nmnist", net="spiking_conv", net_options=recorded, epochs=20, lr=1e-3
        ),
    }


def evaluations(tier: str) -> dict[str, Evaluation]:
    """How the nets of each setting are attacked."""
    quick = Effort(steps=10, adaptive_steps=5, queries=100, noise="sign")
    digits = Evaluation(eps=(0.1, 0.2), images=200, effort=quick)
    bars = Evaluation(eps=(10, 20, 40), norm="flips", images=200, effort=Effort(steps=10))
    if tier == "smoke":
        wide = replace(bars, eps=(40, 80, 120))  # what breaks spiking nets does nothing here
        return {DIGITS: digits, DIGITS_MLP: digits, EVENTS: bars, EVENTS_MLP: wide}
    images, effort, rounds = 200, quick, Effort(steps=10)
    if tier == "full":
        images, effort, rounds = 1000, Effort(noise="sign"), Effort()
    found = {
        MNIST: Evaluation(eps=(0.05, 0.1), images=images, effort=effort),
        EVENT_MNIST: Evaluation(eps=(10, 20, 40), norm="flips", images=images, effort=rounds),
    }
    if tier == "full":
        found[CIFAR10] = Evaluation(eps=(2 / 255, 8 / 255), images=images, effort=effort)
        found[NMNIST] = Evaluation(eps=(20, 60), norm="flips", images=images, effort=rounds)
    return found


def _trainings(base: Experiment) -> dict[str, Experiment]:
    spiking, first = base.net != "mlp", "conv1" if base.net == "spiking_conv" else "fc1"
    rows = with_rules(base, trainings(spiking=spiking, first=first))
    for label, (form, output) in LOCAL.items() if base.net == "spiking_mlp" else ():
        learner = {"learner": "local_classifiers", "form": form}
        options = {**base.net_options, "output": output}
        rows[label] = replace(base, learner=learner, net_options=options)
    return rows
