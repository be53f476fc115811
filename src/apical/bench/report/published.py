"""What was published of the rows of a study, as its study.json holds it: see `read`."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from apical.bench.storage.records import Record

FULL_TIER = "full"
"""The tier of a published protocol; every other one is on another scale."""

ERRORS = ("test_error", "test_accuracy")
ROBUSTNESS = ("robust_accuracy", "attack_success")
"""Metrics of published values: the one that is kept, and what it lacks to 100 %. The success of an
attack is the share of all examples that it leaves misclassified."""


@dataclass(frozen=True)
class Published:
    """A published test error in %, or robust accuracy under the attack whose rows carry this label,
    with the number of runs behind it."""

    setting: str
    rule: str
    value: float
    source: str
    n: int = 1
    other_scale: str = ""
    attack: str = ""
    eps: float = 0.0
    group: str = "own"

    def scale(self, tier: str) -> str:
        """Why it cannot be compared with runs of a tier; "" where it can."""
        if self.other_scale or tier == FULL_TIER:
            return self.other_scale
        return f"tier {tier}, not the published protocol"


@dataclass(frozen=True)
class Curve:
    """A published course of training, compared with runs at the epochs it is given for.

    Args: metric: of the records: ``test_acc``, ``angle_deg``, ``gradient_angle_deg``.
        values: by epoch (>= 1); degrees, accuracies in %.     layer: of the angles.
        allowance: difference, in the unit of the values, up to which ours agree.
        n: runs behind the values.
    """

    setting: str
    rule: str
    metric: Literal["test_acc", "angle_deg", "gradient_angle_deg"]
    values: Mapping[int, float]
    source: str
    allowance: float
    layer: str = ""
    n: int = 1


def read_published(entry: Record, metrics: Sequence[str]) -> Published:
    """An entry of `published` with `ERRORS`, of `robust_published` with `ROBUSTNESS`.

    Raises: ValueError for another metric, a unit other than "%" and "fraction", a value that is no
        percentage in it, or n below 1.
    """
    kept, complement = metrics
    factor = {"%": 1.0, "fraction": 100.0}
    if entry["metric"] not in metrics or entry["unit"] not in factor:
        raise ValueError(
            f"published value of {entry['rule']!r}: metric {entry['metric']!r} in "
            f"{entry['unit']!r}; allowed are {kept} and {complement} in '%' or 'fraction'"
        )
    percent = entry["value"] * factor[entry["unit"]]
    if not (0 <= percent <= 100 and entry.get("n", 1) >= 1):
        raise ValueError(
            f"published value of {entry['rule']!r}: {entry['value']:g} in {entry['unit']!r} of "
            f"n={entry.get('n', 1)} runs; it must lie in 0 to 100 %, and n be at least 1"
        )
    value = 100 - percent if entry["metric"] == complement else percent
    names = {each.name for each in dataclasses.fields(Published)}
    return Published(**{**{k: entry[k] for k in names & entry.keys()}, "value": value})
