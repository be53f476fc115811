"""What several nets of one rule say about its robustness: intervals, gap, verdict.

Robust accuracies are in % of all test images, differences in percentage points; seeds are the
sample. With one net the images are, and every interval says which of the two it is.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from apical.measure import statistics

MASKED = 5.0
"""Points of own minus exact robust accuracy above which a rule counts as masked, with an interval
above 0."""

ALPHA = 0.05
"""Level of the tests of a gap, over all radii together."""

Word = Literal["faithful", "masked", "random", "suspect", "undecided", "vanishing"]
Over = Literal["nets", "images"]


@dataclass(frozen=True)
class Estimate:
    """A robust accuracy in %, or a difference of two in points, with its 95 % interval.

    Attributes: low, high: None where one net gives no interval. over: "nets", a t interval for the
        mean over seeds, as in the tables of accuracy, of accuracies cut off at 0 and 100; "images",
        that of one net, which says nothing about other seeds.
    """

    n: int
    mean: float
    low: float | None
    high: float | None
    over: Over = "nets"

    @property
    def masked(self) -> bool:
        """Whether a difference is large and, by its interval, not by chance."""
        return self.mean > MASKED and self.low is not None and self.low > 0

    @property
    def inside(self) -> bool:
        """Whether its interval lies inside 5 points."""
        return (
            self.low is not None
            and self.high is not None
            and -MASKED < self.low <= self.high < MASKED
        )


@dataclass(frozen=True)
class RuleVerdict:
    """Whether a rule's own gradient tells how robust its nets are, and why."""

    word: Word
    reasons: tuple[str, ...]


def estimate(
    shares: Mapping[int, float], images: int = 0, bounds: tuple[float, float] | None = None
) -> Estimate | None:
    """Mean and interval of robust accuracies given as fractions by seed; None without any.

    Args: images: number of test images behind each of them, for the interval of a single net, and
        of equal ones, whose spread is no certainty. bounds: of a single net, where they are known,
        fractions.
    >>> estimate({0: 0.5}, 100)
    Estimate(n=1, mean=50.0, low=40.3..., high=59.6..., over='images')
    """
    if not shares:
        return None
    values = [100 * share for share in shares.values()]
    noise = 0.0
    if len(set(values)) == 1 and images:
        noise = 1e4 * statistics.binomial_variance(values[0] / 100, images)
    found = statistics.summarize(values, noise=noise).within(0, 100)
    if found.low is None:
        low, high = bounds or statistics.wilson(found.mean / 100 * images, images)
        return Estimate(1, found.mean, 100 * low, 100 * high, "images")
    return Estimate(found.n, found.mean, found.low, found.high)


def difference(
    first: Mapping[int, float], second: Mapping[int, float], noise: float = 0.0
) -> Estimate | None:
    """First minus second on the seeds both have, fractions in, points out; None without any.

    Args: noise: variance of a difference over its images, which the interval takes where all are
        equal: that is no certainty.
    """
    found = statistics.paired_difference(first, second)
    if found is None:
        return None
    if found.low is not None and found.high is not None and math.isclose(found.low, found.high):
        found = statistics.paired_difference(first, second, noise=noise)
        assert found is not None
    low, high = (None if bound is None else 100 * bound for bound in (found.low, found.high))
    return Estimate(found.n, 100 * found.mean, low, high)


def gap(rows: Mapping[int, Mapping[str, Any]]) -> Estimate | None:
    """Own minus exact robust accuracy from the gap rows of one radius, by seed; None without any.

    One net: its own interval, over images, the two attacks paired image by image.
    """
    if len(rows) == 1:
        (row,) = rows.values()
        return Estimate(1, 100 * row["mean"], 100 * row["low"], 100 * row["high"], "images")
    own, exact = ({seed: row[key] for seed, row in rows.items()} for key in ("own", "exact"))
    # none where all are equal: of a plain net the own gradient is the exact one
    return difference(own, exact, _gap_noise(rows) if own != exact else 0.0)


def gap_p(rows: Mapping[int, Mapping[str, Any]]) -> float:
    """p-value for no gap at one radius: paired t over nets, whose gaps vary at least as much as
    each one's does over its images; one net: over its images.

    Rows of evaluations before version 2 have no p-value of their own: there the interval decides.
    """
    if len(rows) == 1:
        (row,) = rows.values()
        return float(row.get("p", 1.0 if row["low"] <= 0 <= row["high"] else 0.0))
    own, exact = ({seed: row[key] for seed, row in rows.items()} for key in ("own", "exact"))
    found = statistics.difference_p(own, exact, noise=_gap_noise(rows))
    return 1.0 if found is None else found


def certain(gaps: Mapping[float, Mapping[int, Mapping[str, Any]]]) -> set[float]:
    """The radii at which a rule has a gap that is not by chance, Holm-corrected over radii.

    Args: gaps: radius -> seed -> row of kind gap.
    """
    corrected = statistics.holm([gap_p(rows) for rows in gaps.values()])
    return {eps for eps, p in zip(gaps, corrected, strict=True) if p < ALPHA}


def _gap_noise(rows: Mapping[int, Mapping[str, Any]]) -> float:
    """Variance of one net's gap over its images."""
    half = [(row["high"] - row["low"]) / 2 for row in rows.values()]
    return sum((each / 1.96) ** 2 for each in half) / len(half)


def verdict(
    gaps: Mapping[float, Mapping[int, Mapping[str, Any]]],
    audits: Sequence[Mapping[str, Any]],
    words: Sequence[str] = (),
) -> RuleVerdict:
    """The verdict on a rule from the evaluations of its nets.

    Masked: at some radius own minus exact robust accuracy is above 5 points with an interval above
    0 (over nets; over images for a single one), Holm-corrected over radii, or the audit found in
    more than half of the nets that a small step along the own gradient does not raise the loss.
    Else vanishing or random if the audit says so of more than half of the nets. Suspect if more
    than half of the nets are, or own gradients are significantly stronger than exact ones.
    Undecided where the interval of own minus exact is not inside 5 points, as with two nets it
    mostly is not, or more than half of the nets are undecided; else faithful.

    Args: gaps: radius -> seed -> row of kind gap. audits: rows of kind audit, one per net. words:
        the verdicts on the single nets.
    Raises: ValueError without any of either.
    """
    found = {eps: gap(rows) for eps, rows in gaps.items()}
    known = {eps: each for eps, each in sorted(found.items()) if each is not None}
    if not known or not audits:
        raise ValueError("verdict: needs the gap rows and the audit row of at least one net")
    sure = certain({eps: gaps[eps] for eps in known})
    large = {eps: each for eps, each in known.items() if each.masked and eps in sure}
    masked = [_largest(large, gaps)] if large else []
    misled = [row for row in audits if row["misleading"]]
    if 2 * len(misled) > len(audits):
        shares = statistics.summarize([row["rising"] for row in misled]).mean
        masked.append(
            f"a small step along the own gradient raises the loss for {100 * shares:.0f} % of "
            f"the examples only (chance gives half){_in_nets(len(misled), len(audits))}"
        )
    if masked:
        return RuleVerdict("masked", tuple(masked))
    for word in ("vanishing", "random"):
        such = [row for row in audits if row["verdict"] == word]
        if 2 * len(such) > len(audits):
            reason = such[0]["reasons"][0]
            return RuleVerdict(word, (f"{reason}{_in_nets(len(such), len(audits))}",))
    for eps, each in known.items():
        if each.mean < -MASKED and eps in sure:
            reason = f"at radius {radius(eps)} own gradients are stronger than exact ones"
            return RuleVerdict("suspect", (f"{reason} ({-each.mean:.1f} points)",))
    if 2 * words.count("suspect") > len(words):
        checks = "a sanity check failed, so the worst case is an upper bound only"
        count = words.count("suspect")
        return RuleVerdict("suspect", (f"{checks}{_in_nets(count, len(words))}",))
    if any(not each.inside for each in known.values()):
        return RuleVerdict("undecided", (_perhaps(known),))
    if 2 * words.count("undecided") > len(words):
        lacking = "checks or examples are lacking"
        count = words.count("undecided")
        return RuleVerdict("undecided", (f"{lacking}{_in_nets(count, len(words))}",))
    largest = max(known.values(), key=lambda each: each.mean)
    return RuleVerdict(
        "faithful",
        (f"own minus exact robust accuracy is at most {largest.mean:.1f} points on average",),
    )


def verdict_of(nets: Mapping[int, Sequence[Mapping[str, Any]]]) -> RuleVerdict:
    """The verdict on a rule from the rows of one evaluation of each of its nets, by seed.

    Raises: as `verdict`.
    """
    gaps: dict[float, dict[int, Mapping[str, Any]]] = {}
    audits, words = [], []
    for seed, rows in nets.items():
        for row in rows:
            if row["kind"] == "gap":
                gaps.setdefault(row["eps"], {})[seed] = row
        audits += [row for row in rows if row["kind"] == "audit"]
        words += [row["verdict"] for row in rows if row["kind"] == "verdict"]
    return verdict(gaps, audits, words)


def radius(eps: float) -> str:
    """A radius as papers write it: "0.1", "8/255".

    >>> radius(8 / 255)
    '8/255'
    """
    steps = 255 * eps
    whole = abs(steps - round(steps)) < 1e-4 and round(steps) >= 1
    return f"{eps:.3g}" if not whole or len(f"{eps:.4g}") <= 4 else f"{round(steps)}/255"


def _largest(
    masked: Mapping[float, Estimate], gaps: Mapping[float, Mapping[int, Mapping[str, Any]]]
) -> str:
    """The largest gap in full, and at which other radii there is one."""
    eps, found = max(masked.items(), key=lambda item: item[1].mean)
    rows = gaps[eps]
    own, exact = (
        100 * sum(row[key] for row in rows.values()) / len(rows) for key in ("own", "exact")
    )
    over = f"over {found.n} nets" if found.over == "nets" else "over images, one net"
    others = [
        f"{radius(other)} ({each.mean:.1f} points)"
        for other, each in masked.items()
        if other != eps
    ]
    also = f"; so they are at radius {', '.join(others)}" if others else ""
    return (
        f"at radius {radius(eps)} the own gradient leaves {own:.1f} % right, the exact one "
        f"{exact:.1f} %: {found.mean:.1f} points between them (95 % interval {found.low:.1f} to "
        f"{found.high:.1f}, {over}){also}"
    )


def _perhaps(known: Mapping[float, Estimate]) -> str:
    wide = {eps: each for eps, each in known.items() if not each.inside}
    eps, found = max(wide.items(), key=lambda item: abs(item[1].mean))
    interval = "no interval" if found.low is None else f"{found.low:.1f} to {found.high:.1f}"
    return (
        f"at radius {radius(eps)} own minus exact robust accuracy is {found.mean:.1f} points on "
        f"average, and not inside {MASKED:.0f} points (95 % interval {interval}, n = {found.n}): "
        f"more {found.over} decide"
    )


def _in_nets(count: int, of: int) -> str:
    return "" if of == 1 else f", in {count} of {of} nets"
