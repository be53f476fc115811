"""Learners of sequences in the report: the table, the missing baseline, the gradient along time."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from apical.bench.report import figures, gained, sequences, table_markdown, write
from apical.bench.report.colours import colours
from apical.bench.report.read import read_study
from apical.bench.storage import records

LRA: dict[str, Any] = {"learner": "lra", "reduction": "sum"}
LEARNERS: dict[str, Any] = {
    "readout only": "readout",
    "bp": "backprop",
    "LRA sum": LRA,
    "LRA sum, 0.1 on W": {**LRA, "alpha_weights": 0.1},
}
ACCURACY = {"readout only": 0.5, "bp": 1.0, "LRA sum": 0.8, "LRA sum, 0.1 on W": 0.9}


def make(folder: Path, labels: tuple[str, ...] = tuple(LEARNERS), seeds: int = 3) -> Path:
    runs = []
    for label in labels:
        for seed in range(seeds):
            name = f"{label}-{seed}".replace(" ", "_")
            make_run(folder / name, label, seed)
            runs.append({"folder": name, "setting": "order", "rule": label, "seed": seed})
    value: dict[str, Any] = {"name": "s", "title": "S", "tier": "smoke", "command": "apical study"}
    value |= {"runs": runs, "published": [], "notes": ["A note."], "solved": 0.9999}
    records.write_json(folder / "study.json", value)
    return folder


def make_run(folder: Path, label: str, seed: int) -> None:
    folder.mkdir(parents=True)
    experiment = {"task": "temporal_order", "length": 4, "net": "srn", "seed": seed, "epochs": 2}
    experiment |= {"rule": "bp", "learner": LEARNERS[label], "validation": 50}
    described = {"key": "0a1b", "versions": {"experiment": 1}, "experiment": experiment}
    records.write_json(folder / "experiment.json", described)
    written: list[dict[str, Any]] = []
    # seeds differ by a point, and the regularised one gains another by seed
    test = ACCURACY[label] + (0.01 * seed if label != "bp" else 0)
    for epoch, gain in ((0, 1.0), (2, 0.5)):
        if label != "readout only":
            written += [
                {"kind": "step", "epoch": epoch, "t": t, "signal": gain * s, "norm": gain * s / 2}
                for t, s in enumerate((0.0 if label == "LRA sum" else 1e-5, 1e-3, 0.1, 1.0), 1)
            ]
    best = 1.0 if label == "bp" else test + 0.02
    row = {"train_loss": 0.1, "train_acc": 0.9, "val_loss": 0.1, "lr": 0.1, "seconds": 1.0}
    written += [{"kind": "epoch", "epoch": 1, "step": 10, **row, "val_acc": best}]
    written += [{"kind": "epoch", "epoch": 2, "step": 20, **row, "val_acc": test - 0.1}]
    final = {"kind": "final", "epoch": 2, "test_acc": test, "test_count": 10_000, "seconds": 2.0}
    records.append(folder / "records.jsonl", *written, {**final, "step_ms": 1.0})


def test_lines_hold_means_and_differences_paired_on_the_seeds(tmp_path: Path) -> None:
    study = read_study(make(tmp_path))
    by_rule = {row.rule: row for row in study.rows}
    plain, regularised = by_rule["LRA sum"], by_rule["LRA sum, 0.1 on W"]
    assert plain.summary(sequences.TEST).mean == pytest.approx(81)
    assert plain.summary(sequences.best).mean == pytest.approx(83)
    gains = gained.gains(study)
    assert gains["order", "LRA sum"].summary.mean == pytest.approx(30)
    assert gains["order", "LRA sum"].summary.sd == pytest.approx(0)  # what seeds share cancels
    assert ("order", "readout only") not in gains
    assert sequences.over_plain(study, plain) is None
    assert sequences.over_plain(study, regularised).mean == pytest.approx(10)
    again = [dataclasses.replace(run, rule="LRA sum, published rate") for run in plain.runs]
    two = dataclasses.replace(study, runs=(*study.runs, *again))
    assert sequences.over_plain(two, regularised) is None  # which of both is not known
    reached = [sequences.reached(by_rule[name]).text for name in LEARNERS]
    assert reached == ["", "4 of 4", "3 of 4", "4 of 4"]


@pytest.mark.usefixtures("no_figures")
def test_a_missing_baseline_is_told_on_the_page_and_in_the_document(tmp_path: Path) -> None:
    folder = make(tmp_path, ("LRA sum", "LRA sum, 0.1 on W"))
    told = sequences.missing(read_study(folder))
    assert told == [
        "order: no readout alone (learner readout) to compare with.",
        "order: no backpropagation through time to compare with.",
    ]
    assert told[0] in table_markdown(folder)
    page = write(folder).read_text()
    assert "A baseline is missing" in page and told[0] in page


def test_the_figure_draws_both_measurements_and_leaves_out_what_has_no_signal(
    tmp_path: Path,
) -> None:
    study = read_study(make(tmp_path))
    runs = {rule: study.row("order", rule).runs for rule in study.rules}
    (group,) = figures.over_steps(runs, colours(study.rules))
    titles = [panel.title for panel in group.panels]
    assert titles == [
        "Signal, before training", "Signal, at the end",
        "Weight gradient, before training", "Weight gradient, at the end",
    ]  # fmt: skip
    assert [name for name, _ in group.legend] == ["BP", "LRA sum", "LRA sum, 0.1 on W"]
    lines = drawn(group.panels[1])
    assert lines["bp"] == [(1, 0.5e-5), (2, 0.5e-3), (3, 0.05), (4, 0.5)]
    assert lines["LRA sum"][0] == (1, 0.25e-5)  # zero, on the lower edge
    assert [step for step, _ in drawn(group.panels[2])["bp"]] == [2, 3, 4]


def drawn(panel: Any) -> dict[str, list[tuple[float, float]]]:
    from matplotlib.figure import Figure

    axes = Figure().add_subplot()
    panel.draw(axes)
    order = ("bp", "LRA sum", "LRA sum, 0.1 on W")
    return {
        name: [(float(x), pytest.approx(float(y))) for x, y in line.get_xydata()]
        for name, line in zip(order, axes.lines, strict=False)
    }


@pytest.mark.usefixtures("no_figures")
def test_other_studies_have_neither(tmp_path: Path) -> None:
    study = read_study(make(tmp_path, ("bp",)))
    assert not sequences.concerns(study)
    assert "Learning through time" not in write(tmp_path).read_text()
