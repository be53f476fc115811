"""Measuring a model in a loop of one's own: what is wrong is found, what learns is left alone."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.bench.experiment.experiment import Experiment
from apical.bench.report.read import read_study
from apical.bench.storage import records
from apical.bench.studies.smoke import smoke
from apical.bench.training import loop
from apical.bench.training.monitor import LearningWarning
from apical.measure import diagnostics
from apical.measure.diagnostics import Start, Thresholds, Watch, check, findings, measure
from apical.rules import FA, KolenPollack

ROOT = Path(__file__).resolve().parents[1]


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 8, generator=generator)
    return x, x[:, :4].argmax(1)


X, Y = batch()


def net(activation: type[nn.Module] = nn.Tanh) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 4)
    )


def train(model: nn.Module, steps: int, lr: float = 0.1) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(steps):
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
        optimizer.zero_grad()


def kinds(found: list[diagnostics.Finding]) -> set[tuple[str, str]]:
    return {(finding.layer, finding.kind) for finding in found}


def test_a_net_that_learns_is_left_alone() -> None:
    for rule in ("bp", "fa", "dfa", "usf", "kp"):
        model = apical.convert(net(), rule, example=X)
        watch = Watch(model)
        for _ in range(6):
            train(model, 20)
            assert watch.check(F.cross_entropy, X, Y) == []
        losses = [row["loss"] for row in watch.rows if row["kind"] == "probe"]
        assert losses[-1] < 0.8 * losses[0]
        assert [row["epoch"] for row in watch.rows if row["kind"] == "probe"] == [1, 2, 3, 4, 5, 6]


def test_saturated_units_are_found() -> None:
    for activation, name in ((nn.Sigmoid, "1"), (nn.Tanh, "1"), (nn.ReLU, "1")):
        model = apical.convert(net(activation), "fa")
        with torch.no_grad():
            model[0].bias.fill_(-50.0)
        found = check(model, F.cross_entropy, X, Y)
        assert (name, "saturated") in kinds(found)
        assert ("0", "no signal") in kinds(found)  # which is why
        assert ("2", "no signal") not in kinds(found)


def test_the_shares_of_saturated_entries_by_hand() -> None:
    y = torch.tensor([[0.5, 0.01, 0.999, 0.1]])
    assert diagnostics.SHARES[nn.Sigmoid](y) == 0.5  # 4 y (1 - y) = 1, 0.04, 0.004, 0.36
    assert diagnostics.SHARES[nn.Tanh](torch.tensor([[0.0, 0.97, -0.98, 1]])) == 0.5
    relu = torch.tensor([[0.0, 0, 1, 2], [0, 3, 0, 0]])
    assert diagnostics.SHARES[nn.ReLU](relu) == 0.25  # the first unit is never on
    image = torch.zeros(2, 3, 2, 2)
    image[0, 1, 0, 1] = 1.0
    assert diagnostics.SHARES[nn.ReLU](image) == pytest.approx(2 / 3)  # channels are units


def test_a_layer_that_the_optimizer_does_not_know_is_found() -> None:
    model = apical.convert(net(), "fa")
    watch = Watch(model, Thresholds(patience=2))
    optimizer = torch.optim.SGD([*model[0].parameters(), *model[4].parameters()], lr=0.1)
    told = []
    for _ in range(4):
        for _ in range(10):
            F.cross_entropy(model(X), Y).backward()
            optimizer.step()
            optimizer.zero_grad()
        found = watch.check(F.cross_entropy, X, Y)
        told.append([finding.layer for finding in found if finding.kind == "does not move"])
    assert told == [[], ["2"], [], []]  # once


def test_a_layer_that_is_frozen_on_purpose_is_not() -> None:
    model = apical.convert(net(), "fa")
    model[2].requires_grad_(False)
    start = Start(model)
    train(model, 10)
    assert "2" not in {
        layer for layer, _ in kinds(check(model, F.cross_entropy, X, Y, start=start))
    }
    model[2].requires_grad_(True)
    found = kinds(check(model, F.cross_entropy, X, Y, start=Start(model)))
    assert ("2", "does not move") in found


def test_how_far_weights_moved_by_hand() -> None:
    model = apical.convert(nn.Linear(3, 2), "fa")
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0, 0], [0, 4, 0]]))
        start = Start(model)
        model.weight[0, 0] += 1
    assert start.changes(model)[""]["weight_change"] == pytest.approx(1 / 5)


def test_a_large_weight_is_sampled_evenly() -> None:
    model = apical.convert(nn.Linear(300, 200), "fa")
    start = Start(model)
    assert len(start.weights[""]) <= diagnostics.SAMPLE
    with torch.no_grad():
        model.weight.mul_(1.5)
    assert start.changes(model)[""]["weight_change"] == pytest.approx(0.5)


def test_feedback_that_fades_is_found_where_it_is_used() -> None:
    model = apical.convert(net(), KolenPollack(decay=1e-3))
    start = Start(model)
    train(model, 5)
    with torch.no_grad():
        for layer in (model[0], model[2], model[4]):
            for memory in layer.feedback.memory():
                memory.mul_(1e-3)
    found = check(model, F.cross_entropy, X, Y, start=start)
    assert {("2", "lost feedback"), ("4", "lost feedback")} <= kinds(found)
    assert ("0", "lost feedback") not in kinds(found)


def test_feedback_of_another_rule_is_not_compared() -> None:
    model = apical.convert(net(), "kp")
    start = Start(model)
    assert start.changes(model)["2"]["feedback_kept"] == 1
    apical.switch(model, "fa")
    assert "feedback_kept" not in start.changes(model)["2"]
    apical.switch(model, KolenPollack(decay=0.5))
    assert "feedback_kept" not in start.changes(model)["2"]


def test_signals_of_another_scale_are_found() -> None:
    for factor, kind in ((1e4, "strong signal"), (1e-4, "weak signal")):
        model = apical.convert(net(), FA())
        with torch.no_grad():
            model[4].feedback.matrix.mul_(factor)
        found = kinds(check(model, F.cross_entropy, X, Y))
        assert {("0", kind), ("2", kind)} <= found
        assert ("4", kind) not in found


def test_an_update_that_leads_nowhere_is_found() -> None:
    """A matrix orthogonal to the weight for every error: the message is orthogonal to W^T e."""
    model = apical.convert(nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4)), "fa")
    with torch.no_grad():
        model[1].weight[:, 8:] = 0
        model[1].feedback.matrix[:, :8] = 0
    (found,) = check(model, F.cross_entropy, X, Y)
    assert (found.layer, found.kind) == ("0", "unaligned")
    assert found.value == pytest.approx(90, abs=1e-3)


def test_measuring_changes_nothing() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(16, 4)
    )
    apical.convert(model, "fa")
    start = Start(model)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    random = torch.get_rng_state()
    hooks = [dict(module._forward_hooks) for module in model.modules()]
    rows = measure(model, F.cross_entropy, X, Y, start)
    assert [row["kind"] for row in rows] == ["layer", "layer", "activation", "probe"]
    json.dumps(rows)
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert hooks == [dict(module._forward_hooks) for module in model.modules()]


def test_a_layer_that_is_the_whole_model_is_not_mixed_up_with_the_model() -> None:
    rows = measure(apical.convert(nn.Linear(8, 4), "fa"), F.cross_entropy, X, Y)
    assert [(row["kind"], row.get("layer")) for row in rows] == [("layer", ""), ("probe", None)]


def test_recorded_runs_that_learned_gave_no_reason_for_a_warning() -> None:
    studies = [read_study(ROOT / "results" / n) for n in ("smoke", "weight-transport-short")]
    runs = [run for study in studies for run in study.runs]
    assert len(runs) > 30
    for run in runs:
        assert len(run.rows) > 10
        kinds = {(each.layer, each.kind) for each in findings(list(run.rows))}
        # feedback that changes at every update aligns with nothing, and the warning says so
        told = {("fc1", "unaligned")} if run.rule == "redrawn" and "mnist" in run.folder else set()
        assert kinds == told, run.folder


@pytest.mark.parametrize("rule", ["bp", "brsf", "dfa", "fa", "frsf", "usf"])
@pytest.mark.filterwarnings(f"error::{LearningWarning.__module__}.{LearningWarning.__name__}")
def test_no_false_alarm_on_the_nets_of_the_smoke_study(rule: str, tmp_path: Path) -> None:
    """The first epochs, in which a premature alarm would come; two seconds in all."""
    base = next(e.experiment for e in smoke("smoke", 1).entries if e.rule == rule)
    experiment = dataclasses.replace(base, lr=0.03, epochs=5, probe_every=1, probe_share=1.0)
    loop.run(experiment, tmp_path)
    rows = records.read(tmp_path / "records.jsonl")
    assert len({row["epoch"] for row in rows if row["kind"] == "probe"}) == 6
    assert not [row for row in rows if row["kind"] == "warning"]


def test_a_run_that_goes_wrong_says_so_once_and_keeps_it(tmp_path: Path) -> None:
    experiment = Experiment(
        net_options={"hidden": [16] * 9, "activation": "sigmoid"},
        rule="fa",
        epochs=5,
        batch_size=256,
        probe_images=64,
        probe_share=1.0,
    )
    with pytest.warns(LearningWarning) as caught:
        loop.run(experiment, tmp_path)
    rows = [r for r in records.read(tmp_path / "records.jsonl") if r["kind"] == "warning"]
    told = [(row["layer"], row["finding"]) for row in rows]
    assert ("fc1", "does not move") in told or ("fc1", "no signal") in told
    assert len(told) == len(set(told)) == len(caught)
    assert str(caught[0].message) == f"{rows[0]['layer']}: {rows[0]['message']}"
