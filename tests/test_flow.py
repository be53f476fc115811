"""What steps of a sequence warn of: signals that vanish or are not finite, lengths too short."""

from pathlib import Path
from typing import Any

import pytest

from apical.bench.experiment.experiment import Experiment
from apical.bench.storage import records
from apical.bench.training import loop
from apical.bench.training.monitor import LearningWarning
from apical.measure import gradient_over_time


def rows(signals: list[float | None], epoch: float = 0) -> list[dict[str, Any]]:
    """None is what was not finite: rows leave it out."""
    return [
        {"kind": "step", "epoch": epoch, "t": t} | ({} if s is None else {"signal": s})
        for t, s in enumerate(signals, 1)
    ]


def test_a_signal_that_is_zero_to_the_last_bit_is_told_with_its_steps() -> None:
    (found,) = gradient_over_time.Watch().add(rows([0.0, 0.0, 1e-9, 1e-4, 1.0]))
    assert (found.kind, found.layer, found.value, found.epoch) == (
        "signal vanishes", "cell.recurrent", 0.0, 0,
    )  # fmt: skip
    assert "zero to the last bit at steps 1 to 2 of 5" in found.message
    assert "reduction='sum'" in found.message


def test_a_signal_that_is_only_weak_is_told_with_its_strength() -> None:
    (found,) = gradient_over_time.Watch().add(rows([3e-8, 1e-3, 1.0]))
    assert found.value == 3e-8
    assert "3e-08 of the strongest at step 1 of 3" in found.message


def test_a_signal_that_arrives_or_is_cut_off_on_purpose_is_no_reason_to_warn() -> None:
    for signals in (
        [1e-5, 1e-2, 1.0],
        [0.0, 0.0, 1.0],  # detached, or forward in time
        [0.0, 0.5, 1.0],  # truncated
        [0.0, 0.0, 0.0],  # nothing is wrong any more
        [],
    ):
        assert gradient_over_time.Watch().add(rows(signals)) == []


def test_what_is_finite_no_more_is_told_even_where_no_step_has_it() -> None:
    watch = gradient_over_time.Watch()
    assert watch.add(rows([1.0, 1.0])) == []
    (found,) = watch.add(rows([None, None], epoch=2))
    assert (found.kind, found.value, found.epoch) == ("not finite", 2, 2)
    assert found.message.startswith("signal is not finite at steps 1 to 2 of 2. Try: a smaller")
    (found,) = gradient_over_time.Watch().add(rows([1.0, None, 1.0]))
    assert "at step 2 of 3" in found.message
    assert gradient_over_time.Watch().add(rows([None, None])) == []  # a learner without signals


def test_each_is_told_once_also_after_an_interruption() -> None:
    watch, before = gradient_over_time.Watch(), rows([0.0, 1e-9, 1.0])
    (found,) = watch.add(before)
    assert watch.add(rows([0.0, 1e-9, 1.0], epoch=1)) == []
    resumed = gradient_over_time.Watch()
    resumed.recall([*before, found.row()])
    assert resumed.add(rows([0.0, 1e-9, 1.0], epoch=1)) == []
    (later,) = resumed.add(rows([None, None, None], epoch=2))
    assert later.kind == "not finite"


def test_a_run_records_that_its_signal_vanished_and_that_it_is_no_evidence(tmp_path: Path) -> None:
    mean = {"learner": "lra", "reduction": "mean", "gamma": 1.0}
    experiment = Experiment(
        task="temporal_order", length=12, net="srn", learner=mean, batches=2, epochs=1, test=False,
        validation=20, batch_size=20, probe_images=20,
    )  # fmt: skip
    with pytest.warns((LearningWarning, UserWarning)) as told:
        loop.run(experiment, tmp_path)
    written = [r for r in records.read(tmp_path / "records.jsonl") if r["kind"] == "warning"]
    assert [row["finding"] for row in written] == ["signal vanishes", "no evidence"]
    assert "temporal_order with 12 steps is no evidence" in written[1]["message"]
    assert (written[1]["value"], written[1]["threshold"]) == (12, 20)
    assert sum(warning.category is LearningWarning for warning in told) == 2
