"""Nets as an attacker meets them: from runs, from checkpoints, and made elsewhere."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import apical
from apical import attacks, data
from apical.bench.evaluate import trained_net
from apical.bench.evaluate import trained_net as trained
from apical.bench.evaluate.trained_net import from_model, from_run, load_run
from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment, rule_assignment, to_dict, versions
from apical.bench.storage import records
from apical.bench.training import build as prepare
from apical.bench.training import loop
from apical.bench.training import loop as training
from apical.core.layers import feedback_modules

MODULE = """
import torch
from torch import nn

def small(width=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))

ready = small()
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    experiment = Experiment(net_options={"hidden": [16]}, rule="brsf", epochs=2, probe_every=0)
    folder = tmp_path_factory.mktemp("runs") / experiment.name
    loop.run(experiment, folder, Execution(quiet=True))
    return folder


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of the user's own in the current folder."""
    (tmp_path / "their_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def accuracy(net: trained_net.Trained) -> float:
    x, y = net.examples(360)
    with torch.no_grad():
        return (net.model(x).argmax(1) == y).float().mean().item()


def test_the_net_of_a_run_scores_on_pixels_what_the_run_says(run: Path) -> None:
    final = records.read(run / "records.jsonl")[-1]
    net = from_run(run)
    assert accuracy(net) == pytest.approx(final["test_acc"], abs=1e-6)
    assert not net.model.training and net.name == run.name
    assert from_run(run / "checkpoint.pt").digest == net.digest == trained_net.digest_of_run(run)


def test_load_run_gives_experiment_records_and_the_net_as_trained(run: Path) -> None:
    experiment, rows, model = load_run(run)
    assert experiment == trained.experiment_of(run)
    assert rows == records.read(run / "records.jsonl") and rows[-1]["kind"] == "final"
    state = torch.load(run / "checkpoint.pt", weights_only=True)["state"]["model"]
    assert not model.training and model.state_dict().keys() == state.keys()
    x, y = prepare.build(experiment).test.split.images, prepare.build(experiment).test.split.labels
    pixels = x.float() / 255
    net = from_run(run).model  # the same, for pixels
    with torch.no_grad():
        normalised = (pixels - net.mean) / net.std
        torch.testing.assert_close(model(normalised), net(pixels))
        right = (model(normalised).argmax(1) == y).double().mean().item()
    assert right == pytest.approx(rows[-1]["test_acc"])


def test_load_run_reads_runs_on_sequences(tmp_path: Path) -> None:
    experiment = Experiment(
        task="temporal_order", length=20, net="srn", batches=2, epochs=1, probe_every=0
    )
    training.run(experiment, tmp_path, Execution(quiet=True))
    loaded = load_run(tmp_path)
    assert loaded.experiment == experiment
    assert loaded.model(torch.zeros(3, 20, 6)).shape == (3, 4)
    with pytest.raises(ValueError, match="trained on sequences"):
        from_run(tmp_path)


def test_load_run_of_an_unfinished_run_says_so(tmp_path: Path) -> None:
    (tmp_path / "experiment.json").write_text(
        json.dumps(
            {"key": Experiment().key, "experiment": to_dict(Experiment()), "versions": versions()}
        )
    )
    with pytest.raises(ValueError, match="is new: there is no trained net yet. apical resume "):
        load_run(tmp_path)


def test_its_own_gradient_is_that_of_its_feedback(run: Path) -> None:
    net = from_run(run)
    state = torch.load(run / "checkpoint.pt", weights_only=True)["state"]["model"]
    inner = net.model.model.state_dict()
    assert any("feedback" in name for name in state)
    assert all(torch.equal(inner[name], value) for name, value in state.items())


def test_a_run_that_switched_its_rule_has_the_last_one(tmp_path: Path) -> None:
    experiment = Experiment(
        net_options={"hidden": [16]}, switch={1: "fa"}, epochs=2, probe_every=0, batch_size=256
    )
    loop.run(experiment, tmp_path, Execution(quiet=True))
    rules = {str(f.rule.name) for f in feedback_modules(from_run(tmp_path).model)}
    assert rules == {"fa"}


def test_building_it_leaves_the_global_generator_alone(run: Path) -> None:
    before = torch.get_rng_state()
    from_run(run)
    assert torch.equal(before, torch.get_rng_state())


def test_runs_that_cannot_be_attacked(run: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="there is no nowhere"):
        from_run("nowhere")
    with pytest.raises(ValueError, match=r"is no run: it has no experiment.json.*--model"):
        from_run(tmp_path)
    described = records.read_json(run / "experiment.json")
    records.write_json(tmp_path / "experiment.json", described)
    with pytest.raises(ValueError, match="is new: there is no trained net yet"):
        from_run(tmp_path)
    for name in ("environment.json", "records.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    with pytest.raises(ValueError, match=r"no checkpoint.pt: records were kept without weights"):
        from_run(tmp_path)
    records.write_json(tmp_path / "experiment.json", described | {"key": "0123456789"})
    with pytest.raises(ValueError, match="another version of apical made it"):
        from_run(tmp_path)


def test_a_checkpoint_of_another_run_is_noticed(run: Path, tmp_path: Path) -> None:
    (tmp_path / "checkpoint.pt").write_bytes((run / "checkpoint.pt").read_bytes())
    records.append(tmp_path / "records.jsonl", *records.read(run / "records.jsonl"))
    other = Experiment(net_options={"hidden": [16]}, rule="brsf", epochs=2, seed=5, probe_every=0)
    described = records.read_json(run / "experiment.json")
    described["experiment"]["seed"] = 5
    records.write_json(tmp_path / "experiment.json", described | {"key": other.key})
    with pytest.raises(ValueError, match="belongs to the experiment"):
        from_run(tmp_path)


# models made elsewhere


def saved(model: nn.Module, path: Path) -> Path:
    torch.save(model.state_dict(), path)
    return path


def plain(name: str = "their_nets:small", **options: Any) -> trained_net.Trained:
    known: dict[str, Any] = {"weights": None, "data_name": "digits"}
    return from_model(name, **known | options)


def test_a_state_dict_is_loaded_and_decides_the_digest(package: Path) -> None:
    import their_nets

    weights = saved(their_nets.small(), package / "w.pt")
    net, again = (plain(weights=weights) for _ in range(2))
    x, _ = net.examples(5)
    mean, std = data.load("digits").mean, data.load("digits").std
    model = their_nets.small()
    model.load_state_dict(torch.load(weights))
    torch.testing.assert_close(net.model(x), model((x - mean[0]) / std[0]))
    unit = plain(weights=weights, pixels="unit")
    torch.testing.assert_close(unit.model(x), model(x))
    assert net.digest == again.digest != unit.digest
    assert net.digest != plain(weights=saved(their_nets.small(), weights)).digest


def test_options_modules_and_wrapped_state_dicts(package: Path) -> None:
    import their_nets

    torch.save({"state_dict": their_nets.small(5).state_dict(), "epoch": 3}, "w.pt")
    assert plain(weights="w.pt", options={"width": 5}).model.model[1].out_features == 5
    before = {k: v.clone() for k, v in their_nets.ready.state_dict().items()}
    torch.save(their_nets.small().state_dict(), "w.pt")
    net = plain("their_nets:ready", weights="w.pt")
    assert net.model.model is not their_nets.ready
    assert all(torch.equal(v, before[k]) for k, v in their_nets.ready.state_dict().items())
    with pytest.raises(ValueError, match="is a module already: options have no effect"):
        plain("their_nets:ready", options={"width": 5})


def test_a_model_that_was_converted_keeps_its_feedback(package: Path) -> None:
    import their_nets

    model = apical.convert(their_nets.small(), rule_assignment("fa"), seed=7)
    net = plain(weights=saved(model, package / "w.pt"), rule="fa", pixels="unit")
    x, y = net.examples(20)
    own, exact = (attacks.FGSM(0.1)(net.model, x, y, gradient=g) for g in ("own", "exact"))
    assert not torch.equal(own, exact)
    assert torch.equal(own, attacks.FGSM(0.1)(model.eval(), x, y, gradient="own"))


def test_the_checkpoint_of_a_run_fits_a_plain_model(run: Path, package: Path) -> None:
    net = plain("mlp", weights=run / "checkpoint.pt", rule="brsf", options={"hidden": [16]})
    assert accuracy(net) == pytest.approx(accuracy(from_run(run)))


def test_refusals(package: Path) -> None:
    import their_nets

    torch.save([1, 2], "list.pt")
    torch.save(their_nets.small(3).state_dict(), "narrow.pt")
    torch.save(their_nets.small(), "whole.pt")
    for options, message in (
        ({"name": "no_nets:small"}, "no module 'no_nets' to import"),
        ({"name": "their_nets:smal"}, "unknown name in 'their_nets' 'smal'; did you mean 'small'"),
        ({"weights": "absent.pt"}, "there is no file absent.pt"),
        ({"weights": "their_nets.py"}, r"cannot be read as tensors.*torch.save\(model.state_dict"),
        ({"weights": "list.pt"}, "holds a list, not a state dict"),
        ({"weights": "narrow.pt"}, r"does not fit \w+:\n  - other shapes: .*weight"),
        ({"weights": "whole.pt"}, "cannot be read as tensors"),
        ({"data_name": "digit"}, "unknown data set 'digit'"),
        ({"name": "their_nets:small", "size": 9}, "cannot take inputs"),
    ):
        with pytest.raises(ValueError, match=message):
            plain(**options)
