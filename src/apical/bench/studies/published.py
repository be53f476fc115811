"""What was published of the rows of a study: values, robust accuracies, courses of training."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from apical.bench.report.published import ERRORS, ROBUSTNESS, Curve, read_published


@dataclass(frozen=True)
class Published:
    """A published value, of ``n`` runs; ``other_scale`` says why it cannot be compared."""

    setting: str
    rule: str
    value: float
    source: str
    metric: str = "test_error"
    unit: str = "%"
    n: int = 1
    other_scale: str = ""


@dataclass(frozen=True)
class PublishedRobustness:
    """A published accuracy under attack, of ``n`` runs; ``other_scale`` as in ``Published``.

    Args: attack, group: which rows of an evaluation it is compared with.     eps: their radius; of
        the group ``pixels`` the number of pixels.     value: in ``unit``.
    """

    setting: str
    rule: str
    attack: str
    eps: float
    value: float
    source: str
    group: str = "own"
    metric: str = "robust_accuracy"
    unit: str = "fraction"
    n: int = 1
    other_scale: str = ""


def published_rows(
    rows: Sequence[Published | PublishedRobustness], data_notes: Sequence[str]
) -> list[dict[str, Any]]:
    """As study.json holds them: what is noted of the data is why they cannot be compared."""
    notes = "; ".join(data_notes)
    return [dataclasses.asdict(row) | {"other_scale": row.other_scale or notes} for row in rows]


def check(
    study: str,
    cells: Sequence[tuple[str, str]],
    rows: Sequence[Published | Curve | PublishedRobustness],
) -> None:
    """Raises: ValueError for a value of a row without runs, the second one of a row under the same
    attack or of the same quantity, and values out of range.     Args: cells: (setting, rule).
    """
    listed: set[tuple[object, ...]] = set()
    for row in rows:
        place: tuple[object, ...] = (row.setting, row.rule)
        if place not in cells:
            raise ValueError(
                f"study {study}: a published value is of {row.setting}, {row.rule}, of which "
                f"there is no run; there are {'; '.join(map(', '.join, cells))}"
            )
        if isinstance(row, Curve):
            place = (*place, row.metric, row.layer)
        elif isinstance(row, PublishedRobustness):
            place = (*place, row.attack, row.eps, row.group)
            read_published(dataclasses.asdict(row), ROBUSTNESS)
        else:
            read_published(dataclasses.asdict(row), ERRORS)
        if place in listed:
            names = ", ".join(map(str, place))
            raise ValueError(f"study {study}: two published values are of {names}")
        listed.add(place)
