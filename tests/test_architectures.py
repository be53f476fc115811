"""A dozen foreign architectures under three rules: no layer is skipped silently.

The full sweep, one architecture of every family, is `benchmarks/architectures.py`.
"""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import apical
from apical import nets
from apical.rules import FA

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import architectures  # noqa: E402
from families import NAMES  # noqa: E402
from sweep_check import check  # noqa: E402

FAST = {
    "timm:convnext_atto": 32,
    "timm:ghostnet_050": 32,
    "timm:lcnet_050": 32,
    "timm:mambaout_femto": 32,
    "timm:repghostnet_050": 32,
    "timm:resnet10t": 32,
    "timm:starnet_s1": 32,
    "timm:vit_tiny_patch16_224": 32,
    "torchvision:mnasnet0_5": 32,
    "torchvision:mobilenet_v3_small": 32,
    "torchvision:resnet18": 32,
    "torchvision:shufflenet_v2_x0_5": 32,
    "torchvision:squeezenet1_1": 32,
}
pytestmark = pytest.mark.filterwarnings("ignore")  # of the nets' own code


@pytest.mark.parametrize("name", FAST)
def test_no_layer_is_skipped(vision, name):
    for rule in architectures.RULES.values():
        size = FAST[name]
        model = nets.build(name, in_shape=(3, size, size), num_classes=10, seed=0)
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        finding = check(model, x, rule)
        assert finding.problems == []
        assert not finding.rounding
        assert finding.converted > len(finding.exact) > 0


def test_weight_standardised_convolutions_are_converted(vision):
    (row,) = architectures.examine("timm:test_nfnet", ["usf"])
    assert row["outcome"] == "ok" and "with" not in row and row["converted"] > 10, row


def test_the_sweep_is_wide_enough():
    assert len(set(NAMES)) == len(NAMES) >= 60
    assert set(FAST) <= set(NAMES)


class _Bypassing(nn.Module):
    """Uses the weight of a layer without calling it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(12, 8), nn.Linear(8, 10)

    def forward(self, x):
        hidden = nn.functional.linear(x.flatten(1), self.first.weight, self.first.bias)
        return self.second(hidden)


def test_a_layer_that_is_never_called_is_refused_then_listed():
    x = torch.randn(2, 3, 2, 2)
    with pytest.raises(ValueError, match="never calls these layers.*'first'"):
        check(_Bypassing(), x, FA())
    finding = check(_Bypassing(), x, FA(), on_unsupported="keep")
    assert finding.kept_why == {"never called on the example": 1}
    assert finding.problems == []


def test_the_check_sees_a_layer_that_learns_nothing(monkeypatch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 10))
    convert = apical.convert

    def broken(model, rule, **options):
        convert(model, rule, **options)
        model[2] = _Cut()
        return model

    monkeypatch.setattr(apical, "convert", broken)
    problems = check(model, torch.randn(2, 3, 2, 2), FA()).problems
    assert problems == ["1.weight: no gradient, though backprop has one"]


class _Cut(nn.ReLU):
    def forward(self, x):
        return super().forward(x.detach())


def test_a_result_renders_as_markdown(tmp_path):
    out = tmp_path / "sweep.json"
    rows = [
        {"net": "a:b", "rule": "dfa", "outcome": "ok", "size": 32, "parameters": 1200,
         "converted": 3},
        {"net": "a:b", "rule": "fa", "outcome": "failed", "size": 32, "parameters": 1200},
    ]  # fmt: skip
    architectures.save(out, rows)
    text = architectures.markdown(json.loads(out.read_text())["rows"])
    assert "| a:b | 32 | 1,200 | 3 layers | failed |" in text
    assert "1 architectures, 2 checks: 1 ok, 0 refused, 1 failed." in text
