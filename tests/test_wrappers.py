"""Sparse and quantised feedback: the matrix, the learning within, names and forms."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import apical
from apical import rules
from apical.rules import FA, KolenPollack, LowDimensional, Quantised, Sparse


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 5), nn.Linear(5, 3)).double()


def used(layer: nn.Module) -> torch.Tensor:
    feedback = layer.feedback
    return feedback.rule.matrix(layer.weight, *feedback.memory()).detach()


def train(model: nn.Module, steps: int) -> None:
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    x = torch.randn(6, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), torch.arange(6) % 3).backward()
        optimizer.step()


def test_exactly_so_many_entries_are_kept_as_they_are() -> None:
    layer = apical.convert(net(), Sparse(FA(), density=0.3))[2]
    matrix, inner = used(layer), layer.feedback.matrix
    kept = matrix != 0
    assert int(kept.sum()) == 12  # of 40
    assert torch.equal(matrix[kept], inner[kept])
    assert torch.equal(kept.double(), layer.feedback.mask)
    assert int(apical.convert(net(), Sparse(density=1e-9))[2].feedback.mask.sum()) == 1


def test_levels() -> None:
    for bits, levels in ((1, 2), (2, 3), (3, 7), (4, 15)):
        layer = apical.convert(net(), Quantised(FA(), bits=bits))[0]
        matrix, inner = used(layer), layer.feedback.matrix
        assert len(matrix.unique()) <= levels
        assert len(matrix.unique()) >= min(levels, 5)
        if bits == 1:
            assert_close(matrix, inner.sign() * inner.abs().mean())
        else:
            step = inner.abs().max() / (levels // 2)
            assert_close(matrix / step, (matrix / step).round(), rtol=0, atol=1e-9)
            assert (matrix - inner).abs().max() <= step / 2 + 1e-12
    assert not used(apical.convert(nn.Linear(3, 2), "quantised(usf)")).isnan().any()


@pytest.mark.parametrize("wrap", [Sparse, Quantised])
def test_a_rule_within_that_learns_keeps_its_law(wrap: type) -> None:
    model = apical.convert(net(), wrap(KolenPollack(decay=0.02)))
    start = [(la.feedback.matrix - la.weight).detach().clone() for la in (model[0], model[2])]
    train(model, 20)
    for layer, gap in zip((model[0], model[2]), start, strict=True):
        left = (layer.feedback.matrix - layer.weight).detach()
        assert_close(left, 0.98**20 * gap, rtol=0, atol=1e-12)


@pytest.mark.parametrize("wrap", [Sparse, Quantised])
def test_a_rule_within_that_takes_notes_is_given_them(wrap: type) -> None:
    model = apical.convert(net(), wrap(LowDimensional(rank=2)))
    before = model[2].feedback.projection.clone()
    train(model, 1)
    assert not torch.equal(model[2].feedback.projection, before)
    assert not any(note.any() for note in model[2].feedback.notes)


def test_the_message_passes_through_the_thinned_matrix() -> None:
    layer = apical.convert(nn.Linear(6, 4).double(), "sparse(quantised(ldfa))")
    x = torch.ones(2, 6, dtype=torch.float64, requires_grad=True)
    upstream = torch.arange(8.0).view(2, 4).double()
    layer(x).backward(upstream)
    assert_close(x.grad, upstream @ used(layer), rtol=0, atol=1e-12)


NESTED = [
    (Sparse(), "sparse(fa)", {"rule": "sparse(fa)"}),
    (Sparse(rules.build("kp")), "sparse(kp)", {"rule": "sparse(kp)"}),
    (
        Sparse(KolenPollack(decay=0), density=0.25),
        "sparse(kp(decay=0), density=0.25)",
        {"rule": "sparse(kp)", "inner": {"rule": "kp", "decay": 0}, "density": 0.25},
    ),
    (
        Quantised(Sparse(rules.build("usf")), bits=1),
        "quantised(sparse(usf), bits=1)",
        {"rule": "quantised(sparse(usf))", "bits": 1},
    ),
]


def test_names_and_forms_of_nested_rules() -> None:
    for rule, text, form in NESTED:
        assert rules.spell(rule) == text
        assert rules.to_dict(rule) == form
        assert rules.from_dict(form) == rule
        assert rules.build(form["rule"], **{k: v for k, v in form.items() if k != "rule"}) == rule


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"density=0 is outside \(0, 1\]"):
        Sparse(density=0)
    with pytest.raises(ValueError, match="from 1 to 16"):
        Quantised(bits=17)
    with pytest.raises(ValueError, match="is no transport rule"):
        Sparse(rules.build("dfa"))
    with pytest.raises(
        ValueError, match=r"inner='kp' is not a rule.*rules.build\('sparse\(fa\)'\)"
    ):
        Sparse("kp")
    with pytest.raises(ValueError, match="constrain_weights to the wrapper"):
        Sparse(FA(constrain_weights=True))
    with pytest.raises(ValueError, match="'spares'.*sparse"):
        rules.build("spares(fa)")
    with pytest.raises(ValueError, match=r"unknown rule 'kq'"):
        rules.build("sparse(kq)")


def test_a_wrapper_is_cited_beside_the_rule_within() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    text = apical.cite(apical.convert(model, {"0": Sparse(FA()), "2": FA()}))
    assert text.count("crafton2019") == text.count("lillicrap2016") == 1
