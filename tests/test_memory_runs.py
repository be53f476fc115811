"""Nets with a memory, and tasks that ask at several steps, in the runner and in reports."""

import ast
import dataclasses
import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from apical.bench import studies
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment, from_dict, to_dict
from apical.bench.report import lines, sequences, write
from apical.bench.report.read import percent_of, read_study
from apical.bench.storage import records
from apical.bench.training import batch_step, build, loop, monitor
from apical.data import sequences as tasks
from apical.nets import memory as mnm
from test_resume import Killed, interrupted_at, kill_test

BASE = Experiment(
    task="dictionary",
    length=4,
    task_options={"key_bits": 2, "values": 3},
    test_lengths=(6, 8),
    net="mnm",
    net_options={"hidden": 6, "width": 5, "reconstruction": 0.5},
    batches=4,
    epochs=2,
    batch_size=10,
    validation=30,
    lr=0.1,
    probe_images=16,
    probe_share=1.0,
    seed=3,
)


@pytest.fixture(autouse=True)
def few_test_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TEST_SEQUENCES", 60)


def changed(**changes: Any) -> Experiment:
    return dataclasses.replace(BASE, **changes)


def task(length: int = 4) -> tasks.Dictionary:
    return tasks.Dictionary(length, key_bits=2, values=3)


def net_at_start(**options: Any) -> mnm.MemoryNet:
    with torch.random.fork_rng():
        torch.manual_seed(BASE.seed)
        sizes = {"hidden": 6, "width": 5, "reconstruction": 0.5} | options
        return mnm.MemoryNet(task().inputs, task().outputs, **sizes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["model"]


def by_hand(**options: Any) -> mnm.MemoryNet:
    """What BASE says, as a loop of one's own."""
    net = net_at_start(**options)
    for _, (x, y) in zip(range(8), tasks.batches(task(), 10, seed=BASE.seed), strict=False):
        scores, own = net(x, own_loss=True)
        net.zero_grad()
        (F.cross_entropy(scores.flatten(0, 1), y.flatten()) + own).backward()
        with torch.no_grad():
            for parameter in net.parameters():
                if parameter.grad is not None:
                    parameter -= 0.1 * parameter.grad
    return net


@pytest.mark.parametrize(
    "options", [{"write": "p"}, {"write": "g"}, {"write": "none", "reconstruction": 0.0}], ids=str
)
def test_equals_a_loop_of_ones_own(tmp_path: Path, options: dict[str, Any]) -> None:
    loop.run(changed(net_options=BASE.net_options | options), tmp_path)
    expected = dict(by_hand(**options).state_dict())
    # float32 sums in another order in torch's fused step
    torch.testing.assert_close(weights(tmp_path), expected, rtol=1e-4, atol=1e-5)


def test_resumes_to_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execution = Execution(checkpoint_steps=2)
    loop.run(BASE, tmp_path / "whole", execution)
    for number, after in ((2, False), (2, True)):
        with monkeypatch.context() as patch:
            interrupted_at(number, patch, after=after)
            with pytest.raises(Killed):
                loop.run(BASE, tmp_path / "killed", execution)
    loop.run(BASE, tmp_path / "killed", execution)
    assert kill_test.differences(tmp_path / "whole", tmp_path / "killed") == []


def test_a_trained_net_is_tested_at_other_lengths_too(tmp_path: Path) -> None:
    row = loop.run(BASE, tmp_path)
    net = net_at_start()
    net.load_state_dict(weights(tmp_path))
    for name, length in (("test", 4), ("test_6", 6), ("test_8", 8)):
        x, y = next(tasks.batches(task(length), build.EVALUATION_BATCH, seed=0, purpose="test"))
        scores, y = net(x[:60]), y[:60]
        right = (scores.argmax(2) == y)[:, length // 2 :]
        assert row[f"{name}_acc"] == pytest.approx(right.double().mean().item())
        loss = F.cross_entropy(scores.flatten(0, 1), y.flatten())
        assert row[f"{name}_loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert row[f"{name}_count"] == 60


def test_rows_tell_what_the_memory_does_at_every_step(tmp_path: Path) -> None:
    loop.run(BASE, tmp_path)
    rows = [row for row in records.read(tmp_path / "records.jsonl") if row["kind"] == "step"]
    assert [(row["epoch"], row["t"]) for row in rows] == [
        (epoch, t) for epoch in (0, 1, 2) for t in (1, 2, 3, 4)
    ]
    batch = next(tasks.batches(task(), 16, seed=0, purpose="probe"))
    _, trace = net_at_start().trace(batch[0])
    for name, numbers in trace.items():
        assert [row[name] for row in rows if row["epoch"] == 0] == numbers.tolist()


def test_a_reconstruction_that_collapses_is_warned_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", monitor.LearningWarning)
        loop.run(BASE, tmp_path / "sound")
    monkeypatch.setattr("apical.nets.memory.net.COLLAPSED", 10.0)
    monkeypatch.setattr("apical.nets.memory.net.LEARNED", 1.0)
    with monkeypatch.context() as patch:
        interrupted_at(3, patch, after=True)
        with pytest.raises(Killed), pytest.warns(monitor.LearningWarning, match="constants"):
            loop.run(BASE, tmp_path / "run", Execution(checkpoint_steps=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", monitor.LearningWarning)
        loop.run(BASE, tmp_path / "run", Execution(checkpoint_steps=2))
    rows = [r for r in records.read(tmp_path / "run" / "records.jsonl") if r["kind"] == "warning"]
    assert [(row["finding"], row["epoch"], row["threshold"]) for row in rows] == [
        ("collapsed", 1, 10.0)
    ]


def test_a_recurrent_net_answers_at_every_step(tmp_path: Path) -> None:
    row = loop.run(changed(net="lstm", net_options={"hidden": 6}), tmp_path)
    assert 0 <= row["test_acc"] <= 1 and "test_8_acc" in row


def test_a_memory_for_tasks_that_ask_at_the_end(tmp_path: Path) -> None:
    experiment = changed(
        task="temporal_order", length=20, task_options={}, test_lengths=(), epochs=1
    )
    assert 0 <= loop.run(experiment, tmp_path)["test_acc"] <= 1


def test_what_does_not_fit() -> None:
    for changes, told in (
        ({"task_options": {"key_bit": 3}}, "unknown option of task 'dictionary' 'key_bit'"),
        ({"length": 10}, "5 pairs, but key_bits=2 make only 4"),
        ({"test_lengths": (8, 6)}, "test_lengths=.* must rise, and differ from length=4"),
        ({"test_lengths": (4,)}, "differ from length=4"),
        ({"test_lengths": (10,)}, "length=10 has 5 pairs"),
        ({"test": False}, "test_lengths=.* cannot be combined with test=False"),
        ({"net_options": {"output": "last"}}, "net_options: 'output' follows from the task"),
        (
            {"learner": "readout"},
            "learner='readout' cannot be .* task='dictionary', which has",
        ),
        ({"task": None, "length": None}, "task_options=.* has no effect without a task"),
        ({"net": "mlp"}, "net='mlp' takes no sequences: allowed are gru, lstm, srn, mnm"),
    ):
        with pytest.raises(ValueError, match=told):
            changed(**changes)


def test_a_learner_that_would_ignore_the_nets_own_loss_is_refused(tmp_path: Path) -> None:
    experiment = changed(
        task="temporal_order",
        length=20,
        task_options={},
        test_lengths=(),
        learner={"learner": "backprop", "clip_norm": 1.0},
    )
    with pytest.raises(ValueError, match="net='mnm' has a loss of its own: leave out the learner"):
        loop.run(experiment, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_keys_of_old_experiments_stay_and_new_fields_enter_them() -> None:
    assert changed(test_lengths=(6,)).key != BASE.key
    assert changed(task_options={"key_bits": 2, "values": 4}).key != BASE.key
    assert from_dict(json.loads(json.dumps(to_dict(BASE)))) == BASE


def test_the_loop_and_the_gradients_name_no_net() -> None:
    for module in (loop, batch_step, monitor):
        assert module.__file__ is not None
        words = {
            node.value if isinstance(node, ast.Constant) else getattr(node, "id", None)
            for node in ast.walk(ast.parse(Path(module.__file__).read_text()))
        }
        assert not words & {*mnm.NETS, *mnm.WRITES, "mnm", "MemoryNet"}


# reports


def finished(
    folder: Path, seed: int, rows: list[tuple[int, float]], others: dict[int, float]
) -> None:
    """A run whose validation accuracy took this course."""
    folder.mkdir(parents=True)
    experiment = to_dict(changed(test_lengths=tuple(others), seed=seed, epochs=2))
    records.write_json(folder / "experiment.json", {"experiment": experiment})
    records.append(
        folder / "records.jsonl",
        *(
            {"kind": "epoch", "epoch": i, "step": step, "val_acc": accuracy, "train_acc": 0.5}
            for i, (step, accuracy) in enumerate(rows, 1)
        ),
        *({"kind": "step", "epoch": 2, "t": t, "beta": 0.1 * t} for t in (1, 2)),
        {"kind": "final", "epoch": 2, "test_acc": 0.5}
        | {f"test_{n}_acc": v for n, v in others.items()},
    )


def study(tmp_path: Path) -> Path:
    never, late, early = [(50, 0.2), (100, 0.995)], [(50, 0.2), (100, 1.0)], [(50, 0.999)]
    courses = {"MNM-p": [late, early], "LSTM": [never, early], "no write": [never, never]}
    runs = []
    for rule, of_rule in courses.items():
        for seed, course in enumerate(of_rule):
            name = f"{rule}-{seed}"
            finished(tmp_path / name, seed, course, {8: 0.25 * (seed + 1)})
            runs.append({"folder": name, "setting": "pairs", "rule": rule, "seed": seed})
    value = {"name": "mnm", "title": "Memory", "tier": "smoke", "command": "apical study mnm"}
    value |= {"runs": runs, "published": [], "notes": [], "solved": 0.995}
    records.write_json(tmp_path / "study.json", value)
    return tmp_path


def test_steps_until_solved(tmp_path: Path) -> None:
    found = read_study(study(tmp_path))
    rows = {row.rule: row for row in found.rows}
    seen = {
        rule: (sequences.solved(found, row).text, sequences.mean_steps(found, row).text,
               sequences.each_seed(found, row))
        for rule, row in rows.items()
    }  # fmt: skip
    assert seen == {
        "MNM-p": ("2 of 2", "75", "100, 50"),
        "LSTM": ("1 of 2", "", "never, 50"),
        "no write": ("0 of 2", "above 100", "never, never"),
    }
    assert sequences.steps(found, rows["LSTM"]) == {0: None, 1: 50}
    assert sequences.other_lengths(found) == [8]
    other = rows["no write"].summary(percent_of("test_8_acc"))
    assert other.mean == pytest.approx(37.5)


def test_the_memory_is_shown_as_means_over_steps(tmp_path: Path) -> None:
    runs = {"MNM-p": read_study(study(tmp_path)).row("pairs", "MNM-p").runs}
    assert lines.series(runs, "step", "beta") == {"MNM-p": {2: pytest.approx([0.15, 0.15])}}
    assert lines.series(runs, "step", "meta_loss") == {}


def test_the_page_of_a_run_shows_its_memory(tmp_path: Path) -> None:
    finished(tmp_path / "run", 0, [(50, 0.2), (100, 0.3)], {})
    assert "Rate of writing" in write(tmp_path / "run").read_text()


@pytest.mark.usefixtures("no_figures")
def test_a_study_that_asks_nothing_has_no_such_table(tmp_path: Path) -> None:
    folder = study(tmp_path)
    value = records.read_json(folder / "study.json")
    del value["solved"]
    records.write_json(folder / "study.json", value)
    assert sequences.solved_table(read_study(folder)) is None
    assert "until the task is solved" not in write(folder).read_text()


def test_the_study_has_every_baseline() -> None:
    for tier in ("smoke", "short", "full"):
        made = studies.build("mnm", tier=tier)
        assert made.solved == 0.995
        by_setting: dict[str, set[str]] = {}
        for entry in made.entries:
            by_setting.setdefault(entry.setting, set()).add(entry.rule)
            assert entry.experiment.validation
        for setting, rules in by_setting.items():
            assert rules >= ({"MNM-p", "LSTM"} | ({"no write"} if "bAbI" not in setting else set()))
        names = [entry.experiment.name for entry in made.entries]
        assert len(set(names)) == len(names)
