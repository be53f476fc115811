"""The robustness part of a page, and its Markdown: numbers, words, pictures, one run alone."""

import base64
import csv
import io
import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

from apical.bench.report import (
    documents,
    evaluations,
    pictures,
    read,
    robustness,
    sections,
    table_markdown,
    write,
)
from apical.bench.report import robustness_tables as words
from apical.bench.report.table import percent, points, span
from apical.bench.storage import records
from apical.measure.robustness_verdict import radius
from fake_robust import add_robustness, make_evaluation, make_examples
from fake_study import make_study
from test_report import HOSTILE

RULES = ("bp", "fa", "usf")


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "rob"
    make_study(folder, rules=RULES, epochs=1, layers=(), published=False, tier="smoke")
    return add_robustness(folder, rules_tried=RULES[1:])


@pytest.fixture(scope="module")
def section(study):
    found = read.read_study(study)
    (only,) = sections.sections(found.robustness, found.robust_published)
    return only


@pytest.fixture(scope="module")
def html(study):
    return write(study).read_text()


def _plain(html):
    return re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html)))


def _table(html):
    """First cell -> cells of the first table, intervals apart."""
    text = html[html.index("<table") : html.index("</table>")]
    rows = [re.findall(r"<t[dh].*?</t[dh]>", row, re.S) for row in text.split("<tr>")[1:]]
    text = [[_plain(cell).strip() for cell in row] for row in rows]
    return {row[0]: row for row in text}


@pytest.mark.usefixtures("no_figures")
def test_missing_evaluations_of_a_rule_stand_on_one_line(tmp_path):
    folder = tmp_path / "rob"
    make_study(folder, rules=("bp",), epochs=1, layers=(), published=False)
    value = records.read_json(folder / "study.json")
    value["robustness"] = [run | {"evaluation": "robustness/x"} for run in value["runs"]]
    records.write_json(folder / "study.json", value)
    text = _plain(write(folder).read_text())
    assert "No evaluation of robustness has finished yet." in text
    assert "3 of 3 evaluations of robustness are missing" in text
    assert "BP, seeds 1, 2, 3: not started" in text
    assert not (folder / "report" / "robust.csv").exists()
    assert "3 of 3 evaluations are missing." in table_markdown(folder)


@pytest.mark.usefixtures("no_figures")
def test_of_two_evaluations_of_a_net_the_later_counts_and_the_other_is_named(tmp_path):
    for name in ("a", "b"):
        make_evaluation(tmp_path / "run" / "robustness" / name, "fa", 1)
    page = write(tmp_path / "run").read_text()
    assert "Not shown, as another evaluation of the same net and protocol is: robustness/a" in page
    assert _table(page)["net"][3] == "1"


def test_numbers_of_the_page_are_those_of_the_rows(html, section):
    table = _table(html)
    (row,) = [r for r in robustness.headlines(section, 0.1) if r.rule == "fa"]
    assert table["FA"] == [
        "FA",
        f"{row['worst'].mean:.1f} {row['worst'].low:.1f} to {row['worst'].high:.1f}",
        "masked",
        "3",
        f"{row['clean'].mean:.1f} {row['clean'].low:.1f} to {row['clean'].high:.1f}",
        f"{row['noise'].mean:.1f} {row['noise'].low:.1f} to {row['noise'].high:.1f}",
        f"{row['own'].mean:.1f} {row['own'].low:.1f} to {row['own'].high:.1f}",
        f"{row['exact'].mean:.1f} {row['exact'].low:.1f} to {row['exact'].high:.1f}",
        f"+{row['gap'].mean:.1f} +{row['gap'].low:.1f} to +{row['gap'].high:.1f}",
        f"{points(row['against_bp'].mean)} {span(row['against_bp'], points)}",
        "90.0",
    ]
    assert len(table["Rule"]) == len(table["FA"])
    assert (table["BP"][2], table["BP"][8:10]) == ("faithful", ["0.0 0.0 to 0.0", "–"])


def test_a_gap_at_another_radius_only_is_said_to_be_there(section):
    """uSF is masked from 0.1 on; at 0.05 its gap is below 5 points."""
    rows = [row for row in robustness.headlines(section, 0.05) if row.rule == "usf"]
    assert not rows[0]["gap"].masked
    assert words.conclusion(rows) == [
        "uSF is masked: attacked by its own gradient, as in earlier papers, it looks more robust "
        "than it is, at other radii than the 0.05 shown here."
    ]


def test_a_check_that_a_net_lacks_is_not_passed_by_it(section):
    def without(net):
        rows = [row for row in net.rows if row["kind"] == "check"]
        kept = tuple({**row, "passed": None} if row in rows else row for row in net.rows)
        return replace(net, rows=kept) if (net.rule, net.seed) == ("bp", 1) else net

    fewer = replace(section, evaluations=tuple(map(without, section.evaluations)))
    for part, text in ((section, "passed, 3 of 3"), (fewer, "passed, 2 of 3")):
        table = words.checks(part)
        texts = {column.cell(table.rows[0]).text for column in table.columns[1:2]}
        assert texts == {text}


def test_csv_holds_every_number_in_full_precision(study, html, section):
    text = (study / "report" / "robust.csv").read_text()
    rows = list(csv.DictReader(io.StringIO(text)))
    (worst,) = [
        row
        for row in rows
        if (row["rule"], row["eps"], row["group"]) == ("fa", "0.1", "worst case")
    ]
    expected = robustness.lines(section, "fa")["worst"][0.1]
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
    again = write(study, tmp_path / "again")
    for file in again.parent.iterdir():
        assert file.read_bytes() == (study / "report" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("eps", "text"),
    [(0.1, "0.1"), (8 / 255, "8/255"), (0.03103448, "0.031"), (0.2, "0.2"), (1 / 255, "1/255")],
)
def test_radii_are_written_as_in_papers(eps, text):
    assert radius(eps) == text


def test_zero_has_no_sign_and_minus_is_one():
    assert [points(x) for x in (-0.04, 0.04, -1.25, 3)] == ["0.0", "0.0", "−1.2", "+3.0"]
    assert percent(-0.01) == "0.0"


def test_one_sentence_says_whose_gradient_it_is_in_all_settings(tmp_path):
    folder = make_study(
        tmp_path / "two",
        rules=("bp", "fa"),
        settings=("MNIST LeNet SGD", "MNIST LeNet Adam"),
        epochs=1,
        layers=(),
        published=False,
    )
    add_robustness(folder, rules_tried=("fa",))
    found = documents.finding(read.read_study(folder))
    assert found.count("belongs to the attacker's gradient") == 1 and "\n" not in found
    assert "gradient (MNIST LeNet SGD); " in found and "(MNIST LeNet Adam): that" in found


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
    html = write(folder, png=False).read_text()
    assert html.count("<script>") == 1
    assert "&lt;script&gt;window.pwned" in html
    crossed = table_markdown(folder).splitlines()
    for path in folder.glob("s0-*/robustness/*"):
        rows = [row for row in records.read(path / "records.jsonl") if row.get("group") != "rule"]
        (path / "records.jsonl").unlink()
        records.append(path / "records.jsonl", *rows)
    for lines, bars in ((crossed, 4), (table_markdown(folder).splitlines(), 12)):
        table = lines[2:] if lines[0].startswith("**") else lines
        assert not any("<" in line for line in lines[:6])
        assert {len(re.findall(r"(?<!\\)\|", line)) for line in table[:4]} == {bars}


# Pictures


def _pixels(shown):
    from matplotlib.image import imread

    data = base64.b64decode(shown.shown.image.removeprefix("data:image/png;base64,"))
    return imread(io.BytesIO(data), format="png")[..., :3]


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_are_the_arrays(tmp_path, channels):
    folder = tmp_path / "run" / "robustness" / "a"
    make_evaluation(folder, "fa", 1)
    make_examples(folder, channels=channels, eps=0.1)
    (section,) = sections.sections(evaluations.Robustness.of_run(tmp_path / "run", "s", "fa", 1))
    (found,), problems = pictures.of_section(section, pictures.examples)
    assert problems == []
    assert tuple(column.title for column in found.columns) == (
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
        ({"predictions_adv": np.zeros((1, 4))}, r"predictions_adv \(1, 4\): expected"),
        ({"class_names": np.array(["zero"])}, r"index \d is out of bounds"),
    ],
)
def test_examples_that_cannot_be_shown_are_named(tmp_path, change, message):
    folder = tmp_path / "run" / "robustness" / "a"
    make_evaluation(folder, "fa", 1)
    make_examples(folder)
    arrays = {**np.load(folder / "examples.npz")} | change
    np.savez(folder / "examples.npz", **{k: v for k, v in arrays.items() if v is not None})
    (section,) = sections.sections(evaluations.Robustness.of_run(tmp_path / "run", "s", "fa", 1))
    found, (problem,) = pictures.of_section(section, pictures.examples)
    assert found == [] and re.search(message, problem)
    assert str(tmp_path) not in problem
    (folder / "examples.npz").write_text("no archive")
    _, (problem,) = pictures.of_section(section, pictures.examples)
    assert "cannot be read" in problem


# One run


def test_a_run_under_way_shows_how_far_it_came(tmp_path):
    folder = make_study(tmp_path / "s", rules=("fa",), seeds=(1,), epochs=3, layers=())
    (run,) = folder.glob("s0-*")
    rows = records.read(run / "records.jsonl")
    (run / "records.jsonl").unlink()
    records.append(run / "records.jsonl", *rows[:2])
    page = write(run)
    assert "This run is unfinished : epoch 2 of 3" in _plain(page.read_text())
    assert (page.parent / "curves.png").is_file()


@pytest.mark.usefixtures("no_figures")
def test_a_folder_of_evaluations_alone_has_a_page(tmp_path):
    make_evaluation(tmp_path / "net" / "robustness" / "a", "fa", 1)
    text = _plain(write(tmp_path / "net").read_text())
    assert text.startswith(" net · Apical")
    assert "Robustness" in text and "What was run" not in text
