"""Learning without weight transport (Akrout et al. 2019), against the authors' own logs.

Protocol and values: the code and the logs released with the paper
(github.com/makrout/Deep-Learning-without-Weight-Transport, commit 688f47a), one run of each rule.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from apical import rules
from apical.bench.experiment.experiment import Experiment
from apical.bench.studies.base import FROZEN, REDRAWN, Study, entries
from apical.bench.studies.published import Curve, Published
from apical.rules.mirror import RELEASED

SETTING = "MNIST 784-500-10"
SOURCE = "Akrout et al. 2019, the authors' logs"
AT = (1, 5, 10, 50, 100, 400)
"""Epochs at which the logs are compared."""

POINTS, DEGREES = 0.6, 3.0
"""Differences up to which single runs count as agreeing."""

NORMAL = {"init": "normal"}
MIRROR = {"rule": "wm", "initial": 468, **NORMAL}
RULES: dict[str, tuple[str | dict[str, Any], float]] = {
    "bp": ("bp", 0.2),
    "fa": ({"rule": "fa", **NORMAL}, 0.2),
    "kp": ({"rule": "kp", "decay": 0.0, **NORMAL}, 0.3),
    "kp decay": ({"rule": "kp", "decay": 1e-4, **NORMAL}, 0.3),
    "wm released": (rules.to_dict(RELEASED), 0.05),
    "wm": (MIRROR, 0.05),
    "wm fast": (MIRROR, 0.2),
    "usf": ("usf", 0.2),
    FROZEN: ("frozen", 0.2),
    REDRAWN: ({"rule": "redrawn", **NORMAL}, 0.2),
}
"""What each row of the table trains with: rule and learning rate. The first three and "wm
released" are the authors' runs. The paper compares with sign symmetry (usf) as well, without a log
of it on this net; it and the controls have the rate of BP: nothing is chosen here."""
EARLY = "wm fast"
"""How early the mirror is as good as BP at the rate of BP; not in tier full, of 400 epochs."""

ACCURACY = {
    "bp": (88.0, 91.84, 94.12, 97.7, 98.25, 98.50),
    "fa": (85.49, 89.88, 90.86, 94.62, 96.34, 97.80),
    "kp": (88.90, 93.46, 95.41, 97.95, 98.28, 98.45),
    "wm released": (78.48, 88.48, 90.49, 96.51, 97.97, 98.49),
}
WEIGHT_ANGLE = {
    "fa": (40.04, 30.50, 29.25, 38.25, 41.41, 40.03),
    "kp": (19.75, 13.91, 11.18, 6.24, 4.93, 3.62),
    "wm released": (61.33, 37.98, 27.45, 13.09, 9.32, 3.79),
}
DELTA_ANGLE = {
    "fa": (42.08, 27.20, 26.09, 36.94, 40.40, 34.91),
    "kp": (19.41, 15.26, 12.21, 5.73, 4.39, 3.15),
    "wm released": (63.44, 26.33, 16.91, 13.45, 9.14, 3.21),
}
"""Of the output layer's feedback to its weights, and of the hidden layer's signal for the first
training image to backprop's."""


def weight_transport(tier: str, seeds: int) -> Study:
    """BP, FA, Kolen-Pollack and the weight mirror, full batches of 128, plain SGD."""
    epochs = {"smoke": 1, "short": 10, "full": 400}[tier]
    base = Experiment(
        data="mnist",
        pixels="unit",
        net="mlp",
        net_options={"hidden": [500], "activation": "sigmoid"},
        init="normal",
        loss="binary_cross_entropy",
        epochs=epochs,
        batch_size=128,
        shuffle=False,
        drop_last=True,
        test_at=tuple(epoch for epoch in AT if epoch <= epochs),
        probe_every=1 if epochs <= 10 else 10,
        probe_images=1,
    )
    rows = {
        label: dataclasses.replace(base, rule=rule, lr=lr)
        for label, (rule, lr) in RULES.items()
        if not (tier == "full" and label == EARLY)
    }
    published = [
        Published(SETTING, rule, values[-1], SOURCE, metric="test_accuracy")
        for rule, values in ACCURACY.items()
    ]
    return Study(
        "weight-transport",
        "Learning without weight transport",
        tier,
        tuple(entries(SETTING, rows, seeds, seed_by_seed=True)),
        tuple(published) if tier == "full" else (),
        _notes(epochs),
        curves=tuple(_curves(base.test_at)),
    )


def _curves(epochs: Iterable[int]) -> list[Curve]:
    made = []
    for rule, values in ACCURACY.items():
        made.append(Curve(SETTING, rule, "test_acc", _at(values, epochs), SOURCE, POINTS))
    for rule, values in WEIGHT_ANGLE.items():
        made.append(Curve(SETTING, rule, "angle_deg", _at(values, epochs), SOURCE, DEGREES, "fc2"))
    for rule, values in DELTA_ANGLE.items():
        at = _at(values, epochs)
        made.append(Curve(SETTING, rule, "gradient_angle_deg", at, SOURCE, DEGREES, "fc1"))
    return made


def _at(values: Iterable[float], epochs: Iterable[int]) -> dict[int, float]:
    by_epoch = dict(zip(AT, values, strict=True))
    return {epoch: by_epoch[epoch] for epoch in epochs}


def _notes(epochs: int) -> tuple[str, ...]:
    short = epochs < AT[-1]
    notes = [
        "Rows: kp has no decay, as in the source, kp decay loses 1e-4 of W and B per update; wm "
        "released is the mirror of the released code, wm the linear one with unit noise and a "
        "matched decay at the same learning rate (0.05)"
        + f", {EARLY} at that of BP (0.2)" * short
        + "; usf is sign symmetry, frozen and redrawn the controls, all at the rate of BP.",
        "Gradient angles are those of one image, the first of the training split: for one image "
        "the angle of a weight gradient is that of the layer's signal, which the source logs.",
        "As in the source, images come in the order of the training split in every epoch, and the "
        "last 96 of them, which fill no batch, are left out. Unlike there, the gradient of biases "
        "is not divided by the batch size a second time.",
        "The test split is read at the epochs of the source's log as well as at the end; nothing "
        "is chosen by it.",
    ]
    if short:
        notes.append(f"{epochs} of {AT[-1]} epochs.")
    return tuple(notes)
