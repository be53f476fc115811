"""The study of LRA along time: what it holds, and what it refuses."""

import pytest

from apical.bench import studies
from apical.bench.experiment import learner_settings
from apical.bench.studies.lra_rnn import arms


@pytest.mark.parametrize("tier", ["smoke", "short", "full"])
def test_every_setting_has_both_baselines_on_the_same_net_and_batches(tier: str) -> None:
    study = studies.build("lra-rnn", tier=tier, seeds=3)
    for setting in {entry.setting for entry in study.entries}:
        own = [entry for entry in study.entries if entry.setting == setting]
        learned = {learner_settings.learner_label(entry.experiment.learner) for entry in own}
        assert learned == {"backprop", "readout", "lra"}
        assert {e.experiment.clip_norm for e in own if e.rule == "bp"} == {1.0}
        shared = {(e.experiment.epochs, e.experiment.batches, e.experiment.length) for e in own}
        assert len(shared) == 1


def test_long_sequences_have_five_seeds_at_least_with_and_without_the_regulariser() -> None:
    study = studies.build("lra-rnn", tier="smoke", seeds=3)
    seeds: dict[str, set[int]] = {}
    for entry in study.entries:
        if entry.experiment.length == 60:
            seeds.setdefault(entry.rule, set()).add(entry.experiment.seed)
    assert {"LRA sum", "LRA sum, 0.01 on W", "LRA sum, 0.1 on W and targets"} < seeds.keys()
    assert all(found == {0, 1, 2, 3, 4} for found in seeds.values())


def test_the_first_tier_has_what_the_claims_are_about() -> None:
    study = studies.build("lra-rnn", tier="smoke")
    settings = dict.fromkeys(entry.setting for entry in study.entries)
    assert list(settings) == [
        "temporal order, 20 steps", "temporal order, 30 steps", "permutation, 20 steps",
        "temporal order, 60 steps",
    ]  # fmt: skip
    assert study.published == ()  # directions only
    assert any("Direction claimed by its abstract" in note for note in study.notes)


@pytest.mark.parametrize(("kind", "length"), [("temporal_order", 10), ("random_permutation", 10)])
def test_ten_steps_are_refused_as_evidence(kind: str, length: int) -> None:
    with pytest.raises(ValueError, match=f"{kind} at length={length} is no evidence of learning"):
        arms("smoke", kind, length)
