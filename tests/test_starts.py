"""Starting from trained weights: where they are read from, and that all of them fit."""

import importlib.metadata
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import apical
from apical import nets
from apical.nets import pretrained as starts
from apical.nets.pretrained import weights

PACKAGED = "package:pyautoattack/examples/model_test.pt"


def net(outputs: int = 3, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, outputs)
        )


def same(model: nn.Module, other: nn.Module, *, but: str = "none") -> bool:
    mine, theirs = model.state_dict(), other.state_dict()
    return all(torch.equal(mine[k], theirs[k]) for k in mine if not k.startswith(but))


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".safetensors"])
def test_a_state_dict_file_of_either_kind(tmp_path, suffix):
    model, path = net(), tmp_path / f"weights{suffix}"
    if suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(model.state_dict(), path)
    else:
        torch.save(model.state_dict(), path)
    for source in (path, str(path)):
        other = net(seed=1)
        assert starts.load(other, source) == []
        assert same(model, other)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {}, "lr": 0.1}},
        lambda s: {"model": s, "optimizer": {"exp_avg": torch.zeros(2)}},
        lambda s: {"belongs_to": {}, "state": {"model": s, "optimizer": {}}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {f"_orig_mod.module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module.{k}": v for k, v in s.items()}},
        lambda s: {k: v for k, v in s.items() if "num_batches" not in k},
    ],
)
def test_checkpoints_of_training_scripts(tmp_path, wrap):
    model, other = net(), net(seed=1)
    torch.save(wrap(model.state_dict()), tmp_path / "checkpoint.pt")
    starts.load(other, tmp_path / "checkpoint.pt")
    assert same(model, other, but="1.num_batches")


def test_a_checkpoint_of_two_nets_asks_which():
    first, second = net().state_dict(), net(seed=1).state_dict()
    both = {"student": first, "teacher": second}
    with pytest.raises(ValueError, match=r"several state dicts: 'student', 'teacher'.*entry="):
        starts.read(both)
    assert starts.read(both, entry="teacher")["0.bias"] is second["0.bias"]
    with pytest.raises(ValueError, match=r"'techer'; did you mean 'teacher'"):
        starts.read(both, entry="techer")


def test_what_is_skipped_stays_and_is_named():
    other, start = net(5, seed=1), net(seed=2)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    assert starts.load(other, start.state_dict(), skip=["4.*"]) == ["4.weight", "4.bias"]
    assert torch.equal(other[4].weight, before["4.weight"])
    assert same(start, other, but="4")
    with pytest.raises(ValueError, match=r"to skip 'head.\*'"):
        starts.load(other, start.state_dict(), skip=["head.*"])


def test_names_can_be_mapped():
    start = {f"backbone.{k}".replace("backbone.4", "top"): v for k, v in net().state_dict().items()}
    other = net(seed=1)
    starts.load(other, start, rename={"backbone.": "", "top.": "4."})
    assert same(net(), other)
    with pytest.raises(ValueError, match="no tensor's name begins with 'body.'"):
        starts.load(other, start, rename={"body.": ""})


def test_what_does_not_fit_is_named_and_nothing_is_loaded():
    start, other = net(7).state_dict(), net(seed=1)
    start["extra.weight"] = torch.ones(2)
    start["0.bias"] = torch.full((4,), float("nan"))
    del start["1.weight"]
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises(ValueError) as error:
        starts.load(other, start)
    text = str(error.value)
    assert "other shapes: 4.weight (7, 16) for (3, 16), 4.bias (7,) for (3,)" in text
    assert "missing: 1.weight\n" in text and "unexpected: extra.weight\n" in text
    assert "NaN or infinite: 0.bias" in text and "skip=" in text
    assert all(torch.equal(before[k], v) for k, v in other.state_dict().items())


def test_a_converted_net_takes_plain_weights_and_keeps_its_feedback():
    model = apical.convert(net(seed=1), "fa")
    feedback = {k: v.clone() for k, v in model.state_dict().items() if "feedback" in k}
    with pytest.warns(UserWarning, match="keeps its own"):
        starts.load(model, net().state_dict())
    assert feedback and all(torch.equal(model.state_dict()[k], v) for k, v in feedback.items())
    assert torch.equal(model[0].weight, net()[0].weight)
    again = apical.convert(net(seed=2), "fa", seed=5)
    starts.load(again, model.state_dict())
    assert same(model, again)


def test_a_file_in_a_package_is_found_without_importing_it():
    for name in [n for n in sys.modules if n.split(".")[0] == "pyautoattack"]:
        del sys.modules[name]
    state = starts.read(PACKAGED)
    assert state["conv1.weight"].shape == (64, 3, 3, 3) and len(state) == 122
    assert not any(n.split(".")[0] == "pyautoattack" for n in sys.modules)
    assert starts.locate("pyautoattack", "pyautoattack/examples/model_test.pt").is_file()
    with pytest.raises(ValueError, match=r"no file 'nix.pt'; it has: .*model_test.pt"):
        starts.locate("pyautoattack", "nix.pt")
    with pytest.raises(ValueError, match="has 12 files|has [0-9]+ files"):
        starts.locate("torch", "__init__.py")
    with pytest.raises(ValueError, match=r"'no-such-one' is not installed; pip install"):
        starts.read("package:no-such-one/file.pt")
    with pytest.raises(ValueError, match="expected package:DISTRIBUTION/PATH"):
        starts.read("package:pyautoattack")


def test_an_editable_package_without_a_listing_has_no_file(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "files", lambda name: None)
    with pytest.raises(ValueError, match="has no file 'x.pt'; it has: none"):
        starts.locate("anything", "x.pt")


def test_weights_of_torchvision_by_name(torchvision, monkeypatch):
    built = torchvision.models.resnet18()
    asked = []

    def fetch(url, **options):
        asked.append(url)
        return built.state_dict()

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", fetch)
    model = nets.build("torchvision:resnet18", in_shape=(3, 32, 32), num_classes=1000)
    for source in ("torchvision:resnet18", "torchvision:resnet18@IMAGENET1K_V1"):
        starts.load(model, source)
        assert same(built, model)
    assert "resnet18" in asked[0] and len(asked) == 2
    with pytest.raises(ValueError, match="unknown torchvision net 'resnet19'; did you mean"):
        starts.read("torchvision:resnet19")
    with pytest.raises(ValueError, match="unknown weights of torchvision:resnet18 'V1'"):
        starts.read("torchvision:resnet18@V1")

    def offline(url, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", offline)
    with pytest.raises(ValueError, match=r"not be loaded \(no route to host\).*give the file"):
        starts.read("torchvision:resnet18")


def test_weights_of_timm_by_name(vision, monkeypatch):
    made = net()
    asked = []

    def create_model(name, pretrained):
        asked.append((name, pretrained))
        return made

    monkeypatch.setattr(vision, "create_model", create_model)
    other = net(seed=1)
    starts.load(other, "timm:resnet18.a1_in1k")
    assert same(made, other) and asked == [("resnet18.a1_in1k", True)]
    with pytest.raises(ValueError, match="unknown timm net 'resnet_eighteen'"):
        starts.read("timm:resnet_eighteen")


class Whole(nn.Module):
    """Saved as an object, not as tensors."""


def test_what_is_no_start_is_said(tmp_path):
    with pytest.raises(ValueError, match="there is no file"):
        starts.read(tmp_path / "none.pt")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoint.pt").touch()
    with pytest.raises(ValueError, match=r"run is a folder, give .*run/checkpoint\.pt\. A start"):
        starts.read(tmp_path / "run")
    torch.save(Whole(), tmp_path / "whole.pt")
    with pytest.raises(ValueError, match="cannot be read as tensors"):
        starts.read(tmp_path / "whole.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    with pytest.raises(ValueError, match="holds a list, not a state dict"):
        starts.read(tmp_path / "list.pt")
    torch.save({"epoch": 3}, tmp_path / "none.pt")
    with pytest.raises(ValueError, match="holds no tensors; its keys: epoch"):
        starts.read(tmp_path / "none.pt")
    (tmp_path / "x.safetensors").write_bytes(b"not this")
    with pytest.raises(ValueError, match="is no safetensors file"):
        starts.read(tmp_path / "x.safetensors")


def test_without_safetensors_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors", None)
    path = tmp_path / "x.safetensors"
    path.touch()
    with pytest.raises(ValueError, match="pip install safetensors"):
        starts.read(path)


def test_paths_of_files_are_never_read_as_sources():
    assert weights.WRAPPED[0] == "state_dict"
    with pytest.raises(ValueError, match="there is no file"):
        starts.read(Path("package_of_mine.pt"))
