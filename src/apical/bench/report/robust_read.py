"""Published values of robustness."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

FULL_TIER = "full"
"""The tier of a published protocol; every other one is on another scale."""


@dataclass(frozen=True)
class PublishedRobustness:
    """A published robust accuracy in %, under the attack whose rows carry this label."""

    setting: str
    rule: str
    attack: str
    eps: float
    accuracy: float
    source: str
    n: int = 1
    group: str = "own"
    other_scale: str = ""


def published(entry: Mapping[str, Any]) -> PublishedRobustness:
    """One entry of `robust_published` in study.json.

    Raises: ValueError for a metric other than robust_accuracy and attack_success (the share of all
        examples that the attack leaves misclassified), or a unit other than "%" and "fraction".
    """
    factor = {"%": 1.0, "fraction": 100.0}
    if entry["metric"] not in ("robust_accuracy", "attack_success") or entry["unit"] not in factor:
        raise ValueError(
            f"published robustness of {entry['rule']!r}: metric {entry['metric']!r} in "
            f"{entry['unit']!r}; allowed are robust_accuracy and attack_success in '%' or "
            "'fraction'"
        )
    percent = entry["value"] * factor[entry["unit"]]
    return PublishedRobustness(
        setting=entry["setting"],
        rule=entry["rule"],
        attack=entry["attack"],
        eps=float(entry["eps"]),
        accuracy=percent if entry["metric"] == "robust_accuracy" else 100 - percent,
        source=entry["source"],
        n=entry.get("n", 1),
        group=entry.get("group", "own"),
        other_scale=entry.get("other_scale", ""),
    )
