"""Experiments are values: checked, hashed, and the same after a trip through JSON."""

import dataclasses
import json
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from apical import rules
from apical.bench.experiment.data_settings import DataSettings
from apical.bench.experiment.experiment import GROUPS, Experiment, from_dict, to_dict
from apical.bench.experiment.learner_settings import LearnerSettings, learner_values
from apical.bench.experiment.loss_settings import Hashing, LossSettings
from apical.bench.experiment.net_settings import NetSettings
from apical.bench.experiment.probe_settings import ProbeSettings
from apical.bench.experiment.rule_settings import RuleSettings, rule_assignment, rule_label
from apical.bench.experiment.settings import Settings, setting
from apical.bench.experiment.task_settings import TaskSettings
from apical.bench.experiment.training_settings import Adversarial, Schedule, TrainingSettings
from apical.bench.storage import records
from apical.nets.pretrained import Start

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"

FULL = Experiment(
    data="mnist",
    size=32,
    net="lenet",
    rule={"conv*": {"rule": "fa", "init": "kaiming"}, "*": "bp"},
    schedule=Schedule("multistep", (2, 5), warmup=0.5),
    optimizer_options={"momentum": 0.9},
)

CHANGES: dict[str, Any] = {
    "data": "mnist",
    "size": 16,
    "validation": 5,
    "train_images": 100,
    "test_images": 100,
    "start": Start("weights.pt", digest="abc"),
    "test": False,
    "net": "lenet",
    "learner": {"learner": "backprop", "clip_norm": 1.0},
    "net_options": {"hidden": [3]},
    "init": "xavier",
    "hashing": Hashing(),
    "adversarial": Adversarial(),
    "pixels": "unit",
    "shuffle": False,
    "drop_last": True,
    "loss": "binary_cross_entropy",
    "test_at": (1,),
    "rule": "fa",
    "switch": {5: "fa"},
    "epochs": 11,
    "batch_size": 65,
    "optimizer": "adam",
    "lr": 0.051,
    "optimizer_options": {"momentum": 0.1},
    "schedule": Schedule("cosine"),
    "augment": "flip_crop",
    "label_smoothing": 0.1,
    "clip_norm": 1.0,
    "accumulate": 2,
    "autocast": "bf16",
    "compile": True,
    "channels_last": True,
    "probe_every": 2,
    "probe_images": 64,
    "probe_share": 0.1,
    "probe_steps": (3,),
    "seed": 1,
}


TASK = Experiment(validation=7, task="temporal_order", length=20, net="srn")
OF_TASKS = {"task": "temporal_order_3bit", "length": 30, "batches": 7}
ASKED = Experiment(validation=7, task="dictionary", length=4, net="mnm")
OF_ASKED: dict[str, Any] = {"task_options": {"key_bits": 5}, "test_lengths": (8,)}


def test_json_round_trip() -> None:
    assert from_dict(json.loads(json.dumps(to_dict(FULL)))) == FULL


def test_every_field_is_part_of_the_key() -> None:
    every = CHANGES.keys() | OF_TASKS.keys() | OF_ASKED.keys()
    assert every == {f.name for f in dataclasses.fields(Experiment)}
    bases = ((Experiment(validation=7), CHANGES), (TASK, OF_TASKS), (ASKED, OF_ASKED))
    for base, changes in bases:
        keys = {dataclasses.replace(base, **{name: value}).key for name, value in changes.items()}
        assert len(keys | {base.key}) == len(changes) + 1


def test_the_key_does_not_depend_on_how_a_rule_is_written() -> None:
    written = [{"rule": "fa"}, {"rule": "fa", "init": "xavier"}]
    assert {Experiment(rule=rule).key for rule in written} == {Experiment(rule="fa").key}
    assert Experiment(rule={"rule": "fa", "init": "kaiming"}).key != Experiment(rule="fa").key


def test_a_changed_result_of_a_learner_changes_the_key_where_it_applies() -> None:
    plain = {"learner": "lra", "reduction": "sum"}
    assert learner_values(plain) == plain
    for options in ({"alpha_weights": 0.1}, {"alpha_targets": 0.1}, {"clip": "force"}):
        assert learner_values(plain | options) == plain | options | {"version": 2}


def test_the_key_does_not_depend_on_how_a_learner_or_a_task_is_written() -> None:
    assert Experiment(learner={"learner": "backprop", "clip_norm": None}).key == Experiment().key
    assert dataclasses.replace(TASK, task="temporal-order") == TASK
    short = {"learner": "lra", "reduction": "sum"}
    keys = {dataclasses.replace(TASK, learner=form).key for form in (short, short | {"gamma": 0.5})}
    assert len(keys | {TASK.key}) == 2


def test_the_order_of_patterns_is_part_of_the_key() -> None:
    first = Experiment(rule={"fc1": "fa", "*": "bp"})
    second = Experiment(rule={"*": "bp", "fc1": "fa"})
    assert first.key != second.key


def test_the_key_is_stable() -> None:
    # a change here means that every finished run is done again: raise VERSION knowingly
    assert Experiment().key == "09a2aa18e8"


def test_names_are_folder_names() -> None:
    assert Experiment(rule="fa", seed=3).name.startswith("digits-mlp-fa-s3-")
    assert Experiment(net="timm:vit/tiny").name.startswith("digits-timm_vit_tiny-bp-s0-")
    assert TASK.name.startswith("temporal_order_20-srn-bp-s0-")
    through_fa = dataclasses.replace(TASK, rule="fa", learner="readout")
    assert through_fa.name.startswith("temporal_order_20-srn-fa_readout-s0-")


def test_rule_forms() -> None:
    assert rule_assignment("fa") == rules.FA()
    assert rule_assignment({"rule": "fa", "init": "kaiming"}) == rules.FA(init="kaiming")
    assert list(rule_assignment({"a*": "fa", "*": "bp"}).items()) == [
        ("a*", rules.FA()),
        ("*", rules.BP()),
    ]
    assert [rule_label(r) for r in ("fa", {"rule": "dfa"}, {"*": "fa"})] == ["fa", "dfa", "mixed"]


def test_a_switch_is_a_value() -> None:
    one = Experiment(switch={7: "kp", 3: {"rule": "fa"}})
    other = from_dict(json.loads(json.dumps(to_dict(one))))
    assert other == one and other.key == one.key and list(other.switch) == [3, 7]
    assert Experiment(switch={3: "fa", 7: {"rule": "kp"}}).key == one.key
    assert Experiment(switch={4: "fa", 7: "kp"}).key != one.key
    assert [one.rule_at(epoch) for epoch in (0, 2, 3, 6, 7, 10)] == [
        "bp", "bp", {"rule": "fa"}, {"rule": "fa"}, "kp", "kp",
    ]  # fmt: skip
    assert one.name.startswith("digits-mlp-bp_then_fa_then_kp-s0-")


def test_values_out_of_range() -> None:
    for values, told in (
        ({"epochs": 0, "batch_size": 0}, "epochs=0: must be at least 1; batch_size=0"),
        ({"lr": 0.0}, "lr=0.0: must be above 0"),
        ({"lr": math.inf}, "lr=inf: must be above 0 and finite"),
        ({"lr": math.nan}, "lr=nan: must be above 0 and finite"),
        ({"lr": "fast"}, "lr='fast': must be a number"),
        ({"epochs": 1.5}, "epochs=1.5: must be a whole number"),
        (
            {"schedule": "cosine"},
            r"schedule='cosine': must be Schedule\(...\), or in a file a mapp",
        ),
        ({"epochs": None}, "epochs=None: must be a whole number"),
        ({"rule": "faa"}, "rule: unknown rule 'faa'; did you mean"),
        ({"label_smoothing": 1.0}, r"label_smoothing=1.0: must lie in \[0, 1\)"),
        ({"clip_norm": 0.0}, "clip_norm=0.0: must be above 0"),
        ({"init": "xavir"}, "init='xavir' is not one of 'net', 'default', 'normal', 'xavier'"),
        ({"augment": "crop"}, "augment='crop' is not one of"),
        ({"autocast": "fp8"}, "autocast='fp8' is not one of 'off', 'bf16', 'fp16'"),
        ({"accumulate": 65}, "accumulate=65: exceeds batch_size=64"),
        ({"test": False}, "nothing would be measured"),
        ({"seed": -1}, r"seed=-1: must lie in \[0, 1e18\]"),
        ({"seed": 10**23}, "seed=10{23}: must lie in"),
        ({"loss": "hinge"}, "loss='hinge' is not one of 'cross_entropy'"),
        (
            {"loss": "binary_cross_entropy", "label_smoothing": 0.1},
            "label_smoothing=0.1 cannot be combined with loss='binary_cross_entropy'",
        ),
        ({"pixels": "raw"}, "pixels='raw' is not one of 'standard', 'unit'"),
        (
            {"shuffle": False, "augment": "flip_crop"},
            "shuffle=False cannot be combined with augment='flip_crop'",
        ),
        ({"test_at": (2, 1)}, r"test_at=\(2, 1\): must rise, within 1 to 10 epochs"),
        ({"test_at": (11,)}, r"test_at=\(11,\): must rise, within 1 to 10 epochs"),
        ({"test_at": (1,), "test": False, "validation": 9}, "cannot be combined with test=False"),
        ({"switch": {0: "fa"}}, "switch at 0: must be a whole number of epochs, at least 1"),
        ({"switch": {10: "fa"}}, "switch at 10: must be below epochs=10"),
        ({"switch": {"x": "fa"}}, "switch at 'x': must be a whole number"),
        ({"switch": {2: "faa", 3: "fb"}}, "epoch 2: unknown rule 'faa'.*epoch 3: unknown rule"),
    ):
        with pytest.raises(ValueError, match=told):
            Experiment(**values)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'"),
        ({"schedule": {"knd": "cosine"}}, "unknown key 'knd'; did you mean 'kind'"),
    ],
)
def test_unknown_keys(values: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        from_dict(values)


def test_schedule_refuses() -> None:
    for values, told in (
        ({"milestones": (3,)}, "milestones have no effect with kind='constant'"),
        ({"gamma": 0.5}, "gamma=0.5 has no effect with kind='constant'"),
        ({"kind": "multistep"}, "needs milestones"),
        ({"kind": "multistep", "milestones": (5, 3)}, "must rise"),
        ({"kind": "multistep", "milestones": (0,)}, "each at least 1"),
        ({"kind": "step"}, "kind='step' is not one of 'constant', 'multistep', 'cosine'"),
        ({"gamma": 0.0}, "gamma=0.0: must lie in"),
        ({"warmup": -1.0}, "warmup=-1.0: must be at least 0"),
    ):
        with pytest.raises(ValueError, match=told):
            Schedule(**values)


def test_schedule_factors() -> None:
    steps = Schedule("multistep", (2, 4), gamma=0.5)
    assert [steps.factor(e, 5) for e in (0, 1.99, 2, 3, 4)] == [1, 1, 0.5, 0.5, 0.25]
    cosine = Schedule("cosine", warmup=1.0)
    assert [cosine.factor(e, 5) for e in (0, 0.5, 1)] == [0, 0.5, 1]
    assert cosine.factor(3, 5) == pytest.approx(0.5)  # halfway from 1 to 5
    assert cosine.factor(5, 5) == pytest.approx(0)


# groups


@pytest.mark.parametrize("group", GROUPS)
def test_a_group_is_complete_and_checked_alone(group: type[Settings]) -> None:
    @dataclasses.dataclass(frozen=True)
    class Planted(Settings):
        label = "planted"

        def problems(self) -> list[str]:
            return ["a planted problem"]

    @dataclasses.dataclass(frozen=True)
    class Both(group, Planted):  # type: ignore[misc, valid-type]
        """Fails unless the group hands on to the one behind it."""

    assert group() == group()
    with pytest.raises(ValueError, match=f"{group.label}: a planted problem"):
        Both()


def test_each_group_refuses_what_does_not_fit() -> None:
    for group, values, told in (
        (DataSettings, {"test": False}, "data: test=False without validation"),
        (TaskSettings, {"length": 9}, "task: length=9 has no effect without a task"),
        (NetSettings, {"init": "xavir"}, "net: init='xavir' is not one of"),
        (RuleSettings, {"rule": {"fc*": "faa"}}, "rule: rule: unknown rule 'faa'"),
        (LearnerSettings, {"learner": "lara"}, "learner: learner: unknown learner 'lara'"),
        (LossSettings, {"label_smoothing": 1}, "loss: label_smoothing=1: must lie in"),
        (TrainingSettings, {"accumulate": 99}, "training: accumulate=99: exceeds batch_size=64"),
        (ProbeSettings, {"probe_share": 0}, r"probes: probe_share=0: must lie in \(0, 1\]"),
    ):
        for kind in (group, Experiment):
            with pytest.raises(ValueError, match=told.partition(": ")[2]):
                kind(**values)
        with pytest.raises(ValueError, match=told):
            group(**values)


def test_every_field_is_explained_where_it_stands() -> None:
    for group in (*GROUPS, Schedule, Hashing):
        text = (group.__doc__ or "").partition("Args:")[2]
        own = [name for name in group.__annotations__ if name != "label"]
        assert own and not [name for name in own if f"\n        {name}: " not in text]


def test_what_excludes_another_setting_names_one_that_there_is() -> None:
    names = {option.name for option in dataclasses.fields(Experiment)}
    for option in dataclasses.fields(Experiment):
        about = option.metadata
        assert {*about.get("not_with", ()), about.get("needs") or option.name} <= names


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "told"),
    [
        ("[1, inf)", [1, 2], [0, math.inf, math.nan], "must be at least 1"),
        ("(0, inf)", [1e-9], [0, -1, math.inf], "must be above 0 and finite"),
        ("[0, 1)", [0, 0.9], [1, -0.1], r"must lie in \[0, 1\)"),
        ("(0, 1]", [1, 0.1], [0, 1.1], r"must lie in \(0, 1\]"),
    ],
)
def test_intervals(interval: str, inside: list[float], outside: list[float], told: str) -> None:
    @dataclasses.dataclass(frozen=True)
    class Group(Settings):
        x: float = setting(inside[0], interval)
        label = "group"

    assert [Group(x).x for x in inside] == inside
    for x in outside:
        with pytest.raises(ValueError, match=f"group: x={x}: {told}"):
            Group(x)


# kept experiments


def kept_experiments() -> list[dict[str, Any]]:
    """What describes each kept run: its key, versions and experiment. Studies lie in results as
    folders of runs or packed."""
    found = [records.read_json(file) for file in sorted(RESULTS.rglob("experiment.json"))]
    for file in sorted(RESULTS.rglob("runs.jsonl")):
        found += [row for row in records.read(file) if "experiment" in row]
    return found


def test_every_kept_experiment_has_its_stored_key_and_json_form() -> None:
    kept = kept_experiments()
    assert len(kept) > 500
    for described in kept:
        values = described["experiment"]
        experiment = from_dict(values, trust=True)
        assert experiment.key == described["key"]
        form = to_dict(experiment)  # fields that were added later are left out
        assert {name: form[name] for name in values} == values


def test_the_setting_that_contributing_adds_is_one_field_in_one_file(tmp_path: Path) -> None:
    """The change shown there, made to a copy of the sources: flag, files, key and errors follow."""
    shutil.copytree(ROOT / "src", tmp_path / "src")
    block = (ROOT / "CONTRIBUTING.md").read_text().partition("```diff\n")[2].partition("```")[0]
    (name,) = re.findall(r"^\+\+\+ b/(.*)$", block, flags=re.M)
    source = (tmp_path / name).read_text()
    for hunk in re.split(r"^@@.*\n", block, flags=re.M)[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if line[0] == " ")
        assert source.count(before) == 1
        source = source.replace(before, "".join(line[1:] for line in lines))
    (tmp_path / name).write_text(source)

    code = """if True:
        from apical.bench import Experiment
        from apical.bench.cli.main import main
        from apical.bench.experiment.experiment import from_dict, to_dict
        clipped = Experiment(clip_value=0.5)
        assert from_dict(to_dict(clipped)) == clipped
        print(Experiment().key, clipped.key)
        for wrong in ({"clip_value": 0}, {"clip_value": 0.5, "clip_norm": 1.0}):
            try:
                Experiment(**wrong)
            except ValueError as error:
                print(error)
        for words in (["--clip_value", "0.5", "--print_config"], ["--help-all"]):
            print("next")
            try:
                main(["train", *words])
            except SystemExit:
                pass
    """
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    values, printed, explained = done.stdout.split("next\n")
    keys, *errors = values.splitlines()
    same, other = keys.split()
    assert same == Experiment().key != other
    assert errors == [
        "experiment: clip_value=0: must be above 0 and finite",
        "experiment: clip_value=0.5 cannot be combined with clip_norm=1.0",
    ]
    assert yaml.safe_load(printed)["clip_value"] == 0.5
    assert "upper limit (> 0) of the absolute value" in explained


def test_an_experiment_prints_what_differs_from_the_defaults() -> None:
    shown = repr(Experiment(rule="fa", epochs=2, net_options={"hidden": [8]}))
    assert shown == "Experiment(net_options={'hidden': [8]}, rule='fa', epochs=2)"
