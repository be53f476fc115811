"""Evaluations in a folder: keys, files, and going on after a kill without doing anything twice."""

import dataclasses
import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from apical import attacks
from apical.attacks import Effort
from apical.attacks.trials import Trial
from apical.bench.evaluate import robustness
from apical.bench.evaluate.evaluation import evaluate
from apical.bench.evaluate.robustness import Evaluation
from apical.bench.evaluate.trained_net import Trained, from_run
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment
from apical.bench.storage import claims, records
from apical.bench.training import loop
from processes import CONTEXT

QUICK = Evaluation(
    eps=(0.05, 0.2), images=60, effort=Effort(steps=3, adaptive_steps=2, queries=5, redraws=2)
)
QUIET = Execution(quiet=True)


@cache
def run_folder(root: Path, rule: str) -> Path:
    experiment = Experiment(net_options={"hidden": [16]}, rule=rule, epochs=3, probe_every=0)
    folder = root / experiment.name
    loop.run(experiment, folder, QUIET)
    return folder


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("runs")
    return lambda rule: from_run(run_folder(root, rule))


def test_what_a_finished_evaluation_leaves(tmp_path: Path, nets: Any) -> None:
    net, other = nets("fa"), nets("bp")
    folder = QUICK.place(tmp_path, net.digest, {"bp": other.digest})
    found = evaluate(net, QUICK, folder, QUIET, surrogates={"bp": other})
    assert folder.parent == tmp_path / "robustness"
    assert [row["kind"] for row in found][:1] == ["clean"] and found[-1]["kind"] == "verdict"
    assert found == records.read(folder / "records.jsonl") == Evaluation.rows(folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        "environment.json", "examples.npz", "records.jsonl", "setting.json", "sha256.json",
        "trials.jsonl",
    ]  # fmt: skip
    described = records.read_json(folder / "setting.json")
    assert described["key"] == folder.name and described["checkpoint"] == net.digest
    setting = described["setting"]
    assert (setting["data"], setting["images"], setting["eps"]) == ("digits", 60, [0.05, 0.2])
    assert setting["surrogates"] == ["bp"] and setting["effort"]["steps"] == 3
    trials = records.read(folder / "trials.jsonl")
    assert len(trials) == sum(row["kind"] == "attack" for row in found)
    assert all(row["seconds"] >= 0 for row in trials)


def test_it_is_the_report_of_the_library(tmp_path: Path, nets: Any) -> None:
    net = nets("fa")
    x, y = net.examples(60)
    report = attacks.robust_report(net.model, x, y, eps=QUICK.eps, effort=QUICK.effort)
    assert evaluate(net, QUICK, QUICK.place(tmp_path, net.digest), QUIET) == report.rows()


def test_pictures_lie_in_the_ball_and_say_what_the_net_sees(tmp_path: Path, nets: Any) -> None:
    net = nets("fa")
    folder = QUICK.place(tmp_path, net.digest)
    evaluate(net, QUICK, folder, QUIET)
    with numpy.load(folder / "examples.npz", allow_pickle=False) as shown:
        x, adv, labels = shown["x"], shown["adv"], shown["labels"]
        assert x.shape == (6, 1, 8, 8) and adv.shape == (len(shown["names"]), 6, 1, 8, 8)
        assert float(shown["eps"]) == 0.2
        assert abs(adv - x).max() <= 0.2 + 1e-6 and adv.min() >= 0 and adv.max() <= 1
        assert (shown["predictions_clean"] == labels).all() and len(set(labels)) == 6
        assert {"PGD-20 margin / own", "PGD-20 margin / exact"} <= set(shown["names"])
        scores = net.model(torch.from_numpy(adv[1]))
        assert scores.argmax(1).tolist() == shown["predictions_adv"][1].tolist()


def stop_after(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    done, append = 0, records.append

    def stopping(path: Path, *values: Any, **options: Any) -> None:
        nonlocal done
        if done == count:
            raise KeyboardInterrupt
        append(path, *values, **options)
        done += 1

    monkeypatch.setattr(records, "append", stopping)


def test_an_interrupted_evaluation_goes_on_and_repeats_nothing(
    tmp_path: Path, nets: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = nets("brsf")
    whole = evaluate(net, QUICK, QUICK.place(tmp_path / "whole", net.digest), QUIET)
    folder = QUICK.place(tmp_path, net.digest)
    for count in (1, 7):
        with monkeypatch.context() as patch:
            stop_after(patch, count)
            with pytest.raises(KeyboardInterrupt):
                evaluate(net, QUICK, folder, QUIET)
        assert Evaluation.rows(folder) == []
    with (folder / "trials.jsonl").open("a") as file:
        file.write('{"key": "torn')
    ran, original = [], attacks.evaluation.run

    def spy(step: Any, *given: Any, **options: Any) -> Trial:
        ran.append(step)
        return original(step, *given, **options)

    monkeypatch.setattr(attacks.evaluation, "run", spy)
    assert evaluate(net, QUICK, folder, QUIET) == whole
    trials = records.read(folder / "trials.jsonl")
    assert len({row["key"] for row in trials}) == len(trials) == len(ran) + 8
    ran.clear()
    assert evaluate(net, QUICK, folder, QUIET) == whole and not ran


def evaluate_anew(run: Path, longer: Evaluation, folder: Path) -> None:
    evaluate(from_run(run), longer, folder)


def test_a_killed_evaluation_goes_on(tmp_path: Path, nets: Any) -> None:
    """A real kill, in the middle of an attack; the claim of the dead process is taken over."""
    longer = dataclasses.replace(QUICK, effort=Effort(steps=5, adaptive_steps=20, queries=300))
    run = run_folder(tmp_path, "fa")
    net = from_run(run)
    folder = longer.place(run, net.digest)
    process = CONTEXT.Process(target=evaluate_anew, args=(run, longer, folder))
    process.start()
    deadline = time.monotonic() + 100
    trials = folder / "trials.jsonl"
    while not trials.exists() or b"\n" not in trials.read_bytes():
        assert time.monotonic() < deadline and process.is_alive()
        time.sleep(0.005)
    process.kill()
    process.join()
    done = len(records.read(folder / "trials.jsonl"))
    assert done and Evaluation.rows(folder) == []
    found = evaluate(net, longer, folder, QUIET)
    assert found == evaluate(net, longer, longer.place(tmp_path / "b", net.digest), QUIET)
    keys = [row["key"] for row in records.read(folder / "trials.jsonl")]
    assert len(set(keys)) == len(keys) > done


def test_one_process_at_a_time(tmp_path: Path, nets: Any) -> None:
    net = nets("fa")
    folder = QUICK.place(tmp_path, net.digest)
    with claims.hold(folder), pytest.raises(claims.Held, match="is being worked on"):
        evaluate(net, QUICK, folder, QUIET)


def test_the_key_is_of_what_matters(nets: Any) -> None:
    key = QUICK.key("net", {})
    assert key == dataclasses.replace(QUICK).key("net", {})
    different = [
        QUICK.key("other", {}),
        QUICK.key("net", {"bp": "x"}),
        dataclasses.replace(QUICK, seed=1).key("net", {}),
        dataclasses.replace(QUICK, images=61).key("net", {}),
        dataclasses.replace(QUICK, effort=Effort(steps=4)).key("net", {}),
        dataclasses.replace(QUICK, protocol="biotorch").key("net", {}),
        dataclasses.replace(QUICK, rules=("fa",)).key("net", {}),
    ]
    assert len({key, *different}) == len(different) + 1
    # Defaults are left out: a field that is added later leaves old keys valid.
    assert Evaluation().key("net", {}) == "787e84d571"


def test_the_digest_is_of_weights_and_feedback(nets: Any) -> None:
    digests = {rule: nets(rule).digest for rule in ("bp", "fa", "usf")}
    assert len(set(digests.values())) == 3
    assert nets("fa").digest == digests["fa"]


ANOTHER = {"key": "another", "versions": {"robustness": 2}, "checkpoint": "0", "setting": {}}


def test_a_folder_of_another_evaluation_is_left_alone(tmp_path: Path, nets: Any) -> None:
    net = nets("fa")
    folder = tmp_path / "here"
    records.write_json(_made(folder) / "setting.json", ANOTHER)
    with pytest.raises(ValueError, match="holds the evaluation another"):
        evaluate(net, QUICK, folder, QUIET)
    assert [p.name for p in folder.iterdir()] == ["setting.json"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_audits_alone(nets: Any) -> None:
    found = robustness.audits(nets("fa"), dataclasses.replace(QUICK, rules=("usf",)))
    assert [a.source for a in found] == ["own", "exact", "rule:usf"]
    assert found[0].verdict == "masked" and found[1].passed


def test_trials_survive_json() -> None:
    for examples in (1, 4, 5, 8, 9):
        mask = tuple(i % 3 == 0 for i in range(examples))
        trial = Trial("k", "A", "own", "own", 0.1, "all", "usual", mask, mask[::-1], 2, 5)
        row = json.loads(json.dumps(trial.record() | {"seconds": 1.5}))
        assert Trial.read(row) == trial


def test_refusals() -> None:
    for options, message in (
        ({"eps": (8,)}, "did you mean 8/255"),
        ({"eps": ()}, "at least one radius above 0"),
        ({"eps": (0.1, 0.1)}, "each once"),
        ({"eps": (0.0,)}, "above 0"),
        ({"norm": "l0"}, "norm='l0' is not one of .*Protocol"),
        ({"images": 0}, "images=0 must be at least 1"),
        ({"rules": ("faa",)}, "unknown rule 'faa'"),
        ({"protocol": "biotorhc"}, "unknown protocol 'biotorhc'; did you mean 'biotorch'"),
        ({"protocol": "biotorch", "norm": "L1"}, "are 'linf', not 'l1'"),
        ({"protocol": "biotorch", "pixels": (0,)}, "must be at least 1"),
        ({"pixels": (1,)}, "have no effect without a protocol"),
    ):
        with pytest.raises(ValueError, match=message):
            Evaluation(**options)


def test_images_are_the_same_for_every_net_and_never_more_than_there_are(nets: Any) -> None:
    net: Trained = nets("fa")
    x, y = net.examples(50)
    assert x.shape == (50, 1, 8, 8) and x.min() >= 0 and x.max() <= 1
    other, labels = nets("bp").examples(50)
    assert torch.equal(x, other) and torch.equal(y, labels)
    assert len(net.examples(10_000)[0]) == 360
