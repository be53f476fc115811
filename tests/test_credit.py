"""What the learning of each layer is worth: the study, its words, and layers that do not learn."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from apical.bench import studies
from apical.bench.experiment.experiment import Experiment, from_dict, to_dict
from apical.bench.report import credit, table_markdown, write
from apical.bench.report.read import read_study
from apical.bench.storage import checkpoint, records
from apical.bench.studies.credit import LAYERS, ROWS
from apical.bench.training import build, loop
from apical.nets.pretrained import Start
from fake_study import make_study, rewrite

WITH = {"bp": (3.0, 3.1, 2.9), "fa": (5.0, 5.2, 5.1)}
WITHOUT = {  # by rule and layer: test errors in %, three seeds
    "bp, without fc1": (20.0, 20.3, 20.1),
    "bp, without fc2": (3.1, 3.0, 3.0),
    "fa, without fc1": (2.0, 2.2, 2.1),
    "fa, without fc2": (5.0, 9.0, 6.0),
}
WORDS = {
    ("bp", "fc1"): "helps",
    ("bp", "fc2"): "idle",
    ("fa", "fc1"): "harms",
    ("fa", "fc2"): "undecided",
}


def make(folder: Path) -> Path:
    errors = {**WITH, **WITHOUT, "frozen": (25.0, 25.2, 25.1)}
    make_study(folder, rules=tuple(errors), epochs=1, layers=(), published=False)
    for run in records.read_json(folder / "study.json")["runs"]:
        place = folder / run["folder"]
        *epochs, final = records.read(place / "records.jsonl")
        share = 1 - errors[run["rule"]][run["seed"] - 1] / 100
        rewrite(place, [*epochs, final | {"test_acc": share, "test_count": 10_000}])
        value = records.read_json(place / "experiment.json")
        rule, _, layer = run["rule"].partition(", without ")
        value["experiment"] |= {"rule": rule, "start": {"source": "", "freeze": []}}
        if layer:
            value["experiment"]["start"]["freeze"] = [f"{layer}.*"]
        records.write_json(place / "experiment.json", value)
    return folder


@pytest.mark.usefixtures("no_figures")
def test_each_word_and_the_table(tmp_path: Path) -> None:
    folder = make(tmp_path / "credit")
    study = read_study(folder)
    found = {
        (rule, name): layer
        for (_, rule), layers in credit.layers(study).items()
        for name, layer in layers.items()
    }
    assert {cell: layer.word for cell, layer in found.items()} == WORDS
    assert found["bp", "fc1"].worth.mean == pytest.approx(17.1333, abs=1e-3)
    assert found["fa", "fc1"].worth.mean == pytest.approx(-3)
    text = table_markdown(folder)
    finding = (
        "The learning of fc1 helps under BP, harms under FA; of fc2 is idle under BP, is undecided "
        "under FA."
    )
    start, _, head, _, bp, fa, end, *_ = text.splitlines()
    assert start == f"**{finding}**"
    assert "| gained | without fc1 | without fc2 |" in head
    assert "| helps +17.13 [" in bp and "| harms −3.00 [" in fa and not end
    page = write(folder).read_text()
    assert finding in page and "What the learning of each layer is worth" in page
    assert "start.freeze" in page  # among what differs by rule


@pytest.mark.parametrize("other", [{"learner": {"learner": "lra"}}, {"lr": 0.5}])
def test_a_layer_is_compared_with_the_net_of_the_same_learner_and_rate(
    other: dict[str, Any], tmp_path: Path
) -> None:
    folder = make(tmp_path / "credit")
    for run in records.read_json(folder / "study.json")["runs"]:
        if run["rule"].startswith("fa"):  # as if they were backprop's, but for one setting
            described = records.read_json(folder / run["folder"] / "experiment.json")
            described["experiment"] |= {"rule": "bp", **other}
            records.write_json(folder / run["folder"] / "experiment.json", described)
    found = credit.layers(read_study(folder))
    words = {(rule, name): e.word for (_, rule), of in found.items() for name, e in of.items()}
    assert words == WORDS


def test_where_runs_diverged_nothing_is_tested(tmp_path: Path) -> None:
    folder = make(tmp_path / "credit")
    run = next(r for r in records.read_json(folder / "study.json")["runs"] if "fc1" in r["rule"])
    rewrite(folder / run["folder"], [{"kind": "stopped", "reason": "non-finite loss"}])
    text = table_markdown(folder)
    assert "| 1 of 3 runs diverged |" in text and "| harms −3.00 [" in text
    assert "The learning of fc1 harms under FA, is not tested, as runs diverged, under BP;" in text


def test_where_runs_of_the_whole_net_diverged_nothing_is_tested(tmp_path: Path) -> None:
    folder = make(tmp_path / "credit")
    value = records.read_json(folder / "study.json")
    bp = [run for run in value["runs"] if run["rule"].startswith("bp")]
    # a fourth seed, so that three are left
    for run in (run for run in bp if run["seed"] == 1):
        fourth = run["folder"].removesuffix("1") + "4"
        shutil.copytree(folder / run["folder"], folder / fourth)
        described = records.read_json(folder / fourth / "experiment.json")
        described["experiment"]["seed"] = 4
        records.write_json(folder / fourth / "experiment.json", described)
        value["runs"].append(run | {"folder": fourth, "seed": 4})
    records.write_json(folder / "study.json", value)
    assert credit.layers(read_study(folder))["MNIST LeNet SGD", "bp"]["fc1"].word == "helps"
    rewrite(folder / bp[1]["folder"], [{"kind": "stopped", "reason": "non-finite loss"}])
    assert credit.layers(read_study(folder))["MNIST LeNet SGD", "bp"]["fc1"].word == "undecided"


@pytest.mark.parametrize("whole", [True, False])
def test_rows_without_a_finished_run_are_undecided(whole: bool, tmp_path: Path) -> None:
    folder = make(tmp_path / "credit")
    for run in records.read_json(folder / "study.json")["runs"]:
        if run["rule"] == ("bp" if whole else "bp, without fc1"):
            rewrite(folder / run["folder"], [])
    found = credit.layers(read_study(folder))["MNIST LeNet SGD", "bp"]["fc1"]
    assert (found.word, found.worth) == ("undecided", None)
    assert "| undecided" in table_markdown(folder)


def test_two_seeds_decide_nothing(tmp_path: Path) -> None:
    folder = make(tmp_path / "credit")
    value = records.read_json(folder / "study.json")
    value["runs"] = [run for run in value["runs"] if run["seed"] < 3]
    records.write_json(folder / "study.json", value)
    found = credit.layers(read_study(folder))
    words = {layer.word for layers in found.values() for layer in layers.values()}
    assert words == {"undecided"}


def test_the_study_leaves_out_each_layer_of_its_nets_once() -> None:
    for tier in ("smoke", "short", "full"):
        study = studies.build("credit", tier=tier, seeds=1)
        for setting in dict.fromkeys(entry.setting for entry in study.entries):
            here = {
                entry.rule: entry.experiment for entry in study.entries if entry.setting == setting
            }
            one = here["bp"]
            images = one.size or {"digits": 8, "mnist": 28}[one.data]
            from apical import nets

            net = nets.build(
                one.net, in_shape=(1, images, images), num_classes=10, **one.net_options
            )
            names = [
                name.removesuffix(".weight") for name, p in net.named_parameters() if p.ndim > 1
            ]
            assert names == list(LAYERS[setting])
            for rule in ROWS:
                for layer in names:
                    without = here[f"{rule}, without {layer}"]
                    assert without.start.freeze == (f"{layer}.*",)
                    assert dataclasses.replace(without, start=Start()) == here[rule]
                    assert study.follows[f"{rule}, without {layer}"] == rule


@pytest.mark.parametrize("rule", ["bp", "fa", "dfa", "usf", "kp"])
def test_a_layer_without_learning_keeps_its_weights_and_the_others_move(
    rule: str, tmp_path: Path
) -> None:
    start = Start(freeze=("fc2.*",))
    net = {"hidden": [8, 8]}
    one = Experiment(net_options=net, rule=rule, epochs=1, batch_size=512, start=start)
    assert from_dict(to_dict(one)).key == one.key != dataclasses.replace(one, start=Start()).key
    loop.run(one, tmp_path / "run")
    trained = checkpoint.read(tmp_path / "run" / "checkpoint.pt")[0]["model"]
    torch.manual_seed(one.seed)
    initial = build.build_model(one, build.load(one)).state_dict()
    same = {
        name: torch.equal(initial[name], trained[name])
        for name in initial
        if "feedback" not in name
    }
    assert same == {
        f"fc{layer}.{name}": layer == 2 for layer in (1, 2, 3) for name in ("weight", "bias")
    }
