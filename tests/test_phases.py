"""Alignment phases on curves made up to have one, and on curves that have none."""

import math
import random
from pathlib import Path

import pytest

from apical.bench.report.read import read_study
from apical.measure.alignment_phases import Phase, alignment, phases

ROOT = Path(__file__).resolve().parents[1]


def falling(
    epochs: int, *, pace: float, low: float = 40.0, noise: float = 0.0, seed: int = 0
) -> list[tuple[float, float]]:
    """90 degrees falling to `low` as exp(-epoch / pace), with normal noise."""
    chance = random.Random(seed)
    return [
        (epoch, low + (90 - low) * math.exp(-epoch / pace) + chance.gauss(0, noise))
        for epoch in range(epochs + 1)
    ]


def test_the_end_of_an_exponential_fall() -> None:
    """exp(-t / 5) = 0.1 at t = 5 ln 10."""
    phase = alignment(falling(60, pace=5))
    assert isinstance(phase, Phase)
    assert phase.epoch == pytest.approx(5 * math.log(10), abs=0.1)
    assert (phase.before, phase.after) == (90.0, pytest.approx(40, abs=0.1))
    assert phase.saturated


def test_between_measurements_it_is_read_off_the_line() -> None:
    phase = alignment([(0, 90), (10, 60), (20, 40), (30, 40), (40, 40)], share=0.5)
    assert isinstance(phase, Phase)
    assert phase.epoch == pytest.approx(0 + 10 * (90 - 65) / (90 - 60))


def test_the_loss_is_that_of_the_moment() -> None:
    losses = [(0, 2.0), (10, 1.0), (20, 0.5), (30, 0.1), (40, 0.0)]
    phase = alignment([(0, 90), (10, 60), (20, 40), (30, 40), (40, 40)], losses, share=0.8)
    assert isinstance(phase, Phase)
    assert phase.epoch == 15.0 and phase.after == 40.0  # at 50 degrees
    assert (phase.loss, phase.last_loss) == (pytest.approx(0.75), 0.0)


def test_noise_moves_the_end_by_little() -> None:
    for seed in range(20):
        for noise in (1.0, 3.0):
            phase = alignment(falling(40, pace=4, noise=noise, seed=seed))
            assert isinstance(phase, Phase)
            assert 4 * math.log(10) - 4 * noise < phase.epoch < 4 * math.log(10) + 4 * noise + 4
            assert phase.after == pytest.approx(40, abs=2.5 * noise)


def test_noise_alone_is_no_rise() -> None:
    for seed in range(20):
        for level, noise in ((90.0, 1.0), (90.0, 6.0), (55.0, 4.0)):
            chance = random.Random(seed)
            angles = [(epoch, level + chance.gauss(0, noise)) for epoch in range(30)]
            reason = alignment(angles)
            assert isinstance(reason, str) and reason.startswith("no rise of alignment")


def test_what_ends_near_chance_is_no_alignment() -> None:
    reason = alignment([(0, 105), (1, 95), (2, 85), (3, 84), (4, 84)])
    assert reason == "no rise of alignment: 105.0 to 84.0 degrees, scatter 0.0"


def test_too_few_measurements_and_layers_that_need_none() -> None:
    assert alignment([(0, 90), (1, 40), (2, 40)]) == "3 measurements; at least 4 show a phase"
    output = alignment([(epoch, 1e-6) for epoch in range(9)])
    assert output == "aligned from the start, at 0.0 degrees"


def test_a_layer_that_turns_away_again_had_aligned() -> None:
    """As under FA in the logs of Akrout et al.: 42 degrees after an epoch, 26, then 40 again."""
    angles = [(0, 90), (1, 42), (5, 27), (10, 26), (50, 37), (100, 40), (400, 35)]
    phase = alignment(angles)
    assert isinstance(phase, Phase)
    assert 1 < phase.epoch < 10 and phase.saturated
    assert phase.after < 30


def test_a_fall_that_goes_on_has_not_come_to_rest() -> None:
    phase = alignment([(epoch, 90 - 4 * epoch) for epoch in range(11)])
    assert isinstance(phase, Phase) and not phase.saturated
    assert phase.epoch == pytest.approx(9)


def test_a_share_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"share=1 must lie in \(0, 1\)"):
        alignment(falling(9, pace=2), share=1)


def rows(layer: str, angles: list[tuple[float, float]]) -> list[dict[str, object]]:
    return [
        {"kind": "layer", "layer": layer, "epoch": epoch, "gradient_angle_deg": angle}
        for epoch, angle in angles
    ]


def test_rows_give_every_layer_and_the_loss_of_the_measured_images_first() -> None:
    measured = rows("a", falling(20, pace=2)) + rows("b", falling(2, pace=2))
    trained = [{"kind": "epoch", "epoch": e, "train_loss": 5.0} for e in range(1, 21)]
    found = phases([*measured, *trained])
    assert list(found) == ["a", "b"] and isinstance(found["b"], str)
    assert isinstance(found["a"], Phase) and found["a"].loss == 5.0
    probes = [{"kind": "probe", "epoch": e, "loss": 20.0 - e} for e in range(21)]
    again = phases([*measured, *trained, *probes])["a"]
    assert isinstance(again, Phase) and again.loss == pytest.approx(20 - again.epoch)
    assert phases(measured, key="delta_angle_deg") == {}


def test_recorded_runs_of_feedback_alignment_align_within_the_first_epochs() -> None:
    found = {"fa": [], "kp": [], "bp": []}
    for run in read_study(ROOT / "results" / "weight-transport-short").runs:
        rule = run.folder.split("-")[2]
        if rule in found:
            found[rule].append(phases(run.rows))
    assert found["bp"] and not any(found["bp"])
    for run in found["fa"] + found["kp"]:
        hidden, output = run["fc1"], run["fc2"]
        assert isinstance(hidden, Phase) and 0.5 < hidden.epoch < 6
        assert hidden.before > 80 and hidden.after < 40
        assert hidden.loss > hidden.last_loss  # most is still to be fitted
        assert output == "aligned from the start, at 0.0 degrees"
