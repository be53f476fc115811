"""Warnings: each from rows that deserve it, none from rows that do not."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from apical import convert
from apical.measure.diagnostics import Watch, check
from apical.measure.findings import KINDS, Finding, Thresholds, findings

HEALTHY = {
    "gradient_angle_deg": 60.0,
    "delta_norm_ratio": 1.5,
    "signal": 0.8,
    "norm_ratio": 0.9,
    "feedback_kept": 1.0,
    "weight_change": 0.4,
    "heard": True,
}


def layer(epochs: list[float], **changes: Any) -> list[dict[str, Any]]:
    return [{"kind": "layer", "layer": "fc1", "epoch": e, **HEALTHY, **changes} for e in epochs]


BAD = {
    "unaligned": ({"gradient_angle_deg": 89.2}, 87.0),
    "strong signal": ({"delta_norm_ratio": 250.0}, 100.0),
    "weak signal": ({"delta_norm_ratio": 0.004}, 0.01),
    "no signal": ({"signal": 0.0}, 1e-6),
    "lost feedback": ({"norm_ratio": 0.002}, 0.01),
    "does not move": ({"weight_change": 1e-6}, 1e-4),
    "runs away": ({"weight_change": 4e4}, 1000.0),
}


def test_each_kind_names_layer_value_threshold_and_remedy() -> None:
    for kind in BAD:
        changes, threshold = BAD[kind]
        (found,) = findings(layer([1, 2, 3], **changes))
        (value,) = changes.values()
        assert (found.layer, found.kind, found.value, found.epoch) == ("fc1", kind, value, 3)
        assert found.threshold == pytest.approx(threshold)
        assert str(found).startswith("fc1: its ") or str(found).startswith("fc1: the norm of its ")
        assert f"threshold {threshold:g}" in str(found) and "Try: " in str(found)


def test_saturated_activations_are_named() -> None:
    rows = [{"kind": "activation", "layer": "sigmoid1", "epoch": 1, "saturated": 0.97}]
    (found,) = findings(rows)
    assert (found.layer, found.kind) == ("sigmoid1", "saturated")
    assert str(found).startswith("sigmoid1: 97 % of it is saturated or silent (threshold 90 %)")


def test_every_kind_is_tested() -> None:
    assert set(KINDS) == {*BAD, "saturated", "diverged"}


def test_a_loss_that_diverges_is_said_once() -> None:
    for losses, step in (([2.0, 1.0, 90.0, 210.0, 1e9], 4), ([2.0, float("nan"), 3.0], 2)):
        watch = Watch(nn.Linear(2, 2))
        found = [finding for loss in losses for finding in watch.loss(torch.tensor(loss))]
        assert [(f.kind, f.epoch, f.threshold) for f in found] == [("diverged", step, 200.0)]
        assert str(found[0]).startswith(f"(the model): training diverged: the loss of step {step}")
    watch = Watch(nn.Linear(2, 2))
    assert not [f for loss in (0.02, 1.9, 0.4) for f in watch.loss(loss)]


def test_a_net_that_gives_no_numbers_is_not_healthy() -> None:
    model, x, y = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2)), torch.ones(4, 2), torch.ones(4)
    convert(model, "fa")
    with torch.no_grad():
        model[0].weight.fill_(torch.nan)
    (found,) = check(model, F.cross_entropy, x, y.long())
    assert (found.layer, found.kind) == ("", "diverged")
    assert "the loss of the measured batch is nan. Try: start again with" in found.message
    watch = Watch(model)
    kinds = [f.kind for _ in range(3) for f in watch.check(F.cross_entropy, x, y.long())]
    assert kinds.count("diverged") == 1 and kinds[0] == "diverged"


def test_health_is_no_finding() -> None:
    assert findings(layer([0, 1, 2, 3, 4])) == []
    assert findings([]) == []
    at_edge = {"gradient_angle_deg": 86.9, "delta_norm_ratio": 99, "signal": 1.1e-6}
    assert findings(layer([1, 2, 3], **at_edge)) == []


def test_feedback_may_fade_in_two_ways_and_is_told_of_once() -> None:
    (found,) = findings(layer([1, 2, 3], norm_ratio=0.001, feedback_kept=0.001))
    assert found.kind == "lost feedback"
    (found,) = findings(layer([1, 2, 3], feedback_kept=0.001))
    assert "of what it was at the start" in str(found)


def test_feedback_that_no_layer_uses_gives_no_finding() -> None:
    assert findings(layer([1, 2, 3], norm_ratio=0.001, feedback_kept=0, heard=False)) == []


def test_the_first_epoch_does_not_count() -> None:
    bad = {"gradient_angle_deg": 90.0, "signal": 0.0}
    assert findings(layer([0, 0.25, 0.5, 0.75], **bad)) == []
    assert {f.kind for f in findings(layer([0, 0.5, 1, 2], **bad))} == {"no signal"}


def test_steps_within_an_epoch_do_not_count() -> None:
    rows = layer([1, 1.5, 2], gradient_angle_deg=89.0)
    rows[1]["step"] = 70
    assert findings(rows) == []


def test_what_may_recover_has_to_last() -> None:
    rows = layer([1, 2], gradient_angle_deg=89.0)
    assert findings(rows) == []
    assert findings([*rows, *layer([3], gradient_angle_deg=80.0)]) == []
    assert findings([*rows, *layer([3], gradient_angle_deg=80.0), *layer([4, 5])]) == []
    assert len(findings([*rows, *layer([3], gradient_angle_deg=89.0)])) == 1
    gap = layer([3], gradient_angle_deg=89.0)
    del gap[0]["gradient_angle_deg"]  # an angle to nothing
    assert findings([*rows, *gap]) == []


def test_thresholds_are_parameters() -> None:
    rows = layer([1, 2, 3], gradient_angle_deg=80.0)
    assert len(findings(rows, Thresholds(angle_deg=75))) == 1
    assert findings(rows, Thresholds(angle_deg=75, patience=4)) == []
    weak = layer([1, 2, 3], delta_norm_ratio=0.2)
    (found,) = findings(weak, Thresholds(ratio=4))
    assert (found.kind, found.threshold) == ("weak signal", 0.25)


def test_thresholds_out_of_range_are_all_named() -> None:
    with pytest.raises(ValueError) as error:
        Thresholds(patience=0, angle_deg=100, ratio=1, signal=0, kept=1, moved=2, saturated=1.1)
    for name in ("patience=0", "angle_deg=100", "ratio=1", "signal=0", "kept=1", "moved=2"):
        assert name in str(error.value)


def test_a_finding_as_a_record() -> None:
    finding = Finding("fc1", "no signal", 0.0, 1e-6, 3, "why")
    row = finding.row()
    assert row["kind"] == "warning" and row["finding"] == "no signal"
    assert {f.name for f in dataclasses.fields(Finding)} - {"kind"} < set(row)
    assert str(Finding("", "no signal", 0.0, 1e-6, 3, "why")) == "(the model): why"
