"""Metalearned neural memory (Munkhdalai et al. 2019): does a net learn faster that writes?

The result tables of the source could not be read, and its algorithmic tasks are not specified in
what could: these are small forms of them, and directions are compared, not numbers.
"""

import dataclasses
from collections.abc import Iterable
from typing import Any

from apical.experiment import Experiment
from apical.studies.base import Entry, Study

SOLVED = 0.995
"""Share of right answers on the validation sequences from which on a task counts as solved."""

PER_EPOCH = 50
"""Iterations between two looks at the validation sequences: the resolution of the result."""

LOCAL, GRADIENT, NONE, PLAIN = "MNM-p", "MNM-g", "no write", "LSTM"
RANDOM, COLLAPSE = "random targets", "MNM-p, λ = 1"

_MEMORY = {"hidden": 48, "width": 48}
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    LOCAL: ("mnm", _MEMORY | {"write": "p"}),
    GRADIENT: ("mnm", _MEMORY | {"write": "g"}),
    NONE: ("mnm", _MEMORY | {"write": "none"}),
    PLAIN: ("lstm", {"hidden": 64, "init": "uniform"}),
    RANDOM: ("mnm", _MEMORY | {"write": "random"}),
    COLLAPSE: ("mnm", _MEMORY | {"write": "p", "reconstruction": 1.0}),
}
"""Net and its options, by label. Only the last has a loss for reconstruction (λ)."""
MAIN = (LOCAL, GRADIENT, NONE, PLAIN)

DICTIONARY = Experiment(
    task="dictionary",
    length=4,
    task_options={"key_bits": 3, "values": 4},
    test_lengths=(8,),
    net="mnm",
    batches=PER_EPOCH,
    epochs=30,
    batch_size=64,
    validation=500,
    optimizer="adam",
    lr=3e-3,
    clip_norm=10.0,
)
FOUR = dataclasses.replace(
    DICTIONARY, length=8, task_options={}, test_lengths=(16,), epochs=40, batch_size=32
)
COPY = dataclasses.replace(FOUR, task="double_copy", length=9, test_lengths=(12,))
SORT = dataclasses.replace(FOUR, task="priority_sort", length=8, test_lengths=(12,))

LONGER = {"smoke": 1, "short": 1, "full": 4}
"""Times as many iterations."""

NOTES = (
    "Adam at 3e-3, gradients clipped to the norm 10, alike for every row; 48 units, width 48 and "
    "one head with a memory, 64 units without. Initial weights and batches are those of the seed.",
    "No write: the same controller and memory, whose weights stay random. λ is the weight of the "
    "loss for reconstructing what was written; it is 0 but where it is named.",
    "The result tables of the source could not be read: these are small forms of its tasks, and "
    "only the direction (a net that writes learns in fewer iterations) is compared.",
)


def mnm(tier: str, seeds: int) -> Study:
    """Metalearned memory: dictionary inference, double copy, priority sort, against LSTM."""
    entries = list(_entries("dictionary, 2 pairs", DICTIONARY, MAIN, tier, seeds))
    if tier != "smoke":
        wide = (*MAIN, RANDOM, COLLAPSE)
        entries += _entries("dictionary, 4 pairs", FOUR, wide, tier, seeds)
        entries += _entries("double copy, 3 symbols", COPY, MAIN, tier, seeds)
        entries += _entries("priority sort, 4 symbols", SORT, MAIN, tier, seeds)
    return Study(
        "mnm",
        "Metalearned neural memory",
        tier,
        tuple(entries),
        notes=NOTES,
        solved=SOLVED,
    )


def _entries(
    setting: str, base: Experiment, arms: Iterable[str], tier: str, seeds: int
) -> Iterable[Entry]:
    for seed in range(seeds):
        for label in arms:
            net, options = ARMS[label]
            experiment = dataclasses.replace(
                base, net=net, net_options=options, epochs=LONGER[tier] * base.epochs, seed=seed
            )
            yield Entry(setting, label, experiment)
