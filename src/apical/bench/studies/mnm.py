"""Metalearned neural memory (Munkhdalai et al. 2019): does a net that writes learn faster?

The result tables of the source could not be read, and its algorithmic tasks are not specified in
what could: these are small forms of them, and directions are compared, not numbers.
"""

import dataclasses
from typing import Any

from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.studies.base import CONTROLS, FROZEN, REDRAWN, Entry, Search, Study, entries

Arms = dict[str, tuple[str, dict[str, Any]]]
"""Net and its options, by label; the label of a control is its rule as well."""

TITLE = "Metalearned neural memory"

SOLVED = 0.995
"""Share of right answers on the validation sequences above which a task counts as solved."""

PER_EPOCH = 50
"""Iterations between two evaluations on the validation sequences: the resolution of the result."""

LOCAL, GRADIENT, NONE, PLAIN = "MNM-p", "MNM-g", "no write", "LSTM"
RANDOM, COLLAPSE = "random targets", "MNM-p, λ = 1"

_MEMORY = {"hidden": 48, "width": 48}
ARMS: Arms = {
    LOCAL: ("mnm", _MEMORY | {"write": "p"}),
    GRADIENT: ("mnm", _MEMORY | {"write": "g"}),
    NONE: ("mnm", _MEMORY | {"write": "none"}),
    PLAIN: ("lstm", {"hidden": 64, "init": "uniform"}),
    FROZEN: ("mnm", _MEMORY | {"write": "p"}),
    REDRAWN: ("mnm", _MEMORY | {"write": "p"}),
    RANDOM: ("mnm", _MEMORY | {"write": "random"}),
    COLLAPSE: ("mnm", _MEMORY | {"write": "p", "reconstruction": 1.0}),
}
"""Only the last has a loss for reconstruction (λ)."""
_MAIN = {label: ARMS[label] for label in (LOCAL, GRADIENT, NONE, PLAIN, FROZEN, REDRAWN)}

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

BABI = dataclasses.replace(
    FOUR,
    task="babi",
    length=20,
    test_lengths=(),
    batches=200,
    epochs=10,
    validation=1,
    lr=1e-3,
    probe_images=32,
)
_BABI_MEMORY = {"hidden": 128, "width": 64, "heads": 2, "write": "p"}
BABI_ARMS: Arms = {
    LOCAL: ("mnm", _BABI_MEMORY),
    PLAIN: ("lstm", {"hidden": 128, "init": "uniform"}),
    FROZEN: ("mnm", _BABI_MEMORY),
    REDRAWN: ("mnm", _BABI_MEMORY),
}
BABI_SETTING = "bAbI, 20 tasks together"
BABI_SEEDS = 3

RATES = (1e-3, 3e-3, 1e-2)
"""Of Adam, for every row but those of bAbI, which would take too long."""

LONGER = {"smoke": 1, "short": 1, "full": 4}
"""Times as many iterations."""

NOTES = (
    "Adam, gradients clipped to the norm 10, alike for every row; 48 units, width 48 and one head "
    "with a memory, 64 units without. Initial weights and batches are those of the seed. The "
    "learning rate of every row is chosen alike, from 0.001, 0.003 and 0.01 and beyond where a "
    "choice lies at an edge.",
    "Frozen: MNM-p of which the output layer alone learns. Redrawn: MNM-p with feedback that is "
    "new at every update.",
    "No write: the same controller and memory, whose weights stay random. λ is the weight of the "
    "loss for reconstructing what was written; it is 0 but where it is named.",
    "The result tables of the source could not be read: these are small forms of its tasks, and "
    "only the direction (a net that writes learns in fewer iterations) is compared.",
)
BABI_NOTES = (
    "bAbI: the 1k edition, a sentence at each step as two bags of words. Every row, frozen too, "
    "has the rate 1e-3, which nothing chose. Cut for time: stories of more than 20 steps are not "
    "trained on (they hold 19 % of the training questions, 5 % are held out besides), but every "
    "test question is asked. Its test error is the mean over questions, which is that over the 20 "
    "tasks: each has 1,000.",
)


def mnm(tier: str, seeds: int) -> Study:
    """Metalearned memory: dictionary inference, against LSTM and without writing. Short: with four
    pairs, and bAbI. Full: also double copy and priority sort."""
    runs: list[Entry] = []
    notes: tuple[str, ...] = NOTES
    if tier == "smoke":
        runs += _entries("dictionary, 2 pairs", DICTIONARY, _MAIN, tier, seeds)
    else:
        runs += _entries(BABI_SETTING, BABI, BABI_ARMS, tier, min(seeds, BABI_SEEDS))
        runs += _entries("dictionary, 4 pairs", FOUR, ARMS, tier, seeds)
        notes += BABI_NOTES
    if tier == "full":
        runs += _entries("double copy, 3 symbols", COPY, _MAIN, tier, seeds)
        runs += _entries("priority sort, 4 symbols", SORT, _MAIN, tier, seeds)
    searches = {  # an error of 1, that of no right answer, stands for a try that diverged
        run.setting: Search(
            RATES, run.experiment.epochs, Schedule(), run.experiment.validation, chance=1.0
        )
        for run in runs
        if run.setting != BABI_SETTING
    }
    return Study("mnm", TITLE, tier, tuple(runs), notes=notes, search=searches, solved=SOLVED)


def _entries(setting: str, base: Experiment, arms: Arms, tier: str, seeds: int) -> list[Entry]:
    rows = {
        label: dataclasses.replace(
            base,
            net=net,
            net_options=options,
            rule=label if label in CONTROLS else "bp",
            epochs=LONGER[tier] * base.epochs,
        )
        for label, (net, options) in arms.items()
    }
    return entries(setting, rows, seeds, seed_by_seed=True)
