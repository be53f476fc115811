"""Attention: equal to torch's, its four projections through feedback, also on fast paths."""

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import apical

HIDDEN = ("brsf", "dfa", "fa", "frsf", "kp", "usf")
ALL = ("bp", *HIDDEN)


ATTENTIONS: dict[str, dict[str, Any]] = {
    "packed": {},
    "batch-first": {"batch_first": True},
    "other-dims": {"kdim": 6, "vdim": 3, "batch_first": True},
    "no-bias": {"bias": False, "batch_first": True},
    "bias-kv": {"add_bias_kv": True, "batch_first": True},
    "zero-attn": {"add_zero_attn": True, "batch_first": True},
}


def test_attention_equals_the_original_and_its_exact_gradients() -> None:
    for need_weights in (True, False):
        for options in ATTENTIONS.values():
            torch.manual_seed(0)
            plain = nn.MultiheadAttention(8, 2, **options).double()
            model = apical.convert(copy.deepcopy(plain), "fa")
            batch, t, s = 3, 4, 5
            sizes = ((t, 8), (s, options.get("kdim", 8)), (s, options.get("vdim", 8)))
            q, k, v = (torch.randn(batch, n, d).double() for n, d in sizes)
            if not options.get("batch_first"):
                q, k, v = (x.transpose(0, 1) for x in (q, k, v))
            masks: list[dict[str, Any]] = [
                {},
                {"attn_mask": torch.randn(t, s).double()},
                {"attn_mask": torch.randn(batch * 2, t, s).double()},
                {"key_padding_mask": torch.arange(s).expand(batch, s) == 4},
                {"attn_mask": torch.ones(t, s).triu(2).bool(), "average_attn_weights": False},
            ]
            for mask in masks:
                call = {"need_weights": need_weights, **mask}
                seen, expected = model(q, k, v, **call), plain(q, k, v, **call)
                assert_close(seen[0], expected[0], rtol=1e-10, atol=1e-12)
                if need_weights:
                    assert_close(seen[1], expected[1], rtol=1e-10, atol=1e-12)
                else:
                    assert seen[1] is None
                with apical.exact_gradients(model):
                    again = model(q, k, v, **call)[0].square().sum()
                ours = torch.autograd.grad(again, list(model.parameters()))
                theirs = torch.autograd.grad(expected[0].square().sum(), list(plain.parameters()))
                assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_dropout_acts_on_the_weights_that_are_returned() -> None:
    torch.manual_seed(0)
    plain = nn.MultiheadAttention(8, 2, dropout=0.5).double()
    model, x = apical.convert(copy.deepcopy(plain), "fa"), torch.randn(4, 3, 8).double()
    seen, expected = [], []
    for layer, found in ((model, seen), (plain, expected)):
        torch.manual_seed(1)
        found += layer(x, x, x)
    assert_close(seen, expected, rtol=1e-10, atol=1e-12)
    assert (seen[1] == 0).any()


def test_attention_projects_by_its_feedback() -> None:
    """With one head and one key the values pass unchanged: the chain v -> out by hand."""
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(4, 1, batch_first=True).double()
    apical.convert(layer, "fa")
    assert sorted(layer.feedback) == ["k", "out", "q", "v"]
    q, x = torch.randn(3, 1, 4).double(), torch.randn(3, 1, 4).double().requires_grad_()
    y, _ = layer(q, torch.zeros_like(x), x)
    g = torch.randn_like(y)
    y.backward(g)
    expected = g @ layer.feedback["out"].matrix @ layer.feedback["v"].matrix
    assert_close(x.grad, expected)
    value = x @ layer.in_proj_weight[8:].T + layer.in_proj_bias[8:]
    assert_close(layer.out_proj.weight.grad, g.flatten(0, 1).T @ value.flatten(0, 1))


def test_attention_under_every_rule_is_listed_and_trains() -> None:
    for name in HIDDEN:
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        model = nn.Sequential(nn.Linear(5, 8), layer, nn.Flatten(), nn.Linear(24, 2)).double()
        plain = copy.deepcopy(model)
        x = torch.randn(4, 3, 5).double()
        apical.convert(model, name, example=x)
        rows = [row.layer for row in apical.describe(model).rows]
        for part in ("q", "k", "v", "out"):
            assert f"1.self_attn.{part}" in rows
        assert_close(model(x), plain(x), rtol=1e-10, atol=1e-12)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        before = {key: p.clone() for key, p in model.named_parameters()}
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(model(x), torch.tensor([0, 1, 0, 1])).backward()
            optimizer.step()
        assert all(not torch.equal(p, before[key]) for key, p in model.named_parameters())
        model.eval(), plain.eval()
        plain.load_state_dict({k: v for k, v in model.state_dict().items() if "feedback" not in k})
        with torch.no_grad():
            assert_close(model(x), plain(x), rtol=1e-10, atol=1e-12)  # torch's fast path
        apical.revert(model)
        assert list(model.state_dict()) == list(plain.state_dict())


@pytest.mark.parametrize("name", ["dfa", "dkp"])
def test_an_example_sizes_the_feedback_of_attention(name: str) -> None:
    """An optimizer built after the conversion must find what it is to train."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(nn.Linear(5, 8), layer, nn.Flatten(), nn.Linear(24, 2))
    x = torch.randn(4, 3, 5)
    for mode in (False, True):
        apical.convert(model.train(mode), name, example=x)
        parameters = list(model.parameters())
        assert "pending" not in str(apical.describe(model))
        model(x).sum().backward()
        assert list(map(id, model.parameters())) == list(map(id, parameters))
        apical.revert(model)


def test_a_transformer_encoder_on_its_fast_path_with_padding() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's nested tensors are a prototype
        plain = nn.TransformerEncoder(layer, 2).eval()
        model = apical.convert(copy.deepcopy(plain), "fa")
        x, padding = torch.randn(2, 4, 8), torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]]).bool()
        with torch.no_grad():
            seen, expected = (m(x, src_key_padding_mask=padding) for m in (model, plain))
        keep = ~padding
        assert_close(seen[keep], expected[keep], rtol=1e-4, atol=1e-5)
        seen, expected = (m(x, src_key_padding_mask=padding) for m in (model, plain))
    assert_close(seen[keep], expected[keep], rtol=1e-4, atol=1e-5)
