"""Statistics of few runs: intervals, paired differences, tie groups, verdicts.

Nothing here knows units or what is measured. A sample is a list of values or, where runs are
matched, a mapping from seed to value. All intervals are two-sided.
"""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Sample = Mapping[int, float]

LEVEL = 0.95
ALLOWANCE = 0.1
FEWEST = 3  # runs below which an interval says next to nothing


@dataclass(frozen=True)
class Summary:
    """What n runs say about their mean; sd and interval are None where n does not give them."""

    n: int
    mean: float
    sd: float | None
    low: float | None
    high: float | None

    @property
    def note(self) -> str:
        """A warning to print beside the numbers, "" from three runs on."""
        if self.n >= FEWEST:
            return ""
        if self.n == 1:
            return "one run: no interval"
        return "two runs: the interval is too wide to say much"

    def within(self, low: float, high: float) -> Summary:
        """The same, its interval cut off where the quantity ends: a share at 0 and 100 %."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, low), high=min(self.high, high))


@dataclass(frozen=True)
class Verdict:
    """How a published value stands to ours, with the bounds it was held against."""

    word: Literal["agrees", "differs", "other scale", "too few runs"]
    why: str
    low: float | None = None
    high: float | None = None


def summarize(
    values: Sequence[float],
    *,
    level: float = LEVEL,
    method: Literal["t", "bootstrap"] = "t",
    seed: int = 0,
) -> Summary:
    """Mean, standard deviation (n - 1 in the denominator) and an interval for the mean.

    Args: level: in (0, 1). method: "t" takes the runs as normal, the honest choice for a handful of
        seeds; "bootstrap" (percentile, 10,000 resamples) assumes no shape but is too narrow below
        about ten runs. seed: of the bootstrap, unused otherwise.
    Raises: ValueError without values, for values that are not finite, for a level outside (0, 1).
    >>> summarize([1.0, 2.0, 3.0])
    Summary(n=3, mean=2.0, sd=1.0, low=-0.484..., high=4.484...)
    """
    values = [float(value) for value in values]
    _check(values, level)
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Summary(1, mean, None, None, None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    if method == "bootstrap":
        low, high = _bootstrap(values, level, seed)
    elif method == "t":
        half = _t_quantile(level, n - 1) * sd / math.sqrt(n)
        low, high = mean - half, mean + half
    else:
        raise ValueError(f"method {method!r}: allowed are 't' and 'bootstrap'")
    return Summary(n, mean, sd, low, high)


def wilson(successes: float, trials: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Interval for one net's accuracy on `trials` test examples.

    It holds for drawing other test examples, not for training again: it is no substitute for seeds.
    Args: successes: number of correct examples, in [0, trials]. trials: at least 1.
    Returns: bounds as fractions in [0, 1].     Source: Wilson 1927.
    >>> wilson(98, 100)
    (0.929..., 0.994...)
    """
    from scipy.stats import norm

    if not (trials >= 1 and 0 <= successes <= trials):
        raise ValueError(f"wilson: {successes} of {trials}: need 0 <= successes <= trials")
    _check([float(successes)], level)
    z = float(norm.ppf((1 + level) / 2))
    share = successes / trials
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_shares(
    only_first: int, only_second: int, examples: int, *, level: float = LEVEL
) -> tuple[float, float]:
    """Interval for the difference of two shares on the same examples.

    Args: only_first, only_second: examples that count for one of the two alone. examples: >= 1.
    Returns: bounds in [-1, 1]. Never a point: without a differing example it is +-1.96 / (n + 2).
    Source: Agresti, Min 2005: Wald's, with half an example added to each of the four kinds.
    >>> paired_shares(0, 0, 98)
    (-0.0195..., 0.0195...)
    """
    from scipy.stats import norm

    if not (examples >= 1 and min(only_first, only_second) >= 0):
        raise ValueError(f"paired_shares: {only_first} and {only_second} of {examples} examples")
    n, first, second = examples + 2, only_first + 0.5, only_second + 0.5
    mean = (first - second) / n
    variance = (first + second - (first - second) ** 2 / n) / n**2
    half = float(norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    return max(-1.0, mean - half), min(1.0, mean + half)


def mcnemar(only_first: int, only_second: int) -> float:
    """p-value for equal shares on the same examples, exact and two-sided. Source: McNemar 1947.

    >>> mcnemar(6, 0)
    0.03125
    """
    from scipy.stats import binomtest

    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def paired_difference(values: Sample, baseline: Sample, *, level: float = LEVEL) -> Summary | None:
    """Values minus baseline on the seeds both have; None where they share no seed.

    What two rules of one seed have in common (initial weights, order of the data) cancels.
    """
    shared = sorted(set(values) & set(baseline))
    if not shared:
        return None
    return summarize([values[seed] - baseline[seed] for seed in shared], level=level)


def difference_p(first: Sample, second: Sample) -> float | None:
    """p-value for equal means: paired t on shared seeds (two or more), else Welch's t.

    None where neither applies: fewer than two shared seeds and a sample of fewer than two.
    """
    shared = sorted(set(first) & set(second))
    if len(shared) >= 2:
        differences = [first[seed] - second[seed] for seed in shared]
        summary = summarize(differences)
        return _t_p(summary.mean, (summary.sd or 0.0) / math.sqrt(summary.n), summary.n - 1)
    if min(len(first), len(second)) < 2:
        return None
    a, b = summarize(list(first.values())), summarize(list(second.values()))
    va, vb = (a.sd or 0.0) ** 2 / a.n, (b.sd or 0.0) ** 2 / b.n
    total = va + vb
    freedom = total**2 / (va**2 / (a.n - 1) + vb**2 / (b.n - 1)) if total else 1.0
    return _t_p(a.mean - b.mean, math.sqrt(total), freedom)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    order = sorted(range(len(p_values)), key=lambda index: p_values[index])
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return corrected


def tie_groups(samples: Mapping[str, Sample], *, alpha: float = 0.05) -> dict[str, str]:
    """Letters per label; two labels that share a letter are not told apart by the data.

    Every pair is compared (`difference_p`), the p-values are Holm-corrected over all pairs, and
    pairs below alpha share no letter. Letters run from the lowest mean up. Labels of fewer than two
    runs, which no test can place, get "".
    Source: compact letter display by insertion and absorption, Piepho 2004.
    >>> tie_groups({"a": {1: 1.0, 2: 1.1}, "b": {1: 1.1, 2: 1.0}})
    {'a': 'a', 'b': 'a'}
    """
    labels = [label for label in samples if len(samples[label]) >= 2]
    labels.sort(key=lambda label: summarize(list(samples[label].values())).mean)
    pairs = list(itertools.combinations(labels, 2))
    p_values = [difference_p(samples[a], samples[b]) for a, b in pairs]
    corrected = holm([1.0 if p is None else p for p in p_values])
    apart = [pair for pair, p in zip(pairs, corrected, strict=True) if p < alpha]
    columns = _letter_columns(labels, apart)
    if len(columns) > len(string.ascii_letters):
        raise ValueError(f"{len(columns)} tie groups: more than there are letters; compare fewer")
    return {
        label: "".join(
            letter
            for letter, column in zip(string.ascii_letters, columns, strict=False)
            if label in column
        )
        for label in samples
    }


def verdict(
    ours: Summary,
    published: float,
    *,
    other_scale: str = "",
    published_n: int = 1,
    level: float = LEVEL,
    allowance: float = ALLOWANCE,
    least: float = 0.0,
) -> Verdict:
    """Whether a published value is one that our protocol could have produced.

    Definition. From our n runs (mean m, standard deviation s) the mean of k further runs is
    expected within

        m +- t(n - 1) * s * sqrt(1/k + 1/n)        (prediction interval; k = published_n, often 1)

    and this interval is widened on both sides by `allowance` times the published value, for what a
    published protocol leaves unsaid (default 10 %: results of one and the same source have moved by
    that much between its revisions), at least by `least`. Inside: "agrees"; outside: "differs".
    "other scale": the runs are not of the published protocol, so neither word would be true.
    "too few runs": below three runs the interval would swallow any value.
    Args: published: in the unit of `ours`. other_scale: what differs from the published protocol
        (fewer epochs, other data), "" when nothing does. allowance: 0 or more. least: in the unit
        of the values, such as how well a published figure can be read.
    """
    if other_scale:
        return Verdict("other scale", other_scale)
    if ours.n < FEWEST or ours.sd is None:
        return Verdict("too few runs", f"{ours.n} of the {FEWEST} runs a verdict needs")
    if allowance < 0 or published_n < 1:
        raise ValueError(f"allowance={allowance}, published_n={published_n}: need >= 0 and >= 1")
    spread = _t_quantile(level, ours.n - 1) * ours.sd * math.sqrt(1 / published_n + 1 / ours.n)
    half = spread + max(allowance * abs(published), least)
    low, high = ours.mean - half, ours.mean + half
    inside = low <= published <= high
    where = "inside" if inside else "outside"
    return Verdict(
        "agrees" if inside else "differs",
        f"{published:.4g} is {where} {low:.4g} to {high:.4g}",
        low,
        high,
    )


def _letter_columns(labels: Sequence[str], apart: Sequence[tuple[str, str]]) -> list[set[str]]:
    columns = [set(labels)] if labels else []
    for a, b in apart:
        for column in [column for column in columns if a in column and b in column]:
            columns.remove(column)
            columns += [column - {a}, column - {b}]
        columns = [
            column
            for index, column in enumerate(columns)
            if not any(column < other for other in columns) and column not in columns[:index]
        ]
    rank = {label: index for index, label in enumerate(labels)}
    return sorted(columns, key=lambda column: sorted(rank[label] for label in column))


def _check(values: Sequence[float], level: float) -> None:
    if not values:
        raise ValueError("no values to summarize")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values must be finite, got {values}")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1, like 0.95")


def _t_quantile(level: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))


def _t_p(difference: float, error: float, freedom: float) -> float:
    """Two-sided p of a difference; without any spread, equal is certain and so is unequal."""
    from scipy.stats import t

    if error == 0:
        return 1.0 if difference == 0 else 0.0
    return float(2 * t.sf(abs(difference) / error, freedom))


def _bootstrap(values: Sequence[float], level: float, seed: int) -> tuple[float, float]:
    import numpy as np
    from scipy.stats import bootstrap

    interval = bootstrap(
        (np.array(values),),
        np.mean,
        n_resamples=10_000,
        confidence_level=level,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
