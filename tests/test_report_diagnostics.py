"""Learning diagnostics on the page: warnings, alignment phases, figures; old records too."""

import math
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from apical.bench.report import diagnostics, write
from apical.bench.report.colours import colours
from apical.bench.report.read import read_study
from apical.bench.storage import records
from browser import Browser
from fake_study import make_study
from test_report import HOSTILE

SETTING = "MNIST LeNet SGD"


def measured(folder: Path, *, layers: int = 2, warn: bool = True) -> Path:
    """A study whose runs measured deltas and ranks, one rule of it with warnings."""
    names = [f"block.{place}.conv" for place in range(layers - 1)] + [HOSTILE]
    make_study(
        folder, rules=("bp", "fa", "dfa"), seeds=(1, 2), epochs=12, layers=names, published=False
    )
    for path in folder.glob("*/records.jsonl"):
        rule, rows = path.parent.name.split("-")[2], records.read(path)
        rows = [row if row["kind"] != "layer" else layer(row) for row in rows]
        if rule == "bp":
            rows = [row for row in rows if row["kind"] != "layer"]
        probes = [
            {"kind": "probe", "epoch": epoch, "loss": 2 / epoch, "error_rank": 9 - epoch / 2}
            for epoch in range(1, 13)
        ]
        warnings = [
            {"kind": "warning", "epoch": 3, "layer": name, "finding": "no signal"}
            | {"value": 1e-9 / (1 + place), "threshold": 1e-6, "message": f"bad {place} {HOSTILE}"}
            for place, name in enumerate(names)
        ]
        extra = [*probes, *(warnings if warn and rule == "dfa" else [])]
        path.unlink()
        records.append(path, *rows[:-1], *extra, rows[-1])
    return folder


def layer(row: dict[str, Any]) -> dict[str, Any]:
    """From 90 degrees after the first epoch down to 50."""
    left = math.exp(-(row["epoch"] - 1) / 2)
    angle = 50 + 40 * left
    kept = {key: row[key] for key in ("kind", "epoch", "layer")}
    return {
        **kept,
        "gradient_angle_deg": angle,
        "delta_angle_deg": angle,
        "delta_rank": 3 + 5 * left,
    }


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return measured(tmp_path_factory.mktemp("runs") / "study", layers=14)


@pytest.fixture(scope="module")
def page(study: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(study, tmp_path_factory.mktemp("page"), png=False)


def found(folder: Path) -> dict[str, Any]:
    value = read_study(folder)
    diagnosis = diagnostics.diagnose(value, SETTING, colours(value.rules))
    assert diagnosis is not None
    return diagnosis


def test_warnings_are_one_line_for_each_rule_and_kind(study: Path) -> None:
    (alarm,) = found(study)["alarms"]
    assert (alarm.rule, alarm.finding, alarm.runs, alarm.of) == ("dfa", "no signal", 2, 2)
    assert len(alarm.layers) == 14 and alarm.epoch == 3
    assert alarm.named == "block.0.conv, block.1.conv, block.2.conv and 11 more"
    assert alarm.message == f"bad 13 {HOSTILE}"  # the smallest value


def test_the_alignment_phase_of_rules_and_layers(study: Path) -> None:
    """50 + 40 exp(-(t - 1) / 2) has made nine tenths of its turn at t = 1 + 2 ln 10."""
    diagnosis = found(study)
    assert [row.rule for row in diagnosis["rules"]] == ["fa", "dfa"]
    fa = diagnosis["rules"][0]
    assert (len(fa.phases), len(fa.outcomes)) == (28, 28)
    assert fa.median("epoch") == pytest.approx(1 + 2 * math.log(10), abs=0.2)
    assert fa.median("loss") == pytest.approx(2 / fa.median("epoch"), abs=0.05) and fa.moving == 0
    assert len(diagnosis["layers"]) == 28 and len(diagnosis["layers"][0].outcomes) == 2


def test_many_layers_do_not_flood_the_page(study: Path) -> None:
    delta, rank = found(study)["groups"]
    assert (delta.name, rank.name) == ("delta-angle", "effective-rank")
    assert len(delta.panels) == len(rank.panels) == 12
    assert "12 of 14 panels" in delta.caption and "12 of 15 panels" in rank.caption
    assert rank.panels[-1].title == "error at the output"
    assert dict(delta.legend).keys() == {"FA", "DFA"}
    assert dict(rank.legend).keys() == {"BP", "FA", "DFA"}


def test_the_page_holds_it_all_and_escapes_it(page: Path) -> None:
    text = page.read_text()
    assert text.count("<h2>Learning diagnostics</h2>") == 1
    for part in ("Warnings", "Alignment phase", "Delta angle", "Effective rank: 12 panels"):
        assert part in text
    assert HOSTILE not in text and "and 11 more" in text


def test_one_image_spreads_over_no_directions_and_has_no_figure_of_them(tmp_path: Path) -> None:
    study = measured(tmp_path / "study")
    for path in study.glob("*/records.jsonl"):
        none = {"delta_rank": 0.0, "error_rank": 0.0}
        rows = [
            {key: none.get(key, value) for key, value in row.items()} for row in records.read(path)
        ]
        path.unlink()
        records.append(path, *rows)
    assert [group.name for group in found(study)["groups"]] == ["delta-angle"]
    write(study, png=False)


@pytest.mark.usefixtures("no_figures")
def test_a_warning_without_a_threshold_is_shown(tmp_path: Path) -> None:
    """Values of steps that are not finite are counted; any number is too many."""
    folder = measured(tmp_path / "study")
    run = next(folder.glob("*dfa*"))
    row = {"kind": "warning", "epoch": 1, "layer": "cell", "finding": "not finite", "value": 3}
    row |= {"threshold": 0.0, "message": "norm is not finite at 3 of 20 steps"}
    records.append(run / "records.jsonl", row)
    assert "norm is not finite at 3 of 20 steps" in write(folder).read_text()


def test_no_warning_is_said_only_by_those_who_looked(tmp_path: Path) -> None:
    quiet = measured(tmp_path / "quiet", warn=False)
    assert found(quiet)["watched"]
    assert "No layer gave reason for a warning.</p>" in write(quiet).read_text()
    for path in quiet.glob("*/records.jsonl"):  # measured twice only after the first epoch
        rows = records.read(path)
        path.unlink()
        records.append(path, *(r for r in rows if r["kind"] != "probe" or r["epoch"] in (0, 1, 8)))
    assert "need 3 measurements in a row after the first epoch, and these runs have 2" in (
        write(quiet).read_text()
    )
    old = make_study(tmp_path / "old", rules=("fa",), epochs=8, layers=("conv",))
    text = write(old).read_text()
    assert "No layer gave reason for a warning" not in text
    assert "Alignment phase" in text and "Delta angle" not in text  # of what they hold


@pytest.mark.usefixtures("no_figures")
def test_records_without_layers_have_no_section(tmp_path: Path) -> None:
    folder = make_study(tmp_path / "bare", layers=(), epochs=2)
    assert diagnostics.diagnose(read_study(folder), SETTING, {}) is None
    assert "Learning diagnostics" not in write(folder).read_text()


def test_warnings_of_runs_that_failed_are_shown(tmp_path: Path) -> None:
    folder = measured(tmp_path / "failed")
    for path in folder.glob("*dfa*/records.jsonl"):
        rows = records.read(path)[:-1]
        path.unlink()
        records.append(path, *rows, {"kind": "stopped", "reason": "non-finite loss"})
    (alarm,) = found(folder)["alarms"]
    assert alarm.rule == "dfa" and [row.rule for row in found(folder)["rules"]] == ["fa"]


def test_a_single_run_has_the_section_too(tmp_path: Path) -> None:
    run = next(measured(tmp_path / "study").glob("*dfa*"))
    assert "Learning diagnostics" in write(run).read_text()
    assert (run / "report" / "delta-angle.png").exists()
    assert (run / "report" / "effective-rank.png").exists()


def test_in_a_browser_it_is_silent_and_fits(page: Path, browser: Browser) -> None:
    for width in (1200, 360):
        browser.emulate(width=width)
        browser.open(page)
        assert browser.complaints() == []
        assert browser.evaluate("document.documentElement.scrollWidth") <= width
        message = (
            "(() => { const cells = [...document.querySelectorAll('td[colspan]')];"
            "const r = cells[0].getBoundingClientRect(); return [cells.length, r.right]; })()"
        )
        count, right = browser.evaluate(message)
        assert count == 1 and right <= width  # the advice is read without scrolling


def test_a_line_that_ends_before_its_phase_gets_no_circle() -> None:
    """As where one seed diverged early: only epochs that all seeds have are drawn."""
    axes, looks = Figure().subplots(), colours(["fa"])
    values = {"fa": {0: [90.0, 91.0], 1: [80.0, 82.0]}}
    for epoch, circles in ((0.5, 1), (3.0, 0)):
        axes.clear()
        diagnostics.draw_ends(axes, values=values, looks=looks, ends={"fa": epoch})
        assert sum(line.get_marker() == "o" for line in axes.lines) == circles
