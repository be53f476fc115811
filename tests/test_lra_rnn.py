"""The study of LRA along time: what it holds, and what it refuses."""

import pytest

from apical.bench import studies
from apical.bench.experiment import learner_settings
from apical.bench.studies.lra_rnn import arms


def test_every_setting_has_both_baselines_on_the_same_net_and_batches() -> None:
    for tier in ("smoke", "short", "full"):
        study = studies.build("lra-rnn", tier=tier, seeds=3)
        for setting in {entry.setting for entry in study.entries}:
            own = [entry for entry in study.entries if entry.setting == setting]
            learned = {learner_settings.learner_label(entry.experiment.learner) for entry in own}
            assert learned == {"backprop", "readout", "lra"}
            assert {e.experiment.clip_norm for e in own if e.rule == "bp"} == {1.0}
            shared = {(e.experiment.epochs, e.experiment.batches, e.experiment.length) for e in own}
            assert len(shared) == 1


def test_the_sources_form_is_there_regularised_and_not_clipped_and_not() -> None:
    study = studies.build("lra-rnn", tier="short")
    by_rule = {entry.rule: entry.experiment for entry in study.entries}
    mean = {"learner": "lra", "reduction": "mean", "gamma": 10.0, "inner": 10}
    assert by_rule["LRA mean"].learner == mean
    for label, alpha in (("0.1", 0.1), ("1", 1.0)):
        heavy = by_rule[f"LRA mean, {label} on W and targets"].learner
        assert heavy == mean | {"alpha_weights": alpha, "alpha_targets": alpha}
    assert by_rule["LRA mean, no clip"].learner == mean | {"clip": "none"}
    assert by_rule["bp, no clip"].clip_norm is None
    assert by_rule["redrawn"].rule == "redrawn" and by_rule["frozen"].learner == "readout"
    settings = dict.fromkeys(entry.setting for entry in study.entries)
    assert list(settings) == [
        "temporal order, 20 steps", "temporal order, 30 steps", "temporal order, 60 steps",
        "3-bit temporal order, 20 steps", "permutation, 20 steps",
    ]  # fmt: skip
    assert {entry.experiment.seed for entry in study.entries} == {0, 1, 2, 3, 4}


def test_backpropagation_is_tuned_as_lra_is() -> None:
    study = studies.build("lra-rnn", tier="smoke")
    tries = study.candidates()
    for setting, _ in study.cells:
        rates = {rule: list(tries[setting, rule]) for where, rule in tries if where == setting}
        assert {tuple(each) for each in rates.values()} == {(0.01, 0.03, 0.1)}
        run = next(e.experiment for e in study.entries if e.setting == setting)
        assert tries[setting, "bp"][0.1][0].epochs == run.epochs


def test_the_first_tier_has_what_the_claims_are_about() -> None:
    study = studies.build("lra-rnn", tier="smoke")
    settings = dict.fromkeys(entry.setting for entry in study.entries)
    assert list(settings) == ["temporal order, 20 steps", "permutation, 20 steps"]
    assert study.published == ()  # directions only
    assert any("Direction claimed by its abstract" in note for note in study.notes)


@pytest.mark.parametrize(("kind", "length"), [("temporal_order", 10), ("random_permutation", 10)])
def test_ten_steps_are_refused_as_evidence(kind: str, length: int) -> None:
    with pytest.raises(ValueError, match=f"{kind} at length={length} is no evidence of learning"):
        arms("smoke", kind, length)
