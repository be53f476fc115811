"""Learners and tasks of sequences in the runner: the loop of one's own, to the same bits."""

import ast
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from apical import learners, nets, rules
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment, from_dict, to_dict
from apical.bench.report import write
from apical.bench.storage import records
from apical.bench.training import build, loop
from apical.data import sequences as tasks
from apical.data.sequences import Stream
from apical.learners import LRA, TPTT
from test_resume import Killed, interrupted_at, kill_test

RATE = 0.01  # of loops compared number by number: at ten times as much TPTT runs away
LRA_SUM = {"learner": "lra", "reduction": "sum"}
TPTT_SUM = {"learner": "tptt", "reduction": "sum", "noise": 0.1}  # random numbers at every call
BASE = Experiment(
    task="temporal_order",
    length=20,
    batches=6,
    net="srn",
    net_options={"hidden": 12},
    learner=LRA_SUM,
    epochs=2,
    batch_size=10,
    validation=30,
    lr=0.1,
    optimizer_options={"momentum": 0.9},
    probe_images=16,
    probe_share=1.0,
    seed=3,
)


@pytest.fixture(autouse=True)
def few_test_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "TEST_SEQUENCES", 600)


def changed(**changes: Any) -> Experiment:
    return dataclasses.replace(BASE, **changes)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["state"]["model"]


def net_at_start(cell: str = "srn", inputs: int = 6, outputs: int = 4) -> nets.Recurrent:
    with torch.random.fork_rng():
        torch.manual_seed(BASE.seed)
        return nets.build_recurrent(cell, inputs=inputs, outputs=outputs, hidden=12)


def descend(net: torch.nn.Module, speeds: dict[str, torch.Tensor]) -> None:
    """A step of the heavy ball, written out; nothing is updated that was not taught."""
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if parameter.grad is not None:
                speeds[name] = parameter.grad + 0.9 * speeds.get(name, 0.0)
                parameter -= RATE * speeds[name]
                parameter.grad = None


def by_hand(learner: learners.Learner | None) -> nets.Recurrent:
    """What BASE says, as a loop of one's own."""
    net = net_at_start()
    if learner is not None:
        learners.attach(net, learner, seed=BASE.seed)
    speeds: dict[str, torch.Tensor] = {}
    stream = tasks.batches(tasks.TemporalOrder(20), 10, seed=BASE.seed)
    for _, (x, y) in zip(range(12), stream, strict=False):
        if learner is None:
            F.cross_entropy(net(x), y).backward()
        else:
            learner.gradients(net, (x, y))
        descend(net, speeds)
    return net


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    ("form", "learner"),
    [
        ("backprop", None),
        (LRA_SUM, LRA("sum")),
        (TPTT_SUM, TPTT("sum", noise=0.1)),
    ],
)
def test_equals_a_loop_of_ones_own(
    tmp_path: Path, form: Any, learner: learners.Learner | None
) -> None:
    loop.run(changed(learner=form, lr=RATE), tmp_path)
    # float32 sums in another order in torch's fused step: last places, over twelve steps
    expected = dict(by_hand(learner).state_dict())
    torch.testing.assert_close(weights(tmp_path), expected, rtol=1e-4, atol=1e-5)


def test_gradients_lie_in_memory_as_their_parameters() -> None:
    """Fused optimizers on the CPU read a gradient of another order wrongly, and silently."""
    for learner in (
        LRA("sum"),
        TPTT("sum"),
        learners.EProp(),
        learners.ReadOut(),
        learners.Backprop(),
    ):
        net = learners.attach(net_at_start(), learner)
        learner.gradients(net, next(tasks.batches(tasks.TemporalOrder(20), 10, seed=0)))
        taught = [parameter for parameter in net.parameters() if parameter.grad is not None]
        assert len(taught) >= 2
        assert all(p.grad is not None and p.grad.stride() == p.stride() for p in taught)


def test_gradients_of_many_nets_lie_as_their_stacks() -> None:
    many = learners.Many([net_at_start(), net_at_start()])
    x, y = next(tasks.batches(tasks.TemporalOrder(20), 10, seed=0))
    many.gradients(LRA("sum"), (x.expand(2, -1, -1, -1), y.expand(2, -1)))
    assert all(p.grad is not None and p.grad.stride() == p.stride() for p in many.parameters())


def test_accuracy_is_the_share_of_solved_sequences(tmp_path: Path) -> None:
    experiment = changed(task="addition", learner="backprop", net="gru", batches=20)
    row = loop.run(experiment, tmp_path)
    net = net_at_start("gru", inputs=2, outputs=1)
    net.load_state_dict(weights(tmp_path))
    stream = tasks.batches(tasks.Addition(20), build.EVALUATION_BATCH, seed=0, purpose="test")
    (x, y), (more_x, more_y) = next(stream), next(stream)
    x, y = torch.cat([x, more_x[:100]]), torch.cat([y, more_y[:100]])
    distance = (net(x) - y).square().squeeze(1)
    assert row["test_acc"] == pytest.approx((distance <= 0.04).double().mean().item())
    assert row["test_loss"] == pytest.approx(distance.mean().item(), rel=1e-5)
    assert 0 < row["test_acc"] < 1
    assert (row["val_count"], row["test_count"]) == (30, 600)


@pytest.mark.filterwarnings(
    "ignore::apical.bench.training.monitor.LearningWarning"
)  # few units, weak signals
@pytest.mark.parametrize("form", [LRA_SUM, TPTT_SUM])
@pytest.mark.parametrize("saves", [(1, 2, 3), (2, 4, 1), (3, 1, 1)])
def test_resumes_to_the_same_bits(
    form: Any, saves: tuple[int, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two checkpoints within each of two epochs, one at its end and one before loop."""
    experiment, execution = changed(learner=form), Execution(checkpoint_steps=2)
    whole = loop.run(experiment, tmp_path / "whole", execution)
    for number, after in zip(saves, (False, True, False), strict=True):
        with monkeypatch.context() as patch:
            interrupted_at(number, patch, after=after)
            with pytest.raises(Killed):
                loop.run(experiment, tmp_path / "killed", execution)
    resumed = loop.run(experiment, tmp_path / "killed", execution)
    assert kill_test.differences(tmp_path / "whole", tmp_path / "killed") == []
    assert resumed["test_loss"] == whole["test_loss"]


def test_an_image_net_by_a_learner_is_that_of_the_loop(tmp_path: Path) -> None:
    base = Experiment(
        net_options={"hidden": [16]}, epochs=1, batch_size=128, rule="fa", probe_images=16
    )
    clipped = {"learner": "backprop", "clip_norm": 0.5}
    loop.run(dataclasses.replace(base, clip_norm=0.5), tmp_path / "loop")
    loop.run(dataclasses.replace(base, learner=clipped), tmp_path / "learner")
    assert same(weights(tmp_path / "loop"), weights(tmp_path / "learner"))


# records


def test_what_a_learner_remembers_is_no_parameter_of_the_net(tmp_path: Path) -> None:
    row = loop.run(changed(learner=TPTT_SUM, epochs=1), tmp_path)
    assert row["parameters"] == 12 * 6 + 12 + 12 * 12 + 12 * 4 + 4
    assert row["feedback_bytes"] == 4 * (12 * 12 + 12)


def test_rows_tell_of_every_step_at_the_measured_epochs(tmp_path: Path) -> None:
    loop.run(changed(probe_every=2), tmp_path)
    rows = records.read(tmp_path / "records.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    assert [(row["epoch"], row["t"]) for row in steps] == [
        (epoch, t) for epoch in (0, 2) for t in range(1, 21)
    ]
    batch = next(tasks.batches(tasks.TemporalOrder(20), 16, seed=0, purpose="probe"))
    net = net_at_start()
    for epoch in (0, 2):
        if epoch:
            net.load_state_dict(weights(tmp_path))
        _, info = LRA("sum").gradients(net, batch)
        expected = {
            "signal": info.signals,
            "norm": info.norms["cell.recurrent.weight"],
            "local_loss": info.local_losses,
        }
        for name, tensor in expected.items():
            assert [row[name] for row in steps if row["epoch"] == epoch] == tensor.tolist()
    assert all(row["signal"] > 0 for row in steps)


def test_layer_rows_of_a_learner_compare_it_with_backprop(tmp_path: Path) -> None:
    loop.run(changed(epochs=1), tmp_path)
    rows = [row for row in records.read(tmp_path / "records.jsonl") if row["kind"] == "layer"]
    first = {row["layer"]: row["gradient_angle_deg"] for row in rows if row["epoch"] == 0}
    batch = next(tasks.batches(tasks.TemporalOrder(20), 16, seed=0, purpose="probe"))
    expected = learners.alignment(net_at_start(), LRA("sum"), batch)
    assert first == {
        layer: expected[f"{layer}.weight"]["angle_deg"]
        for layer in ("cell.input", "cell.recurrent", "readout")
    }


def test_a_learner_without_targets_has_no_local_losses(tmp_path: Path) -> None:
    loop.run(changed(learner="backprop", rule="fa", epochs=1), tmp_path)
    rows = records.read(tmp_path / "records.jsonl")
    steps = [row for row in rows if row["kind"] == "step"]
    assert len(steps) == 40 and all("signal" in row and "norm" in row for row in steps)
    assert not any("local_loss" in row for row in steps)
    assert {row["layer"] for row in rows if row["kind"] == "layer"} >= {"cell.recurrent"}


@pytest.mark.filterwarnings(
    "ignore::apical.bench.training.monitor.LearningWarning"
)  # few units, weak signals
def test_measurements_leave_no_trace(tmp_path: Path) -> None:
    loop.run(changed(learner=TPTT_SUM), tmp_path / "measured")
    loop.run(changed(learner=TPTT_SUM, probe_every=0), tmp_path / "not")
    assert same(weights(tmp_path / "measured"), weights(tmp_path / "not"))


@pytest.mark.usefixtures("no_figures")
def test_the_report_of_a_run_on_sequences_names_its_task(tmp_path: Path) -> None:
    folder = tmp_path / BASE.name
    loop.run(BASE, folder)
    page = write(folder).read_text()
    assert "srn on temporal_order, 20 steps" in page
    assert "digits" not in page


# the stream


def test_epochs_of_a_stream_follow_one_another() -> None:
    task = tasks.TemporalOrder(20)
    stream = Stream(task, 25, 10, seed=4)
    assert (len(stream), len(stream.split)) == (3, 25)
    drawn = tasks.batches(task, 10, seed=4)
    for epoch in range(2):
        found = list(stream.epoch(epoch))
        assert [len(y) for _, y in found] == [10, 10, 5]
        for x, y in found:
            expected = next(drawn)
            assert torch.equal(x, expected[0][: len(y)]) and torch.equal(y, expected[1][: len(y)])


def test_what_is_evaluated_is_alike_for_all_seeds_and_never_trained_on() -> None:
    one, two = build.build(BASE), build.build(changed(seed=8))
    (x_one, _), (x_two, _) = next(one.train.epoch(0)), next(two.train.epoch(0))
    assert not torch.equal(x_one, x_two)
    firsts = []
    for name in ("validation", "test"):
        pair = [next(getattr(parts, name).epoch(0))[0] for parts in (one, two)]
        assert torch.equal(*pair)
        firsts.append(pair[0][:10])
    assert not torch.equal(firsts[0], firsts[1]) and not torch.equal(firsts[1], x_one)


@pytest.mark.parametrize(("count", "size"), [(0, 10), (10, 0)])
def test_a_stream_of_nothing(count: int, size: int) -> None:
    with pytest.raises(ValueError, match=f"count={count} and batch_size={size} must be at least 1"):
        Stream(tasks.TemporalOrder(20), count, size, seed=0)


# bad input


def test_what_does_not_fit() -> None:
    for changes, told in (
        ({"task": "temporal_oder"}, "unknown task 'temporal_oder'; did you mean 'temporal_order'"),
        ({"length": None}, "task='temporal_order' needs a length"),
        ({"length": 9}, "length=9, but the task needs sequences of at least 10 steps"),
        ({"batches": 0}, "batches=0: must be at least 1"),
        ({"net": "mlp"}, "net='mlp' takes no sequences: allowed are gru, lstm, srn"),
        (
            {"data": "mnist", "size": 8},
            "data='mnist' cannot be .*task=.*size=8 cannot be",
        ),
        ({"augment": "flip_crop"}, "augment='flip_crop' cannot be combined with task="),
        (
            {"task": None},
            "'srn' takes sequences.*length=20 has no effect without a task; batches=6",
        ),
        ({"learner": "lra"}, "learner: LRA: reduction is not stated"),
        ({"learner": "lara"}, "learner: unknown learner 'lara'; did you mean 'lra'"),
        ({"learner": {"reduction": "sum"}}, "learner: .* needs the key 'learner'"),
        ({"learner": LRA_SUM | {"loss": "squared_error"}}, "learner: its loss is that of"),
        ({"accumulate": 2}, "accumulate=2 cannot be combined with learner={'learner': 'lra'"),
        ({"autocast": "bf16"}, "autocast='bf16' cannot be combined with learner="),
        ({"switch": {1: "fa"}}, "switch=.* cannot be combined with learner="),
    ):
        with pytest.raises(ValueError, match=told):
            changed(**changes)


def test_what_cannot_be_built_leaves_no_folder(tmp_path: Path) -> None:
    for changes, told in (
        ({"net": "lstm"}, "LRA: "),
        ({"rule": "fa"}, "LRA: "),
        ({"net_options": {"hiden": 3}}, "unknown option of net 'srn' 'hiden'; did you mean"),
        ({"net_options": {"hidden": 0}}, "hidden=0: must be at least 1"),
        ({"net_options": {"hidden": 2.5}}, "hidden=2.5 must be a whole number"),
        ({"net_options": {"init": "xavier"}}, "unknown initial law of a recurrent net 'xavier'"),
    ):
        with pytest.raises(ValueError, match=told):
            loop.run(changed(**changes), tmp_path / "run")
        assert not (tmp_path / "run").exists()


def test_a_learner_in_time_is_refused_on_an_image_net(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"LRA: .*SRN"):
        loop.run(Experiment(learner=LRA_SUM), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("experiment", "told"),
    [
        (changed(learner="backprop"), "task='temporal_order' trains in one process, not in 2"),
        (
            Experiment(learner={"learner": "backprop", "clip_norm": 1.0}),
            "learner='backprop' trains in one process, not in 2",
        ),
    ],
)
def test_several_processes_are_refused(
    experiment: Experiment, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "join_group", lambda device: build.Group(0, 2))
    with pytest.raises(ValueError, match=told):
        build.build(experiment)


HALF = """
from dataclasses import dataclass
from typing import ClassVar
from apical.learners import Backprop, Learner

@dataclass(frozen=True)
class Half(Learner):
    reference: ClassVar[str] = "@misc{half}"

    def gradients(self, model, batch):
        loss, info = Backprop(loss=self.loss).gradients(model, batch)
        for parameter in model.parameters():
            parameter.grad *= 0.5
        return loss, info
"""


def test_a_learner_of_ones_own_is_one_file_and_one_name_to_the_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_half.py").write_text(HALF)
    monkeypatch.syspath_prepend(str(tmp_path))
    plain = changed(learner="backprop", lr=0.1, epochs=2)
    own = changed(learner="my_half:Half", lr=0.2, epochs=2)  # a half of the gradient, exactly
    ends = [loop.run(each, tmp_path / each.key) for each in (plain, own)]
    same = [{k: end[k] for k in ("test_loss", "test_acc", "train_loss")} for end in ends]
    assert same[0] == same[1]
    assert "my_half:Half" in write(tmp_path / own.key).read_text()


def test_a_length_that_is_no_evidence_warns_when_it_is_trained(recwarn: Any) -> None:
    short = changed(length=12)
    assert not recwarn.list
    with pytest.warns(UserWarning, match="length=12 a random recurrent net"):
        build.build(short)


def test_a_run_on_sequences_has_no_images_to_attack(tmp_path: Path) -> None:
    from apical.bench.evaluate import trained_net

    loop.run(BASE, tmp_path)
    with pytest.raises(ValueError, match="trained on sequences .task='temporal_order'., not on im"):
        trained_net.from_run(tmp_path)


def test_json_round_trip() -> None:
    assert from_dict(json.loads(json.dumps(to_dict(BASE)))) == BASE


def test_the_loop_names_no_rule_learner_or_task() -> None:
    words = {
        node.value if isinstance(node, ast.Constant) else getattr(node, "id", None)
        for node in ast.walk(ast.parse(Path(loop.__file__).read_text()))
    }
    assert not words & {*rules.RULES, *learners.LEARNERS, *tasks.TASKS}
