"""The smoke study: every rule on real data, in about a minute."""

from apical.bench.experiment.experiment import Experiment
from apical.studies.base import RULES, Entry, Study

TITLE = "Six learning rules on 8x8 handwritten digits"


def smoke(tier: str, seeds: int) -> Study:
    """All rules on scikit-learn's digits, one small net."""
    entries = [
        Entry(
            "digits MLP",
            label,
            Experiment(
                data="digits",
                net="mlp",
                net_options={"hidden": [128, 64]},
                init="xavier",
                rule=rule,
                epochs=30,
                batch_size=32,
                lr=0.02,
                optimizer_options={"momentum": 0.9},
                seed=seed,
            ),
        )
        for label, rule in RULES.items()
        for seed in range(seeds)
    ]
    notes = ("1,437 images train and 360 test: one image of the test split is 0.28 points.",)
    return Study("smoke", TITLE, tier, tuple(entries), notes=notes)
