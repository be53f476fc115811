"""Checkpoints of plain, converted and half-converted models."""

import copy
import pickle
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import apical
from apical.rules import DFA


def _net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 2))


def test_a_plain_checkpoint_loads_strictly_and_warns_once_for_the_model() -> None:
    model = apical.convert(_net(), "fa")
    feedback = model[2].feedback.matrix.clone()
    plain = _net()
    nn.init.ones_(plain[0].weight)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.load_state_dict(plain.state_dict())
    assert ["holds no feedback" in str(w.message) for w in caught] == [True]
    assert torch.equal(model[0].weight, plain[0].weight)
    assert torch.equal(model[2].feedback.matrix, feedback)


def test_a_converted_checkpoint_restores_its_feedback() -> None:
    model, other = apical.convert(_net(), "fa", seed=1), apical.convert(_net(), "fa", seed=2)
    assert not torch.equal(model[2].feedback.matrix, other[2].feedback.matrix)
    other.load_state_dict(model.state_dict())
    assert torch.equal(model[2].feedback.matrix, other[2].feedback.matrix)


@pytest.mark.parametrize("layer", ["0", "4"])
def test_feedback_for_some_layers_only_is_an_error(layer: str) -> None:
    model = apical.convert(_net(), "fa")
    state = copy.copy(model.state_dict())
    del state[f"{layer}.feedback.matrix"]
    with pytest.raises(RuntimeError, match="feedback for . but not for .") as caught:
        model.load_state_dict(state)
    assert f"not for {layer}:" in str(caught.value)
    model.load_state_dict(model.state_dict())  # a later load starts anew


def test_feedback_of_another_rule_is_not_taken_for_what_waits() -> None:
    """Before a first forward nothing is known of the shapes; after it, all."""
    for saved, rule, told in (
        ("frsf", "dfa", r"0: the checkpoint's feedback is \{'magnitude': \(5, 4\)\}, but DFA"),
        ("fa", "dfa", r"\{'matrix': \(5, 4\)\}, but DFA here is \{'matrix': \(2, 4\)\}"),
        (DFA(shared=True), "dfa", r"'half_width': \(\)\}, but DFA here is \{'matrix': \(2, 4\)\}"),
    ):
        x = torch.ones(3, 4)
        other = apical.convert(_net(), saved, example=x)
        model = apical.convert(_net(), rule)
        model.load_state_dict(other.state_dict())
        for _ in range(2):
            with pytest.raises(ValueError, match=told):
                model(x)
        model.load_state_dict(apical.convert(_net(), rule, example=x).state_dict())
        model(x).sum().backward()
        assert model[0].weight.grad.any()


def test_feedback_that_a_file_has_sorted_is_that_of_its_names() -> None:
    x, rule = torch.ones(3, 4), DFA(shared=True)
    original = apical.convert(_net(), rule, example=x, seed=1)
    model = apical.convert(_net(), rule)
    model.load_state_dict(dict(sorted(original.state_dict().items())))
    for net in (original, model):
        net(x).sum().backward()
    assert torch.equal(model[0].weight.grad, original[0].weight.grad)


def test_rules_that_keep_nothing_expect_nothing() -> None:
    model = apical.convert(_net(), {"0": "usf", "*": "fa"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.load_state_dict(model.state_dict())
        apical.convert(_net(), "usf").load_state_dict(_net().state_dict())


def warnings_of_loading(model: nn.Module, state: dict[str, Any]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.load_state_dict(state)
    return [str(warning.message) for warning in caught]


def test_a_model_within_another_one_is_checked_too() -> None:
    outer = nn.Sequential(apical.convert(_net(), "fa"), nn.Linear(2, 2))
    plain = nn.Sequential(_net(), nn.Linear(2, 2))
    (text,) = warnings_of_loading(outer, plain.state_dict())
    assert "holds no feedback" in text
    assert warnings_of_loading(outer, outer.state_dict()) == []
    state = outer.state_dict()
    del state["0.2.feedback.matrix"]
    with pytest.raises(RuntimeError, match="feedback for 0 but not for 2"):
        outer.load_state_dict(state)


def test_parts_converted_one_after_the_other_are_checked_as_one_model() -> None:
    model = nn.Sequential(_net(), nn.Linear(2, 2))
    apical.convert(model[0], "fa")
    apical.convert(model, {"1": "fa", "0.*": "bp"})
    plain = nn.Sequential(_net(), nn.Linear(2, 2))
    assert len(warnings_of_loading(model, plain.state_dict())) == 1
    state = model.state_dict()
    del state["1.feedback.matrix"]
    with pytest.raises(RuntimeError, match="feedback for 0 but not for 1"):
        model.load_state_dict(state)


@pytest.mark.parametrize(
    "change",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_a_copy_is_checked_and_a_reverted_model_is_not(change: Any) -> None:
    twin = change(apical.convert(_net(), "fa"))
    assert len(warnings_of_loading(twin, _net().state_dict())) == 1
    apical.revert(twin)
    assert not twin._load_state_dict_pre_hooks
    assert warnings_of_loading(twin, _net().state_dict()) == []
