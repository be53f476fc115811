"""A language model of characters under feedback alignment: a causal transformer, tuned alike.

Direct feedback alignment treats every position as a sample, with one matrix for all of them, as
Launay, Poli, Boniface and Krzakala (2020) do. Their tables are of other text and larger nets, so
nothing is compared with them.
"""

from typing import Any

from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.studies.base import CONTROLS, Search, Study, entries, with_rules

TITLE = "A character language model without backpropagation"
ROWS: dict[str, str | dict[str, Any]] = {
    "bp": "bp",
    "fa": "fa",
    "kp": {"rule": "kp", "decay": 2e-3},  # the library's default is for longer runs
    "usf": "usf",
    "dfa": {"rule": "dfa", "positions": "samples"},
    **CONTROLS,
}
STEPS = {"smoke": 1_000, "short": 3_000, "full": 20_000}
RATES = (1e-3, 3e-3, 1e-2)
SCHEDULE = Schedule("cosine")
CHANCE = 0.85
"""Error of the most frequent character, a blank or a letter."""

NOTES = (
    "Text: the names of the characters of Unicode 3.2, which every Python ships, a line each; a"
    " tenth of the names is held out for validation and a tenth for the test. The error is the"
    " share of next characters that are predicted wrong.",
    "DFA: every position of the output is a sample; one matrix (characters x features) for each"
    " layer serves all positions.",
    "KP with a decay of 0.002, which shorter runs need; other options are the library's defaults.",
)


def char_lm(tier: str, seeds: int) -> Study:
    """BP, FA, KP, uSF, DFA and both controls on a character language model."""
    setting, base = base_of(tier)
    runs = tuple(entries(setting, with_rules(base, ROWS), seeds))
    search = Search(RATES, base.epochs, SCHEDULE, 1_000, chance=CHANCE)
    text = (
        f"{STEPS[tier]:,} steps of AdamW on batches of {base.batch_size} windows of {base.length}"
        " characters; the rate of each row is chosen on the validation names."
    )
    return Study("char-lm", TITLE, tier, runs, notes=(*NOTES, text), search=search)


def base_of(tier: str) -> tuple[str, Experiment]:
    """The setting and what all its rows share."""
    width = 32 if tier == "smoke" else 128
    batches = 100
    base = Experiment(
        task="unicode_names",
        length=32 if tier == "smoke" else 128,
        batches=batches,
        epochs=STEPS[tier] // batches,
        batch_size=16,
        net="causal_transformer",
        net_options={"width": width, "depth": 2 if tier == "smoke" else 4},
        optimizer="adamw",
        schedule=SCHEDULE,
        lr=3e-3,
        probe_every=STEPS[tier] // batches,
        probe_images=16,
    )
    return f"transformer, width {width}", base
