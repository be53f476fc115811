"""When a layer aligned: the first of the two phases of "align, then memorise".

Under fixed random feedback the weights first turn until the update points along the gradient, and
fit the data after that (Refinetti, d'Ascoli, Ohana, Goldt 2021). A pure function of a run's rows,
so that it can be asked of any record.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import Any

FEWEST = 4
"""Measurements below which a rise cannot be told from noise."""

NOISE = 4.0
"""A rise is at least so many times the scatter of the measurements about their running median."""


@dataclass(frozen=True)
class Phase:
    """How one layer aligned.

    Attributes:
        before, after: angle in degrees at the first measurement, and where it came to rest.
        epoch: when the asked-for share of the way between them was covered, interpolated.
        loss: then; last_loss: at the last measurement. None where no loss is recorded.
        saturated: whether two or more later measurements show that it had come to rest. Else the
            angle may still be on its way, and `after` is only how far it got.
    """

    before: float
    after: float
    epoch: float
    loss: float | None
    last_loss: float | None
    saturated: bool


def phases(
    rows: Iterable[Mapping[str, Any]],
    *,
    key: str = "gradient_angle_deg",
    share: float = 0.9,
    least: float = 10.0,
) -> dict[str, Phase | str]:
    """The alignment phase of every layer, or why there is none.

    Args:
        rows: records of one run.
        key: which angle: `gradient_angle_deg`, `delta_angle_deg`, or `angle_deg` of the feedback.
        share: of the way, in (0, 1), at which a layer counts as aligned.
        least: degrees that count as a rise, and that the angle must come below 90; seeds of one
            net, and single batches, differ by several.
    Returns: layer -> its phase; where there is none, in words: too few measurements, or no rise
        beyond `least` and the noise. The loss is that of the measured images, or the training
        loss of the epoch in records that lack it.
    """
    angles: dict[str, dict[float, float]] = {}
    losses: dict[str, dict[float, float]] = {"probe": {}, "epoch": {}}
    for row in rows:
        kind = row.get("kind")
        if kind == "layer" and key in row:
            angles.setdefault(row["layer"], {})[row["epoch"]] = row[key]
        elif kind == "probe" and "loss" in row:
            losses["probe"][row["epoch"]] = row["loss"]
        elif kind == "epoch" and "train_loss" in row:
            losses["epoch"][row["epoch"]] = row["train_loss"]
    curve = sorted((losses["probe"] or losses["epoch"]).items())
    return {
        layer: alignment(sorted(measured.items()), curve, share=share, least=least)
        for layer, measured in angles.items()
    }


def alignment(
    angles: Sequence[tuple[float, float]],
    losses: Sequence[tuple[float, float]] = (),
    *,
    share: float = 0.9,
    least: float = 10.0,
) -> Phase | str:
    """The alignment phase of one layer, or why there is none.

    The angle comes to rest at the median of the smoothed values that lie within the noise of the
    smallest; what it does later does not count, since feedback that no longer fits may let a
    layer turn away again.

    Args: angles: (epoch, degrees) in order.   losses: (epoch, loss) in order.   Others: `phases`.
    >>> angles = [(0, 90), (1, 60), (2, 45), (3, 41), (4, 40), (5, 40), (6, 40)]
    >>> alignment(angles).epoch  # at 45 degrees, nine tenths of the way from 90 to 40
    2.0
    """
    if not 0 < share < 1:
        raise ValueError(f"share={share} must lie in (0, 1)")
    if len(angles) < FEWEST:
        return f"{len(angles)} measurements; at least {FEWEST} show a phase"
    smooth = _running_median([angle for _, angle in angles])
    noise = _scatter([angle for _, angle in angles], smooth)
    low = min(smooth)
    rest = median(angle for angle in smooth if angle <= low + NOISE * noise)
    before = smooth[0]
    if before < least:
        return f"aligned from the start, at {before:.1f} degrees"
    if before - rest < max(least, NOISE * noise) or rest > 90 - least:
        change = f"{before:.1f} to {rest:.1f} degrees, scatter {noise:.1f}"
        return f"no rise of alignment: {change}"
    goal = before - share * (before - rest)
    place = next(i for i, angle in enumerate(smooth) if angle <= goal)  # not the first
    (x0, x1), (y0, y1) = (
        (epoch for epoch, _ in angles[place - 1 : place + 1]),
        smooth[place - 1 : place + 1],
    )
    epoch = x0 + (x1 - x0) * (y0 - goal) / (y0 - y1)
    return Phase(
        before=before,
        after=rest,
        epoch=epoch,
        loss=_at(losses, epoch),
        last_loss=losses[-1][1] if losses else None,
        saturated=place <= len(angles) - 3,
    )


def _running_median(values: Sequence[float]) -> list[float]:
    """Of three neighbours; the first and the last value stand for themselves."""
    inner = [median(values[i - 1 : i + 2]) for i in range(1, len(values) - 1)]
    return [values[0], *inner, values[-1]]


def _scatter(values: Sequence[float], smooth: Sequence[float]) -> float:
    """Standard deviation of normal noise that would leave this median deviation from the smoothed
    values; 0 where too few deviate to tell noise from the curve itself."""
    away = [abs(a - b) for a, b in zip(values, smooth, strict=True)][1:-1]
    nonzero = [value for value in away if value > 0]
    # a running median equals about a third of noisy values exactly: the others show the noise
    noisy = len(nonzero) >= FEWEST and 2 * len(nonzero) >= len(away)
    return 1.4826 * median(nonzero) if noisy else 0.0


def _at(curve: Sequence[tuple[float, float]], epoch: float) -> float | None:
    """A curve read between its points; before the first and after the last, theirs."""
    if not curve:
        return None
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 <= epoch <= x1:
            return y0 + (y1 - y0) * (epoch - x0) / (x1 - x0)
    return curve[0][1] if epoch < curve[0][0] else curve[-1][1]
