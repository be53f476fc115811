"""Published courses of training: which values are compared, and how they are judged."""

import csv
import io

import pytest

from apical.bench.report import curves, figures, lines, read, table_markdown, write
from apical.bench.report.colours import colours
from apical.bench.storage import records
from fake_study import make_run, make_study, rewrite

SOURCE = "Somebody 2019, logs"


@pytest.fixture
def study(tmp_path):
    return courses(tmp_path / "courses")


def courses(folder):
    make_study(folder, rules=("bp", "fa"), epochs=3, layers=("fc2",), published=False)
    value = records.read_json(folder / "study.json")
    for run in value["runs"]:
        wanted = 0.9 + 0.01 * run["seed"] + (0.02 if run["rule"] == "fa" else 0)
        rows = [{"kind": "test", "epoch": epoch, "test_acc": wanted} for epoch in (1, 3)]
        records.append(folder / run["folder"] / "records.jsonl", *rows)
    common = {"setting": "MNIST LeNet SGD", "source": SOURCE, "layer": "", "n": 1}
    value["curves"] = [
        # ours 92 +- 1: t interval 89.5 to 94.5
        common | {"rule": "bp", "metric": "test_acc", "values": {"1": 94.4, "3": 94.6}}
        | {"allowance": 0.5},
        common | {"rule": "fa", "metric": "test_acc", "values": {"1": 97.0, "2": 97.0}}
        | {"allowance": 4.0},
        common | {"rule": "fa", "metric": "angle_deg", "values": {"3": 10.0}, "layer": "fc2"}
        | {"allowance": 3.0},
    ]  # fmt: skip
    records.write_json(folder / "study.json", value)
    return folder


def test_points_stand_where_both_have_values(study):
    found = curves.points(read.read_study(study))
    seen = [(p.curve.rule, p.curve.metric, p.epoch, p.word) for p in found]
    assert seen == [
        # 2.4 away: within our interval of +-2.48, which is wider than the allowance
        ("bp", "test_acc", 1, "compatible, uninformative"),
        ("bp", "test_acc", 3, "differs"),  # 2.6 away
        ("fa", "test_acc", 1, "agrees"),  # 3 away: within the allowance of 4
        ("fa", "angle_deg", 3, "differs"),
    ]
    assert found[0].ours.mean == pytest.approx(92)
    assert found[0].difference == pytest.approx(-2.4)


def test_what_is_left_of_runs_that_failed_agrees_with_nothing(study):
    make_run(study / "fourth", "fa", 4, 3, ("fc2",))
    rewrite(study / "fourth", [{"kind": "stopped", "reason": "non-finite loss"}])
    value = records.read_json(study / "study.json")
    fourth = {"folder": "fourth", "setting": "MNIST LeNet SGD", "rule": "fa", "seed": 4}
    records.write_json(study / "study.json", value | {"runs": [*value["runs"], fourth]})
    (word,) = (p.word for p in curves.points(read.read_study(study)) if p.curve.allowance == 4)
    assert word == "compatible, uninformative"  # "agrees" of the three that are left


def test_two_runs_are_not_judged(study):
    value = records.read_json(study / "study.json")
    value["runs"] = [run for run in value["runs"] if run["seed"] != 3]
    records.write_json(study / "study.json", value)
    assert {p.word for p in curves.points(read.read_study(study))} == {"too few runs"}


def test_the_page_shows_them_with_a_figure_and_csv(study):
    html = write(study).read_text()
    assert "Against a published course of training" in html
    assert "angle of feedback to weights, fc2" in html
    assert (study / "report" / "published-curves.png").stat().st_size > 5000
    rows = list(csv.DictReader(io.StringIO((study / "report" / "curves.csv").read_text())))
    assert [(row["rule"], row["epoch"], row["verdict"]) for row in rows[:2]] == [
        ("BP", "1", "compatible, uninformative"),
        ("BP", "3", "differs"),
    ]
    assert float(rows[0]["published"]) == 94.4 and rows[0]["source"] == SOURCE


@pytest.mark.usefixtures("no_figures")
def test_a_study_without_them_has_no_such_section(tmp_path):
    folder = make_study(tmp_path / "plain", rules=("bp",), epochs=2, layers=())
    assert "published course" not in write(folder).read_text()
    assert not (folder / "report" / "curves.csv").exists()
    assert "in brackets" not in table_markdown(folder)


def test_a_switch_of_the_rule_is_marked_in_the_curves(tmp_path) -> None:
    from matplotlib.figure import Figure

    folder = make_study(tmp_path / "s", rules=("bp", "fa"), seeds=(1, 2), epochs=6)
    for place in (2, 3):  # the runs of fa
        run = next(folder.glob(f"s0-{place}-*"))
        row = {"kind": "switch", "epoch": 3, "rule": "kp", "before": "fa"}
        records.append(run / "records.jsonl", row)
    study = read.read_study(folder)
    runs = {rule: study.row("MNIST LeNet SGD", rule).runs for rule in ("bp", "fa")}
    assert lines.switches(runs) == {"fa": [3]}
    groups = figures.learning(runs, colours(("bp", "fa")))
    assert all("another rule takes over" in group.caption for group in groups)
    axes = Figure().add_subplot()
    groups[0].panels[0].draw(axes)
    upright = [line for line in axes.lines if list(line.get_xdata()) == [3, 3]]
    assert [line.get_color() for line in upright] == [colours(("bp", "fa"))["fa"].light]
