"""Checks of what a rule does to gradients, and of what it leaves alone."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.core.convert import convert
from apical.core.converted import exact_gradients, labels
from apical.core.layers import feedback_modules
from apical.rules import Rule, TransportRule
from apical.testing.specimen import (
    LAST,
    Broken,
    Tensors,
    batch,
    converted,
    expect_equal,
    gradients,
    net,
    train,
)

ROUNDING = 1e-12
"""Relative to the largest entry: two orders of summation in float64 agree to this."""
CONTROLS = ("frozen", "redrawn")
"""Rules under which any fall of the loss will do, where others take a fifth off it: the output
layer alone learns, on features that stay random or move at random."""
_NOTHING_SENT = "the rule sends nothing, and every gradient below is absent"
RATES = (0.1, 0.03, 0.3, 0.01, 0.003, 0.001)


def forward_unchanged(rule: Rule) -> None:
    """The outputs and weights of a converted net are bitwise those of the plain net."""
    plain, model = net(), converted(rule)
    x, y = batch()
    for mode in (True, False):
        plain.train(mode), model.train(mode)
        with labels(model, y):
            expect_equal({"output": model(x)}, {"output": plain(x)}, "outputs of the plain net")
    gradients(model, x, y)
    weights = {name: p for name, p in model.named_parameters() if "feedback" not in name}
    expect_equal(weights, dict(plain.named_parameters()), "weights unchanged by a backward pass")


def last_layer_exact(rule: Rule) -> None:
    """The output layer's gradient is that of backprop, whatever the rule."""
    seen, exact = gradients(converted(rule), *batch()), gradients(net(), *batch())
    for name in (f"{LAST}.weight", f"{LAST}.bias"):
        expect_equal(
            {name: seen[name]}, {name: exact[name]}, last_layer_exact.__doc__, rtol=ROUNDING
        )


def aligned_is_backprop(rule: Rule) -> str | None:
    """With B = W every gradient is bitwise that of backprop."""
    if not isinstance(rule, TransportRule):
        return "the rule broadcasts the error"
    if rule.sends_nothing:
        return _NOTHING_SENT
    model = converted(_aligned(rule))
    seen = {k: v for k, v in gradients(model, *batch()).items() if "feedback" not in k}
    expect_equal(seen, gradients(net(), *batch()), aligned_is_backprop.__doc__)
    return None


def message_is_of_the_matrix(rule: Rule) -> str | None:
    """What `send` forms is what the layer below would receive through `matrix`."""
    if not isinstance(rule, TransportRule) or type(rule).send is TransportRule.send:
        return "the rule sends through its matrix"
    model = converted(rule)
    seen = gradients(model, *batch())
    for feedback in feedback_modules(model):
        feedback.rule = _changed(feedback.rule, send=TransportRule.send)
    expect_equal(gradients(model, *batch()), seen, "the same through the matrix", rtol=ROUNDING)
    return None


def exact_is_backprop(rule: Rule) -> None:
    """Within exact_gradients every gradient is bitwise that of backprop; afterwards the rule's."""
    model = converted(rule)
    before = gradients(model, *batch())
    with exact_gradients(model):
        inside = gradients(model, *batch())
    expect_equal(inside, gradients(net(), *batch()), "backprop's gradients inside")
    expect_equal(gradients(model, *batch()), before, "the rule's gradients after the block")


def hidden_layers_move(rule: Rule) -> str | None:
    """Every weight of a hidden layer gets a gradient that is finite and not all zero."""
    seen = gradients(converted(rule), *batch())
    if rule.sends_nothing:
        _expect_absent({name: g for name, g in seen.items() if not name.startswith(f"{LAST}.")})
        return _NOTHING_SENT
    for name in dict(net().named_parameters()):
        if name not in seen:
            raise Broken(hidden_layers_move.__doc__, f"{name} has no gradient")
        if not seen[name].isfinite().all():
            raise Broken(hidden_layers_move.__doc__, f"{name} has a non-finite gradient")
        if not seen[name].any():
            raise Broken(hidden_layers_move.__doc__, f"{name} has a gradient of zeros")
    return None


def a_loss_falls(rule: Rule) -> None:
    """At some learning rate, thirty steps on six examples take a fifth off the loss."""
    wanted = 1.0 if rule.name in CONTROLS else 0.8
    ratios = {}
    for lr in RATES:
        losses = train(converted(rule), 30, lr=lr)
        ratios[lr] = losses[-1] / losses[0]
        if ratios[lr] < wanted:
            return
    listed = ", ".join(f"lr {lr:g}: {ratio:.3g}" for lr, ratio in ratios.items())
    raise Broken(a_loss_falls.__doc__, f"loss after over loss before: {listed}")


def scales_with_the_loss(rule: Rule) -> None:
    """A loss of 1024 times the size gives 1024 times every gradient; feedback with a loss of its
    own may keep its gradient as it was."""
    model = converted(rule)
    small, large = gradients(model, *batch()), gradients(model, *batch(), scale=1024.0)
    expected = {
        name: g if "feedback" in name and torch.equal(large.get(name, g), g) else 1024 * g
        for name, g in small.items()
    }
    expect_equal(large, expected, scales_with_the_loss.__doc__, rtol=ROUNDING)


def forwards_add_up(rule: Rule) -> None:
    """Gradients of two backward passes, or of two forwards before one backward, add up."""
    model, (x, y) = converted(rule), batch()
    one, two = gradients(model, x[:4], y[:4]), gradients(model, x[4:], y[4:])
    total = {name: one[name] + two[name] for name in one if name in two}
    first, second = (_loss(model, x[p], y[p]) for p in (slice(4), slice(4, None)))
    (first + second).backward()
    expect_equal(_taken(model), total, "the sum, for two forwards before one backward", rtol=1e-10)
    for part in (slice(4), slice(4, None)):
        _loss(model, x[part], y[part]).backward()
    expect_equal(_taken(model), total, "the sum, for two backward passes", rtol=1e-10)


def every_kind_of_layer(rule: Rule) -> str | None:
    """Below each kind of layer (linear on sequences, convolutions, attention) weights move."""
    for kind, model, x in _kinds():
        convert(model, rule, example=x, on_unsupported="keep")
        with labels(model, torch.zeros(len(x), dtype=torch.long)):
            model(x).square().sum().backward()
        if rule.sends_nothing:
            below = {f"{kind}: {name}": p.grad for name, p in model.below.named_parameters()}
            _expect_absent({name: grad for name, grad in below.items() if grad is not None})
            continue
        for name, parameter in model.named_parameters():
            if "weight" in name and "feedback" not in name:
                if parameter.grad is None or not parameter.grad.any():
                    raise Broken(every_kind_of_layer.__doc__, f"{kind}: {name} got nothing")
    return _NOTHING_SENT if rule.sends_nothing else None


def autocast(rule: Rule) -> None:
    """Under bfloat16 autocast gradients keep their dtype and nearly their float32 values."""
    plain, model = net(torch.float32), converted(rule, dtype=torch.float32)
    x, y = batch(torch.float32)
    reference = gradients(model, x, y)
    with torch.autocast("cpu", torch.bfloat16), labels(model, y):
        seen, output, expected = gradients(model, x, y), model(x), plain(x)
    expect_equal({"output": output}, {"output": expected}, "outputs of the plain net in autocast")
    for name, gradient in reference.items():
        if name not in seen or seen[name].dtype != gradient.dtype:
            raise Broken(f"a {gradient.dtype} gradient of {name}", str(seen.get(name)))
        cosine = F.cosine_similarity(seen[name].flatten(), gradient.flatten(), dim=0).item()
        if gradient.any() and not cosine > 0.95:
            raise Broken(f"nearly the float32 gradient of {name}", f"cosine {cosine:.3f} to it")


def _expect_absent(below: Tensors) -> None:
    if below:
        raise Broken("no gradient below a rule that sends nothing", f"one of {', '.join(below)}")


def _aligned(rule: TransportRule) -> TransportRule:
    """The rule with B = W."""
    return _changed(rule, matrix=lambda self, weight, *memory: weight, send=TransportRule.send)


def _changed(rule: Rule, **methods: Any) -> Any:
    """The rule with other methods, under its own name."""
    kind, twin = type(rule), copy.copy(rule)
    object.__setattr__(twin, "__class__", type(kind.__name__, (kind,), methods))
    return twin


def _loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with labels(model, y):
        return F.cross_entropy(model(x), y)


def _taken(model: nn.Module) -> Tensors:
    """The gradients, which the model gives up."""
    taken = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return taken


class _Between(nn.Module):
    """A linear layer, the layer under test, and one number per remaining unit."""

    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.below, self.layer = nn.Linear(width, width), layer

    def forward(self, x: Tensor) -> Tensor:
        h = self.below(x).tanh()
        attends = isinstance(self.layer, nn.MultiheadAttention)
        y = self.layer(h, h, h)[0] if attends else self.layer(h)
        return y.flatten(1)


def _kinds() -> Iterator[tuple[str, _Between, Tensor]]:
    kinds: list[tuple[nn.Module, tuple[int, ...]]] = [
        (nn.Linear(4, 4), (2, 3, 4)),
        (nn.Conv1d(2, 2, 3, padding=1), (2, 2, 4)),
        (nn.Conv2d(2, 4, 3, padding="same", padding_mode="circular", groups=2), (2, 2, 4, 4)),
        (nn.Conv3d(2, 2, 2, stride=2), (2, 2, 4, 4, 4)),
        (nn.ConvTranspose1d(2, 2, 3, stride=2), (2, 2, 4)),
        (nn.ConvTranspose2d(2, 4, 2, groups=2), (2, 2, 4, 4)),
        (nn.ConvTranspose3d(2, 2, 2), (2, 2, 2, 2, 2)),
        (nn.MultiheadAttention(4, 2, batch_first=True), (2, 3, 4)),
    ]
    for layer, shape in kinds:
        x = torch.linspace(-1, 1, torch.Size(shape).numel(), dtype=torch.float64).view(shape)
        yield type(layer).__name__, _Between(layer, shape[-1]).double(), x
