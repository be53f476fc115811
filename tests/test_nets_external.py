"""Nets of other packages: shapes honoured or refused, broken installations explained."""

import importlib

import pytest
import torch
from torch import nn

from apical import nets

SMALL = {"in_shape": (3, 32, 32), "num_classes": 7}


class Pair(nn.Module):
    """Gives a dictionary, as transformers models do, and sits partly in eval mode."""

    def __init__(self, num_classes):
        super().__init__()
        norms = nn.BatchNorm1d(num_classes), nn.BatchNorm1d(num_classes)
        self.body = nn.Sequential(nn.Flatten(), nn.LazyLinear(num_classes), *norms)
        self.body[3].eval()

    def forward(self, x):
        return {"logits": self.body(x), "loss": None}


def tiny(in_shape, num_classes, width=4):
    inputs = in_shape[0] * in_shape[1] * in_shape[2]
    layers = nn.Flatten(), nn.Linear(inputs, width), nn.Linear(width, num_classes)
    return nn.Sequential(*layers)


def ten_always():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))


def not_a_net():
    return 3


@pytest.fixture
def here(monkeypatch):
    """This file under a name that can be imported."""
    import sys

    monkeypatch.setitem(sys.modules, "my_nets", sys.modules[__name__])


def test_a_torchvision_net_honours_its_classes(torchvision):
    model = nets.build("torchvision:resnet18", **SMALL, seed=0)
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 7)
    assert model.training
    same = nets.build("torchvision:resnet18", **SMALL, seed=0)
    assert torch.equal(model.conv1.weight, same.conv1.weight)


def test_the_bare_name_of_a_foreign_net_gets_its_full_name(vision):
    with pytest.raises(ValueError, match="did you mean 'torchvision:resnet18' or 'timm:resnet18'"):
        nets.build("resnet18", **SMALL)
    with pytest.raises(ValueError, match="did you mean 'timm:resnet10t'"):
        nets.build("resnet10t", **SMALL)


def test_a_timm_net_honours_channels_size_and_classes(vision):
    shape = {"in_shape": (1, 32, 32), "num_classes": 7}
    model = nets.build("timm:vit_tiny_patch16_224", **shape)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)
    model = nets.build("timm:resnet10t", **shape)
    assert model(torch.randn(2, 1, 32, 32)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "text"),
    [("torchvision:resnet19", "did you mean 'resnet1"), ("timm:vit_tini", "did you mean 'vit_t")],
)
def test_a_misspelt_foreign_net_gets_near_names(vision, name, text):
    with pytest.raises(ValueError) as caught:
        nets.build(name, **SMALL)
    assert text in str(caught.value)


def test_what_a_foreign_net_cannot_do_is_refused(torchvision):
    with pytest.raises(ValueError, match="cannot take inputs"):
        nets.build("torchvision:resnet18", in_shape=(1, 32, 32), num_classes=7)
    with pytest.raises(ValueError, match="refused the arguments"):
        nets.build("torchvision:resnet18", **SMALL, colour="blue")
    with pytest.raises(ValueError, match="refused the arguments"):
        nets.build("torchvision:resnet18", **SMALL, weights="DEFAULT")


@pytest.mark.usefixtures("here")
def test_any_callable_builds_a_net():
    model = nets.build("my_nets:tiny", **SMALL, width=5)
    assert model[1].weight.shape == (5, 3 * 32 * 32)


@pytest.mark.usefixtures("here")
def test_trying_the_shape_leaves_no_trace():
    model = nets.build("my_nets:Pair", in_shape=(1, 2, 2), num_classes=3)
    _, _, trained, frozen = model.body
    assert (model.training, trained.training, frozen.training) == (True, True, False)
    assert trained.num_batches_tracked == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("my_nets:ten_always", "not 7 classes"),
        ("my_nets:not_a_net", "gave a int"),
        ("my_nets:tinny", "did you mean 'tiny'"),
        ("my_nets:SMALL", "is dict: expected a class of torch.nn.Module"),
        ("no_such_package_here:net", "no module 'no_such_package_here'"),
    ],
)
def test_callables_that_are_no_net(name, text):
    with pytest.raises(ValueError) as caught:
        nets.build(name, **SMALL)
    assert text in str(caught.value)


def test_a_torchvision_built_for_another_torch_is_explained(monkeypatch):
    def broken(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(importlib, "import_module", broken)
    for name in ("torchvision:resnet18", "timm:resnet10t"):
        with pytest.raises(ValueError, match=r"built for another torch .* pip install"):
            nets.build(name, **SMALL)
