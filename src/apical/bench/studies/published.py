"""What was published of the rows of a study: values, robust accuracies, courses of training."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from apical.bench.report import read


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
            read.read_published(dataclasses.asdict(row), read.ROBUSTNESS)
        else:
            read.read_published(dataclasses.asdict(row), read.ERRORS)
        if place in listed:
            names = ", ".join(map(str, place))
            raise ValueError(f"study {study}: two published values are of {names}")
        listed.add(place)
