"""Initial weights: bounds and spreads of the published laws."""

import math

import pytest
import torch
from torch import nn

from apical import nets


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("law", "bound", "std"),
    # U(+-a) has std a / sqrt(3); numbers of Linear(300, 200): .1095 / .06325 and .0577 / .0333
    [
        ("xavier", math.sqrt(6 / 500), math.sqrt(2 / 500)),
        ("default", 1 / math.sqrt(300), 1 / math.sqrt(900)),
    ],
)
def test_the_law_of_a_linear_layer(law, bound, std):
    layer = nets.initialise(nn.Linear(300, 200), law, generator())
    assert layer.weight.abs().max() <= bound
    assert layer.weight.abs().max() > 0.99 * bound
    # 60,000 draws: the standard error of the spread is 0.2 %
    assert float(layer.weight.detach().std()) == pytest.approx(std, rel=0.01)
    if law == "xavier":
        assert not layer.bias.any()
    else:
        assert 0.9 * bound < layer.bias.abs().max() <= bound


def test_the_fans_of_a_convolution_count_its_kernel_and_groups():
    layer = nets.initialise(nn.Conv2d(64, 32, 3, groups=4), "xavier", generator())
    bound = math.sqrt(6 / (64 // 4 * 9 + 32 * 9))
    assert 0.99 * bound < layer.weight.abs().max() <= bound


def test_the_default_law_is_that_of_pytorch():
    torch.manual_seed(0)
    fresh = nn.Conv1d(8, 4, 5)
    torch.manual_seed(0)
    again = nets.initialise(nn.Conv1d(8, 4, 5), "xavier")
    torch.manual_seed(0)
    nets.initialise(again, "default")
    torch.testing.assert_close(again.weight, fresh.weight)
    torch.testing.assert_close(again.bias, fresh.bias)


def test_attention_norms_and_tokens():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    norm = model.norm1.weight
    with torch.no_grad():
        norm.fill_(3)
        model.self_attn.in_proj_bias.fill_(1)
    old = model.self_attn.in_proj_weight.detach().clone()
    nets.initialise(model, "xavier", generator())
    assert not torch.equal(old, model.self_attn.in_proj_weight)
    assert not model.self_attn.in_proj_bias.any()
    assert not model.self_attn.out_proj.bias.any()
    assert norm.eq(3).all()


def test_the_generator_decides_and_the_global_one_is_left_alone():
    layers = [nn.Linear(4, 3) for _ in range(3)]
    before = torch.get_rng_state()
    pairs = zip(layers, (1, 1, 2), strict=True)
    draws = [nets.initialise(layer, "default", generator(seed)).weight for layer, seed in pairs]
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_another_law_is_refused():
    with pytest.raises(ValueError, match="did you mean 'xavier'"):
        nets.initialise(nn.Linear(2, 2), "xaviar")


def test_the_normal_law_draws_weights_and_biases_alike():
    layer = nets.initialise(nn.Linear(300, 200), "normal", generator())
    assert float(layer.weight.detach().std()) == pytest.approx(math.sqrt(1 / 500), rel=0.01)
    assert layer.weight.abs().max() > 4 * math.sqrt(1 / 500)  # a uniform law ends at 1.7
    assert float(layer.bias.detach().std()) == pytest.approx(math.sqrt(1 / 500), rel=0.15)
    attention = nets.initialise(nn.MultiheadAttention(64, 4), "normal", generator())
    spread = float(attention.in_proj_weight.detach().std())
    assert spread == pytest.approx(math.sqrt(1 / (64 + 192)), rel=0.05)
