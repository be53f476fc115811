"""Transport rules: formulas as arithmetic, and B = W is backprop to the last bit."""

import copy
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical.core import autograd
from apical.core.feedback import TransportFeedback
from apical.rules import BP, FA, Rule, SignSymmetric
from apical.rules.base import bound, fans
from apical.rules.ops import LinearOp, Local

TRANSPORT = ("bp", "brsf", "fa", "frsf", "kp", "usf")


def numbers(shape: tuple[int, ...], k: int) -> Tensor:
    """t[i] = ((7 i + 3 k) mod 11) - 5 over the flat index i."""
    flat = [(7 * i + 3 * k) % 11 - 5 for i in range(torch.Size(shape).numel())]
    return torch.tensor(flat, dtype=torch.float64).view(shape)


def aligned(layer: nn.Module) -> nn.Module:
    """The layer under FA with B = W."""
    apical.convert(layer, FA())
    layer.feedback.matrix.copy_(layer.weight.detach())
    return layer


def gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Gradients of input and parameters for a fixed upstream gradient; also the output."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    y = layer(x)
    upstream = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)
    parameters = [p for n, p in layer.named_parameters() if "feedback" not in n]
    return [y.detach(), *torch.autograd.grad(y, [x, *parameters], upstream)]


def assert_bitwise(seen: list[Tensor], expected: list[Tensor]) -> None:
    for a, b in zip(seen, expected, strict=True):
        assert a.dtype == b.dtype
        assert torch.equal(a, b), (a - b).abs().max()


# Numeric cases: exact small integers, worked out by hand -----------------------------------

W, B, X = numbers((2, 3), 1), numbers((2, 3), 4), numbers((2, 3), 5)
BIAS, UPSTREAM = numbers((2,), 2), numbers((2, 2), 6)


def one_layer(rule: Rule, memory: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    layer = nn.Linear(3, 2).double()
    with torch.no_grad():
        layer.weight.copy_(W), layer.bias.copy_(BIAS)
    apical.convert(layer, rule)
    if memory is not None:
        layer.feedback.memory()[0].copy_(memory)
    x = X.clone().requires_grad_()
    y = layer(x)
    y.backward(UPSTREAM)
    return y.detach(), x.grad, layer.weight.grad, layer.bias.grad


def test_a_linear_layer_by_hand() -> None:
    for rule, memory, message in (
        (FA(), B, [[2, 2, 2], [-25, 17, -7]]),
        (SignSymmetric("fixed"), B.abs(), [[2, 2, 2], [-25, 17, 5]]),
        (SignSymmetric("fresh"), B.abs(), [[2, 2, 2], [-25, 17, 5]]),
        (
            SignSymmetric("uniform"),
            None,
            [[0, 0, 2 * 0.4**0.5], [-6 * 0.4**0.5, 6 * 0.4**0.5, 5 * 0.4**0.5]],
        ),
    ):
        y, dx, dw, db = one_layer(rule, memory)
        exact = {"rtol": 0, "atol": 1e-14}
        assert_close(y, torch.tensor([[-20.0, -20], [31, 23]], dtype=torch.float64), **exact)
        assert_close(dx, torch.tensor(message, dtype=torch.float64), **exact)
        assert_close(dw, torch.tensor([[-12.0, 15, 9], [0, 15, -3]], dtype=torch.float64), **exact)
        assert_close(db, torch.tensor([7.0, -1], dtype=torch.float64), **exact)


def test_two_layers_of_feedback_alignment_by_hand() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()
    apical.convert(model, "fa")
    x, y = torch.randn(5, 4).double(), torch.randn(5, 2).double()
    (0.5 * (model(x) - y).square().sum()).backward()
    h = torch.tanh(x @ model[0].weight.T + model[0].bias)
    e = h @ model[2].weight.T + model[2].bias - y
    delta = (e @ model[2].feedback.matrix) * (1 - h**2)
    assert_close(model[2].weight.grad, e.T @ h)
    assert_close(model[2].bias.grad, e.sum(0))
    assert_close(model[0].weight.grad, delta.T @ x)
    assert_close(model[0].bias.grad, delta.sum(0))


def test_scales_of_the_laws() -> None:
    # Linear(300, 200): Xavier a = sqrt(6/500), its deviation sqrt(2/500); PyTorch 1/sqrt(300).
    weight = torch.zeros(200, 300, dtype=torch.float64)
    assert fans(weight.shape) == (300, 200)
    assert bound("xavier", 300, 200) == pytest.approx(0.10954, abs=1e-5)
    assert bound("kaiming", 300, 200) == pytest.approx(0.05774, abs=1e-5)
    drawn = FA().create(weight, torch.Generator().manual_seed(0))["matrix"]
    assert drawn.abs().max() <= bound("xavier", 300, 200)
    assert drawn.std() == pytest.approx(0.06325, rel=0.02)
    for init, s in (("xavier", 0.06325), ("kaiming", 0.03333)):
        sign = SignSymmetric("uniform", init=init).matrix(torch.ones(200, 300))
        assert sign[0, 0].item() == pytest.approx(s, rel=1e-3)
    assert fans((16, 8, 3, 5)) == (8 * 15, 16 * 15)  # convolution: channels times kernel


def test_norm_scale_follows_the_current_weight() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)).double()
    apical.convert(model, FA(scale="norm"))
    feedback, weight = model[1].feedback, model[1].weight
    with torch.no_grad():
        weight.mul_(7)
    used = feedback.rule.matrix(weight, *feedback.memory())
    assert_close(used, feedback.matrix * weight.norm() / feedback.matrix.norm())
    assert_close(used.norm(), weight.norm().detach())


@pytest.mark.parametrize("zero_sign", ["zero", "plus"])
def test_sign_rules_agree_in_sign_with_the_current_weight(zero_sign: str) -> None:
    weight = torch.tensor([[2.0, -3.0, 0.0], [0.5, 0.0, -1.0]], dtype=torch.float64)
    sign = weight.sign() if zero_sign == "zero" else torch.where(weight < 0, -1.0, 1.0)
    for magnitude in ("uniform", "fixed", "fresh"):
        rule = SignSymmetric(magnitude, zero_sign=zero_sign)
        memory = rule.create(weight, torch.Generator().manual_seed(0)).values()
        assert torch.equal(rule.matrix(weight, *memory).sign(), sign.double())
        assert torch.equal(
            rule.matrix(-weight, *memory).sign()[weight != 0], -weight.sign()[weight != 0]
        )


def test_uniform_signs_of_a_binary_weight_are_backprop() -> None:
    """Theorem: |W| = c everywhere and scale c make uSF backprop, to the bit."""
    model = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    s = bound("xavier", 6, 4) / 3**0.5
    with torch.no_grad():
        model[2].weight.copy_(s * model[2].weight.sign())
    plain, x = copy.deepcopy(model), torch.randn(5, 4).double()
    apical.convert(model, {"2": "usf"})
    assert_bitwise(gradients(model, x), gradients(plain, x))


# B = W is backprop, for every geometry --------------------------------------------------------

LAYERS: list[tuple[str, nn.Module, tuple[int, ...]]] = [
    ("linear", nn.Linear(5, 3), (4, 5)),
    ("linear-no-bias", nn.Linear(5, 3, bias=False), (4, 5)),
    ("linear-1d", nn.Linear(5, 3), (5,)),
    ("linear-3d", nn.Linear(5, 3), (2, 4, 5)),
    ("linear-4d", nn.Linear(5, 3), (2, 2, 3, 5)),
    ("linear-one-output", nn.Linear(5, 1), (4, 5)),
    ("conv1d", nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2, groups=2), (2, 4, 9)),
    ("conv2d", nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2), (2, 4, 7, 6)),
    ("conv2d-dilated", nn.Conv2d(3, 5, 3, dilation=2, padding=2, bias=False), (2, 3, 7, 6)),
    ("conv2d-depthwise", nn.Conv2d(4, 8, 3, groups=4), (2, 4, 6, 6)),
    ("conv2d-1x1", nn.Conv2d(4, 8, 1), (2, 4, 3, 3)),
    ("conv2d-valid", nn.Conv2d(2, 3, 3, padding="valid"), (2, 2, 5, 5)),
    ("conv2d-unbatched", nn.Conv2d(2, 3, 3, padding=1), (2, 5, 5)),
    ("conv3d", nn.Conv3d(2, 4, 2, stride=2, padding=1, groups=2), (2, 2, 5, 4, 5)),
    ("same-odd", nn.Conv2d(2, 3, 3, padding="same", dilation=2), (2, 2, 6, 5)),
    ("same-even", nn.Conv2d(2, 3, (4, 2), padding="same"), (2, 2, 6, 5)),
    ("same-even-1d", nn.Conv1d(2, 3, 4, padding="same", dilation=3), (2, 2, 12)),
    ("same-even-3d", nn.Conv3d(2, 2, (2, 3, 4), padding="same"), (1, 2, 4, 4, 5)),
    ("transpose1d", nn.ConvTranspose1d(4, 6, 3, stride=2, output_padding=1, groups=2), (2, 4, 5)),
    ("transpose2d", nn.ConvTranspose2d(4, 2, 3, stride=2, padding=1, dilation=2), (2, 4, 3, 4)),
    ("transpose2d-unbatched", nn.ConvTranspose2d(4, 2, 3), (4, 3, 4)),
    ("transpose3d", nn.ConvTranspose3d(2, 4, 2, stride=2, groups=2), (2, 2, 2, 3, 2)),
    *[
        (f"{mode}-{pad}-{kernel}", nn.Conv2d(2, 3, kernel, padding=pad, padding_mode=mode),
         (2, 2, 6, 5))
        for mode in ("circular", "reflect", "replicate")
        for pad, kernel in (((2, 1), 3), ("same", 3), ("same", 4))
    ],
    ("circular-1d", nn.Conv1d(2, 3, 3, padding=1, padding_mode="circular", stride=2), (2, 2, 6)),
    ("replicate-3d", nn.Conv3d(2, 2, 3, padding=1, padding_mode="replicate"), (1, 2, 4, 4, 3)),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
def test_b_equal_w_is_backprop_to_the_bit() -> None:
    for dtype in (torch.float64, torch.float32):
        for layer, shape in [c[1:] for c in LAYERS]:
            plain = copy.deepcopy(layer).to(dtype)
            x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
            assert_bitwise(gradients(aligned(copy.deepcopy(plain)), x), gradients(plain, x))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", TRANSPORT)
def test_the_message_is_that_of_the_detach_trick(name: str) -> None:
    for _, layer, shape in LAYERS:
        check_message(name, layer, shape)


def check_message(name: str, layer: nn.Module, shape: tuple[int, ...]) -> None:
    """Oracle: op(x.detach(), W) + op(x, B) - op(x, B).detach(), slower and plainer."""
    if name == "ldfa" and (getattr(layer, "groups", 1) > 1 or getattr(layer, "transposed", False)):
        with pytest.raises(ValueError, match="for which LowDimensional is not defined"):
            apical.convert(copy.deepcopy(layer), name)
        return
    layer = apical.convert(copy.deepcopy(layer).double(), name)
    if name == "bp":
        assert not hasattr(layer, "feedback")
        return
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).double()
    matrix = layer.feedback.rule.matrix(layer.weight.detach(), *layer.feedback.memory())
    y, dx, *parameters = gradients(layer, x)
    plain = apical.revert(layer)
    weights = {name: p.detach() for name, p in plain.named_parameters()}
    x2 = x.clone().requires_grad_()
    through_b = torch.func.functional_call(plain, {**weights, "weight": matrix}, (x2,))
    trick = plain(x) + through_b - through_b.detach()
    upstream = torch.sin(torch.arange(y.numel(), dtype=y.dtype)).view(y.shape)
    expected = torch.autograd.grad(trick, [x2, *plain.parameters()], upstream)
    assert_close([dx, *parameters], list(expected), rtol=1e-12, atol=1e-13)


def test_output_size_of_a_transposed_convolution_is_honoured() -> None:
    layer = nn.ConvTranspose2d(2, 3, 3, stride=2).double()
    plain, x = copy.deepcopy(layer), torch.randn(2, 2, 4, 4).double()
    apical.convert(layer, "fa")
    assert torch.equal(layer(x, output_size=[10, 10]), plain(x, output_size=[10, 10]))


@pytest.mark.parametrize("shape", [(4, 5), (2, 4, 5)])
def test_gradients_that_are_not_contiguous(shape: tuple[int, ...]) -> None:
    plain = nn.Linear(5, 3).double()
    layer, x = aligned(copy.deepcopy(plain)), torch.randn(shape).double()
    for upstream in (torch.ones(1).double().expand(*shape[:-1], 3),
                     torch.randn(3, *shape[:-1]).double().movedim(0, -1)):  # fmt: skip
        found = []
        for module in (layer, plain):
            leaf = x.clone().requires_grad_()
            y = module(leaf)
            found.append(torch.autograd.grad(y, [leaf, module.weight, module.bias], upstream))
        assert_bitwise(list(found[0]), list(found[1]))


def test_channels_last_keeps_layout_and_bits() -> None:
    plain = nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3))
    plain = plain.to(memory_format=torch.channels_last)
    model = copy.deepcopy(plain)
    for layer in (model[0], model[2]):
        aligned(layer)
        assert layer.feedback.matrix.stride() == layer.weight.stride()
    x = torch.randn(2, 4, 6, 6).contiguous(memory_format=torch.channels_last)
    seen, expected = gradients(model, x), gradients(plain, x)
    assert_bitwise(seen, expected)
    assert seen[0].stride() == expected[0].stride() and seen[1].stride() == expected[1].stride()


def test_channels_last_set_after_conversion() -> None:
    model = apical.convert(nn.Sequential(nn.Conv2d(4, 8, 3), nn.Conv2d(8, 4, 3)).double(), "fa")
    x = torch.randn(2, 4, 6, 6).double()
    before = gradients(model, x)
    model.to(memory_format=torch.channels_last)
    after = gradients(model, x.contiguous(memory_format=torch.channels_last))
    assert_close(after, before, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_autocast_with_b_equal_w_is_autocast_backprop_to_the_bit(kind: str) -> None:
    layer = nn.Linear(6, 4) if kind == "linear" else nn.Conv2d(6, 4, 3, padding=1)
    plain = nn.Sequential(copy.deepcopy(layer), nn.Tanh())
    model = nn.Sequential(aligned(layer), nn.Tanh())
    x = torch.randn(3, 6) if kind == "linear" else torch.randn(3, 6, 5, 5)
    found: list[Any] = []
    for module in (model, plain):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16):
            y = module(leaf)
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        found.append([y.detach(), leaf.grad, module[0].weight.grad, module[0].bias.grad])
    assert found[0][2].dtype == torch.float32
    assert_bitwise(found[0], found[1])


def test_a_plain_step_and_an_autocast_step_alternate() -> None:
    for name in ("fa", "usf", "brsf", "frsf", "dfa"):
        model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 2))
        apical.convert(model, name)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for enabled in (True, False, True):
            with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
                loss = model(torch.ones(3, 6)).float().square().mean()
            loss.backward()
            optimizer.step()
            assert all(
                p.grad is not None and p.grad.dtype == torch.float32 for p in model.parameters()
            )


def test_models_of_every_dtype_get_feedback_of_their_own() -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        layer = apical.convert(nn.Linear(8, 4).to(dtype), "fa")
        assert layer.feedback.matrix.dtype == dtype
    double, single = (apical.convert(m, "fa") for m in (nn.Linear(8, 4).double(), nn.Linear(8, 4)))
    assert torch.equal(double.feedback.matrix.float(), single.feedback.matrix)
    assert double.float().feedback.matrix.dtype == torch.float32


def test_the_first_layer_forms_no_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its input needs no gradient: the message would be thrown away."""
    formed = []
    matrix = SignSymmetric.matrix

    def counting(self: SignSymmetric, weight: Tensor, *memory: Tensor) -> Tensor:
        formed.append(tuple(weight.shape))
        return matrix(self, weight, *memory)

    monkeypatch.setattr(SignSymmetric, "matrix", counting)
    model = apical.convert(nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), "usf")
    model(torch.ones(2, 4)).sum().backward()
    assert formed == [(2, 3)]


def test_needs_of_each_gradient_are_respected() -> None:
    layer = apical.convert(nn.Linear(3, 2).double(), "fa")
    layer.weight.requires_grad_(False)
    x = torch.ones(4, 3).double().requires_grad_()
    layer(x).sum().backward()
    assert layer.weight.grad is None and layer.bias.grad is not None
    assert_close(x.grad, torch.ones(4, 2).double() @ layer.feedback.matrix)


def test_memory_that_is_trained_gets_the_gradient_its_rule_says() -> None:
    class Learned(FA):
        def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
            return {"matrix": nn.Parameter(super().create(weight, generator)["matrix"])}

        def memory_gradients(self, local: Local, *memory: Tensor) -> list[Tensor]:
            return [2 * local.grad_weight]

    layer = apical.convert(nn.Linear(3, 2).double(), Learned())
    layer.weight.requires_grad_(False)  # the feedback learns all the same
    layer(torch.ones(4, 3).double().requires_grad_()).square().sum().backward()
    twin = copy.deepcopy(layer)
    twin.weight.requires_grad_(True)
    twin.zero_grad()
    twin(torch.ones(4, 3).double().requires_grad_()).square().sum().backward()
    assert_close(layer.feedback.matrix.grad, 2 * twin.weight.grad)
    assert list(apical.feedback_parameters(layer)) == [layer.feedback.matrix]
    assert [p.shape for p in apical.forward_parameters(layer)] == [(2, 3), (2,)]


def test_a_function_per_kind_saves_the_weight_of_its_forward() -> None:
    """B is formed in backward from the weight that the forward used."""
    layer = apical.convert(nn.Linear(3, 2).double(), "usf")
    x = torch.ones(4, 3).double().requires_grad_()
    y = layer(x)
    with torch.no_grad():
        layer.weight.neg_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


def test_transport_is_a_function_of_its_own() -> None:
    weight, x = (torch.randn(rows, 3, dtype=torch.float64, requires_grad=True) for rows in (2, 4))
    feedback = TransportFeedback(FA(), "layer", 0, weight.detach())
    y = autograd.transport(LinearOp(), x, weight, None, feedback)
    assert torch.equal(y, F.linear(x, weight))
    y.sum().backward()
    assert_close(x.grad, torch.ones(4, 2).double() @ feedback.matrix)


def test_backprop_is_not_converted_unless_its_weights_are_constrained() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    keys = list(apical.convert(model, BP()).state_dict())
    assert keys == ["0.weight", "0.bias"]
    constrained = apical.convert(model, BP(constrain_weights=True))
    assert list(constrained.state_dict())[2:] == ["0.feedback.weight_norm"]


def test_a_listener_receives_input_and_output_of_every_operation() -> None:
    layer = apical.convert(nn.Linear(3, 2).double(), "fa")
    seen: list[tuple[Tensor, Tensor]] = []
    layer.feedback.listeners.append(lambda x, output: seen.append((x, output)))
    x = torch.ones(4, 3).double().requires_grad_()
    outputs = [layer(x), layer(x)]
    assert [y is output for (_, output), y in zip(seen, outputs, strict=True)] == [True, True]
    assert all(given is x for given, _ in seen)
    assert copy.deepcopy(layer).feedback.listeners == []  # a copy is not measured


def test_the_scale_of_the_code_released_with_xiao() -> None:
    """sqrt(2 / (k^2 C_out)): the number of uSF, the standard deviation of the others' law."""
    weight = torch.randn(40, 30, 3, 3, generator=torch.Generator().manual_seed(0))
    expected = math.sqrt(2 / (9 * 40))
    uniform = SignSymmetric("uniform", init="xiao").matrix(weight)
    assert_close(uniform, expected * weight.sign())
    rule = SignSymmetric("fixed", init="xiao")
    memory = rule.create(weight, torch.Generator().manual_seed(1))
    matrix = rule.matrix(weight.double(), memory["magnitude"])
    assert torch.equal(matrix.sign(), weight.double().sign())
    # 10,800 draws: their root mean square has a relative standard error of 0.4 %
    assert matrix.square().mean().sqrt().item() == pytest.approx(expected, rel=0.02)
