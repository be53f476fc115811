"""The smoke study: rules and controls on real data, in less than two minutes on two cores."""

from typing import Any

from apical.bench.experiment.experiment import Experiment
from apical.bench.experiment.training_settings import Schedule
from apical.bench.studies.base import CONTROLS, RULES, Search, Study, entries, with_rules

TITLE = "Learning rules on 8x8 handwritten digits"
SETTING = "digits MLP"
EPOCHS = 10
SCHEDULE = Schedule("cosine")
SEARCH = Search((0.01, 0.03, 0.1, 0.3), EPOCHS, SCHEDULE, 300)
ROWS: dict[str, str | dict[str, Any]] = {
    **RULES,
    "kp": {"rule": "kp", "decay": 2e-3},  # the library's default is for longer runs
    **CONTROLS,
}
BASE = Experiment(
    data="digits",
    net="mlp",
    net_options={"hidden": [32, 32]},
    init="xavier",
    epochs=EPOCHS,
    batch_size=32,
    optimizer_options={"momentum": 0.9},
    schedule=SCHEDULE,
    probe_every=5,
)
"""What is trained, without a rule."""
NOTES = (
    "1,437 images train and 360 test: one image of the test split is 0.28 points.",
    "Hidden layers of 32 units: so narrow that a net of random hidden layers (frozen) errs far more"
    " than one that learns in them.",
)


def smoke(tier: str, seeds: int) -> Study:
    """Rules and controls on scikit-learn's digits, one small net, tuned alike."""
    runs = tuple(entries(SETTING, with_rules(BASE, ROWS), seeds))
    return Study("smoke", TITLE, tier, runs, notes=NOTES, search=SEARCH)
