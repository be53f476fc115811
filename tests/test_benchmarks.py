"""The benchmarks run, and say what they measured. Numbers are for quiet machines, not for tests."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS, STRENGTH = ROOT / "benchmarks", ROOT / "results" / "attack_strength.json"
sys.path.append(str(BENCHMARKS))

import attack_strength  # noqa: E402
import attack_time  # noqa: E402
import controlled  # noqa: E402
import gpu_check  # noqa: E402
import lif_time  # noqa: E402
import low_dim_cost  # noqa: E402
import lra_rnn  # noqa: E402
import pairs  # noqa: E402
import probe_cost  # noqa: E402
import recurrent_time  # noqa: E402
import speed_page  # noqa: E402
import step_time  # noqa: E402
from expected import target  # noqa: E402
from subjects import ORDINARY, UNTRAINED, Subject, rules  # noqa: E402
from torch import nn  # noqa: E402

from apical.attacks import Effort  # noqa: E402
from apical.rules import BP, LowDimensional  # noqa: E402

LONG = pairs.SLOT


@pytest.fixture(autouse=True)
def short_slots(monkeypatch):
    """No step is repeated for the sake of a steady time."""
    monkeypatch.setattr(pairs, "SLOT", 1e-5)


def test_step_time_measures_every_rule(tmp_path, capsys):
    out = tmp_path / "times.json"
    step_time.main(["--quick", "--out", str(out)])
    printed = capsys.readouterr().out
    (table,) = json.loads(out.read_text())["tables"]
    without = {name for name in table["rules"] if name.endswith(UNTRAINED)}
    assert "kp" + UNTRAINED in without
    assert set(table["rules"]) == {*rules(), ORDINARY} | without
    assert table["rejected"] == (table["control_off"] > 0.03)
    for name, row in table["rules"].items():
        assert min(row["wall_ms"], row["cpu_ms"]) > 0
        assert name in printed
    # 784-1024-1024-10: FA keeps a B of every layer, sign symmetry none, DFA 10 rows for each
    weights = 4 * (784 * 1024 + 1024 * 1024 + 10 * 1024)
    rows = table["rules"]
    assert rows["fa"]["extra_bytes"] == pytest.approx(weights, rel=0.01)
    assert rows["dfa full"]["extra_bytes"] < 0.05 * weights
    assert rows["brsf pool"]["extra_bytes"] > 2 * weights


def test_ratios_are_of_neighbours(monkeypatch):
    # a machine that slows down all the time: the base takes 1, 2, 3, ... ; A always as the mean
    # of its neighbours, B twice that
    clock = {"slot": 0}

    def timed(step, repeats):
        clock["slot"] += 1
        factor = step()
        return factor * clock["slot"], 10 * factor * clock["slot"]

    monkeypatch.setattr(pairs, "_timed", timed)
    monkeypatch.setattr(pairs, "_warm", lambda step: 1)
    times = pairs.compare(lambda: 1, {"A": lambda: 1, "B": lambda: 2}, rounds=4, seed=0)
    assert times["A"].wall == [1.0] * 4 == times["A"].cpu
    assert times["B"].summary()["cpu_ratio"] == 2.0


def test_the_benchmark_of_learners_times_them():
    task = lra_rnn.sequences.TemporalOrder(20)
    for learner in lra_rnn.LEARNERS.values():
        lra_rnn.step(learner, task)()
    for step in lra_rnn.steps_of_many(lra_rnn.LRA("sum"), task, 5):
        step()
    table = lra_rnn.of_learners("temporal_order", 20, rounds=1)
    assert table["ways"].keys() == lra_rnn.LEARNERS.keys()
    assert table["ways"]["LRA"]["target"] == 1.0


def test_steps_are_repeated_until_they_fill_a_slot(monkeypatch):
    monkeypatch.setattr(pairs, "SLOT", LONG)
    for seconds, repeats in ((0.0, 500), (0.03, 4), (0.1, 1), (2.0, 1)):
        monkeypatch.setattr(pairs, "_timed", lambda step, repeats, s=seconds: (9.0, s))
        assert pairs._warm(lambda: None) == repeats


def test_verdicts():
    assert step_time._verdict(1.05, 1.05) == "met"
    assert step_time._verdict(1.06, 1.05) == "missed by 0.010"
    assert target("mlp", "dfa kernel", compiled=False) == target("mlp", "dfa", compiled=False)
    assert target("mlp", "fa", compiled=True) == 1.03
    published = {"fa", "usf", "frsf", "brsf", "brsf pool", "dfa full", "kp" + UNTRAINED}
    assert all(target("resnet20", name, compiled=False) for name in published)


def test_tables_of_other_nets_are_kept(tmp_path):
    out = tmp_path / "times.json"
    one = {"net": "mlp", "threads": 1, "small": False, "compiled": False, "rounds": 1}
    other = {**one, "net": "vit"}
    step_time.save(out, [one])
    step_time.save(out, [other])
    step_time.save(out, [{**one, "rounds": 2}])
    assert json.loads(out.read_text())["tables"] == [{**one, "rounds": 2}, other]


def test_attack_time_compares_attacks_that_are_the_same(tmp_path, torchvision):
    out = tmp_path / "attacks.json"
    attack_time.main(["--quick", "--net", "lenet", "--out", str(out)])
    (table,) = json.loads(out.read_text())["tables"]
    rows = table["attacks"]
    equal = {name for name, row in rows.items() if row["same_points"]}
    assert {"plain loop", "ours / exact", "ours / exact, of an FA net"} <= equal
    assert attack_time.LAST in rows and "ours / own, of an FA net" not in equal
    assert table["rejected"] == (table["control_off"] > 0.03)
    assert table["base"] == "torchattacks" and "met" in rows["ours / exact"]


def test_a_table_is_rejected_by_its_control():
    for ratio, state in ((1.0299, ""), (1.031, "REJECTED: "), (0.969, "REJECTED: ")):
        table = controlled.verdict({"cpu_ratio": 1.0, "wall_ratio": ratio}, "wall") | {"rounds": 4}
        assert table["rejected"] == bool(state)
        line = controlled.headline("A net", table)
        assert line.startswith(f"A net, 4 rounds: {state}control off by 3.")
    assert not controlled.verdict({"cpu_ratio": 1.0, "wall_ratio": ratio})["rejected"]


def test_a_bad_option_says_what_is_allowed(capsys):
    number = "must be a whole number"
    for benchmark, given, message in (
        (step_time, "--rule fq", "'fa'"),
        (step_time, "--rounds 0", f"--rounds: 0 {number} of at least 1"),
        (step_time, "--threads 1 0", f"--threads: 0 {number} of at least 1"),
        (step_time, "--rounds many", f"--rounds: many {number}"),
        (probe_cost, "--setting lenett", "'lenet'"),
        (probe_cost, "--rounds 0", f"--rounds: 0 {number} of at least 1"),
    ):
        with pytest.raises(SystemExit):
            benchmark.parse(given.split())
        assert message in capsys.readouterr().err, given


def test_documents_show_the_recorded_times():
    recorded = json.loads(speed_page.RECORDED.read_text())
    for file in ("docs/results.md", "docs/speed.md"):
        text = (ROOT / file).read_text()
        assert speed_page.refreshed(text, recorded) == text, f"{file}: run `make tables`"


def test_a_missed_target_stands_beside_the_ratio():
    table = {"net": "mlp", "title": "An MLP, wide", "threads": 1, "compiled": False, "rounds": 9}
    table |= {"clock": "cpu", "control_off": 0.004, "rejected": False}
    table["rules"] = {"fa": {"cpu_ratio": 1.09}, "usf": {"cpu_ratio": 1.17}}
    bad = table | {"title": "Noisy", "rejected": True, "control_off": 0.2}
    text = speed_page.summary({"tables": [table, bad]})
    assert "| fa | 1.09 (1.08) |\n| usf | 1.17 |\n" in text
    assert "Noisy" not in text and "at most 0.4 %" in text


def test_recurrent_time_and_its_page(monkeypatch, capsys):
    monkeypatch.setattr(recurrent_time, "SIZES", ((8, 2, 3),))
    recurrent_time.main(["--rounds", "1"])
    assert "RNN, units, samples, steps: (8, 2, 3)" in capsys.readouterr().out
    table = {"layer": "LSTM", "units": 8, "samples": 2, "steps": 3, "control_off": 0.012}
    table |= {"rejected": False, "rules": {"fa": {"cpu_ratio": 3.0}, "usf": {"cpu_ratio": 2.0}}}
    bad = table | {"layer": "GRU", "rejected": True, "control_off": 0.2}
    text = recurrent_time.page([table, bad])
    assert "| LSTM | 8, 2, 3 | 3.00 | 2.00 |" in text and "| GRU" not in text
    assert "at most 1.2 %. Left out, as theirs was off by more: GRU with 8 units." in text


def test_lif_time_compares_the_same_spikes(monkeypatch, capsys):
    pytest.importorskip("snntorch", reason="it is what spiking neurons are compared with")
    monkeypatch.setattr(lif_time, "STEPS", 4)
    monkeypatch.setattr(lif_time, "SAMPLES", 3)
    monkeypatch.setattr(lif_time, "WIDTHS", (784, 20, 10))
    lif_time.main(["--rounds", "1"])
    table = lif_time.measure(1)
    assert {row["largest_difference"] for row in table["ways"].values()} == {0.0}
    assert table["spikes"] > 0 and table["ways"][lif_time.OURS]["target"] == 1.0
    assert "784-20-10, 4 steps" in capsys.readouterr().out


def test_gpu_check_runs_and_finds_a_wrong_device(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(gpu_check, "RULES", {n: gpu_check.RULES[n] for n in ("brsf", "fa", "dfa")})
    checks = [check for check in gpu_check.CHECKS if check is not gpu_check.modes_check]
    monkeypatch.setattr(gpu_check, "CHECKS", checks)
    options = ["--device", "cpu", "--quick", "--out", str(tmp_path / "record.json")]
    assert gpu_check.main(options) == 0
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["failed"] == 0 and record["seconds"] < 480
    seen = {row["check"] for row in record["rows"]}
    assert seen >= {"three steps, float32", "feedback to the bit", "PGD", "cost"}
    assert "the same test loss" in {row.get("how") for row in record["rows"]}

    calls = iter(range(100))
    original = gpu_check.batch

    def other_images(device, channels_last=False):  # of one side in two: as a device that is wrong
        x, y = original(device, channels_last)
        return x + 1e-3 * (next(calls) % 2), y

    monkeypatch.setattr(gpu_check, "batch", other_images)
    rows = list(gpu_check.rules_check("cpu", quick=True))
    assert not all(row["passed"] for row in rows if row["check"] == "three steps, float32")


def test_gpu_check_wants_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(gpu_check.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu_check.main([])
    assert "--device cpu --quick" in capsys.readouterr().err


def test_attack_strength_counts_what_others_find(tmp_path, monkeypatch):
    """Three images, at the border of the ball, inside and outside of it; labels are of class 0."""
    x = torch.zeros(3, 2)
    points = torch.tensor([[0.1, 0.0], [0.0, 0.05], [0.2, 0.0]])
    always_wrong = torch.nn.Linear(2, 2)
    torch.nn.init.zeros_(always_wrong.weight)
    always_wrong.bias.data = torch.tensor([0.0, 1.0])
    y = torch.zeros(3, dtype=torch.long)
    for norm in ("linf", "l2", "l1"):
        kept = attack_strength.survives(always_wrong, points, x, y, norm, 0.1)
        assert kept.tolist() == [False, False, True]
    page, recorded = tmp_path / "page.md", json.loads(STRENGTH.read_text())["tables"]
    page.write_text("before\n<!-- attack-strength -->\nold\n<!-- end -->\nafter\n")
    attack_strength.main(["--page", str(page)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("<!-- end -->\nafter\n")
    assert text.count("\n| ") == len(recorded) + 1 and "old" not in text
    # no image that high effort calls robust is broken by another tool
    assert all(row["lost"]["high"] == 0 for row in recorded)
    assert attack_strength.table(recorded) in (ROOT / "docs" / "robustness.md").read_text()


def test_what_high_effort_alone_breaks_is_found_by_us_alone(monkeypatch):
    """Of three images default effort leaves two and high effort one; other tools break none."""
    kept = {Effort(): [True, True, False], Effort.high(): [True, False, False]}

    def report(*_, effort, **__):
        return SimpleNamespace(worst=[SimpleNamespace(robust=kept[effort])])

    monkeypatch.setattr(attack_strength, "robust_report", report)
    for name in ("autoattack", "hop_skip_jump"):
        monkeypatch.setattr(attack_strength, name, lambda norm, eps: lambda model, x, y: x)
    monkeypatch.setattr(
        attack_strength, "survives", lambda model, points, x, *_: torch.ones(len(x), dtype=bool)
    )
    x, y = torch.zeros(3, 2), torch.zeros(3, dtype=torch.long)
    net = SimpleNamespace(model=lambda x: torch.eye(2)[y], examples=lambda images: (x, y))
    row = attack_strength.measure("digits", "fa", "linf", net, 3)
    assert row["left"] == {"default": 2, "high": 1, "AutoAttack": 3, "HopSkipJump": 1}
    assert row["lost"] == {"default": 0, "high": 0} and row["only_ours"] == 2


def small_convolutional_net():
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(256, 10)
    )


def test_multiply_adds_of_low_dimensional_feedback_written_out():
    subject = Subject("net", "net", (8, 3, 4, 4), False, small_convolutional_net)
    first, second, last = 32 * 3 * 9 * 16, 64 * 32 * 9 * 4, 2560
    assert low_dim_cost.multiply_adds(subject, BP()) == first + 2 * second + 2 * last
    fixed = low_dim_cost.multiply_adds(subject, LowDimensional(4, projection="fixed"))
    messages = 4 * (64 + 32 * 9) * 4 + 4 * (10 + 256)
    # P delta of the linear layer serves its message and the gradient of its Q
    factors = 4 * 32 * 3 * 9 / 8 + 4 * 64 * 32 * 9 / 8 + 4 * 256
    assert fixed == pytest.approx(first + second + last + messages + factors)
    learned = low_dim_cost.multiply_adds(subject, LowDimensional(4))
    assert learned - fixed == pytest.approx(4 * 64 * 4 + 2 * 4 * 4 * 64 / 8 + 2 * 4 * 10)
    half = low_dim_cost.multiply_adds(subject, LowDimensional(0.5, projection="fixed"))
    assert half > low_dim_cost.multiply_adds(subject, BP())  # B is formed


def test_low_dim_cost_measures_every_rank(tmp_path):
    low_dim_cost.main(["--quick", "--net", "mlp", "--out", str(tmp_path / "cost.json")])
    (table,) = json.loads((tmp_path / "cost.json").read_text())["tables"]
    assert set(table["rules"]) == set(low_dim_cost.rules())
    assert all(row["cpu_ms"] > 0 for row in table["rules"].values())


def test_probe_cost_measures_the_share_that_a_run_spends(tmp_path, capsys):
    probe_cost.main(["--quick", "--out", str(tmp_path / "cost.json")])
    (table,) = json.loads((tmp_path / "cost.json").read_text())["tables"]
    (row,) = table["rules"].values()
    assert row["share"] == pytest.approx(5 * row["cpu_ratio"] / (30 * 45), abs=1e-4)
    assert "share of the run" in capsys.readouterr().out and table["limit"] == 0.05


def test_the_share_is_within_its_limit_as_long_as_the_model_of_the_cost_holds():
    """Where even the first and last measurement are too much, by their number."""
    for name, setting in probe_cost.SETTINGS.items():
        experiment = setting.experiment
        modelled = probe_cost.FIXED_STEPS + 2 * experiment.probe_images / experiment.batch_size
        assert setting.share(modelled) <= experiment.probe_share or setting.measurements == 2
        assert setting.measurements == 101 or name in ("digits", "smoke")
