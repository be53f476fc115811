"""Robustness on the page: statistics by hand, what is missing, numbers, words, pictures."""

import base64
import csv
import doctest
import io
import re
import warnings
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from apical import records, report
from apical.report import (
    read,
    robust_examples,
    robust_figures,
    robust_published,
    robust_read,
    robust_section,
    robust_stats,
    robust_table,
)
from apical.report import robust_words as words
from fake_robust import add_robustness, make_evaluation, make_examples
from fake_study import make_study
from test_report import HOSTILE

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
def html(study):
    return report.write(study).read_text()


@pytest.fixture(scope="module")
def section(study):
    found = read.read_study(study)
    (only,) = robust_section.sections(found.robustness, found.robust_published)
    return only


def gap(own, exact, low=None, high=None):
    return {"kind": "gap", "own": own, "exact": exact, "mean": own - exact} | {
        "low": own - exact if low is None else low,
        "high": own - exact if high is None else high,
    }


# Statistics


def test_several_nets_have_a_t_interval_over_seeds():
    found = robust_stats.estimate({1: 0.5, 2: 0.6, 3: 0.7}, 200)
    half = T2 * 10 / 3**0.5  # standard deviation of 50, 60, 70 is 10
    assert (found.n, found.over) == (3, "nets")
    assert [found.mean, found.low, found.high] == pytest.approx([60, 60 - half, 60 + half])


def test_intervals_stay_between_0_and_100():
    found = robust_stats.estimate({1: 0.0, 2: 0.01, 3: 0.02}, 200)
    assert found.low == 0 and found.high == pytest.approx(1 + T2 / 3**0.5)
    assert robust_stats.estimate({1: 1.0, 2: 0.9}, 200).high == 100


def test_one_net_has_wilsons_interval_over_images_and_says_so():
    found = robust_stats.estimate({7: 0.5}, 100)
    z2 = 1.959963984540054**2
    half = (z2 * (25 + z2 / 4)) ** 0.5 / (100 + z2)  # at one half the centre is one half
    assert (found.n, found.over) == (1, "images")
    assert [found.low, found.high] == pytest.approx([50 - 100 * half, 50 + 100 * half])
    assert robust_stats.estimate({}, 100) is None


def test_own_minus_exact_is_paired_on_the_seeds():
    rows = {1: gap(0.9, 0.3), 2: gap(0.8, 0.1), 3: gap(0.85, 0.2)}
    found = robust_stats.gap(rows)
    half = T2 * 5 / 3**0.5  # differences 60, 70, 65
    assert [found.mean, found.low, found.high] == pytest.approx([65, 65 - half, 65 + half])
    single = robust_stats.gap({1: gap(0.9, 0.3, 0.55, 0.65)})
    assert single.over == "images"
    assert [single.low, single.high] == pytest.approx([55, 65])


def nets(*pairs):
    return {0.1: {seed: gap(*pair) for seed, pair in enumerate(pairs)}}


@pytest.mark.parametrize(
    ("gaps", "audits", "word"),
    [
        (nets((0.9, 0.1), (0.8, 0.1), (0.9, 0.2)), [FAITHFUL] * 3, "masked"),
        (nets((0.16, 0.1), (0.17, 0.1), (0.16, 0.1)), [FAITHFUL] * 3, "masked"),
        (nets((0.14, 0.1), (0.15, 0.1), (0.14, 0.1)), [FAITHFUL] * 3, "faithful"),
        (nets((0.5, 0.1), (0.1, 0.1), (0.1, 0.1)), [FAITHFUL] * 3, "undecided"),
        (nets((0.5, 0.1), (0.2, 0.1)), [FAITHFUL] * 2, "undecided"),
        (nets((0.9, 0.1, 0.7, 0.9)), [FAITHFUL], "masked"),
        (nets((0.9, 0.1, -0.1, 1.7)), [FAITHFUL], "undecided"),
        (nets((0.1, 0.1)), [FAITHFUL | {"misleading": True, "rising": 0.4}], "masked"),
    ],
)
def test_verdicts(gaps, audits, word):
    assert robust_stats.verdict(gaps, audits).word == word


def test_any_radius_masks_and_the_largest_gap_is_told():
    gaps = {0.1: nets((0.12, 0.1), (0.13, 0.1), (0.12, 0.1))[0.1]}
    gaps[0.2] = nets((0.9, 0.1), (0.9, 0.1), (0.9, 0.1))[0.1]
    gaps[0.05] = nets((0.4, 0.1), (0.4, 0.1), (0.4, 0.1))[0.1]
    (reason,) = robust_stats.verdict(gaps, [FAITHFUL] * 3).reasons
    assert reason == (
        "at radius 0.2 the own gradient leaves 90.0 % right, the exact one 10.0 %: 80.0 points "
        "apart (95 % interval 80.0 to 80.0, over 3 nets); so they are at radius 0.05 (30.0 points)"
    )


def test_the_audit_decides_by_more_than_half_of_the_nets():
    misled = FAITHFUL | {"misleading": True, "rising": 0.4, "verdict": "masked"}
    zero = FAITHFUL | {"verdict": "vanishing", "reasons": ["it is zero"]}
    same = nets((0.1, 0.1), (0.1, 0.1))
    assert robust_stats.verdict(same, [misled, FAITHFUL]).word == "faithful"
    found = robust_stats.verdict(same, [misled, misled, FAITHFUL])
    assert found.word == "masked"
    assert found.reasons[0].endswith("for 40 % of the examples only (chance gives half), "
                                     "in 2 of 3 nets")  # fmt: skip
    assert robust_stats.verdict(same, [zero, FAITHFUL]).word == "faithful"
    assert robust_stats.verdict(same, [zero, zero, FAITHFUL]).reasons == (
        "it is zero, in 2 of 3 nets",
    )
    both = robust_stats.verdict(nets((0.9, 0.1), (0.9, 0.1)), [zero, zero])
    assert both.word == "masked"
    with pytest.raises(ValueError, match="at least one net"):
        robust_stats.verdict({}, [FAITHFUL])
    with pytest.raises(ValueError, match="at least one net"):
        robust_stats.verdict(same, [])


def test_the_limits_are_those_of_the_evaluation():
    from apical.attacks import sanity
    from apical.attacks.trials import Trial

    assert robust_stats.MASKED == 100 * sanity.GAP
    one = Trial("k", "a", "exact", "exact", 0.1, "all", "usual", (True,), (False,), 0)
    trials = [one, replace(one, role="single step")]
    names = {check.name for check in sanity.checks(trials, (True,), [0.1], 10)}
    assert words.CHECKS.keys() == names


def test_examples_of_the_docstrings_hold():
    found = doctest.testmod(robust_stats, optionflags=doctest.ELLIPSIS)
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
    (section,) = robust_section.sections(found)
    (row,) = robust_table.headlines(section, 0.1)
    assert (row.rule, row.n, row.planned) == ("fa", 1, 3)


def test_missing_evaluations_of_a_rule_stand_on_one_line(tmp_path):
    folder = tmp_path / "rob"
    make_study(folder, rules=("bp",), epochs=1, layers=(), published=False)
    value = records.read_json(folder / "study.json")
    value["robustness"] = [run | {"evaluation": "robustness/x"} for run in value["runs"]]
    records.write_json(folder / "study.json", value)
    text = _plain(report.write(folder).read_text())
    assert "No evaluation of robustness has finished yet." in text
    assert "3 of 3 evaluations of robustness are missing" in text
    assert "BP, seeds 1, 2, 3: not started" in text
    assert not (folder / "report" / "robust.csv").exists()
    assert "3 of 3 evaluations are missing." in report.table_markdown(folder)


def test_protocols_that_differ_are_not_averaged(tmp_path):
    folder = tmp_path / "rob"
    make_study(folder, rules=("bp",), epochs=1, layers=(), published=False)
    add_robustness(folder)
    path = min(folder.glob("s0-*")) / "robustness" / "linf-0a1b2c" / "setting.json"
    described = records.read_json(path)
    described["setting"]["images"] = 100
    records.write_json(path, described)
    found = robust_section.sections(read.read_study(folder).robustness)
    assert [each.heading for each in found] == [
        "MNIST LeNet SGD · images 100",
        "MNIST LeNet SGD · images 200",
    ]
    assert [len(each.evaluations) for each in found] == [1, 2]


def test_of_two_evaluations_of_a_net_the_later_counts_and_the_other_is_named(tmp_path):
    for name in ("a", "b"):
        make_evaluation(tmp_path / "run" / "robustness" / name, "fa", 1)
    page = report.write(tmp_path / "run").read_text()
    assert "Not shown, as a later evaluation of the same net and settings is: robustness/a" in page
    assert _table(page)["net"][1] == "1"


def test_published_robustness_becomes_accuracy_in_percent():
    entry = {"setting": "s", "rule": "fa", "attack": "PGD-40 ce", "eps": 0.1, "source": "x"}
    for metric, value, unit in (
        ("robust_accuracy", 0.61, "fraction"),
        ("robust_accuracy", 61, "%"),
        ("attack_success", 39, "%"),
    ):
        found = robust_read.published(entry | {"metric": metric, "value": value, "unit": unit})
        assert found.accuracy == pytest.approx(61)
    with pytest.raises(ValueError, match="metric 'loss' in '%'; allowed are robust_accuracy"):
        robust_read.published(entry | {"metric": "loss", "value": 1, "unit": "%"})


# Tables


def test_the_headline_radius_is_where_backprop_loses_half(section):
    assert section.radii == [0.05, 0.1, 0.2]
    assert robust_table.headline_radius(section) == 0.1
    strong = tuple(
        replace(net, rows=tuple(
            row | {"accuracy": 0.9} if (net.rule, row["kind"]) == ("bp", "worst") else row
            for row in net.rows
        ))
        for net in section.evaluations
    )  # fmt: skip
    assert robust_table.headline_radius(replace(section, evaluations=strong)) == 0.2


def test_a_headline_is_what_the_rows_say(section):
    (row,) = [r for r in robust_table.headlines(section, 0.1) if r.rule == "fa"]
    found = {net.seed: net for net in section.evaluations if net.rule == "fa"}
    base = {net.seed: net for net in section.evaluations if net.rule == "bp"}
    own = [100 * net.at("gap", 0.1)["own"] for net in found.values()]
    worst = [100 * net.at("worst", 0.1)["accuracy"] for net in found.values()]
    against = [
        100 * (found[seed].at("worst", 0.1)["accuracy"] - net.at("worst", 0.1)["accuracy"])
        for seed, net in base.items()
    ]
    assert row.own.mean == pytest.approx(sum(own) / 3)
    assert row.worst.mean == pytest.approx(sum(worst) / 3)
    assert row.against_bp.mean == pytest.approx(sum(against) / 3)
    assert (row.n, row.planned, row.verdict.word) == (3, 3, "masked")
    assert row.published.accuracy == pytest.approx(90)


def test_a_rule_is_told_apart_by_a_corrected_paired_test_only(section):
    """Differences to backprop of 10, 11, 12 points: p = 0.003, doubled for two rules; of 1, 2, 3
    points: p = 0.07."""
    shift = {"bp": (0, 0, 0), "fa": (0.10, 0.11, 0.12), "usf": (0.01, 0.02, 0.03)}

    def worst(net):
        share = 0.4 + shift[net.rule][net.seed - 1]
        rows = (row | {"accuracy": share} if row["kind"] == "worst" else row for row in net.rows)
        return replace(net, rows=tuple(rows))

    moved = replace(section, evaluations=tuple(map(worst, section.evaluations)))
    rows = robust_table.headlines(moved, 0.1)
    assert {row.rule: row.told_apart for row in rows} == {"bp": False, "fa": True, "usf": False}
    assert words.conclusion(moved, rows)[1] == (
        "In the worst case over everything tried, backprop keeps 40.0 %. Told apart from it (3 "
        "seeds, paired, Holm-corrected): FA +11.0 points (+8.5 to +13.5)."
    )


def test_the_strongest_transfer_counts_and_noise_has_its_line(section):
    found = robust_table.lines(section, "fa")
    assert list(found) == ["own", "exact", "transfer", "black box", "noise", "worst"]
    net = section.evaluations[0]
    weak = {"kind": "attack", "group": "transfer", "attack": "x", "source": "y", "eps": 0.1}
    weak |= {"on": "all", "role": "usual", "accuracy": 0.99}
    more = replace(section, evaluations=(replace(net, rows=(weak, *net.rows)),))
    kinds = robust_table.lines(more, net.rule)
    assert kinds["transfer"][0.1].mean < 99


def test_published_values_meet_the_same_attack_and_radius_only(section):
    found = {row.published.rule: row for row in robust_published.beside(section, "full")}
    assert found.keys() == set(RULES)
    fa = found["fa"]
    assert fa.ours == robust_table.lines(section, "fa")["own"][0.1]
    assert fa.difference == pytest.approx(fa.ours.mean - 90)
    assert fa.exact.mean < fa.ours.mean - 20
    assert fa.verdict.word == "agrees"
    assert robust_published.beside(section, "smoke")[0].verdict.word == "other scale"
    other = tuple(replace(row, attack="PGD-7 ce") for row in section.published)
    assert robust_published.beside(replace(section, published=other), "full") == []
    fully = tuple(replace(row, accuracy=fa.ours.mean + 0.9) for row in section.published)
    found = robust_published.beside(replace(section, published=fully), "full")
    assert [row.verdict.word for row in found if row.published.rule == "fa"] == ["agrees"]
    rounded = tuple(replace(row, eps=0.10005) for row in section.published)
    assert len(robust_published.beside(replace(section, published=rounded), "full")) == 3


def test_few_pixel_attacks_count_pixels_and_stand_apart(section):
    row = {"kind": "attack", "group": "pixels", "attack": "FewPixel(3)", "source": "none"}
    row |= {"eps": 3.0, "on": "all", "role": "published", "accuracy": 0.19, "examples": 100}
    net = replace(section.evaluations[0], rows=(*section.evaluations[0].rows, row))
    found = robust_table.pixels(replace(section, evaluations=(net,)))
    assert found[net.rule][3] == robust_stats.estimate({0: 0.19}, 100)
    assert robust_table.pixels(section) == {}


def test_the_heat_map_frames_the_feedback_a_net_was_trained_with(section):
    (heat,) = robust_figures.heats(section, 0.1)
    assert heat.rows == heat.columns == RULES
    assert heat.own == {(rule, rule) for rule in RULES}
    lines = {rule: robust_table.lines(section, rule) for rule in RULES}
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


# The page


def _plain(html):
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def _table(html):
    """First cell -> cells of the first table, intervals apart."""
    text = html[html.index("<table") : html.index("</table>")]
    rows = [re.findall(r"<t[dh].*?</t[dh]>", row, re.S) for row in text.split("<tr>")[1:]]
    text = [[_plain(cell).strip() for cell in row] for row in rows]
    return {row[0]: row for row in text}


def test_numbers_of_the_page_are_those_of_the_rows(html, section):
    table = _table(html)
    (row,) = [r for r in robust_table.headlines(section, 0.1) if r.rule == "fa"]
    assert table["FA"] == [
        "FA",
        "3",
        f"{row.clean.mean:.1f} {row.clean.low:.1f} to {row.clean.high:.1f}",
        f"{row.noise.mean:.1f} {row.noise.low:.1f} to {row.noise.high:.1f}",
        f"{row.own.mean:.1f} {row.own.low:.1f} to {row.own.high:.1f}",
        f"{row.exact.mean:.1f} {row.exact.low:.1f} to {row.exact.high:.1f}",
        f"{row.worst.mean:.1f} {row.worst.low:.1f} to {row.worst.high:.1f}",
        f"+{row.gap.mean:.1f} +{row.gap.low:.1f} to +{row.gap.high:.1f}",
        f"{words.points(row.against_bp.mean)} {words.span(row.against_bp, sign=True)}",
        "masked",
        "90.0",
    ]
    assert len(table["Rule"]) == len(table["FA"])
    assert table["BP"][7:10] == ["0.0 0.0 to 0.0", "–", "faithful"]


def test_the_page_says_what_to_conclude(html):
    text = _plain(html)
    assert "FA and uSF are masked: attacked by their own gradient" in text
    assert "In the worst case over everything tried, backprop keeps" in text
    assert "no rule is told apart from it (3 seeds, paired, Holm-corrected)" in text
    assert "It is the smallest tried at which backprop's nets lose half" in text
    assert "Tier smoke; compared with published robust accuracies." in text


def test_a_gap_at_another_radius_only_is_said_to_be_there(section):
    """uSF is masked from 0.1 on; at 0.05 its gap is below 5 points."""
    rows = [row for row in robust_table.headlines(section, 0.05) if row.rule == "usf"]
    assert not rows[0].gap.masked
    assert words.conclusion(section, rows) == [
        "uSF is masked: attacked by its own gradient, as in earlier papers, it looks more robust "
        "than it is, at other radii than the 0.05 shown here."
    ]


def test_csv_holds_every_number_in_full_precision(study, html, section):
    text = (study / "report" / "robust.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    (worst,) = [
        row
        for row in rows
        if (row["rule"], row["eps"], row["group"]) == ("fa", "0.1", "worst case")
    ]
    expected = robust_table.lines(section, "fa")["worst"][0.1]
    assert float(worst["mean"]) == expected.mean and float(worst["low"]) == expected.low
    assert {row["group"] for row in rows} >= {"clean", "rule", "transfer", "own minus exact"}
    checks = (study / "report" / "robust-checks.csv").read_text().splitlines()
    assert len(checks) == 1 + 9 * 3
    audits = list(csv.DictReader(io.StringIO((study / "report/robust-audit.csv").read_text())))
    assert {(row["rule"], row["rule_verdict"]) for row in audits} >= {("fa", "masked")}


def test_every_link_has_a_target(study, html):
    links = set(re.findall(r'<a href="([^"]+)"', html))
    assert {"robust-radius.png", "robust-gradients.png", "robust-examples.png"} <= links
    for link in links:
        assert (study / "report" / link).is_file()


def test_the_same_files_give_the_same_bytes(study, html, tmp_path):
    again = report.write(study, tmp_path / "again")
    for file in again.parent.iterdir():
        assert file.read_bytes() == (study / "report" / file.name).read_bytes()


def test_flags_are_listed_with_their_reason(tmp_path):
    make_evaluation(tmp_path / "run" / "robustness" / "a", "dfa", 1)
    text = _plain(report.write(tmp_path / "run").read_text())
    assert "twice as many steps change little flagged in 1 of 1" in text
    assert "had not converged" in text
    assert "net, seed 0: PGD-40 ce broke 5 of 88 survivors at eps 0.1." in text
    assert text.count("does not hold everywhere") == 1  # what was not run is no flag


@pytest.mark.parametrize(
    ("eps", "text"),
    [(0.1, "0.1"), (8 / 255, "8/255"), (0.03103448, "0.031"), (0.2, "0.2"), (1 / 255, "1/255")],
)
def test_radii_are_written_as_in_papers(eps, text):
    assert words.radius(eps) == text


def test_zero_has_no_sign_and_minus_is_one():
    assert [words.points(x) for x in (-0.04, 0.04, -1.25, 3)] == ["0.0", "0.0", "−1.2", "+3.0"]
    assert words.percent(-0.01) == "0.0"


def test_text_from_files_is_escaped(tmp_path):
    folder = tmp_path / "s"
    make_study(folder, rules=("bp", HOSTILE), settings=(HOSTILE,), seeds=(1, 2), epochs=1,
               layers=(), published=False)  # fmt: skip
    add_robustness(folder, rules_tried=("fa",))
    value = records.read_json(folder / "study.json")
    for row in value["robust_published"]:
        row |= {"source": HOSTILE, "other_scale": HOSTILE}
    records.write_json(folder / "study.json", value)
    for path in folder.glob("s0-*/robustness/*"):
        described = records.read_json(path / "setting.json")
        described["setting"] |= {"data": HOSTILE, "surrogates": [HOSTILE]}
        records.write_json(path / "setting.json", described)
        rows = [
            row | ({"detail": HOSTILE, "passed": False} if row["kind"] == "check" else {})
            for row in records.read(path / "records.jsonl")
        ]
        (path / "records.jsonl").unlink()
        records.append(path / "records.jsonl", *rows)
        arrays = dict(np.load(path / "examples.npz"))
        arrays |= {"names": np.array([f"{HOSTILE} / own", "b / exact", "c / none"])}
        np.savez(path / "examples.npz", **arrays, class_names=np.array([HOSTILE] * 10))
    html = report.write(folder).read_text()
    assert html.count("<script>") == 1
    assert "&lt;script&gt;window.pwned" in html
    for line in report.table_markdown(folder).splitlines()[:4]:
        assert "<" not in line
        assert len(re.findall(r"(?<!\\)\|", line)) == 12


# Pictures


def _pixels(shown):
    from matplotlib.image import imread

    data = base64.b64decode(shown.source.removeprefix("data:image/png;base64,"))
    return imread(io.BytesIO(data), format="png")[..., :3]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_the_arrays(tmp_path, channels):
    folder = tmp_path / "run" / "robustness" / "a"
    make_evaluation(folder, "fa", 1)
    make_examples(folder, channels=channels, eps=0.1)
    (section,) = robust_section.sections(robust_read.of_run(tmp_path / "run", "s", "fa", 1))
    (found,), problems = robust_examples.of_section(section)
    assert problems == []
    assert found.columns == (
        "original",
        "PGD-20 ce, own gradient",
        "its change × 5",
        "PGD-20 ce, exact gradient",
        "its change × 5",
        "Square-1000",
        "its change × 5",
    )
    arrays = np.load(folder / "examples.npz")
    original, attacked, change = (_pixels(found.rows[1][column]) for column in (0, 3, 4))
    x, adv = (arrays[key].transpose(0, 2, 3, 1) for key in ("x", "x"))
    adv = arrays["adv"][1].transpose(0, 2, 3, 1)
    assert np.abs(original - x[1]).max() < 1 / 255
    assert np.abs(attacked - adv[1]).max() < 1 / 255
    assert np.abs(change - (0.5 + 5 * (adv[1] - x[1]))).max() < 3 / 255
    assert [shown.text for shown in found.rows[1][1::2]] == ["1", "4", "2"]
    assert [shown.wrong for shown in found.rows[1][1::2]] == [False, True, True]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, r"examples.npz has no labels"),
        ({"x": np.zeros((2, 64))}, r"x \(2, 64\): expected grey or colour images"),
        ({"adv": np.zeros((1, 4, 1, 8, 9))}, r"adv \(1, 4, 1, 8, 9\): expected"),
    ],
)
def test_examples_that_cannot_be_shown_are_named(tmp_path, change, message):
    folder = tmp_path / "run" / "robustness" / "a"
    make_evaluation(folder, "fa", 1)
    make_examples(folder)
    arrays = {**np.load(folder / "examples.npz")} | change
    np.savez(folder / "examples.npz", **{k: v for k, v in arrays.items() if v is not None})
    (section,) = robust_section.sections(robust_read.of_run(tmp_path / "run", "s", "fa", 1))
    found, (problem,) = robust_examples.of_section(section)
    assert found == [] and re.search(message, problem)
    assert str(tmp_path) not in problem
    (folder / "examples.npz").write_text("no archive")
    _, (problem,) = robust_examples.of_section(section)
    assert "cannot be read" in problem


# Markdown


def test_markdown_holds_the_headline_and_the_published_values(study, section, tmp_path):
    text = report.table_markdown(study)
    (row,) = [r for r in robust_table.headlines(section, 0.1) if r.rule == "fa"]
    assert text.startswith("| rule | radius | n | clean | noise | own gradient | exact gradient |")
    assert (
        f"| FA | 0.1 | 3 | {row.clean.mean:.1f} | {row.noise.mean:.1f} | {row.own.mean:.1f} | "
        f"{row.exact.mean:.1f} | **{row.worst.mean:.1f}** [{words.span(row.worst)}] |"
    ) in text
    assert "| FA | PGD-20 ce | 0.1 | 3 |" in text
    readme = tmp_path / "README.md"
    readme.write_text("<!-- table:rob -->\n<!-- end -->\n")
    assert report.refresh(readme, study.parent)
    assert "| masked |" in readme.read_text()
    assert not report.refresh(readme, study.parent)


# One run


def test_a_run_alone_has_a_page(tmp_path):
    folder = make_study(tmp_path / "s", rules=("fa",), seeds=(1,), epochs=3, layers=("conv", "fc"))
    (run,) = folder.glob("s0-*")
    make_evaluation(run / "robustness" / "a", "fa", 1)
    final = records.read(run / "records.jsonl")[-1]
    page = report.write(run)
    text = _plain(page.read_text())
    assert page == run / "report" / "index.html"
    assert "FA: lenet on mnist" in text
    assert f"Test error {100 - 100 * final['test_acc']:.2f} %" in text
    assert "after 3 epochs" in text
    assert {"curves.png", "angle.png", "robust-radius.png"} <= {
        file.name for file in page.parent.iterdir()
    }
    assert "mean over seeds; band" not in text
    assert "FA is masked: attacked by its own gradient" in text
    assert "one net only: an interval over the test images" in text
    assert str(tmp_path) not in text


def test_a_run_under_way_shows_how_far_it_came(tmp_path):
    folder = make_study(tmp_path / "s", rules=("fa",), seeds=(1,), epochs=3, layers=())
    (run,) = folder.glob("s0-*")
    rows = records.read(run / "records.jsonl")
    (run / "records.jsonl").unlink()
    records.append(run / "records.jsonl", *rows[:2])
    page = report.write(run)
    assert "This run is unfinished : epoch 2 of 3" in _plain(page.read_text())
    assert (page.parent / "curves.png").is_file()


def test_a_folder_of_evaluations_alone_has_a_page(tmp_path):
    make_evaluation(tmp_path / "net" / "robustness" / "a", "fa", 1)
    text = _plain(report.write(tmp_path / "net").read_text())
    assert text.startswith(" net · Apical")
    assert "Robustness" in text and "What was run" not in text
