"""When a run measures its layers: within its share, densest at the start, also within an epoch."""

import dataclasses
import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from apical import data
from apical.bench.experiment.experiment import Experiment, from_dict
from apical.bench.storage import packing, records
from apical.bench.training import build, loop
from apical.bench.training.monitor import FIXED_STEPS, Monitor, epochs_to_measure
from test_resume import Killed, interrupted_at, kill_test

ROOT = Path(__file__).resolve().parents[1]
BASE = Experiment(
    net_options={"hidden": [16]},
    rule="fa",
    epochs=2,
    batch_size=256,
    probe_images=16,
    probe_share=1,
)
"""Six steps an epoch."""


def measured(folder: Path) -> list[float]:
    rows = records.read(folder / "records.jsonl")
    return [row["epoch"] for row in rows if row["kind"] == "probe"]


def test_measurements_stay_within_their_share() -> None:
    for epochs in (1, 2, 3, 10, 30, 100, 400):
        for steps in (6, 23, 45, 200, 938):
            for every in (1, 3):
                experiment = Experiment(epochs=epochs, probe_every=every)
                found = epochs_to_measure(experiment, steps)
                cost = FIXED_STEPS + 2 * experiment.probe_images / experiment.batch_size
                assert {0, epochs} <= found
                assert (
                    len(found) <= 2 or len(found) * cost <= experiment.probe_share * epochs * steps
                )
                assert all(epoch % every == 0 for epoch in found - {epochs})
                if (epochs + 1) * cost <= experiment.probe_share * epochs * steps:
                    assert found == {*range(0, epochs + 1, every), epochs}


def test_what_is_left_out_is_late() -> None:
    found = sorted(epochs_to_measure(Experiment(epochs=100), 45))
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert 10 < len(found) < 50
    assert gaps[0] == 1 and gaps[-1] == max(gaps) > 5
    assert all(later >= earlier - 1 for earlier, later in itertools.pairwise(gaps))  # rounding
    share = Experiment(epochs=100, probe_share=0.2)
    assert set(found) < epochs_to_measure(share, 45)


def test_epochs_of_test_at_are_measured_too() -> None:
    experiment = Experiment(epochs=30, test_at=(17,))
    assert epochs_to_measure(experiment, 23) - {0, 30} >= {17}
    assert epochs_to_measure(dataclasses.replace(experiment, probe_every=0), 23) == set()


def test_steps_within_an_epoch(tmp_path: Path) -> None:
    experiment = dataclasses.replace(BASE, probe_steps=(1, 3, 6, 9))
    loop.run(experiment, tmp_path)
    rows = records.read(tmp_path / "records.jsonl")
    assert measured(tmp_path) == [0, round(1 / 6, 6), 0.5, 1, 1.5, 2]
    steps = [row.get("step") for row in rows if row["kind"] == "probe"]
    assert steps == [None, 1, 3, None, 9, None]
    kinds = [row["kind"] for row in rows]
    assert kinds[:5] == ["layer", "layer", "activation", "probe", "layer"]
    assert kinds.index("epoch") == 12  # three measurements of four rows come before it


def test_an_epoch_that_was_left_out_is_measured_if_its_last_step_is_named(tmp_path: Path) -> None:
    experiment = dataclasses.replace(BASE, epochs=3, probe_every=3, probe_steps=(6,))
    loop.run(experiment, tmp_path)
    assert measured(tmp_path) == [0, 1, 3]


def test_images_sorted_by_class_are_not_measured_on_one_class(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = data.load("digits")
    first = build.build(BASE).probe[1].tolist()
    assert first == source.train.labels[:16].tolist()  # evenly spaced only where needed
    ordered = source.train.take(source.train.labels.argsort(stable=True))
    other = dataclasses.replace(source, train=ordered)
    monkeypatch.setattr(data, "load", lambda *a, **k: other)
    assert len(build.build(BASE).probe[1].unique()) == 10
    one = dataclasses.replace(BASE, probe_images=1)
    assert torch.equal(build.build(one).probe[1], ordered.labels[:1])


def test_measuring_leaves_no_trace_in_the_net(tmp_path: Path) -> None:
    states = []
    for name, changes in (
        ("none", {"probe_every": 0}),
        ("all", {"probe_steps": (2, 7)}),
    ):
        options: dict[str, Any] = {"rule": "brsf", **changes}
        loop.run(dataclasses.replace(BASE, **options), tmp_path / name)
        state = torch.load(tmp_path / name / "checkpoint.pt", weights_only=True)
        states.append(state["state"]["model"] if "state" in state else state["model"])
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


WRONG = dataclasses.replace(
    BASE,
    net_options={"hidden": [16] * 9, "activation": "sigmoid"},
    epochs=5,
    probe_steps=(3, 8, 9, 14),
)
"""A net so deep that no error reaches its bottom: warnings in the third epoch."""


@pytest.mark.filterwarnings("ignore::apical.bench.training.monitor.LearningWarning")
def test_resumes_with_the_same_rows_and_the_same_warnings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop.run(WRONG, tmp_path / "whole")
    for saves in (2, 5, 7, 9):
        killed = tmp_path / f"killed {saves}"
        with monkeypatch.context() as patch:
            interrupted_at(saves, patch, after=bool(saves % 2))
            with pytest.raises(Killed):
                loop.run(WRONG, killed)
        loop.run(WRONG, killed)
        assert kill_test.differences(tmp_path / "whole", killed) == [], saves
        rows = [row for row in records.read(killed / "records.jsonl") if row["kind"] == "warning"]
        warned = [(row["layer"], row["finding"]) for row in rows]
        assert len(warned) == len(set(warned)) > 3


def test_neurons_warned_of_before_an_interruption_are_not_warned_of_again() -> None:
    def monitor(rows: list[dict[str, Any]]) -> Any:
        made: Any = Monitor.__new__(Monitor)
        made.warned, made.steps, made.watch = set(), SimpleNamespace(recall=list), None
        made.recall(rows)
        return made

    row = {"kind": "spikes", "layer": "fc1", "silent": 1.0, "busy": 0.0, "epoch": 1}
    (found,) = monitor([])._constant([row])
    assert monitor([found.row()])._constant([row]) == []


def test_backprop_is_measured_at_the_output_alone(tmp_path: Path) -> None:
    loop.run(dataclasses.replace(BASE, rule="bp"), tmp_path)
    rows = [r for r in records.read(tmp_path / "records.jsonl") if r["kind"] != "epoch"]
    assert [row["kind"] for row in rows] == ["activation", "probe"] * 3 + ["final"]
    assert all(1 < row["error_rank"] < 9 for row in rows if row["kind"] == "probe")


def test_bad_settings_say_what_is_allowed() -> None:
    for changes, problem in (
        ({"probe_share": 0.0}, "probe_share=0.0: must lie in (0, 1]"),
        ({"probe_share": 1.5}, "probe_share=1.5: must lie in (0, 1]"),
        ({"probe_steps": (3, 2)}, "probe_steps=(3, 2): must rise, each at least 1"),
        ({"probe_steps": (0,)}, "probe_steps=(0,): must rise, each at least 1"),
        (
            {"probe_steps": (4,), "probe_every": 0},
            "probe_steps=(4,) have no effect with probe_every=0",
        ),
    ):
        with pytest.raises(ValueError) as error:
            dataclasses.replace(BASE, **changes)
        assert problem in str(error.value)


def test_the_fields_leave_older_keys_valid() -> None:
    kept = packing.open_folder(ROOT / "results" / "biotorch-mnist")
    name = next(name for name in kept.folders(".") if "-fa-s0" in name)
    described = kept.read_json(f"{name}/experiment.json")
    assert "probe_share" not in described["experiment"]
    assert from_dict(described["experiment"]).key == described["key"]
