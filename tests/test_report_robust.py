"""Robustness over seeds: statistics by hand, what is missing, the tables."""

import doctest
import warnings
from dataclasses import replace

import pytest

from apical.bench.report import read, robustness, sections
from apical.bench.report import robustness_tables as words
from apical.bench.storage import records
from apical.measure import robustness_verdict, statistics
from fake_robust import add_robustness
from fake_study import make_study

RULES = ("bp", "fa", "usf")
TRIED = ("fa", "usf")
T2 = 4.302652729911275  # 97.5 % quantile of Student's t with two degrees of freedom
FAITHFUL = {"kind": "audit", "verdict": "faithful", "misleading": False, "rising": 1.0}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "rob"
    make_study(folder, rules=RULES, epochs=1, layers=(), published=False, tier="smoke")
    return add_robustness(folder, rules_tried=TRIED)


@pytest.fixture(scope="module")
def section(study):
    found = read.read_study(study)
    (only,) = sections.sections(found.robustness, found.robust_published)
    return only


def gap(own, exact, low=None, high=None):
    return {"kind": "gap", "own": own, "exact": exact, "mean": own - exact} | {
        "low": own - exact if low is None else low,
        "high": own - exact if high is None else high,
    }


# Statistics


def test_several_nets_have_a_t_interval_over_seeds():
    found = robustness_verdict.estimate({1: 0.5, 2: 0.6, 3: 0.7}, 200)
    half = T2 * 10 / 3**0.5  # standard deviation of 50, 60, 70 is 10
    assert (found.n, found.over) == (3, "nets")
    assert [found.mean, found.low, found.high] == pytest.approx([60, 60 - half, 60 + half])


def test_intervals_stay_between_0_and_100():
    found = robustness_verdict.estimate({1: 0.0, 2: 0.01, 3: 0.02}, 200)
    assert found.low == 0 and found.high == pytest.approx(1 + T2 / 3**0.5)
    assert robustness_verdict.estimate({1: 1.0, 2: 0.9}, 200).high == 100


def test_one_net_has_wilsons_interval_over_images_and_says_so():
    found = robustness_verdict.estimate({7: 0.5}, 100)
    z2 = 1.959963984540054**2
    half = (z2 * (25 + z2 / 4)) ** 0.5 / (100 + z2)  # at one half the centre is one half
    assert (found.n, found.over) == (1, "images")
    assert [found.low, found.high] == pytest.approx([50 - 100 * half, 50 + 100 * half])
    assert robustness_verdict.estimate({}, 100) is None


def test_equal_nets_have_the_interval_of_their_images():
    found = robustness_verdict.estimate({1: 0.0, 2: 0.0, 3: 0.0}, 24)
    variance = 1 / 26 * 25 / 26 / 24  # none of 24 counts as one of 26
    assert [found.low, found.high] == pytest.approx([0, 100 * T2 * (variance / 3) ** 0.5])


def test_a_difference_varies_at_least_as_over_its_images():
    first, second = {1: 0.5, 2: 0.51, 3: 0.53}, {1: 0.4, 2: 0.41, 3: 0.42}  # 10, 10, 11 points
    found = robustness_verdict.difference(first, second, noise=0.05**2)
    half, mean = T2 * 5 / 3**0.5, 31 / 3
    assert [found.mean, found.low, found.high] == pytest.approx([mean, mean - half, mean + half])


def test_own_minus_exact_is_paired_on_the_seeds():
    rows = {1: gap(0.9, 0.3), 2: gap(0.8, 0.1), 3: gap(0.85, 0.2)}
    found = robustness_verdict.gap(rows)
    half = T2 * 5 / 3**0.5  # differences 60, 70, 65
    assert [found.mean, found.low, found.high] == pytest.approx([65, 65 - half, 65 + half])
    # 0.05 / 1.96 = 2.551 points of a net over its images, times 4.3027 / sqrt(3)
    equal = robustness_verdict.gap({seed: gap(0.9, 0.3, 0.55, 0.65) for seed in (1, 2, 3)})
    assert (equal.mean, equal.low) == (pytest.approx(60), pytest.approx(60 - 6.337, abs=1e-3))
    one_gradient = robustness_verdict.gap({seed: gap(0.3, 0.3, -0.05, 0.05) for seed in (1, 2, 3)})
    assert (one_gradient.low, one_gradient.high) == (0, 0)
    single = robustness_verdict.gap({1: gap(0.9, 0.3, 0.55, 0.65)})
    assert single.over == "images"
    assert [single.low, single.high] == pytest.approx([55, 65])


def nets(*pairs):
    return {0.1: {seed: gap(*pair) for seed, pair in enumerate(pairs)}}


@pytest.mark.parametrize(
    ("gaps", "audits", "word"),
    [
        (nets((0.9, 0.1), (0.8, 0.1), (0.9, 0.2)), [FAITHFUL] * 3, "masked"),
        (nets((0.16, 0.1), (0.17, 0.1), (0.16, 0.1)), [FAITHFUL] * 3, "masked"),
        (nets((0.14, 0.1), (0.15, 0.1), (0.14, 0.1)), [FAITHFUL] * 3, "undecided"),  # 2.9 to 5.8
        (nets((0.12, 0.1), (0.11, 0.1), (0.12, 0.1)), [FAITHFUL] * 3, "faithful"),
        (nets((0.1, 0.6), (0.1, 0.6), (0.1, 0.7)), [FAITHFUL] * 3, "suspect"),
        (nets((0.5, 0.1), (0.1, 0.1), (0.1, 0.1)), [FAITHFUL] * 3, "undecided"),
        (nets((0.5, 0.1), (0.2, 0.1)), [FAITHFUL] * 2, "undecided"),
        (nets((0.9, 0.1, 0.7, 0.9)), [FAITHFUL], "masked"),
        (nets((0.9, 0.1, -0.1, 1.7)), [FAITHFUL], "undecided"),
        (nets((0.1, 0.1)), [FAITHFUL | {"misleading": True, "rising": 0.4}], "masked"),
    ],
)
def test_verdicts(gaps, audits, word):
    assert robustness_verdict.verdict(gaps, audits).word == word


def test_the_words_of_the_nets_count():
    same = nets((0.1, 0.1), (0.1, 0.1), (0.1, 0.1))
    for word in ("suspect", "undecided"):
        found = robustness_verdict.verdict(same, [FAITHFUL] * 3, [word, word, "faithful"])
        assert found.word == word and "in 2 of 3 nets" in found.reasons[0]
        few = robustness_verdict.verdict(same, [FAITHFUL] * 3, [word, "faithful", "faithful"])
        assert few.word == "faithful"


def test_gaps_are_corrected_over_radii():
    pair = nets((0.20, 0.1), (0.23, 0.1), (0.32, 0.1))[0.1]  # 15 points, p = 0.053
    wide = nets((0.21, 0.1), (0.23, 0.1), (0.30, 0.1))[0.1]  # 14.7 points, p = 0.033
    assert robustness_verdict.verdict({0.1: wide}, [FAITHFUL] * 3).word == "masked"
    assert robustness_verdict.verdict({0.1: wide, 0.2: pair}, [FAITHFUL] * 3).word == "undecided"


def test_any_radius_masks_and_the_largest_gap_is_told():
    gaps = {0.1: nets((0.12, 0.1), (0.13, 0.1), (0.12, 0.1))[0.1]}
    gaps[0.2] = nets((0.9, 0.1), (0.91, 0.1), (0.89, 0.1))[0.1]
    gaps[0.05] = nets((0.4, 0.1), (0.41, 0.1), (0.39, 0.1))[0.1]
    (reason,) = robustness_verdict.verdict(gaps, [FAITHFUL] * 3).reasons
    assert reason == (
        "at radius 0.2 the own gradient leaves 90.0 % right, the exact one 10.0 %: 80.0 points "
        "between them (95 % interval 77.5 to 82.5, over 3 nets); so they are at radius 0.05 "
        "(30.0 points)"
    )


def test_the_audit_decides_by_more_than_half_of_the_nets():
    misled = FAITHFUL | {"misleading": True, "rising": 0.4, "verdict": "masked"}
    zero = FAITHFUL | {"verdict": "vanishing", "reasons": ["it is zero"]}
    same = nets((0.1, 0.1), (0.1, 0.1))
    assert robustness_verdict.verdict(same, [misled, FAITHFUL]).word == "faithful"
    found = robustness_verdict.verdict(same, [misled, misled, FAITHFUL])
    assert found.word == "masked"
    assert found.reasons[0].endswith("for 40 % of the examples only (chance gives half), "
                                     "in 2 of 3 nets")  # fmt: skip
    assert robustness_verdict.verdict(same, [zero, FAITHFUL]).word == "faithful"
    assert robustness_verdict.verdict(same, [zero, zero, FAITHFUL]).reasons == (
        "it is zero, in 2 of 3 nets",
    )
    both = robustness_verdict.verdict(nets((0.9, 0.1), (0.92, 0.1)), [zero, zero])
    assert both.word == "masked"
    with pytest.raises(ValueError, match="at least one net"):
        robustness_verdict.verdict({}, [FAITHFUL])
    with pytest.raises(ValueError, match="at least one net"):
        robustness_verdict.verdict(same, [])


def test_the_limits_are_those_of_the_evaluation():
    from apical.attacks import sanity
    from apical.attacks.trials import Trial

    assert robustness_verdict.MASKED == 100 * sanity.GAP
    one = Trial("k", "a", "exact", "exact", 0.1, "all", "usual", (True,), (False,), 0)
    trials = [one, replace(one, role="single step")]
    names = {check.name for check in sanity.checks(trials, (True,), [0.1], 10)}
    assert words.MEANINGS.keys() == names


def test_examples_of_the_docstrings_hold():
    found = doctest.testmod(robustness_verdict, optionflags=doctest.ELLIPSIS)
    assert found.attempted == 2 and found.failed == 0


# Reading


def test_evaluations_that_did_not_finish_are_listed_with_the_reason(tmp_path):
    folder = tmp_path / "rob"
    make_study(folder, rules=("bp", "fa"), epochs=1, layers=(), published=False)
    add_robustness(folder)
    runs = sorted(folder.glob("s0-*"))
    finished = runs[0] / "robustness" / "linf-0a1b2c"
    rows = records.read(finished / "records.jsonl")
    (finished / "records.jsonl").unlink()
    records.append(finished / "trials.jsonl", {"key": "a"}, {"key": "b"})
    with open(finished / "trials.jsonl", "a") as file:
        file.write('{"key": "torn')
    torn = runs[1] / "robustness" / "linf-0a1b2c" / "records.jsonl"
    torn.write_text("no row\n" + torn.read_text())
    lacking = runs[2] / "robustness" / "linf-0a1b2c" / "records.jsonl"
    lacking.unlink()
    records.append(lacking, *[row for row in rows if row["kind"] != "gap"])
    ended = runs[4] / "robustness" / "linf-0a1b2c" / "records.jsonl"
    ended.unlink()
    records.append(ended, *[row for row in rows if row["kind"] != "verdict"])
    for file in (runs[3] / "robustness" / "linf-0a1b2c").iterdir():
        file.unlink()
    (runs[3] / "robustness" / "linf-0a1b2c").rmdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a torn last line of an evaluation under way is no news
        found = read.read_study(folder).robustness
    told = [f"{each.rule} {each.seed}: {each.status} {each.reason}" for each in found]
    assert told[0] == "bp 1: unfinished 2 attacks done"
    assert told[1].startswith("bp 2: failed unreadable: records.jsonl, line 1")
    assert told[2] == "bp 3: failed records.jsonl has no row of kind gap"
    assert told[3:] == ["fa 1: not started ", "fa 2: unfinished 0 attacks done", "fa 3: finished "]
    (section,) = sections.sections(found)
    (row,) = robustness.headlines(section, 0.1)
    assert (row.rule, row.n, row.planned) == ("fa", 1, 3)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("images", 100),
        ("norm", "l2"),
        ("samples", 5),
        ("substitute", 3),
        ("protocol", "other"),
        ("version", 4),
    ],
)
def test_evaluations_that_differ_in_any_compared_field_are_not_averaged(field, value, tmp_path):
    folder = tmp_path / "rob"
    make_study(folder, rules=("bp",), epochs=1, layers=(), published=False)
    add_robustness(folder)
    path = min(folder.glob("s0-*")) / "robustness" / "linf-0a1b2c" / "setting.json"
    described = records.read_json(path)
    if field == "version":
        described["versions"] = {"robustness": value}
    else:
        described["setting"][field] = value
    records.write_json(path, described)
    found = sections.sections(read.read_study(folder).robustness)
    assert sorted(len(each.evaluations) for each in found) == [1, 2]
    assert sum(f"{field} {value}" in each.heading for each in found) == 1


def test_protocols_that_differ_are_not_averaged(tmp_path):
    folder = tmp_path / "rob"
    make_study(folder, rules=("bp",), epochs=1, layers=(), published=False)
    add_robustness(folder)
    path = min(folder.glob("s0-*")) / "robustness" / "linf-0a1b2c" / "setting.json"
    described = records.read_json(path)
    described["setting"]["images"] = 100
    records.write_json(path, described)
    found = sections.sections(read.read_study(folder).robustness)
    assert [each.heading for each in found] == [
        "MNIST LeNet SGD · images 100",
        "MNIST LeNet SGD · images 200",
    ]
    assert [len(each.evaluations) for each in found] == [1, 2]
    used = read.Published("MNIST LeNet SGD", "bp", 61.0, "x", attack="PGD-20 ce", eps=0.1)
    published = (used, replace(used, attack="another"))
    value = replace(read.read_study(folder), robust_published=published)
    assert all(robustness.compared(each, "full") for each in sections.of_study(value))
    assert robustness.unused(value) == 1  # whatever the number of sections


def test_published_robustness_becomes_accuracy_in_percent():
    entry = {"setting": "s", "rule": "fa", "attack": "PGD-40 ce", "eps": 0.1, "source": "x"}
    for metric, value, unit in (
        ("robust_accuracy", 0.61, "fraction"),
        ("robust_accuracy", 61, "%"),
        ("attack_success", 39, "%"),
    ):
        found = read.read_published(
            entry | {"metric": metric, "value": value, "unit": unit}, read.ROBUSTNESS
        )
        assert found.value == pytest.approx(61)
    with pytest.raises(ValueError, match="metric 'loss' in '%'; allowed are robust_accuracy"):
        read.read_published(entry | {"metric": "loss", "value": 1, "unit": "%"}, read.ROBUSTNESS)


# Tables


def with_worst(section, *shares):
    """The section with other worst cases of backprop, by radius."""
    by_eps = dict(zip(section.radii, shares, strict=True))

    def changed(net):
        rows = (
            row | {"accuracy": by_eps[row["eps"]]} if row["kind"] == "worst" else row
            for row in net.rows
        )
        return replace(net, rows=tuple(rows)) if net.rule == "bp" else net

    return replace(section, evaluations=tuple(map(changed, section.evaluations)))


@pytest.mark.parametrize(
    ("shares", "eps"),
    [((0.8, 0.4, 0.0), 0.1), ((0.9, 0.9, 0.8), 0.2), ((0.3, 0.0, 0.0), 0.05), ((0.0,) * 3, 0.05)],
)
def test_the_headline_radius_is_where_backprop_keeps_about_half(section, shares, eps):
    """Half of its clean accuracy is 0.4875, whatever the other rules do."""
    assert section.radii == [0.05, 0.1, 0.2]
    assert robustness.headline_radius(with_worst(section, *shares)) == eps


def test_a_headline_is_what_the_rows_say(section):
    (row,) = [r for r in robustness.headlines(section, 0.1) if r.rule == "fa"]
    found = {net.seed: net for net in section.evaluations if net.rule == "fa"}
    base = {net.seed: net for net in section.evaluations if net.rule == "bp"}
    own = [100 * net.find("gap", eps=0.1)["own"] for net in found.values()]
    worst = [100 * net.find("worst", eps=0.1)["accuracy"] for net in found.values()]
    against = [
        100
        * (found[seed].find("worst", eps=0.1)["accuracy"] - net.find("worst", eps=0.1)["accuracy"])
        for seed, net in base.items()
    ]
    assert row["own"].mean == pytest.approx(sum(own) / 3)
    assert row["worst"].mean == pytest.approx(sum(worst) / 3)
    assert row["against_bp"].mean == pytest.approx(sum(against) / 3)
    assert (row.n, row.planned, row.word) == (3, 3, "masked")
    assert robustness.published_at(row).value == pytest.approx(90)


def test_a_rule_differs_by_a_corrected_paired_test_only(section):
    """Differences to backprop of 10, 11, 12 points: p = 0.003, doubled for two rules; of 1, 2, 3
    points: p = 0.07."""
    shift = {"bp": (0, 0, 0), "fa": (0.10, 0.11, 0.12), "usf": (0.01, 0.02, 0.03)}

    def worst(net):
        share = 0.4 + shift[net.rule][net.seed - 1]
        new = {"worst": {"accuracy": share}, "clean": {"examples": examples}}
        return replace(net, rows=tuple(row | new.get(row["kind"], {}) for row in net.rows))

    examples = 200  # whose own variance, 5 points, leaves 11 points with p = 0.06
    moved = replace(section, evaluations=tuple(map(worst, section.evaluations)))
    assert not any(row.differs for row in robustness.headlines(moved, 0.1))
    examples = 10_000
    moved = replace(section, evaluations=tuple(map(worst, section.evaluations)))
    rows = robustness.headlines(moved, 0.1)
    assert {row.rule: row.differs for row in rows} == {"bp": False, "fa": True, "usf": False}
    assert words.conclusion(rows)[1] == (
        "In the worst case over everything tried, backprop keeps 40.0 %. Significantly different "
        "from it (3 seeds, paired, Holm-corrected): FA +11.0 points (+8.5 to +13.5)."
    )


def test_rules_that_share_no_seeds_with_backprop_are_not_called_equal(section):
    """FA keeps far more, on seeds of its own: no paired test says so."""

    def worst(net):
        share = {"bp": 0.4, "fa": 0.9, "usf": 0.41}[net.rule] + 0.01 * net.seed
        new = {"worst": {"accuracy": share}}
        rows = tuple(row | new.get(row["kind"], {}) for row in net.rows)
        return replace(net, rows=rows, seed=net.seed + 10 * (net.rule == "fa"))

    moved = replace(section, evaluations=tuple(map(worst, section.evaluations)))
    start = "In the worst case over everything tried, backprop keeps 42.0 %"
    end = " Not compared, fewer than two seeds in common with BP: FA."
    rows = robustness.headlines(moved, 0.1)
    assert not any(row.differs for row in rows)
    assert words.conclusion(rows)[1] == (
        f"{start}; no rule differs significantly from it (3 seeds, paired, Holm-corrected).{end}"
    )
    two = [row for row in rows if row.rule != "usf"]
    assert words.conclusion(two)[1] == f"{start}.{end}"


def test_nets_that_keep_the_same_are_no_certainty(section):
    """24 images, all broken: 1 of 26 is 3.926 points of a net, times T2 / sqrt(3)."""

    def broken(net):
        new = {"worst": {"accuracy": 0.0}, "clean": {"examples": 24}}
        return replace(net, rows=tuple(row | new.get(row["kind"], {}) for row in net.rows))

    moved = replace(section, evaluations=tuple(map(broken, section.evaluations)))
    (row,) = [row for row in robustness.headlines(moved, 0.1) if row.rule == "fa"]
    assert (row["worst"].low, row["worst"].high) == (0, pytest.approx(9.752, abs=1e-3))
    assert row["against_bp"].mean == 0
    assert row["against_bp"].low == pytest.approx(-(2**0.5) * 9.752, abs=2e-3)
    same = tuple(replace(n, place=f"s{n.seed}/{n.place}") for n in moved.evaluations)
    assert robustness.headlines(replace(moved, evaluations=same), 0.1)[1]["against_bp"].low == 0
    exact = {seed: gap(0.3, 0.3, -0.05, 0.05) for seed in (1, 2, 3)}  # of a plain net
    assert robustness_verdict.gap(exact).low == robustness_verdict.gap(exact).high == 0


def test_the_strongest_transfer_counts_and_noise_has_its_line(section):
    found = robustness.lines(section, "fa")
    assert list(found) == ["own", "exact", "transfer", "black box", "noise", "worst"]
    net = section.evaluations[0]
    weak = {"kind": "attack", "group": "transfer", "attack": "x", "source": "y", "eps": 0.1}
    weak |= {"on": "all", "role": "usual", "accuracy": 0.99}
    more = replace(section, evaluations=(replace(net, rows=(weak, *net.rows)),))
    kinds = robustness.lines(more, net.rule)
    assert kinds["transfer"][0.1].mean < 99


def test_published_values_meet_the_same_attack_and_radius_only(section):
    found = {row["rule"]: row for row in robustness.compared(section, "full")}
    assert found.keys() == set(RULES)
    fa = found["fa"]
    assert fa["ours"] == robustness.lines(section, "fa")["own"][0.1]
    assert fa["difference"] == pytest.approx(fa["ours"].mean - 90)
    assert fa["exact"].mean < fa["ours"].mean - 20
    assert fa["verdict"].word == "compatible, uninformative"
    assert robustness.compared(section, "smoke")[0]["verdict"].word == "other scale"
    other = tuple(replace(row, attack="PGD-7 ce") for row in section.published)
    assert robustness.compared(replace(section, published=other), "full") == []
    fully = tuple(replace(row, value=fa["ours"].mean + 0.9) for row in section.published)
    found = robustness.compared(replace(section, published=fully), "full")
    verdicts = [row["verdict"].word for row in found if row["rule"] == "fa"]
    assert verdicts == [fa["verdict"].word]
    rounded = tuple(replace(row, eps=0.10005) for row in section.published)
    assert len(robustness.compared(replace(section, published=rounded), "full")) == 3


def test_what_is_left_of_nets_that_failed_agrees_with_nothing(section, monkeypatch):
    monkeypatch.setattr(statistics, "verdict", lambda *a, **k: statistics.Verdict("agrees", ""))
    runs = [read.Run("", "", "fa", seed, "finished") for seed in (1, 2, 3)]
    lost = replace(runs[0], seed=4, status="failed")
    rows = {"fa": read.Row("", "fa", (*runs, lost)), "bp": read.Row("", "bp", tuple(runs))}
    found = robustness.compared(replace(section, trained=rows), "full")
    words = {row["rule"]: row["verdict"].word for row in found}
    assert words == {"bp": "agrees", "fa": "compatible, uninformative", "usf": "agrees"}


def test_a_verdict_is_given_beside_other_rules_values_of_the_same_attack(section, monkeypatch):
    given = []
    judge = statistics.verdict

    def verdict(ours, published, *, others, **rest):
        given.append(sorted(others))
        return judge(ours, published, others=others, **rest)

    monkeypatch.setattr(statistics, "verdict", verdict)
    values = sorted(row.value for row in section.published)
    elsewhere = replace(section.published[0], attack="FGSM ce", value=1.0)
    robustness.compared(replace(section, published=(*section.published, elsewhere)), "full")
    assert values in given and not any(1.0 in others and len(others) > 1 for others in given)


def test_few_pixel_attacks_count_pixels_and_stand_apart(section):
    row = {"kind": "attack", "group": "pixels", "attack": "FewPixel(3)", "source": "none"}
    row |= {"eps": 3.0, "on": "all", "role": "published", "accuracy": 0.19, "examples": 100}
    net = replace(section.evaluations[0], rows=(*section.evaluations[0].rows, row))
    found = robustness.pixels(replace(section, evaluations=(net,)))
    assert found[net.rule][3] == robustness_verdict.estimate({0: 0.19}, 100)
    assert robustness.pixels(section) == {}


def test_the_heat_map_frames_the_feedback_a_net_was_trained_with(section):
    (heat,) = robustness.heats(section, 0.1)
    assert heat.rows == heat.columns == RULES
    heads = [column.title for column in words.heat(heat).on_page]
    assert heads[1:] == ["BP (exact)", "FA", "uSF"]
    lines = {rule: robustness.lines(section, rule) for rule in RULES}
    assert heat.cells["fa", "fa"] == lines["fa"]["own"][0.1]
    assert heat.cells["fa", "bp"] == lines["fa"]["exact"][0.1]
    rows = [net.of_kind("attack") for net in section.evaluations if net.rule == "bp"]
    tried = [
        row["accuracy"]
        for of_net in rows
        for row in of_net
        if (row["source"], row["eps"]) == ("rule:fa", 0.1)
    ]
    assert heat.cells["bp", "fa"].mean == pytest.approx(100 * sum(tried) / 3)
    assert heat.conclusion.startswith(
        f"Weights that backprop trained keep {heat.cells['bp', 'fa'].mean:.1f} % when the attack "
        f"follows FA's backward pass, and {heat.cells['bp', 'bp'].mean:.1f} % under the exact"
    )
    assert replace(heat, rows=("fa", "usf")).conclusion == ""
    same = dict.fromkeys(heat.cells, heat.cells["bp", "bp"])
    assert replace(heat, cells=same).conclusion == ""
    wide = {cell: replace(share, low=0.0, high=100.0) for cell, share in heat.cells.items()}
    assert replace(heat, cells=wide).conclusion == ""  # a gap that may be chance
