"""Models as people have them: named inputs and outputs, segmentation nets, a dozen foreign ones.

The full sweep over many libraries is `benchmarks/models.py`.
"""

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical import probes
from apical.measure import diagnostics
from apical.rules import DFA

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
sys.path.append(str(BENCHMARKS))

import models  # noqa: E402
from model_definitions import SUBJECTS, Subject  # noqa: E402


@dataclass
class Output:
    logits: Tensor
    hidden: Tensor
    loss: Tensor | None = None


class Named(nn.Module):
    """Keyword inputs, several outputs, and a loss inside where it is given labels."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.first = nn.Embedding(9, 6), nn.Linear(6, 8)
        self.second, self.last = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor, mask: Tensor, labels: Tensor | None = None) -> Output:
        words = self.embedding(tokens) * mask.unsqueeze(-1)
        hidden = torch.tanh(self.second(input=torch.tanh(self.first(words.mean(1)))))
        logits = self.last(hidden)
        loss = None if labels is None else F.cross_entropy(logits, labels)
        return Output(logits, hidden, loss)


class Plain(Named):
    """The same with one input and one output."""

    def forward(self, both: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(both[0], both[1].double()).logits


def batch() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(9, (6, 5), generator=generator)
    return {"tokens": tokens, "mask": (tokens > 1).double()}, torch.arange(6) % 3


def of_kind(kind: type[Named]) -> Named:
    torch.manual_seed(0)
    return kind().double()


@pytest.mark.parametrize("rule", ["fa", "dfa", "drtp"])
def test_probes_and_diagnostics_take_named_inputs_and_outputs(rule: str) -> None:
    x, y = batch()
    stacked = torch.stack([x["tokens"], x["mask"].long()])
    broadcasts = rule != "fa"
    options = {"output": "logits"} if broadcasts else {}
    named = apical.convert(of_kind(Named), rule, example=x, **options)
    plain = apical.convert(of_kind(Plain), rule, example=stacked)

    def of_named(output: Output, y: Tensor) -> Tensor:
        return F.cross_entropy(output.logits, y)

    for probe in (probes.gradient_alignment, probes.delta_alignment, diagnostics.measure):
        ours, theirs = probe(named, of_named, x, y), probe(plain, F.cross_entropy, stacked, y)
        if not broadcasts and probe is diagnostics.measure:  # the error of which output?
            unknown = ("error_rank", "delta_rank", "signal")
            theirs = [{k: v for k, v in row.items() if k not in unknown} for row in theirs]
        assert ours == theirs
        assert ours
    diagnostics.check(named, of_named, x, y)
    read = probes.linear_probe(named, train=(x, y), test=(x, y), layers=["second", "last"])
    assert read.keys() == {"second", "last"} and all(0 <= share <= 1 for share in read.values())
    with pytest.raises(ValueError, match=r"tokens \(6, 5\), mask \(6, 5\) with targets \(5,\)"):
        probes.linear_probe(named, train=(x, y[:5]), test=(x, y))


def test_a_loss_inside_the_model_is_refused_with_the_lines_that_work() -> None:
    x, y = batch()
    model = apical.convert(of_kind(Named), "dfa", output="logits")
    with pytest.raises(ValueError, match=r"outputs\.logits, labels.*compute_loss_func"):
        model(**x, labels=y)
    outputs = model(**x)
    F.cross_entropy(outputs.logits, y).backward()
    assert model.first.weight.grad is not None and model.first.weight.grad.any()


class UNet(nn.Module):
    """Two levels with a skip connection: (N, 1, H, W) -> (N, 2, H, W)."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(1, 8, 3, padding=1)
        self.deep = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.join, self.head = nn.Conv2d(16, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = torch.relu(self.down(x))
        deep = torch.relu(self.up(torch.relu(self.deep(skip))))
        return self.head(torch.relu(self.join(torch.cat([skip, deep], 1))))


class DeepLab(nn.Module):
    """Strided trunk, pyramid of dilated convolutions, bilinear upsampling."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, stride=2, padding=1)
        self.trunk = nn.Conv2d(8, 16, 3, stride=2, padding=1)
        self.pyramid = nn.ModuleList(
            nn.Conv2d(16, 8, 3, padding=rate, dilation=rate) for rate in (1, 2, 3)
        )
        self.pooled, self.head = nn.Conv2d(16, 8, 1), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        trunk = torch.relu(self.trunk(torch.relu(self.stem(x))))
        mean = self.pooled(trunk.mean((2, 3), keepdim=True)).expand(-1, -1, *trunk.shape[2:])
        parts = [*(torch.relu(layer(trunk)) for layer in self.pyramid), torch.relu(mean)]
        return F.interpolate(self.head(torch.cat(parts, 1)), x.shape[2:], mode="bilinear")


@pytest.mark.parametrize("kind", [UNet, DeepLab])
def test_segmentation_nets_train_under_dfa_as_the_limit_of_memory_advises(kind: Any) -> None:
    """Far better than with hidden layers that keep their initial values, unlike under
    layout="channel", which sends one signal to all pixels and fits memory alone."""
    torch.manual_seed(0)
    x = 5 * F.avg_pool2d(torch.randn(4, 1, 24, 24), 5, 1, 2)
    y = (x[:, 0] > 0).long()
    full = sum(row.feedback_bytes for row in apical.plan(kind(), "dfa", example=x).rows)
    with pytest.raises(ValueError, match=rf"{full:,} bytes .*'pixels'.*layout='channel'"):
        apical.convert(kind(), "dfa", example=x, max_feedback_bytes=full - 1)
    for rule in (DFA(layout="channel"), DFA(positions="pixels")):
        planned = apical.plan(kind(), rule, example=x)
        sizes = {row.layer: row.feedback_bytes for row in planned.rows}
        described = apical.describe(apical.convert(kind(), rule, example=x))
        assert sizes == {row.layer: row.feedback_bytes for row in described.rows}
        assert 10 * sum(sizes.values()) < full
    losses = {}
    for name, rule in {"dfa": DFA(positions="pixels"), "frozen": "frozen"}.items():
        torch.manual_seed(1)
        model = apical.convert(kind(), rule, example=x)
        optimizer = torch.optim.Adam(model.parameters(), 1e-2)
        for _ in range(25):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
        losses[name] = loss.item()
    assert losses["dfa"] < 0.85 * losses["frozen"]  # here 0.45 and 0.43 to 0.67


def test_a_plan_gives_the_bytes_of_attention_and_of_positions() -> None:
    def net() -> nn.Sequential:
        return nn.Sequential(
            nn.Linear(5, 8), nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0), nn.Linear(8, 3)
        )

    x = torch.randn(6, 4, 5)  # steps first
    rules = {"*.self_attn": DFA(positions="samples"), "*": DFA(positions="samples", sample_axis=1)}
    for assigned, options in (
        (rules, {"output_axis": 1}),
        ({"*.self_attn": DFA(), "*": DFA(sample_axis=1)}, {"output_axis": 1}),
    ):
        planned = apical.plan(net(), assigned, example=x, **options)
        stored: dict[str, int] = {}
        for row in apical.describe(apical.convert(net(), assigned, example=x, **options)).rows:
            layer = row.layer.rpartition(".")[0] if "self_attn." in row.layer else row.layer
            stored[layer] = stored.get(layer, 0) + row.feedback_bytes
        assert {row.layer: row.feedback_bytes for row in planned.rows} == stored
        assert "needs example=" in str(apical.plan(net(), assigned)) not in str(planned)


DOZEN = (
    "snntorch:Lapicque", "snntorch:Leaky", "snntorch:Synaptic",
    "timm:test_byobnet", "timm:test_convnext", "timm:test_efficientnet", "timm:test_mambaout",
    "timm:test_nfnet", "timm:test_resnet", "timm:test_vit",
    "torch:Bilinear", "torch:LSTM", "torch:TransformerEncoder",
    "torchvision:shufflenet_v2_x0_5", "torchvision:squeezenet1_1",
)  # fmt: skip


@pytest.mark.filterwarnings("ignore")
def test_a_dozen_models_of_other_libraries(vision: Any) -> None:
    for name in DOZEN:
        for row in models.examine(name, models.RULES):
            assert row["outcome"] in ("ok", "remedied"), str(row)


def test_the_sweep_is_wide_and_its_record_is_clean() -> None:
    assert len(SUBJECTS) >= 120 and len({name.partition(":")[0] for name in SUBJECTS}) >= 8
    rows = json.loads((BENCHMARKS.parent / "results" / "models.json").read_text())["rows"]
    usable = [row for row in rows if row["outcome"] != "unusable"]
    assert len({row["model"] for row in usable}) >= 120
    assert len({row["model"].partition(":")[0] for row in usable}) >= 8
    assert {row["outcome"] for row in usable} <= {"ok", "remedied", "refused", "overflow"}


def test_the_sweep_sees_silent_layers_and_raw_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    net = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3))
    monkeypatch.setitem(SUBJECTS, "a:net", lambda: Subject(net, torch.randn(3, 4)))
    convert = apical.convert

    def outcome() -> str:
        (row,) = models.examine("a:net", ["fa"])
        return row["outcome"]

    assert outcome() == "ok"
    with monkeypatch.context() as patch:
        patch.setattr(apical, "convert", lambda model, rule, **options: _cut(convert(model, rule)))
        assert outcome() == "silent"
    with monkeypatch.context() as patch:
        patch.setattr(apical, "convert", _fails)
        assert outcome() == "raw"


def _cut(model: nn.Module) -> nn.Module:
    model[0].weight.requires_grad_(False)  # type: ignore[index,union-attr]
    return model


def _fails(*args: Any, **options: Any) -> None:
    raise RuntimeError("mat1 and mat2 shapes cannot be multiplied (3x4 and 5x4)")
