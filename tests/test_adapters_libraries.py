"""Whole models of other libraries, fully converted; each test needs its library (see
docs/adapters.md for the versions that were tried)."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.core import updates
from apical.core.layers import converted_layers
from apical.rules import FA

IDS = torch.randint(0, 50, (4, 12), generator=torch.Generator().manual_seed(0))


def transformers() -> Any:
    from torchvision_ops import import_torchvision

    pytest.importorskip("transformers")
    import_torchvision()  # transformers imports it where it is installed
    import transformers

    return transformers


def gpt2() -> nn.Module:
    library = transformers()
    config = library.GPT2Config(
        n_layer=2, n_head=2, n_embd=32, vocab_size=50, n_positions=16, bos_token_id=0,
        eos_token_id=0, resid_pdrop=0, attn_pdrop=0, embd_pdrop=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return library.GPT2LMHeadModel(config)


def experts(kind: str) -> nn.Module:
    library = transformers()
    options = {
        "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "num_experts_per_tok": 2,
        "moe_intermediate_size": 16, "num_experts": 4, "num_local_experts": 4, "head_dim": 16,
    }  # fmt: skip
    config = getattr(library, f"{kind}Config")(**options)
    config._experts_implementation = "eager"
    torch.manual_seed(0)
    return getattr(library, f"{kind}ForCausalLM")(config)


def language_loss(model: nn.Module) -> Tensor:
    logits = model(input_ids=IDS).logits[:, :-1]
    return F.cross_entropy(logits.reshape(-1, 50), IDS[:, 1:].reshape(-1))


def graph_net() -> nn.Module:
    geometric = pytest.importorskip("torch_geometric.nn")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = geometric.GCNConv(4, 16), geometric.GCNConv(16, 3)

        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x, edges)), edges)

    torch.manual_seed(0)
    return Net()


def graph_loss(model: nn.Module) -> Tensor:
    draw = torch.Generator().manual_seed(1)
    x, edges = torch.randn(8, 4, generator=draw), torch.randint(0, 8, (2, 20), generator=draw)
    p = next(model.parameters())
    return F.cross_entropy(model(x.to(p.dtype), edges), torch.arange(8) % 3)


def classifier() -> nn.Module:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(50, 8)
            self.lstm = nn.LSTM(8, 16, num_layers=2, bidirectional=True, batch_first=True)
            self.head = nn.Linear(32, 4)

        def forward(self, ids: Tensor) -> Tensor:
            return self.head(self.lstm(self.embed(ids))[0].mean(1))

    torch.manual_seed(0)
    return Net()


def class_loss(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(IDS), torch.arange(4))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], Tensor]]] = {
    "GPT-2": (gpt2, language_loss),
    "Mixtral": (lambda: experts("Mixtral"), language_loss),
    "Qwen3-MoE": (lambda: experts("Qwen3Moe"), language_loss),
    "gpt-oss": (lambda: experts("GptOss"), language_loss),
    "GCN": (graph_net, graph_loss),
    "LSTM": (classifier, class_loss),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_convert_fully_train_and_equal_plain_pytorch(name: str) -> None:
    make, loss_of = MODELS[name]
    plain = make().double()
    rules: list[Any] = ["fa", "kp"]
    if name == "GPT-2":  # its output matrix is the table of its embeddings
        rules[1] = {"lm_head": "fa", "*": "kp"}
    for rule in rules:
        model = apical.convert(copy.deepcopy(plain).float(), rule)
        matrices = [p for n, p in model.named_parameters() if p.dim() > 1 and "feedback" not in n]
        converted = {
            id(p) for _, m in converted_layers(model) for p in m.parameters() if p.dim() > 1
        }
        tables = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
        assert all(id(p) in converted | tables for p in matrices)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        losses = []
        for _ in range(15):
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
        assert losses[-1] < losses[0] - 0.02
    loss_of(plain).backward()
    kept = apical.convert(copy.deepcopy(plain), "bp")
    kept.zero_grad()
    exact = apical.convert(copy.deepcopy(plain), FA())
    aligned = copy.deepcopy(exact)
    with torch.no_grad():
        for _, layer in converted_layers(aligned):
            for slot in updates.slots(layer):
                slot.feedback.matrix.copy_(slot.weight)
    loss_of(kept).backward()
    exact.zero_grad()
    with apical.exact_gradients(exact):
        loss_of(exact).backward()
    aligned.zero_grad()
    loss_of(aligned).backward()
    gradients = {n: p.grad for n, p in plain.named_parameters()}
    for model, tolerance in ((kept, 0.0), (exact, 0.0), (aligned, 1e-10)):
        for parameter, p in model.named_parameters():
            if "feedback" not in parameter and gradients[parameter] is not None:
                torch.testing.assert_close(
                    p.grad, gradients[parameter], rtol=tolerance, atol=tolerance
                )


def test_fused_experts_are_refused_under_broadcast_rules_with_a_remedy() -> None:
    model = experts("Mixtral")
    with pytest.raises(ValueError, match=r"mlp.experts \(MixtralExperts\): .*rows that are chosen"):
        apical.convert(model, "dfa")


def test_feedback_of_a_saved_model_is_reported_and_can_be_restored(tmp_path: Any) -> None:
    rule = {"lm_head": "fa", "*": "kp"}
    model = apical.convert(gpt2(), rule)
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.feedback.matrix.fill_(3)
    model.save_pretrained(tmp_path)
    kind = type(model)
    plain, report = kind.from_pretrained(tmp_path, output_loading_info=True)
    assert any("feedback" in key for key in report["unexpected_keys"])  # transformers says it
    from safetensors.torch import load_file

    apical.convert(plain, rule)
    missing, unexpected = plain.load_state_dict(
        load_file(tmp_path / "model.safetensors"), strict=False
    )
    assert (missing, unexpected) == (["lm_head.weight"], [])  # which is tied to the embeddings
    assert (plain.transformer.h[0].mlp.c_fc.feedback.matrix == 3).all()


def test_layers_of_torch_geometric_and_transformers() -> None:
    geometric = pytest.importorskip("torch_geometric.nn")
    x, edges = torch.randn(6, 4), torch.randint(0, 6, (2, 14))
    for layer in (geometric.GCNConv(4, 5), geometric.GATConv(4, 5, heads=3)):
        apical.check_adapter(layer, x, edges)
    apical.check_adapter(geometric.SAGEConv(4, 5), x, edges)
    apical.check_adapter(geometric.Linear(4, 5), torch.randn(2, 3, 4))
    apical.check_adapter(geometric.HeteroLinear(4, 5, 3), x, torch.tensor([0, 2, 0, 1, 2, 0]))
    conv1d = transformers().pytorch_utils.Conv1D(5, 4)
    apical.check_adapter(conv1d, torch.randn(2, 3, 4))
    file = io.BytesIO()
    torch.save(apical.convert(conv1d, "fa"), file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False).feedback.matrix, conv1d.feedback.matrix)


@pytest.mark.parametrize("mode", ["s", "m"])
def test_layers_of_spikingjelly(mode: str) -> None:
    layer = pytest.importorskip("spikingjelly.activation_based.layer")
    x = torch.randn(2, 3, 8, 8) if mode == "s" else torch.randn(4, 2, 3, 8, 8)
    for made in (
        layer.Conv2d(3, 4, 3, padding=1, step_mode=mode),
        layer.ConvTranspose2d(3, 4, 3, stride=2, step_mode=mode),
        layer.WSConv2d(3, 4, 3, step_mode=mode),
        layer.Linear(8, 4, step_mode=mode),
        layer.WSLinear(8, 4, step_mode=mode),
    ):
        apical.check_adapter(made, x)
    if mode == "m":
        net = nn.Sequential(
            layer.Conv2d(3, 4, 3, step_mode="m"), layer.Conv2d(4, 4, 3, step_mode="m")
        )
        apical.convert(net, apical.rules.DFA(sample_axis="steps"), output_axis=1, example=x)
        net(x).sum().backward()
        assert net[0].weight.grad.any()
