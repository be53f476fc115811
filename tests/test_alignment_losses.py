"""Alignment losses: the gradient of B is that of the stated loss, and B aligns."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import apical
from apical.core.adapters import parts
from apical.rules import AlignmentLoss
from apical.rules.ops import LinearOp, Local, Op

KINDS = {
    "symmetric": AlignmentLoss("symmetric", decay=0.3, amp=0.7),
    "activation": AlignmentLoss("activation", decay=0.3, amp=0.7),
    "mirror": AlignmentLoss("mirror", decay=0.3, amp=0.7),
    "information": AlignmentLoss("information", decay=0.3, amp=0.7, null=0.2),
}
LAYERS = {
    "linear": (nn.Linear(5, 4), (6, 5)),
    "sequence": (nn.Linear(5, 4), (3, 2, 5)),
    "convolution": (nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), (3, 4, 5, 5)),
    "circular": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (3, 4, 5, 5)),
    "reflected": (nn.Conv1d(4, 6, 4, padding=2, padding_mode="reflect"), (3, 4, 7)),
    "replicated": (nn.Conv1d(4, 6, 4, padding=3, padding_mode="replicate"), (3, 4, 7)),
    "same, uneven": (nn.Conv2d(4, 6, 4, padding="same"), (3, 4, 5, 6)),
    "transposed": (nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1), (3, 4, 5, 5)),
}


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def _loss(rule: AlignmentLoss, op: Op, raw: Tensor, weight: Tensor, feedback: Tensor) -> Tensor:
    """The loss as the docstring states it, for autograd."""
    x = op.prepare(raw)
    wx, bx = op.forward(x, weight, None), op.forward(x, feedback, None)
    shape = x if getattr(op, "transposed", False) else wx
    linear = isinstance(op, LinearOp)
    count = shape.numel() / shape.shape[-1 if linear else 1]
    if rule.positions == "sum":
        count = len(x)
    if rule.kind == "activation":
        decay = (wx.square().sum() + bx.square().sum()) / count
    else:
        decay = weight.square().sum() + feedback.square().sum()
    if rule.kind == "symmetric":
        amp = (weight * feedback).sum()
    else:
        amp = (wx * bx).sum() / count
    probe = raw.clone().requires_grad_()
    (back,) = torch.autograd.grad(
        (op.forward(op.prepare(probe), feedback, None) * wx).sum(), probe, None, True, True
    )
    return rule.decay * decay - rule.amp * amp + rule.null * back.square().sum() / count


def test_the_gradient_is_that_of_the_loss() -> None:
    for layer in LAYERS:
        for kind, positions in [(kind, "mean") for kind in KINDS] + [
            (kind, "sum") for kind in KINDS if kind != "symmetric"
        ]:
            module, shape = LAYERS[layer]
            op = parts(module)[""].op
            weight = _random(*module.weight.shape)  # type: ignore[arg-type]
            x, rule = _random(*shape, seed=1), replace(KINDS[kind], positions=positions)
            feedback = _random(*weight.shape, seed=2).requires_grad_()
            local = Local(op, op.prepare(x), torch.empty(0), weight)
            (expected,) = torch.autograd.grad(_loss(rule, op, x, weight, feedback), feedback)
            (seen,) = rule.memory_gradients(local, feedback.detach())
            torch.testing.assert_close(seen, expected, rtol=1e-12, atol=1e-12)


def test_symmetric_alignment_is_the_difference_bitwise() -> None:
    weight, feedback = _random(4, 5), _random(4, 5, seed=1)
    local = Local(None, _random(6, 5), torch.empty(0), weight)  # type: ignore[arg-type]
    (seen,) = AlignmentLoss(decay=0.5, amp=1.0).memory_gradients(local, feedback)
    assert torch.equal(seen, feedback - weight)


@pytest.mark.parametrize("kind", ["symmetric", "activation"])
def test_feedback_arrives_at_the_weight(kind: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    apical.convert(model, AlignmentLoss(kind, decay=0.5, amp=1.0))  # type: ignore[arg-type]
    model[2].weight.requires_grad_(False)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 1.0)
    generator = torch.Generator().manual_seed(1)
    for _ in range(300):
        x = torch.randn(32, 6, dtype=torch.float64, generator=generator)
        optimizer.zero_grad()
        (0 * model(x).sum()).backward()  # what the model is trained on plays no part
        optimizer.step()
    torch.testing.assert_close(
        model[2].feedback.matrix.detach(),
        model[2].weight,
        rtol=0,
        atol=1e-6 if kind == "symmetric" else 0.02,
    )


def test_the_weights_do_not_see_the_loss() -> None:
    torch.manual_seed(0)
    build = lambda: nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).double()  # noqa: E731
    model, twin = build(), build()
    twin.load_state_dict(model.state_dict())
    apical.convert(model, "sa", seed=3)
    apical.convert(twin, "fa", seed=3)
    for net in (model, twin):
        F.cross_entropy(net(_random(6, 6)), torch.arange(6) % 3).backward()
    for own, other in zip(model[::2], twin[::2], strict=True):
        assert torch.equal(own.weight.grad, other.weight.grad)


def test_the_defaults_are_those_of_the_source() -> None:
    names = ("sa", "aa", "ia")
    found = [apical.rules.build(name) for name in names]
    assert [(r.decay, r.amp, r.null) for r in found] == [
        (1e-3, 2e-3, 0),
        (1e-3, 2e-3, 0),
        (1e-3, 2e-3, 1e-3),
    ]


def test_values_out_of_range_are_refused() -> None:
    for options, text in (
        ({"decay": -1e-3}, "decay=-0.001 must be at least 0"),
        ({"amp": 0.0}, "amp=0.0 must be above 0"),
        ({"null": 1e-3}, "null=0.001 with kind='symmetric'"),
        ({"kind": "information"}, "null=0.0 with kind='information'"),
        ({"positions": "sum"}, "positions='sum' has no effect with kind='symmetric'"),
        ({"kind": "informtion"}, "'symmetric', 'activation', 'information', 'mirror'"),
    ):
        with pytest.raises(ValueError, match=text):
            AlignmentLoss(**options)  # type: ignore[arg-type]
