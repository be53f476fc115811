"""Fine-tuning as an experiment: what it starts from, what learns, what its records tell."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import apical
from apical import data, nets, rules
from apical.bench.cli.main import main
from apical.bench.evaluate.trained_net import experiment_of, from_run
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment, from_dict, to_dict
from apical.bench.experiment.training_settings import Schedule
from apical.bench.storage import records
from apical.bench.studies import Entry, Search, Study, build, conduct
from apical.bench.training import build as prepare
from apical.bench.training import loop
from apical.measure import fine_tuning
from apical.nets import pretrained
from apical.nets.pretrained import Start
from test_resume import Killed, interrupted_at, kill_test

NET: dict[str, Any] = {"net": "vgg", "net_options": {"widths": [4, 6]}}
BEFORE: dict[str, Any] = {"data": "letters", "epochs": 1, "batch_size": 512, "probe_every": 0} | NET
BASE = Experiment(
    data="digits",
    **NET,
    epochs=2,
    batch_size=256,
    optimizer_options={"momentum": 0.9},
    schedule=Schedule("cosine"),
    probe_images=32,
)
QUIET = Execution(quiet=True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A net for 26 classes, as another program may have left it."""
    path = tmp_path_factory.mktemp("start") / "weights.pt"
    model = nets.build("vgg", in_shape=(1, 8, 8), num_classes=26, seed=5, widths=[4, 6])
    torch.save(model.state_dict(), path)
    return path


def tuned(source: str | Path | dict[str, Any], rule: Any = "usf", **options: Any) -> Experiment:
    source = source if isinstance(source, dict) else str(source)
    return dataclasses.replace(BASE, start=Start(source, **options), rule=rule)


def model_of(experiment: Experiment, path: Path) -> nn.Module:
    torch.manual_seed(experiment.seed)
    images = data.load("digits")
    return prepare.build_model(experiment, images, weights=pretrained.read(path))


def test_a_start_that_cannot_be_is_refused() -> None:
    for options, told in (
        ({"head_by": "bp"}, "head_by has no effect without a source"),
        ({"freeze": "fc1.*", "train_only": "fc2.*"}, "freeze and train_only: give one of them"),
        ({"source": {"data": "letters"}, "digest": "a"}, "digest='a' has no effect with an exp"),
        (
            {"source": "x", "digest": "a", "norms": "off"},
            "norms='off' is not one of 'live'",
        ),
        (
            {"source": "x", "digest": "a", "freeze": "conv*", "train_only": "fc.*"},
            "freeze and train_only: give one of them",
        ),
        ({"source": "x", "digest": "a", "rates": {"fc.*": -1.0}}, "must be numbers of at least 0"),
        (
            {"source": "x", "digest": "a", "head": "fc", "new_head": False},
            "head='fc' has no effect on a head that stays as it is",
        ),
        ({"source": "nowhere.pt"}, "there is no file nowhere.pt"),
    ):
        with pytest.raises(ValueError, match=told):
            Start(**options)


def test_the_content_of_a_start_is_part_of_the_key_not_its_place(
    weights: Path, tmp_path: Path
) -> None:
    here = tuned(weights)
    assert here.start.digest == pretrained.digest(pretrained.read(weights))
    assert from_dict(to_dict(here)) == here
    state = torch.load(weights)
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "elsewhere.pt")
    assert tuned(tmp_path / "elsewhere.pt").key == here.key
    state["fc.bias"][0] += 1
    torch.save(state, tmp_path / "other.pt")
    assert tuned(tmp_path / "other.pt").key != here.key
    keys = {tuned(weights, **{name: value}).key for name, value in CHANGES.items()}
    assert len(keys | {here.key, BASE.key}) == len(CHANGES) + 2
    one, two = tuned(BEFORE), tuned(BEFORE | {"seed": 1})
    assert one.key not in (two.key, here.key)
    assert one.key == tuned(to_dict(from_dict(BEFORE))).key, "spelled out, it is the same start"


CHANGES: dict[str, Any] = {
    "rename": {"fc.": "head."},
    "skip": ("conv1_1.*",),
    "new_head": False,
    "head": "fc",
    "head_by": "bp",
    "norms": "frozen",
    "freeze": ("conv*",),
    "train_only": ("fc.*",),
    "rates": {"fc.*": 10.0},
}


def test_every_field_of_a_start_but_its_place_is_part_of_the_key() -> None:
    place = {"source", "digest", "entry"}
    assert CHANGES.keys() | place == {f.name for f in dataclasses.fields(Start)}


def test_feedback_of_trained_weights_has_their_norm_unless_said_otherwise(weights: Path) -> None:
    assert tuned(weights, "usf").assignment() == rules.SignSymmetric("uniform", scale="norm")
    said = tuned(weights, {"rule": "usf", "scale": "init"})
    assert said.assignment() == rules.SignSymmetric("uniform")
    within = tuned(weights, "sparse(fa)").assignment()
    assert within.inner == rules.FA(scale="norm")
    patterns = tuned(weights, {"conv*": "fa", "*": "bp"}).assignment()
    assert patterns == {"conv*": rules.FA(scale="norm"), "*": rules.BP()}
    assert tuned(weights, {"rule": "usf", "scale": "norm"}).key == tuned(weights, "usf").key
    assert said.key != tuned(weights, "usf").key
    assert dataclasses.replace(BASE, rule="usf").assignment() == rules.SignSymmetric("uniform")


def test_all_tensors_but_the_heads_come_from_the_start(weights: Path) -> None:
    model, found = model_of(tuned(weights), weights), pretrained.read(weights)
    torch.manual_seed(BASE.seed)
    fresh = nets.build("vgg", in_shape=(1, 8, 8), num_classes=10, widths=[4, 6]).state_dict()
    for name, value in model.state_dict().items():
        if "feedback" not in name:
            wanted = fresh if name.startswith("fc.") else found
            assert torch.equal(value, wanted[name]), name


def test_a_start_that_does_not_fit_names_the_tensors(weights: Path) -> None:
    wide = dataclasses.replace(tuned(weights), net_options={"widths": [4, 8]})
    with pytest.raises(ValueError, match=r"(?s)weights.pt: .*shapes: conv2_1.weight \(6, 4, 3"):
        model_of(wide, weights)
    with pytest.raises(ValueError, match=r"fc.weight \(26, 6\) for \(10, 6\)"):
        model_of(tuned(weights, new_head=False), weights)
    with pytest.raises(ValueError, match="unknown layer for start.head 'fx'; did you mean 'fc'"):
        model_of(tuned(weights, head="fx"), weights)


class TwoHeads(nn.Module):
    """Nobody can know which of its heads is meant."""

    def __init__(self, in_shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.body = nn.Linear(math.prod(in_shape), 4)
        self.head, self.head_aux = nn.Linear(4, num_classes), nn.Linear(4, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x.flatten(1)).relu())


def test_an_uncertain_head_names_its_candidates(tmp_path: Path) -> None:
    torch.save(TwoHeads((1, 8, 8), 26).state_dict(), tmp_path / "two.pt")
    unsure = Experiment(net="test_fine_tuning:TwoHeads", start=Start(str(tmp_path / "two.pt")))
    told = "start: the head of TwoHeads is not certain; candidates: 'head', 'head_aux'"
    with pytest.raises(ValueError, match=f"{told}. Say which: start.head"):
        loop.run(unsure, tmp_path / "run", QUIET)
    assert not (tmp_path / "run").exists()


def test_a_file_that_changed_is_noticed(weights: Path, tmp_path: Path) -> None:
    experiment = dataclasses.replace(
        tuned(weights), start=dataclasses.replace(tuned(weights).start, digest="0123")
    )
    with pytest.raises(ValueError, match="holds the weights .* the experiment was described with"):
        loop.run(experiment, tmp_path / "run", QUIET)


def test_what_learns_and_how_fast_is_as_the_start_says(weights: Path) -> None:
    experiment = tuned(
        weights, rates={"fc.*": 10.0}, freeze=("conv1_1.*",), norms="frozen", head_by="bp"
    )
    parts = prepare.build(experiment, weights=pretrained.read(weights))
    frozen = [name for name, p in parts.model.named_parameters() if not p.requires_grad]
    assert frozen == ["conv1_1.weight"]
    rates = {group["rate"]: sorted(group["names"]) for group in parts.optimizer.param_groups}
    assert rates[10.0] == ["fc.bias", "fc.weight"] and len(rates[1.0]) == 5
    assert not parts.model.train().norm1_1.training
    assert not hasattr(parts.model.fc, "feedback"), "its gradient is exact"
    assert parts.model.conv2_1.feedback.rule == rules.SignSymmetric("uniform", scale="norm")


def test_the_schedule_keeps_the_rates_apart(weights: Path, tmp_path: Path) -> None:
    experiment = dataclasses.replace(
        tuned(weights, rates={"*": 0.0}), probe_every=0, optimizer_options={}
    )
    loop.run(experiment, tmp_path / "run", QUIET)
    model = from_run(tmp_path / "run").model.state_dict()
    for name, value in pretrained.read(weights).items():
        if "conv" in name or (name.startswith("norm") and name.endswith(("weight", "bias"))):
            assert torch.equal(model[f"model.{name}"], value), name


def test_tuned_rows_tell_how_far_and_along_what(weights: Path, tmp_path: Path) -> None:
    row = loop.run(tuned(weights), tmp_path / "run", QUIET)
    rows = {r["layer"]: r for r in records.read(tmp_path / "run" / "records.jsonl") if is_tuned(r)}
    assert row["kind"] == "final" and list(rows) == ["conv1_1", "conv2_1", "fc"]
    assert [r["head"] for r in rows.values()] == [False, False, True]
    before = pretrained.read(weights)
    after = from_run(tmp_path / "run").model.state_dict()
    for name in ("conv1_1", "conv2_1"):
        start, end = before[f"{name}.weight"], after[f"model.{name}.weight"]
        expected = (end - start).norm() / start.norm()
        assert rows[name]["weight_change"] == pytest.approx(expected.item(), rel=1e-5)
    assert rows["fc"]["update_cosine"] == pytest.approx(1)
    assert 0 < rows["conv1_1"]["update_cosine"] < 1


def is_tuned(row: dict[str, Any]) -> bool:
    return row["kind"] == "tuned"


def test_the_head_alone_leaves_the_trunk(weights: Path, tmp_path: Path) -> None:
    loop.run(tuned(weights, "bp", train_only=("fc.*",)), tmp_path / "run", QUIET)
    rows = {r["layer"]: r for r in records.read(tmp_path / "run" / "records.jsonl") if is_tuned(r)}
    assert rows["conv2_1"]["weight_change"] == 0 and rows["conv2_1"]["frozen"]
    assert "update_cosine" not in rows["conv2_1"]
    assert rows["fc"]["weight_change"] > 0 and rows["fc"]["update_cosine"] == pytest.approx(1)


def test_the_cosine_of_an_update_equals_its_formula() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    feedback = torch.randn(2, 3, dtype=torch.float64)
    apical.convert(model, {"2": "fa", "*": "bp"})
    model[2].feedback.matrix.copy_(feedback)
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    h = torch.tanh(x @ model[0].weight.T + model[0].bias)
    e = 2 * (h @ model[2].weight.T + model[2].bias - y) / y.numel()
    ours, exact = (((e @ b) * (1 - h**2)).T @ x for b in (feedback, model[2].weight))
    found = fine_tuning.update_cosines(model, nn.functional.mse_loss, x, y)
    expected = (ours * exact).sum() / ours.norm() / exact.norm()
    assert found["0"] == pytest.approx(expected.item(), abs=1e-12)
    assert found["2"] == pytest.approx(1, abs=1e-12)
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(("saves", "after"), [(1, True), (3, False), (5, True)])
def test_a_killed_run_goes_on_to_the_same_bits(
    saves: int, after: bool, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = tuned(weights, "brsf", norms="frozen", rates={"fc.*": 3.0})
    execution = Execution(checkpoint_steps=2, quiet=True)
    loop.run(experiment, tmp_path / "whole", execution)
    with monkeypatch.context() as patch:
        interrupted_at(saves, patch, after=after)
        with pytest.raises(Killed):
            loop.run(experiment, tmp_path / "killed", execution)
    loop.run(experiment, tmp_path / "killed", execution)
    assert kill_test.differences(tmp_path / "whole", tmp_path / "killed") == []


def test_another_experiment_is_trained_first_once_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    experiment = dataclasses.replace(tuned(BEFORE), size=16, epochs=1)
    with monkeypatch.context() as patch:
        interrupted_at(2, patch, after=True)  # while the start is trained
        with pytest.raises(Killed):
            loop.run(experiment, tmp_path / "one", QUIET)
    assert not (tmp_path / "one").exists()
    loop.run(experiment, tmp_path / "one", QUIET)
    (place,) = (tmp_path / "starts").iterdir()
    before = (place / "records.jsonl").read_bytes()
    first = from_run(place).model.state_dict()
    untouched = dataclasses.replace(experiment, start=Start(BEFORE, train_only=("fc.*",)))
    loop.run(untouched, tmp_path / "search" / "two", QUIET)
    assert (place / "records.jsonl").read_bytes() == before
    assert not (tmp_path / "search" / "starts").exists(), "the study's own start is used"
    model = from_run(tmp_path / "search" / "two").model.state_dict()
    assert torch.equal(model["model.conv1_1.weight"], first["model.conv1_1.weight"])


def test_sequences_and_other_programs_refuse_by_name() -> None:
    with pytest.raises(ValueError, match="start cannot be combined with task='addition'"):
        Experiment(task="addition", length=20, net="srn", start=Start(BEFORE))
    with pytest.raises(ValueError, match="its experiment learns sequences"):
        dataclasses.replace(BASE, start=Start({"task": "addition", "length": 20, "net": "srn"}))
    with pytest.raises(ValueError, match="start: unknown key 'sourc'; did you mean 'source'"):
        from_dict({"start": {"sourc": "x.pt"}})


def test_the_study_has_the_rows_that_keep_it_honest() -> None:
    study = build("sign-symmetry-finetune", tier="smoke", seeds=2)
    follower, rules_of = "BP, uSF's rate", [rule for _, rule in study.cells]
    assert rules_of == ["bp", "frozen", follower, "usf", "brsf", "frsf", "fa", "redrawn"]
    assert len(conduct.start_tasks(study, Path("x"))) == 1
    by_rule = {entry.rule: entry for entry in study.entries}
    assert by_rule["frozen"].experiment.start.train_only == ("fc.*",)
    assert study.evaluation_of(by_rule["bp"]).rules == ("usf", "brsf", "frsf", "fa")
    assert study.evaluation_of(by_rule["usf"]).rules == ()
    tries = study.candidates()
    assert {len(rates) for rates in tries.values()} == {4}
    assert {rule for _, rule in tries} == set(rules_of) - {follower}
    chosen = study.chosen({cell: 0.1 * number for number, cell in enumerate(tries, 1)})
    rates = {entry.rule: entry.experiment.lr for entry in chosen.entries}
    assert rates[follower] == rates["usf"] != rates["bp"]


def test_the_packaged_net_is_tuned_and_chosen_on_images_it_has_not_seen(tmp_path: Path) -> None:
    study = build("sign-symmetry-finetune", tier="short", seeds=1).restricted("CIFAR-10*")
    assert {entry.experiment.data for entry in study.entries} == {"cifar10_unseen"}
    assert study.cells[-1][1] == "start" and study.cells[-1] not in study.candidates()
    start = study.entries[-1].experiment.start
    assert not start.new_head and start.rates == {"*": 0.0} and start.norms == "frozen"
    assert all(entry.rule == "start" or entry.experiment.start.new_head for entry in study.entries)


def test_a_rate_of_zero_leaves_the_start_as_it_comes(tmp_path: Path) -> None:
    start = Start(BEFORE, new_head=False, norms="frozen", rates={"*": 0.0})
    untouched = dataclasses.replace(BASE, data="letters", start=start, epochs=1)
    loop.run(untouched, tmp_path / "run", QUIET)
    (place,) = (tmp_path / "starts").iterdir()
    first = from_run(place).model.state_dict()
    for name, value in from_run(tmp_path / "run").model.state_dict().items():
        assert "feedback" in name or torch.equal(value, first[name]), name


def test_a_study_trains_its_start_once_for_tries_and_runs(tmp_path: Path) -> None:
    base = dataclasses.replace(tuned(BEFORE), size=16, epochs=1, probe_every=0)
    entries = tuple(
        Entry("letters to digits", rule, dataclasses.replace(base, rule=rule))
        for rule in ("bp", "usf")
    )
    search = Search((0.1,), 1, Schedule(), 300)
    study = Study("starting", "Starting", "smoke", entries, search=search)
    told: list[str] = []
    outcome = conduct.conduct(study, tmp_path, QUIET, command="x", say=told.append)
    assert len(outcome.finished) == 2 and not outcome.failed
    assert "training what the runs start from: 1 nets" in told
    assert [f.parent for f in tmp_path.rglob("letters-*")] == [tmp_path / study.folder / "starts"]


def test_letters_are_drawn_alike_always() -> None:
    letters = data.load("letters")
    assert (letters.shape, letters.num_classes) == ((1, 16, 16), 26)
    assert (len(letters.train), len(letters.test)) == (1638, 546)
    assert letters.train.labels.bincount().unique().tolist() == [63]
    assert torch.equal(letters.train.images, data.load("letters").train.images)
    inked = (letters.train.images > 127).flatten(1).sum(1)
    assert inked.min() >= 8 and inked.max() < 128


def test_the_command_line_takes_every_field(weights: Path, tmp_path: Path) -> None:
    words = ["train", "--net", "vgg", "--net-options", '{"widths": [4, 6]}', "--rule", "usf"]
    words += ["--epochs", "1", "--batch-size", "512", "--probe-every", "0", "--quiet", "true"]
    config = tmp_path / "run.yaml"
    config.write_text(f"start:\n  source: {weights}\n  train_only: [fc.*]\n  rates: {{fc.*: 2}}\n")
    folder = tmp_path / "run"
    assert main([*words, "--config", str(config), "--folder", str(folder)]) == 0
    found = experiment_of(folder).start
    assert found == Start(str(weights), train_only=("fc.*",), rates={"fc.*": 2})
    first = '{"data": "digits", "net": "vgg", "net_options": {"widths": [4, 6]}, "epochs": 1}'
    flags = ["--start.source", first, "--start.head_by", "bp", "--start.norms", "frozen"]
    assert main([*words, *flags, "--folder", str(tmp_path / "other")]) == 0
    assert experiment_of(tmp_path / "other").before == from_dict(json.loads(first))
    assert len(list((tmp_path / "starts").iterdir())) == 1


def test_a_part_of_the_test_split_is_the_same_for_every_net(tmp_path: Path) -> None:
    few = dataclasses.replace(BASE, epochs=1, probe_every=0, test_images=40)
    row = loop.run(few, tmp_path / "run", QUIET)
    assert row["test_count"] == 40 and (40 * row["test_acc"]) % 1 == pytest.approx(0)
    one, other = (prepare.build(dataclasses.replace(few, seed=seed)).test for seed in (0, 1))
    assert torch.equal(one.split.images, other.split.images)
    with pytest.raises(ValueError, match="test_images=361: the test split has 360 images"):
        prepare.build(dataclasses.replace(few, test_images=361))
