"""Delta angles at the end of training: whose runs count, their intervals, where they are shown."""

import csv
from pathlib import Path
from typing import Any

import pytest

from apical.bench.report import angles, refresh, write
from apical.bench.report.documents import angles_markdown
from apical.bench.report.read import read_study
from apical.bench.storage import records
from apical.measure import statistics as stats
from fake_study import make_study, rewrite

SETTING = "MNIST LeNet SGD"
LAYERS = ("conv", "fc1", "fc2")
AT_THE_END = {
    ("fa", 1): (80.0, 60.0, 0.0),
    ("fa", 2): (84.0, 66.0, 0.0),
    ("fa", 3): (82.0, 63.0, 0.0),
    ("kp", 1): (3.0, 2.0, 0.0),
    ("kp", 2): (4.0, 2.5, 0.0),
    ("kp", 3): (None, 2.0, 0.0),
}
"""Degrees by layer; None where no signal reached it."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = make_study(
        tmp_path / "study", rules=("bp", "fa", "kp"), epochs=3, layers=LAYERS, published=False
    )
    for path in made.glob("*/records.jsonl"):
        rule, seed = path.parent.name.split("-")[2:]
        rows = [of_layer(row, (rule, int(seed))) for row in records.read(path)]
        path.unlink()
        records.append(path, *[row for row in rows if row])
    return made


def of_layer(row: dict[str, Any], run: tuple[str, int]) -> dict[str, Any] | None:
    """A degree more for each epoch that is left; backprop has no rows of layers."""
    if row["kind"] != "layer":
        return row
    if run not in AT_THE_END:
        return None
    kept = {key: row[key] for key in ("kind", "epoch", "layer")}
    last = AT_THE_END[run][LAYERS.index(row["layer"])]
    if last is None:
        return kept if row["epoch"] == 3 else {**kept, "delta_angle_deg": 50.0}
    moves = row["layer"] != "fc2"
    return {**kept, "delta_angle_deg": last + (3 - row["epoch"]) * moves}


def found(folder: Path) -> tuple[list[angles.Line], list[angles.Line]]:
    study = read_study(folder)
    rules = angles.lines({rule: study.row(SETTING, rule).runs for rule in study.rules})
    return rules, angles.by_layer(rules)


def test_means_and_intervals_are_of_the_last_measurement(folder: Path) -> None:
    (fa, kp), layers = found(folder)
    assert fa.angle == stats.summarize([70.0, 75.0, 72.5])
    assert (fa.rule, fa.layer, fa.n, fa.mean) == ("fa", "", 3, "72.5")
    assert fa.interval == "66.3 to 78.7"
    conv = next(line for line in layers if (line.rule, line.layer) == ("fa", "conv"))
    assert conv.angle == stats.summarize([80.0, 84.0, 82.0])
    assert (fa.ties, kp.ties) == ("b", "a")


def test_a_run_whose_layer_received_no_signal_at_the_end_does_not_count(folder: Path) -> None:
    (_, kp), layers = found(folder)
    assert (kp.n, kp.planned) == (2, 3) and kp.angle == stats.summarize([2.5, 3.25])
    assert {(line.layer, line.n) for line in layers if line.rule == "kp"} == {
        ("conv", 2),
        ("fc1", 3),
    }


def test_the_output_layer_is_left_out(folder: Path) -> None:
    assert {line.layer for line in found(folder)[1]} == {"conv", "fc1"}


@pytest.mark.usefixtures("no_figures")
def test_a_rule_that_reached_nothing_has_a_line_without_an_angle(folder: Path) -> None:
    for path in folder.glob("*-kp-*/records.jsonl"):
        rows = records.read(path)
        path.unlink()
        last = [row for row in rows if row["kind"] == "layer" and row["layer"] == "conv"][-1]
        last.pop("delta_angle_deg", None)
        records.append(path, *rows)
    (_, kp), _ = found(folder)
    assert (kp.n, kp.angle, kp.mean, kp.interval, kp.ties) == (0, None, "", "", "")
    assert "–" in write(folder).read_text()
    assert "| KP | 0 of 3 |  |  |  |  | 2.2 [1.4 to 2.9] |" in angles_markdown(folder)


def test_an_interval_ends_where_angles_do() -> None:
    line = angles.Line("kp", "fc1", 2, stats.summarize([1.0, 3.0]), "")
    assert line.angle is not None and line.angle.low is not None and line.angle.low < 0
    assert line.interval.startswith("0.0 to ")


@pytest.mark.usefixtures("no_figures")
def test_the_page_shows_the_table_and_its_numbers_in_full(folder: Path) -> None:
    page = write(folder)
    text = page.read_text()
    assert "Delta angle at the end" in text and "66.3 to 78.7" in text and "2 of 3" in text
    with open(page.parent / "delta-angles.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["rule"], row["layer"], row["n"]) for row in rows] == [
        ("fa", "", "3"),
        ("kp", "", "2"),
        ("fa", "conv", "3"),
        ("kp", "conv", "2"),
        ("fa", "fc1", "3"),
        ("kp", "fc1", "3"),
    ]
    assert float(rows[0]["mean"]) == 72.5 and float(rows[0]["low"]) == pytest.approx(66.2896, 1e-5)


@pytest.mark.usefixtures("no_figures")
def test_the_page_of_one_run_shows_its_angles(folder: Path) -> None:
    (run,) = folder.glob("*-fa-1")
    page = write(run)
    assert "Delta angle at the end" in page.read_text()
    assert (page.parent / "delta-angles.csv").exists()


def test_the_table_of_a_document(folder: Path) -> None:
    readme = folder.parent / "README.md"
    readme.write_text("before\n<!-- angles:study -->\nstale\n<!-- end -->\nafter\n")
    assert refresh(readme, folder.parent)
    text = readme.read_text()
    assert text.startswith("before\n<!-- angles:study -->\n| rule | n | delta angle |")
    line = "| FA | 3 | 72.5 | 66.3 to 78.7 | b | 82.0 [77.0 to 87.0] | 63.0 [55.5 to 70.5] |"
    assert line in text and text.endswith("<!-- end -->\nafter\n")
    assert not refresh(readme, folder.parent)
    (run,) = folder.glob("*-fa-1")
    rewrite(run, [{"kind": "stopped", "reason": "non-finite loss"}])
    assert refresh(readme, folder.parent) and "| FA | 2 |" in readme.read_text()
    assert "Runs that have not finished, and are not counted: FA 1 of 3." in readme.read_text()


def test_a_study_without_angles_is_named(tmp_path: Path) -> None:
    make_study(tmp_path / "plain", rules=("bp",), epochs=2, layers=(), published=False)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- angles:plain -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match="plain: no finished run measured delta angles"):
        refresh(readme, tmp_path)
    readme.write_text("<!-- angles:plane -->\n<!-- end -->\n")
    with pytest.raises(ValueError, match=r"angles:plane: no such study .* did you mean plain\?"):
        refresh(readme, tmp_path)
