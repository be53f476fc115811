"""One line per rule: what is run for it, and that the table's numbers are those of the records."""

import dataclasses
import json
from pathlib import Path

import pytest

from apical.bench import studies
from apical.bench.experiment.rule_settings import rule_assignment
from apical.bench.report import figures, lines, overview, refresh, table_markdown
from apical.bench.report.colours import colours
from apical.bench.report.read import read_study
from apical.bench.storage import records
from apical.bench.studies import conduct
from apical.bench.studies.rules_overview import DIGITS, MNIST
from apical.rules import RULES
from fake_study import make_run, rewrite


def test_every_rule_of_the_library_has_a_line() -> None:
    for tier in studies.TIERS:
        study = studies.build("rules-overview", tier=tier, seeds=2)
        assert study.overview is not None
        assert sorted(study.overview.facts) == sorted(RULES)
        for setting in {entry.setting for entry in study.entries}:
            labels = [rule for where, rule in study.cells if where == setting]
            assert sorted(labels) == sorted(RULES)
        for entry in study.entries:
            rule = rule_assignment(entry.experiment.rule)
            assert rule.name == entry.rule and (tier != "full" or rule == RULES[entry.rule])
        assert study.overview.detail in {entry.setting for entry in study.entries}


def test_what_rules_need_is_taken_from_them() -> None:
    facts = studies.build("rules-overview", tier="smoke").overview.facts
    assert facts["bp"] == {
        "reads of the weights": "values",
        "waits for": "layers above",
        "labels": "no",
        "own phase": "no",
    }
    assert facts["wm"]["own phase"] == "yes" and facts["drtp"]["labels"] == "yes"
    assert facts["usf"]["reads of the weights"] == "signs"


def test_all_rules_of_a_setting_get_the_same_tries_and_runs_but_for_rate_and_rule() -> None:
    study = studies.build("rules-overview", tier="short", seeds=1)
    tries = study.candidates()
    assert len(tries) == 2 * len(RULES)
    for runs in (tries, {entry.cell: {0.0: [entry.experiment]} for entry in study.entries}):
        for setting in (DIGITS, MNIST):
            kinds = {
                dataclasses.replace(one, rule="bp", lr=1.0, seed=0).key
                for cell, by_rate in runs.items()
                if cell[0] == setting
                for each in by_rate.values()
                for one in each
            }
            assert len(kinds) == 1
    for (setting, _), by_rate in tries.items():
        run = next(e.experiment for e in study.entries if e.setting == setting)
        for one in (one for each in by_rate.values() for one in each):
            assert one.validation and not one.test
            assert one.epochs == run.epochs  # a rate that is too large may show late


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three rules on two settings, two seeds; of FA's second setting one run is missing."""
    study = studies.build("rules-overview", tier="smoke", seeds=2)
    value = json.loads(json.dumps(conduct.described(study, "apical study x", [], [])))
    place, runs = tmp_path / "rules-overview-smoke", []
    for setting in ("digits MLP", "more | digits"):
        for rule in ("bp", "fa", "drtp"):
            for seed in (0, 1):
                name = f"{len(runs)}"
                runs.append({"folder": name, "setting": setting, "rule": rule, "seed": seed})
                if (setting, rule, seed) != ("more | digits", "fa", 1):
                    make_run(place / name, rule, seed, 2, ("fc1", "fc2", "fc3"))
    records.write_json(place / "study.json", value | {"runs": runs})
    table = {"net": "lenet", "small": False, "threads": 1, "compiled": False, "clock": "cpu"}
    table |= {"title": "LeNet, batch 128", "rounds": 9, "control_off": 0.0042, "rejected": False}
    table["rules"] = {
        "bp (control)": {"cpu_ratio": 1.001, "wall_ratio": 9.0},
        "fa": {"cpu_ratio": 1.034, "wall_ratio": 9.0},
    }
    tables = [table | {"threads": 2, "rules": {}}, table]
    records.write_json(tmp_path / overview.RULE_TIMES, {"tables": tables})
    return place


def test_the_numbers_are_those_of_the_records(folder: Path) -> None:
    study = read_study(folder)
    times = overview.step_times(folder.parent, "lenet")
    runs = study.row("digits MLP", "fa").runs
    accuracies = [100 * run.final["test_acc"] for run in runs]
    table = overview.table(study, times)
    shown = {c.head: [c.cell(rule).text for rule in table.rows] for c in table.columns}
    assert shown["digits MLP, %"][1].startswith(f"{sum(accuracies) / 2:.1f} ± ")
    assert "±" not in shown["more | digits, %"][1]
    assert shown["more | digits, %"][1].endswith(" (1 of 2 runs)")
    ends = [
        run.of_kind("layer", layer)[-1]["gradient_angle_deg"]
        for run in runs
        for layer in ("fc1", "fc2")  # not the output layer
    ]
    assert overview.angle(study, "fa") == pytest.approx(sum(ends) / 4)
    bytes_, parameters = (runs[0].final[key] for key in ("feedback_bytes", "parameters"))
    assert overview.memory(study, "fa") == pytest.approx(bytes_ / (4 * parameters))
    assert shown["step"] == ["1.00", "1.03", ""]


def test_angles_that_say_nothing_are_not_shown(folder: Path) -> None:
    before = read_study(folder)
    run = before.row("digits MLP", "fa").runs[0]
    rows = [dict(row) for row in run.rows]
    last = next(row for row in reversed(rows) if row.get("layer") == "fc1")
    last |= {"growth": 60.0, "gradient_reference_norm": 1.0}
    rewrite(folder / run.folder, rows)
    study = read_study(folder)
    assert overview.angle(before, "fa") is not None and overview.angle(study, "fa") is None
    runs = study.by_rule("digits MLP")
    assert "activations grew" in study.row("digits MLP", "fa").runs[0].no_angle(last)
    assert list(lines.series(runs, "layer", "gradient_angle_deg", "fc1")["fa"]) == [1]
    looks = colours(study.rules)
    captions = {group.name: group.caption for group in figures.learning(runs, looks)}
    assert "Not shown are 1 of 24 angles, whose reference" in captions["gradient-angle"]
    assert "Not shown" not in captions["gradient-norm-ratio"]
    old = figures.learning(before.by_rule("digits MLP"), looks)
    assert not any("Not shown" in group.caption for group in old)


def test_rates_that_differ_without_a_search_are_not_called_the_same(folder: Path) -> None:
    assert "learning rates the same for all" in table_markdown(folder)
    run = read_study(folder).row("digits MLP", "fa").runs[0].folder
    described = records.read_json(folder / run / "experiment.json")
    described["experiment"]["lr"] = 0.5
    records.write_json(folder / run / "experiment.json", described)
    assert "learning rates those of each row" in table_markdown(folder)


def test_the_table_in_markdown(folder: Path, tmp_path: Path) -> None:
    text = table_markdown(folder)
    lines = text.splitlines()[2:]
    assert lines[0] == (
        "| rule | digits MLP, % | more \\| digits, % | angle ° | step | memory |"
        " reads of the weights | waits for | labels | own phase |"
    )
    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| BP", "| FA", "| DRTP"]
    assert " | 1.03 | " in lines[3]
    assert lines[4].endswith(" | nothing | output | yes | no |")
    assert "off by 0.4 %" in text and "n = 1 to 2 seeds" in text
    assert "learning rates the same for all" in text
    document = tmp_path / "page.md"
    document.write_text("<!-- table:rules-overview -->\nold\n<!-- end -->\n")
    assert refresh(document, tmp_path)
    assert document.read_text() == f"<!-- table:rules-overview -->\n{text}<!-- end -->\n"


def test_the_longer_tier_is_shown(folder: Path, tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text("<!-- table:rules-overview -->\n<!-- end -->\n")
    other = tmp_path / "rules-overview-short"
    folder.rename(other)
    value = records.read_json(other / "study.json")
    folder.mkdir()
    records.write_json(folder / "study.json", value)
    records.write_json(other / "study.json", value | {"tier": "short"})
    assert refresh(document, tmp_path)
    assert "Tier short" in document.read_text()


def test_step_times_that_are_not_there_or_not_to_be_trusted_are_left_out(folder: Path) -> None:
    path = folder.parent / overview.RULE_TIMES
    value = records.read_json(path)
    for table in value["tables"]:
        table["rejected"] = True
    records.write_json(path, value)
    for _ in range(2):
        times = overview.step_times(folder.parent, "lenet")
        assert not times.ratios and "benchmarks/step_time.py --net lenet" in times.command
        path.unlink(missing_ok=True)
    assert "Step times are not measured yet" in table_markdown(folder)
