"""Statistics of few runs: intervals, paired differences, tie groups, verdicts.

Nothing here knows units or what is measured. A sample is a list of values or, where runs are
matched, a mapping from seed to value. All intervals are two-sided.

`noise` is the variance that a single run's value has for the test set alone (`binomial_variance`):
the least that the variance of runs is taken to be, also where they happen to lie closer together.
"""

import functools
import itertools
import math
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

Sample = Mapping[int, float]

LEVEL, ALLOWANCE = 0.95, 0.1
FEWEST = 3  # runs below which an interval says next to nothing
ROUNDING = 1e-12  # a spread that much smaller than the values is that of their last digits


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
        few = {1: "one run: no interval", 2: "two runs: the interval is too wide to say much"}
        return few.get(self.n, "")

    def within(self, low: float, high: float) -> "Summary":
        """The same, its interval cut off where the quantity ends: a share at 0 and 100 %."""
        if self.low is None or self.high is None:
            return self
        return replace(self, low=max(self.low, low), high=min(self.high, high))


Word = Literal[
    "equivalent", "agrees", "compatible, uninformative", "differs", "other scale", "too few runs"
]


@dataclass(frozen=True)
class Verdict:
    """How a published value stands to ours, with the bounds it was held against."""

    word: Word
    why: str
    low: float | None = None
    high: float | None = None


def summarize(values: Sequence[float], *, level: float = LEVEL, noise: float = 0.0) -> Summary:
    """Mean, standard deviation (n - 1 in the denominator) and the t interval of the mean, which
    takes the runs as normal.

    Args: level: in (0, 1). noise: least variance of a value, as the interval takes it; sd is the
        one observed.
    Raises: ValueError without values, for values that are not finite, for a level outside (0, 1),
        for noise that is negative or not finite.
    >>> summarize([1.0, 2.0, 3.0])
    Summary(n=3, mean=2.0, sd=1.0, low=-0.484..., high=4.484...)
    """
    values = [float(value) for value in values]
    _check(values, level, noise)
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Summary(1, mean, None, None, None)
    sd = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1))
    half = _t_quantile(level, n - 1) * math.sqrt(max(sd**2, noise) / n)
    return Summary(n, mean, sd, mean - half, mean + half)


def seeds_needed(sd: float, half_width: float, *, level: float = LEVEL) -> int:
    """How many runs give the t interval of a mean this half width, at least 2.

    Args: sd: standard deviation of a run, as measured: itself known to within a factor of two from
        three runs. half_width: wanted, above 0, in the unit of sd.
    Raises: ValueError for an sd that is negative or not finite, and for another half width.
    >>> seeds_needed(1.0, 0.5)
    18
    """
    if not (0 <= sd < math.inf and half_width > 0):
        raise ValueError(f"sd={sd}, half_width={half_width}: need at least 0, finite, and above 0")
    # the quantile of t falls to that of the normal law: fewer runs are too few
    n = max(2, math.floor((_t_quantile(level, math.inf) * sd / half_width) ** 2))
    while _t_quantile(level, n - 1) * sd / math.sqrt(n) > half_width:
        n += 1
    return n


def wilson(successes: float, trials: int, *, level: float = LEVEL) -> tuple[float, float]:
    """Interval for one net's accuracy on `trials` test examples.

    It holds for drawing other test examples, not for training again: it is no substitute for seeds.
    Args: successes: number of correct examples, in [0, trials], rounded to a whole number. trials:
        at least 1.
    Returns: bounds as fractions in [0, 1].     Source: Wilson 1927.
    >>> wilson(98, 100)
    (0.929..., 0.994...)
    """
    from scipy.stats import binomtest

    if not (trials >= 1 and 0 <= successes <= trials):
        raise ValueError(f"wilson: {successes} of {trials}: need 0 <= successes <= trials")
    _check([float(successes)], level)
    found = binomtest(round(successes), trials).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


def binomial_variance(share: float, examples: int) -> float:
    """Variance of the share of wrong ones among `examples` drawn at random.

    The share is drawn towards one half by one example of either kind, so that none wrong is no
    certainty (Laplace's rule).
    Args: share: of wrong ones, in [0, 1]. examples: at least 1.
    Returns: a variance of fractions; of percentages it is 10,000 times that.
    >>> binomial_variance(0.5, 100)
    0.0025
    """
    if not (0 <= share <= 1 and examples >= 1):
        raise ValueError(f"share={share} of {examples} examples: need 0 to 1, and at least 1")
    share = (share * examples + 1) / (examples + 2)
    return share * (1 - share) / examples


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

    if not (min(only_first, only_second) >= 0 and 1 <= examples >= only_first + only_second):
        raise ValueError(f"paired_shares: {only_first} and {only_second} of {examples} examples")
    n, first, second = examples + 2, only_first + 0.5, only_second + 0.5
    mean = (first - second) / n
    variance = (first + second - (first - second) ** 2 / n) / n**2
    half = float(norm.ppf((1 + level) / 2)) * math.sqrt(variance)
    return max(-1.0, mean - half), min(1.0, mean + half)


def above(successes: int, trials: int, share: float) -> float:
    """p-value for a share of at most `share`, exact binomial.

    >>> round(above(8, 128, 0.03), 3)
    0.04
    """
    from scipy.stats import binomtest

    return float(binomtest(successes, trials, share, "greater").pvalue)


def mcnemar(only_first: int, only_second: int) -> float:
    """p-value for equal shares on the same examples, exact and two-sided. Source: McNemar 1947.

    >>> mcnemar(6, 0)
    0.03125
    """
    from scipy.stats import binomtest

    differing = only_first + only_second
    return float(binomtest(only_first, differing).pvalue) if differing else 1.0


def paired_difference(
    values: Sample, baseline: Sample, *, level: float = LEVEL, noise: float = 0.0
) -> Summary | None:
    """Values minus baseline on the seeds both have; None where they share no seed.

    What two rules of one seed have in common (initial weights, order of the data) cancels.
    Args: noise: least variance of a difference: the sum of both rules'.
    """
    shared = sorted(set(values) & set(baseline))
    if not shared:
        return None
    differences = [values[seed] - baseline[seed] for seed in shared]
    return summarize(differences, level=level, noise=noise)


def difference_p(first: Sample, second: Sample, *, noise: float = 0.0) -> float | None:
    """p-value for equal means: paired t on shared seeds (two or more), else Welch's t.

    None where neither applies: fewer than two shared seeds and a sample of fewer than two. Without
    any spread, and without `noise`, nothing is known of chance: then it is 1.
    Args: noise: least variance of a difference: the sum of both samples'.
    """
    from scipy.stats import t, ttest_ind_from_stats

    shared = sorted(set(first) & set(second))
    if len(shared) >= 2:
        found = summarize([first[seed] - second[seed] for seed in shared], noise=noise)
        assert found.sd is not None
        largest = max(abs(sample[seed]) for sample in (first, second) for seed in shared)
        spread = found.sd if found.sd > ROUNDING * largest else 0.0
        error = math.sqrt(max(spread**2, noise) / found.n)
        return float(2 * t.sf(abs(found.mean) / error, found.n - 1)) if error else 1.0
    if min(len(first), len(second)) < 2:
        return None
    a, b = (summarize(list(sample.values()), noise=noise / 2) for sample in (first, second))
    spreads = [math.sqrt(max(s.sd**2, noise / 2)) for s in (a, b) if s.sd is not None]
    if not any(spreads):
        return 1.0
    test = ttest_ind_from_stats(a.mean, spreads[0], a.n, b.mean, spreads[1], b.n, equal_var=False)
    return float(test.pvalue)


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979), in the order given.

    Raises: ValueError for a value outside [0, 1].
    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError(f"p-values must lie in [0, 1], got {list(p_values)}")
    order = sorted(range(len(p_values)), key=p_values.__getitem__)
    scaled = (min(1.0, (len(order) - rank) * p_values[index]) for rank, index in enumerate(order))
    return [p for _, p in sorted(zip(order, itertools.accumulate(scaled, max), strict=True))]


def differing_from(
    baseline: str,
    samples: Mapping[str, Sample],
    *,
    alpha: float = 0.05,
    noise: Mapping[str, float] | None = None,
) -> set[str]:
    """The labels that differ significantly from one: each is compared with it alone
    (`difference_p`), the p-values are Holm-corrected over these comparisons. Labels that no test
    can compare with it, as those of one run, do not count.

    Args: noise: by label, the variance of one run's value for the test set alone.
    >>> sorted(differing_from("a", {"a": {1: 1.0, 2: 1.1}, "b": {1: 3.0, 2: 3.1001}}))
    ['b']
    """
    least = dict.fromkeys(samples, 0.0) | dict(noise or {})
    p_values: dict[str, float] = {}
    for label in samples.keys() - {baseline}:
        noise_of_both = least[label] + least[baseline]
        p = difference_p(samples[label], samples[baseline], noise=noise_of_both)
        if p is not None:
            p_values[label] = p
    corrected = holm(list(p_values.values()))
    return {label for label, p in zip(p_values, corrected, strict=True) if p < alpha}


def tie_groups(
    samples: Mapping[str, Sample], *, alpha: float = 0.05, noise: Mapping[str, float] | None = None
) -> dict[str, str]:
    """Letters per label; two labels that share a letter do not differ significantly.

    Every pair is compared (`difference_p`), the p-values are Holm-corrected over all pairs, and
    pairs below alpha share no letter. Letters run from the lowest mean up. Labels of fewer than two
    runs, which no test can place, get "".
    Args: noise: by label, the variance of one run's value for the test set alone.
    Source: compact letter display by insertion and absorption, Piepho 2004.
    >>> tie_groups({"a": {1: 1.0, 2: 1.1}, "b": {1: 1.1, 2: 1.0}})
    {'a': 'a', 'b': 'a'}
    """
    labels = [label for label in samples if len(samples[label]) >= 2]
    labels.sort(key=lambda label: summarize(list(samples[label].values())).mean)
    pairs = list(itertools.combinations(labels, 2))
    least = dict.fromkeys(labels, 0.0) | dict(noise or {})
    p_values = [difference_p(samples[a], samples[b], noise=least[a] + least[b]) for a, b in pairs]
    corrected = holm([1.0 if p is None else p for p in p_values])
    differing = [pair for pair, p in zip(pairs, corrected, strict=True) if p < alpha]
    columns = _letter_columns(labels, differing)
    if len(columns) > len(string.ascii_letters):
        raise ValueError(f"{len(columns)} tie groups: more than there are letters; compare fewer")
    letters = list(zip(string.ascii_letters, columns, strict=False))
    return {label: "".join(a for a, column in letters if label in column) for label in samples}


def verdict(
    ours: Summary,
    published: float,
    *,
    others: Sequence[float] = (),
    other_scale: str = "",
    published_n: int = 1,
    level: float = LEVEL,
    allowance: float = ALLOWANCE,
    least: float = 0.0,
    noise: float = 0.0,
) -> Verdict:
    """Whether a published value is one that our protocol could have produced, and what that says.

    From our n runs (mean m, standard deviation s) the mean of k further runs is expected within

        m +- t(n - 1) * s * sqrt(1/k + 1/n)        (prediction interval; k = published_n, often 1)

    The margin is `allowance` times the published value, for what a published protocol leaves
    unsaid (default 10 %: results of one and the same source have moved by that much between its
    revisions), at least `least`. The band is the interval, widened by the margin on both sides.

    - "equivalent": ours and the published mean differ by less than the margin; both one-sided
      tests at 1 - level reject more (TOST, Schuirmann 1987).
    - "agrees": the band holds the published value, its half width is at most a quarter of that
      value, and it holds none of the other rules' published values that differ from it by more
      than the margin.
    - "compatible, uninformative": the band holds the value, but is too wide to say more; or all
      runs are equal and no `noise` is known, so that nothing is known of chance.
    - "differs": the band does not hold it.
    - "other scale": the runs are not of the published protocol, so no other word would be true.
    - "too few runs": below three runs the interval would swallow any value.

    Args: published: in the unit of `ours`. others: published values of the other rules.
        other_scale: what differs from the published protocol (fewer epochs, other data), "" when
        nothing does. allowance: 0 or more. least: in the unit of the values, such as how well a
        published figure can be read. noise: least variance of one run. level: in (0.5, 1).
    Raises: ValueError for numbers that are not finite or out of range.
    """
    _check([published, *others], level, noise)
    if not (level > 0.5 and min(allowance, least) >= 0 and published_n >= 1):
        raise ValueError(
            f"level={level}, allowance={allowance}, least={least}, published_n={published_n}: need "
            "above 0.5, at least 0 twice, and at least 1"
        )
    if other_scale:
        return Verdict("other scale", other_scale)
    if ours.n < FEWEST or ours.sd is None:
        return Verdict("too few runs", f"{ours.n} of the {FEWEST} runs a verdict needs")
    error = math.sqrt(max(ours.sd**2, noise) * (1 / published_n + 1 / ours.n))
    margin = max(allowance * abs(published), least)
    half = _t_quantile(level, ours.n - 1) * error + margin
    low, high = ours.mean - half, ours.mean + half
    band = f"{low:.4g} to {high:.4g}"
    if not low <= published <= high:
        return Verdict("differs", f"{published:.4g} is outside {band}", low, high)
    if error <= ROUNDING * abs(ours.mean):
        why = f"{published:.4g} is inside {band}, but {ours.n} equal runs say nothing of chance"
        return Verdict("compatible, uninformative", why, low, high)
    one_sided = _t_quantile(2 * level - 1, ours.n - 1) * error
    if abs(ours.mean - published) + one_sided < margin:
        why = f"{published:.4g} differs by less than {margin:.3g} (two one-sided tests)"
        return Verdict("equivalent", why, low, high)
    swallowed = [x for x in others if abs(x - published) > margin and low <= x <= high]
    if half > abs(published) / 4 or swallowed:
        why = f"{published:.4g} is inside {band}"
        also = ", ".join(f"{value:.4g}" for value in swallowed)
        why += f", and so are values of other rules: {also}" if swallowed else ", which is wide"
        return Verdict("compatible, uninformative", why, low, high)
    return Verdict("agrees", f"{published:.4g} is inside {band}", low, high)


def _letter_columns(labels: Sequence[str], differing: Sequence[tuple[str, str]]) -> list[set[str]]:
    columns = [set(labels)] if labels else []
    for a, b in differing:
        for column in [column for column in columns if a in column and b in column]:
            columns.remove(column)
            columns += [column - {a}, column - {b}]
        unique = [column for place, column in enumerate(columns) if column not in columns[:place]]
        columns = [column for column in unique if not any(column < other for other in unique)]
    return sorted(columns, key=lambda column: sorted(map(labels.index, column)))


def _check(values: Sequence[float], level: float, noise: float = 0.0) -> None:
    if not values:
        raise ValueError("no values to summarize")
    if not all(math.isfinite(value) for value in values):
        raise ValueError(f"values must be finite, got {values}")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: must lie between 0 and 1, like 0.95")
    if not 0 <= noise < math.inf:
        raise ValueError(f"noise={noise}: a variance must be finite and at least 0")


@functools.cache
def _t_quantile(level: float, freedom: float) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + level) / 2, freedom))
