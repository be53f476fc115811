"""Our own nets: layouts, formulas written out, refusals."""

import importlib
import math
import pkgutil

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from apical import nets
from apical.nets import resnet

SHAPES = {
    "efficientnet_lite0": [(3, 32, 32), (1, 33, 64)],
    "lenet": [(1, 28, 28), (1, 32, 32), (3, 32, 32), (3, 40, 36)],
    "mlp": [(1, 8, 8), (2, 5, 7)],
    "resnet110": [(3, 8, 8)],
    "resnet20": [(3, 32, 32), (1, 9, 9)],
    "resnet32": [(3, 8, 8)],
    "resnet44": [(3, 8, 8)],
    "resnet56": [(4, 8, 8)],
    "spiking_conv": [(1, 8, 8), (3, 9, 12)],
    "spiking_mlp": [(1, 8, 8), (2, 5, 7)],
    "vgg": [(3, 32, 32), (1, 17, 16)],
    "vit": [(3, 32, 32), (1, 8, 16)],
}


def test_the_table_lists_what_the_folder_defines():
    found = {}
    modules = [f"apical.nets.{m.name}" for m in pkgutil.iter_modules(nets.__path__) if not m.ispkg]
    for module in [*modules, "apical.nets.spiking.networks"]:
        for name, value in vars(importlib.import_module(module)).items():
            own = getattr(value, "__module__", "") == module
            if own and not name.startswith("_") and not isinstance(value, type):
                found[name] = value
    helpers = {
        "build_external", "check_scores", "import_package", "in_libraries", "initialise",
        "is_factory", "resnet", "try_shape",
    }  # fmt: skip
    known = {**nets.NETS, **nets.TRANSFORMERS}
    assert {name: found[name] for name in found.keys() - helpers} == known
    assert list(nets.NETS) == sorted(nets.NETS)
    assert SHAPES.keys() == nets.NETS.keys()


@pytest.mark.parametrize(("name", "shape"), [(n, s) for n in SHAPES for s in SHAPES[n]])
def test_every_net_gives_the_asked_number_of_classes(name, shape):
    model = nets.build(name, in_shape=shape, num_classes=7)
    assert model(torch.randn(2, *shape)).shape == (2, 7)


@pytest.mark.parametrize(
    ("name", "shape", "parameters"),
    [
        # 5x5: 6*(25+1) + 16*(6*25+1) + 120*(16*25+1); 84*(120+1) + 10*(84+1)
        ("lenet", (1, 32, 32), 156 + 2416 + 48120 + 10164 + 850),
        # 3x3: 32*(27+1) + 64*(288+1) + 128*(576+1); 256*(128+1) + 10*(256+1)
        ("lenet", (3, 32, 32), 896 + 18496 + 73856 + 33024 + 2570),
        # the counts of He et al. 2016, table 6, to their rounding: 0.27 M ... 1.7 M
        ("resnet20", (3, 32, 32), 269_722),
        ("resnet32", (3, 32, 32), 464_154),
        ("resnet44", (3, 32, 32), 658_586),
        ("resnet56", (3, 32, 32), 853_018),
        ("resnet110", (3, 32, 32), 1_727_962),
    ],
)
def test_published_sizes(name, shape, parameters):
    model = nets.build(name, in_shape=shape, num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_lenet_is_conv_relu_pool_written_out():
    model = nets.build("lenet", in_shape=(1, 32, 32), num_classes=10, seed=0).double()
    x = torch.randn(2, 1, 32, 32, dtype=torch.float64)
    h = F.max_pool2d(F.relu(F.conv2d(x, model.conv1.weight, model.conv1.bias)), 2)
    h = F.max_pool2d(F.relu(F.conv2d(h, model.conv2.weight, model.conv2.bias)), 2)
    h = F.relu(F.conv2d(h, model.conv3.weight, model.conv3.bias)).flatten(1)
    h = F.relu(h @ model.fc1.weight.T + model.fc1.bias)
    torch.testing.assert_close(model(x), h @ model.fc2.weight.T + model.fc2.bias)


def test_mlp_written_out():
    net = {"in_shape": (1, 2, 2), "num_classes": 3, "hidden": [5], "activation": "tanh"}
    model = nets.build("mlp", seed=0, **net).double()
    x = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    h = torch.tanh(x.flatten(1) @ model.fc1.weight.T + model.fc1.bias)
    torch.testing.assert_close(model(x), h @ model.fc2.weight.T + model.fc2.bias)


def test_option_a_shortcut_has_every_second_pixel_and_zero_channels_on_both_sides():
    x = torch.arange(2 * 4 * 4.0).view(1, 2, 4, 4)
    y = resnet.Halve(2)(x)
    assert y.shape == (1, 4, 2, 2)
    assert torch.equal(y[:, 1:3], x[:, :, ::2, ::2])
    assert not y[:, [0, 3]].any()


def test_vit_attention_written_out():
    model = nets.build("vit", in_shape=(3, 8, 8), num_classes=2, dim=8, heads=2, depth=1, seed=0)
    layer = model.blocks[0].attention.double()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    q, k, v = (x @ layer.qkv.weight.T + layer.qkv.bias).split(8, dim=-1)
    heads = []
    for part in (slice(0, 4), slice(4, 8)):
        scores = q[..., part] @ k[..., part].transpose(1, 2) / math.sqrt(4)
        heads.append(scores.softmax(-1) @ v[..., part])
    expected = torch.cat(heads, -1) @ layer.proj.weight.T + layer.proj.bias
    torch.testing.assert_close(layer(x), expected)


def test_every_projection_of_the_vit_is_a_linear_a_rule_can_reach():
    model = nets.build("vit", in_shape=(3, 32, 32), num_classes=10)
    layers = (nn.Linear, nn.Conv2d, nn.LayerNorm)
    own = {n for n, m in model.named_modules() if list(m.parameters(recurse=False))}
    assert all(isinstance(model.get_submodule(n), layers) for n in own - {""})
    assert {n for n, _ in model.named_parameters(recurse=False)} == {"class_token", "position"}


@pytest.mark.parametrize(
    ("name", "shape", "options", "text"),
    [
        ("lenet", (1, 30, 30), {}, "size=32"),
        ("lenet", (3, 16, 16), {}, "18x18"),
        ("lenet", (2, 32, 32), {}, "form='mnist'"),
        ("lenet", (1, 32, 32), {"form": "big"}, "Allowed: auto, cifar, mnist"),
        ("mlp", (1, 8, 8), {"activation": "rlu"}, "did you mean 'relu'"),
        ("mlp", (1, 8, 8), {"hidden": [0]}, "at least 1"),
        ("mlp", (1, 8, 8), {"hidden": 64}, "e.g. [256, 128]"),
        ("mlp", (1, 8, 8), {"hiden": [64]}, "did you mean 'hidden'"),
        ("resnet20", (3, 2, 2), {}, "4x4"),
        ("resnet20", (3, 8, 8), {"depth": 32}, "unknown option of net 'resnet20' 'depth'"),
        ("resnet21", (3, 8, 8), {}, "did you mean 'resnet20'"),
        ("vit", (3, 30, 30), {}, "4x4 patches"),
        ("vit", (3, 32, 32), {"heads": 3}, "multiple of heads=3"),
        ("vit", (3, 32, 32), {"depth": 0}, "at least 1"),
        ("lenet", (8, 8), {}, "(channels, height, width)"),
        ("mlp", (8, 0), {}, "each >= 1"),
    ],
)
def test_what_a_net_cannot_take_is_refused(name, shape, options, text):
    with pytest.raises(ValueError) as caught:
        nets.build(name, in_shape=shape, num_classes=10, **options)
    assert text in str(caught.value)


def test_no_classes_is_refused():
    with pytest.raises(ValueError, match="num_classes=0"):
        nets.build("mlp", in_shape=(1, 8, 8), num_classes=0)


def test_a_resnet_depth_is_six_n_plus_two():
    with pytest.raises(ValueError, match="6n \\+ 2"):
        resnet.resnet(depth=21, in_shape=(3, 32, 32), num_classes=10)


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = nets.build("mlp", in_shape=(1, 8, 8), num_classes=10, seed=3)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    again = nets.build("mlp", in_shape=(1, 8, 8), num_classes=10, seed=3)
    other = nets.build("mlp", in_shape=(1, 8, 8), num_classes=10, seed=4)
    assert torch.equal(first.fc1.weight, again.fc1.weight)
    assert not torch.equal(first.fc1.weight, other.fc1.weight)


def test_a_causal_transformer_sees_the_past_alone_and_takes_any_length():
    torch.manual_seed(0)
    options = {"inputs": 3, "outputs": 5, "width": 8, "heads": 2}
    model = nets.build_transformer("causal_transformer", output="every", **options)
    for length in (4, 7):
        x = torch.randn(2, length, 3, requires_grad=True)
        assert model(x).shape == (2, length, 5)
        (gradient,) = torch.autograd.grad(model(x)[:, 2].sum(), x)
        assert gradient.any(-1).any(0).tolist() == [step <= 2 for step in range(length)]
    assert nets.build_transformer("causal_transformer", output="last", **options)(x).shape == (2, 5)
    for wrong, told in (
        ({"width": 9}, "causal_transformer: width="),
        ({"depth": 0}, "causal_transformer: width="),
        ({"depth": "two"}, "cannot be built with the options {.*'depth': 'two'}"),
        ({"output": "evry"}, "unknown output of causal_transformer 'evry'; did you mean 'every'"),
    ):
        with pytest.raises(ValueError, match=told):
            nets.build_transformer("causal_transformer", **{"output": "last", **options, **wrong})
