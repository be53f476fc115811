"""Statistics against numbers worked out by hand and against scipy's own tests."""

import doctest
import itertools
import math

import pytest
import scipy.stats

from apical.measure import statistics
from apical.measure.statistics import Summary, Verdict

T2 = 4.302652729911275  # 97.5 % quantile of Student's t with 2 degrees of freedom (printed tables)


def test_summary_by_hand():
    """1, 2, 3: sd 1, half width 4.3027 / sqrt(3) = 2.4841."""
    summary = statistics.summarize([1, 2, 3])
    assert (summary.n, summary.mean, summary.sd) == (3, 2.0, 1.0)
    assert summary.low == pytest.approx(2 - T2 / math.sqrt(3))
    assert summary.high == pytest.approx(4.4841, abs=1e-4)
    assert summary.note == ""


def test_two_runs_by_hand():
    """4, 6: sd sqrt(2), half width 12.706 * sqrt(2) / sqrt(2) = 12.706."""
    summary = statistics.summarize([4.0, 6.0])
    assert summary.sd == pytest.approx(math.sqrt(2))
    assert summary.high == pytest.approx(5 + 12.7062, abs=1e-4)
    assert "two runs" in summary.note


def test_one_run_has_no_interval():
    assert statistics.summarize([0.5]) == Summary(1, 0.5, None, None, None)
    assert "no interval" in statistics.summarize([0.5]).note


def test_an_interval_is_cut_off_where_the_quantity_ends():
    wide = statistics.summarize([4.0, 6.0])
    assert wide.within(0, 10) == Summary(2, 5.0, wide.sd, 0, 10)
    assert wide.within(-100, 100) == wide
    one = statistics.summarize([0.5])
    assert one.within(0, 100) is one


def test_nothing_or_non_finite_is_refused():
    for values in ([], [1.0, math.nan], [math.inf]):
        with pytest.raises(ValueError, match=r"values"):
            statistics.summarize(values)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match=r"level=95"):
        statistics.summarize([1, 2], level=95)


def test_the_t_interval_covers_at_its_level():
    """2000 samples of three normal values: 95 % of the intervals hold the true mean 0.

    Binomial sd of the share is 0.49 %; three of them are allowed.
    """
    draws = scipy.stats.norm.rvs(size=(2000, 3), random_state=1)
    hits = sum(s.low < 0 < s.high for s in map(statistics.summarize, draws.tolist()))
    assert hits / 2000 == pytest.approx(0.95, abs=0.015)


def test_wilson_by_hand():
    """8 of 10, z = 1.96: centre (0.8 + 0.19207) / 1.38415, half 0.22664."""
    low, high = statistics.wilson(8, 10)
    assert (low, high) == pytest.approx((0.4901625, 0.9433178), abs=1e-6)
    assert statistics.wilson(0, 10)[0] == pytest.approx(0.0)
    assert statistics.wilson(10, 10)[1] == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"11 of 10"):
        statistics.wilson(11, 10)


def test_paired_difference_uses_shared_seeds_only():
    values, baseline = {1: 5.0, 2: 7.0, 3: 9.0, 4: 100.0}, {0: 0.0, 1: 4.0, 2: 5.0, 3: 6.0}
    assert statistics.paired_difference(values, baseline) == statistics.summarize([1, 2, 3])
    assert statistics.paired_difference({1: 1.0}, {2: 1.0}) is None


def test_difference_p_agrees_with_scipy():
    a, b = {1: 1.0, 2: 2.5, 3: 2.9}, {1: 1.4, 2: 3.1, 3: 3.2}
    paired = scipy.stats.ttest_rel(list(a.values()), list(b.values())).pvalue
    assert statistics.difference_p(a, b) == pytest.approx(paired)
    other = {7: 1.4, 8: 3.1, 9: 3.2, 10: 4.0}
    welch = scipy.stats.ttest_ind(list(a.values()), list(other.values()), equal_var=False).pvalue
    assert statistics.difference_p(a, other) == pytest.approx(welch)


def test_difference_p_without_spread_or_runs():
    assert statistics.difference_p({1: 1.0, 2: 2.0}, {1: 1.0, 2: 2.0}) == 1.0
    assert statistics.difference_p({1: 1.0, 2: 2.0}, {1: 2.0, 2: 3.0}) == 1.0  # of chance unknown
    assert statistics.difference_p({1: 1.0, 2: 1.0}, {3: 2.0, 4: 2.0}) == 1.0
    rounded = {1: 2.1, 2: 2.2, 3: 2.3}, {1: 3.1, 2: 3.2, 3: 3.3}  # alike but for last digits
    assert statistics.difference_p(*rounded) == 1.0
    assert statistics.difference_p({1: 1.0}, {1: 2.0}) is None


def test_noise_is_the_least_variance_of_a_difference():
    """Differences of -1 thrice with variance 3: t = 1 / sqrt(3 / 3) = 1 at 2 degrees: p 0.4226."""
    low, high = {1: 1.0, 2: 2.0, 3: 3.0}, {1: 2.0, 2: 3.0, 3: 4.0}
    assert statistics.difference_p(low, high, noise=3.0) == pytest.approx(0.42264973)
    found = statistics.paired_difference(low, high, noise=3.0)
    assert (found.sd, found.low) == (0.0, pytest.approx(-1 - T2))
    spread = {1: 9.0, 2: 2.0, 3: -7.0}
    assert statistics.difference_p(spread, high, noise=1e-3) == statistics.difference_p(
        spread, high
    )
    unpaired = statistics.difference_p(low, {4: 4.0, 5: 4.0, 6: 4.0}, noise=8.0)
    by_hand = scipy.stats.ttest_ind_from_stats(2, 2, 3, 4, 2, 3, equal_var=False).pvalue
    assert unpaired == pytest.approx(by_hand)


def test_binomial_variance_by_hand():
    """8 of 98 wrong, drawn to (8 + 1) / 100: 0.09 * 0.91 / 98."""
    assert statistics.binomial_variance(8 / 98, 98) == pytest.approx(0.09 * 0.91 / 98)
    assert statistics.binomial_variance(0.0, 98) == pytest.approx(0.01 * 0.99 / 98)
    with pytest.raises(ValueError, match="share=2"):
        statistics.binomial_variance(2, 10)


def test_one_test_image_in_three_seeds_is_no_difference():
    """The case of 400 test images, one of them wrong more often in each of three seeds."""
    x, y = {0: 2.5, 1: 3.0, 2: 2.0}, {0: 2.75, 1: 3.25, 2: 2.25}
    noise = dict.fromkeys("xy", 1e4 * statistics.binomial_variance(0.026, 400))
    assert statistics.tie_groups({"x": x, "y": y}, noise=noise) == {"x": "a", "y": "a"}
    assert statistics.tie_groups({"x": x, "y": y}) == {"x": "a", "y": "a"}
    found = statistics.paired_difference(y, x, noise=sum(noise.values()))
    assert found.low < 0 < found.high


@pytest.mark.parametrize(("images", "error"), [(360, 0.03), (1000, 0.3)])
def test_tables_of_identical_rules_rarely_show_a_difference(images, error):
    """20 rules alike, 3 seeds: at most 5 % of tables may have two rules that share no letter."""
    tables, labels = 100, [f"r{i}" for i in range(20)]
    wrong = scipy.stats.binom.rvs(images, error, size=(tables, 20, 3), random_state=5)
    false = 0
    for table in 100 * wrong / images:
        samples = {name: dict(enumerate(row)) for name, row in zip(labels, table, strict=True)}
        noise = {
            name: 1e4 * statistics.binomial_variance(row.mean() / 100, images)
            for name, row in zip(labels, table, strict=True)
        }
        false += set(statistics.tie_groups(samples, noise=noise).values()) != {"a"}
    assert false / tables <= 0.05


def test_rules_that_differ_are_still_separated():
    """Ten seeds, 360 images, 3 and 16 % wrong: the power that the noise leaves."""
    wrong = scipy.stats.binom.rvs(360, [[0.03], [0.16]], size=(2, 10), random_state=1) / 3.6
    samples = {name: dict(enumerate(row)) for name, row in zip("ab", wrong, strict=True)}
    noise = {
        name: 1e4 * statistics.binomial_variance(p, 360) for name, p in (("a", 0.03), ("b", 0.16))
    }
    assert statistics.tie_groups(samples, noise=noise) == {"a": "a", "b": "b"}


def test_holm_by_hand():
    """Sorted .01, .03, .04 times 3, 2, 1 = .03, .06, .04, then made non-decreasing."""
    assert statistics.holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert statistics.holm([0.9, 0.9]) == [1.0, 1.0]
    assert statistics.holm([]) == []


def _sample(centre):
    return {1: centre - 0.1, 2: centre, 3: centre + 0.12}


def test_comparisons_with_one_label_are_corrected_for_their_number_alone():
    """Paired t of 1, 1.1, 0.9: p = 0.00332; of 1, 1.2, 0.8: 0.01307. Holm: twice the first, and the
    second as it is."""
    samples = {"a": {1: 0.0, 2: 0.0, 3: 0.0}}
    samples |= {"b": {1: 1.0, 2: 1.1, 3: 0.9}, "c": {1: 1.0, 2: 1.2, 3: 0.8}}
    for alpha, differing in ((0.0066, set()), (0.0067, {"b"}), (0.0131, {"b", "c"})):
        assert statistics.differing_from("a", samples, alpha=alpha) == differing, alpha
    samples["c"] = {7: 1.0}  # no test compares a single run: it is no comparison to correct for
    assert statistics.differing_from("a", samples, alpha=0.0034) == {"b"}


def test_tie_groups_separate_what_differs_and_join_what_does_not():
    samples = {"fa": _sample(46.0), "bp": _sample(14.0), "usf": {1: 14.1, 2: 13.8, 3: 14.3}}
    noise = dict.fromkeys(samples, 0.01)
    assert statistics.tie_groups(samples, noise=noise) == {"fa": "b", "bp": "a", "usf": "a"}


def test_a_label_between_two_others_gets_both_letters():
    low = dict(enumerate([1.0, 1.2, 0.8, 1.1, 0.9]))
    middle = dict(enumerate([1.9, 0.9, 2.1, 0.8, 2.0]))
    high = dict(enumerate([2.1, 2.0, 1.9, 2.2, 2.05]))
    groups = statistics.tie_groups({"low": low, "high": high, "middle": middle})
    assert groups == {"low": "a", "middle": "ab", "high": "b"}


def test_single_runs_get_no_letter():
    assert statistics.tie_groups({"a": {1: 1.0}, "b": _sample(2.0)}) == {"a": "", "b": "a"}
    assert statistics.tie_groups({}) == {}


def test_letters_say_exactly_which_pairs_differ():
    """The defining property: two labels share a letter if and only if their pair is not apart."""
    labels = list("pqrstu")
    pairs = list(itertools.combinations(labels, 2))
    for seed in range(40):
        flips = scipy.stats.bernoulli.rvs(0.5, size=len(pairs), random_state=seed)
        apart = [pair for pair, flip in zip(pairs, flips, strict=True) if flip]
        columns = statistics._letter_columns(labels, apart)
        for a, b in pairs:
            share = any(a in column and b in column for column in columns)
            assert share == ((a, b) not in apart)


def test_verdict_by_hand():
    """m 2, s 1, n 3: 4.3027 * sqrt(1 + 1/3) = 4.9683, plus 10 % of the published 7.5 = 5.7183."""
    ours = statistics.summarize([1, 2, 3])
    wide = statistics.verdict(ours, 7.5)
    assert wide.word == "compatible, uninformative"
    assert wide.high == pytest.approx(2 + T2 * math.sqrt(4 / 3) + 0.75)
    assert statistics.verdict(ours, 7.8).word == "differs"
    assert statistics.verdict(ours, 7.5, allowance=0).word == "differs"
    assert statistics.verdict(ours, 7.5, published_n=3).word == "differs"
    assert "7.8 is outside" in statistics.verdict(ours, 7.8).why


def test_agrees_needs_a_narrow_band_that_excludes_other_rules():
    """m 2, s 0.06, n 3: 4.3027 * 0.06 * sqrt(4 / 3) + 0.2 = 0.498, less than a quarter of 2; the
    one-sided tests need 2.92 * 0.06 * sqrt(4 / 3) = 0.202 below the margin of 0.2."""
    ours = statistics.summarize([1.94, 2.0, 2.06])
    agrees = statistics.verdict(ours, 2.0, others=(2.0, 2.1, 3.0))
    assert agrees.word == "agrees"
    assert agrees.high == pytest.approx(2 + T2 * 0.06 * math.sqrt(4 / 3) + 0.2)
    found = statistics.verdict(ours, 2.0, others=(2.0, 2.3))
    assert found.word == "compatible, uninformative" and "other rules: 2.3" in found.why
    wider = statistics.summarize([1.9, 2.0, 2.1])  # 0.697 is more than 0.5
    assert statistics.verdict(wider, 2.0).word == "compatible, uninformative"
    assert statistics.verdict(statistics.summarize([50, 60, 70]), 95).word != "agrees"


def test_equivalent_is_what_two_one_sided_tests_say():
    """m 2, s 0.02, n 3: 0.1 + 2.92 * 0.02 * sqrt(4 / 3) = 0.167 is less than the margin of 0.21."""
    ours = statistics.summarize([1.98, 2.0, 2.02])
    assert statistics.verdict(ours, 2.1).word == "equivalent"
    assert statistics.verdict(ours, 2.1, allowance=0.05).word == "agrees"  # margin 0.105
    assert statistics.verdict(ours, 2.1, noise=0.01).word != "equivalent"


def test_a_least_allowance_holds_where_the_relative_one_is_smaller():
    """A published 0 has a relative allowance of 0."""
    ours = statistics.summarize([0.39, 0.4, 0.41])
    assert statistics.verdict(ours, 0.0).word == "differs"
    assert statistics.verdict(ours, 0.0, least=0.5).word == "equivalent"
    assert statistics.verdict(ours, 4.0, least=0.5).word == "differs"
    assert statistics.verdict(ours, 40.0, least=0.5) == statistics.verdict(ours, 40.0)


def test_equal_runs_without_known_noise_are_no_certainty():
    for n in (3, 10):
        ours = statistics.summarize([2.0] * n)
        found = statistics.verdict(ours, 2.1)
        assert found.word == "compatible, uninformative" and "nothing of chance" in found.why
        assert statistics.verdict(ours, 2.1, noise=1e-4).word == "equivalent"
        assert statistics.verdict(ours, 3.0).word == "differs"


OURS = statistics.summarize([1.9, 2.0, 2.1])


@pytest.mark.parametrize(
    "call",
    [
        *(lambda x=x: statistics.verdict(OURS, x) for x in (math.nan, math.inf)),
        *(lambda x=x: statistics.verdict(OURS, 2, others=[x]) for x in (math.nan, math.inf)),
        *(lambda x=x: statistics.verdict(OURS, 2, noise=x) for x in (-1, math.nan, math.inf)),
        *(lambda x=x: statistics.verdict(OURS, 2, level=x) for x in (0.5, 95, math.nan)),
        *(lambda x=x: statistics.summarize([1, 2], noise=x) for x in (-1, math.nan)),
        *(lambda x=x: statistics.difference_p({1: 1, 2: 3}, {1: 2, 2: 5}, noise=x)
          for x in (-1, math.nan)),
        lambda: statistics.difference_p({1: 1, 2: 3}, {3: 2, 4: 5}, noise=-1),
        lambda: statistics.verdict(OURS, 2, allowance=-1),
        lambda: statistics.verdict(OURS, 2, least=-1),
        lambda: statistics.verdict(OURS, 2, published_n=0, other_scale="other data"),
        lambda: statistics.holm([0.1, math.nan]),
        lambda: statistics.holm([0.1, 1.1]),
        lambda: statistics.paired_shares(60, 60, 100),
    ],
)  # fmt: skip
def test_numbers_that_mean_nothing_are_refused(call):
    with pytest.raises(ValueError, match="finite|at least|lie|must|paired_shares"):
        call()


def test_verdict_withholds_judgement():
    ours = statistics.summarize([1, 2, 3])
    assert statistics.verdict(ours, 2.0, other_scale="20 of 100 epochs") == Verdict(
        "other scale", "20 of 100 epochs"
    )
    assert statistics.verdict(statistics.summarize([1, 2]), 1.5).word == "too few runs"
    assert statistics.verdict(statistics.summarize([1]), 1.0).word == "too few runs"


def test_a_published_run_of_our_own_protocol_agrees_at_the_level():
    """Coverage of the prediction interval without allowance: 95 % of fourth draws lie inside."""
    draws = scipy.stats.norm.rvs(loc=50, size=(2000, 4), random_state=2).tolist()
    words = [statistics.verdict(statistics.summarize(d[:3]), d[3], allowance=0).word for d in draws]
    assert 1 - words.count("differs") / 2000 == pytest.approx(0.95, abs=0.015)


def test_examples_in_docstrings():
    result = doctest.testmod(statistics, optionflags=doctest.ELLIPSIS)
    assert result.attempted >= 4
    assert result.failed == 0


@pytest.mark.parametrize(
    ("sd", "half_width"), [(1.0, 0.5), (1.0, 2.0), (0.3, 0.31), (2.0, 0.2), (2.0, 1e-4)]
)
def test_so_many_seeds_are_needed_and_not_one_fewer(sd: float, half_width: float) -> None:
    def half(n: int) -> float:
        low, high = scipy.stats.t.interval(0.95, n - 1, scale=sd / math.sqrt(n))
        return (high - low) / 2

    n = statistics.seeds_needed(sd, half_width)
    assert half(n) <= half_width
    assert n == 2 or half(n - 1) > half_width


def test_impossible_half_widths_are_refused() -> None:
    for sd, half_width in ((1.0, 0), (-1.0, 1), (math.inf, 1)):
        with pytest.raises(ValueError, match=f"half_width={half_width}: need at least 0, finite"):
            statistics.seeds_needed(sd, half_width)
