"""Nets whose gradient is known to be right, wrong, shattered, absent or random: the truth that
verdicts are compared with. All are small, on digits, and reach at least 80 % clean accuracy."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

import apical
from apical import attacks
from apical.attacks import Effort, RobustReport, robust_report
from victims import digits, fit, trained

Truth = Literal["honest", "misaligned", "wrong", "partial", "absent", "random", "batch", "switch"]
"""honest: the gradient is that of the loss, at every length that counts; also where it only looks
broken (k winners take all, switching): of the images left there, Square with 2,000 queries, APGD
with 100 steps and a transfer from the plain net broke one of 14 at most. misaligned: that of a
feedback rule. wrong: of another function, or of one that is shattered. partial: of a part of the
net, or of another net for some examples, so that another gradient finds more. absent: zero.
random: it, or the scores, change. batch: the scores of an example depend on the others. switch:
other scores while gradients are recorded, in inference mode, or for other strides."""

X, Y = digits()[0][1300:1360], digits()[1][1300:1360]
EPS = 0.1
EFFORT = Effort(steps=10, adaptive_steps=10, queries=200, redraws=2)


@dataclass(frozen=True)
class Kept:
    """A net of the zoo. Attributes: samples: as of a report. flat: takes vectors."""

    name: str
    truth: Truth
    make: Callable[[], nn.Module]
    samples: int = 1
    flat: bool = False
    dtype: torch.dtype = torch.float32


class Function(nn.Module):
    """A function of the input around a net."""

    def __init__(self, net: nn.Module, function: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.function = net, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.net, x)


@cache
def base(seed: int = 0) -> nn.Module:
    return trained("bp", seed=seed)


def around(function: Callable[[nn.Module, Tensor], Tensor], net: nn.Module | None = None) -> Any:
    return lambda: Function(net or base(), function).eval()


@cache
def mlp(activation: type[nn.Module] = nn.ReLU, norm: bool = False, steps: int = 150) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(64, 48)]
        layers += [nn.BatchNorm1d(48)] * norm
        layers += [activation(), nn.Linear(48, 48), activation(), nn.Linear(48, 10)]
        net = nn.Sequential(*layers)
    return fit(net, steps, 1)


@cache
def linear() -> nn.Module:
    return fit(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), 150, 0)


@cache
def hardened() -> nn.Module:
    """Trained on its own adversarial examples."""
    net, (images, labels) = copy.deepcopy(base()).train(), digits()
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    for step in range(40):
        rows = torch.randint(0, 1300, (64,), generator=torch.Generator().manual_seed(step))
        x = attacks.PGD(EPS, steps=3, seed=step)(net.eval(), images[rows], labels[rows])
        loss = nn.functional.cross_entropy(net(x), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def straight(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A step function that is differentiated as if it were the identity."""
    return x + (function(x) - x).detach()


def hooked(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """The input itself, whose gradient is changed."""
    y = x * 1
    if y.requires_grad:
        y.register_hook(change)
    return y


def levels(x: Tensor, count: int) -> Tensor:
    return (x * count).round() / count


def masked_gradient(share: float, x: Tensor) -> Tensor:
    keep = torch.rand(x.shape[1:], generator=torch.Generator().manual_seed(0)) < share
    return hooked(x, lambda gradient: gradient * keep)


def passed_off_where(
    rows: Callable[[Tensor, Tensor], Tensor], other: nn.Module, net: nn.Module, x: Tensor
) -> Tensor:
    """As `passed_off`, for the examples that a function of inputs and scores selects."""
    scores = net(x)
    return torch.where(rows(x, scores)[:, None], passed_off(other, net, x), scores)


def shuffled(x: Tensor) -> Tensor:
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    return hooked(x, lambda gradient: gradient.flatten(1)[:, order].view_as(gradient))


def passed_off(other: nn.Module, net: nn.Module, x: Tensor) -> Tensor:
    """The scores of one net with the gradient of another."""
    scores = other(x)
    return scores + (net(x) - scores).detach()


class Winners(nn.Module):
    """k winners take all, in place of a ReLU (Xiao et al. 2020): a tenth of the units pass."""

    def forward(self, x: Tensor) -> Tensor:
        least = x.topk(max(1, x.shape[1] // 10), 1).values[:, -1:]
        return x * (x >= least)


def purified(net: nn.Module, x: Tensor) -> Tensor:
    """At test time the input is moved to where the net is more certain, and no gradient is kept."""
    moved = x.detach()
    with torch.enable_grad():
        for _ in range(5):
            moved = moved.requires_grad_()
            certain = net(moved).amax(1).sum()
            (gradient,) = torch.autograd.grad(certain, moved)
            moved = (moved + 0.04 * gradient.sign()).clamp(0, 1).detach()
    return net(x + (moved - x).detach())


def smoothed(net: nn.Module, x: Tensor) -> Tensor:
    """Votes over noise that is always the same: differentiable nowhere."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(8, *x.shape[1:], generator=generator)
    votes = [nn.functional.one_hot(net(x + 0.1 * n).argmax(1), 10) for n in noise]
    return torch.stack(votes).sum(0).float()


def voting(net: nn.Module, x: Tensor) -> Tensor:
    """Votes over fresh noise."""
    choices = [net(x + 0.05 * torch.randn_like(x)).argmax(1) for _ in range(5)]
    return torch.stack([nn.functional.one_hot(each, 10) for each in choices]).sum(0).float()


def thermometer(x: Tensor) -> Tensor:
    """The mean of a code of nine bits, each of which says that a value is above a threshold."""
    thresholds = torch.arange(0.1, 1, 0.1).view(-1, 1, 1)
    return (x[:, :1, None] > thresholds).float().mean(2)


def symmetric(scale: float) -> nn.Module:
    """Feedback that is the weights, of another length."""
    net = apical.convert(apical.revert(copy.deepcopy(base())), "fa")
    weights = [p for p in net.parameters() if p.dim() > 1]
    for buffer, weight in zip([b for b in net.buffers() if b.dim() > 1], weights, strict=True):
        buffer.copy_(weight.detach() * scale)
    return net.eval()


def ensemble(net: nn.Module, x: Tensor) -> Tensor:
    return (net(x) + base(1)(x) + mlp()(x)) / 3


def partly(net: nn.Module, x: Tensor) -> Tensor:
    """An ensemble that is differentiated through one member of three only."""
    return ((net(x) + base(1)(x)).detach() + mlp()(x)) / 3


def switching(net: nn.Module, x: Tensor) -> Tensor:
    """Which of two nets answers depends on the last digits of the input."""
    first = ((x.flatten(1).sum(1) * 1e4).floor() % 2)[:, None]
    return first * net(x) + (1 - first) * base(1)(x)


def half(dtype: torch.dtype) -> nn.Module:
    return copy.deepcopy(base()).to(dtype)


def sine(frequency: float, height: float) -> Kept:
    around_sine = around(lambda net, x: net(x + height * torch.sin(frequency * x)))
    return Kept(f"input with sine of {frequency:g}", "wrong", around_sine)


def simple(name: str, truth: Truth, function: Any, **options: Any) -> Kept:
    return Kept(name, truth, around(function), **options)


class Counting(nn.Module):
    """A net whose input is changed by a function that is given the number of the pass."""

    def __init__(self, change: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.passes, self.change = base(), 0, change

    def forward(self, x: Tensor) -> Tensor:
        self.passes += 1
        return self.net(self.change(self.passes, x))


def where_recorded(net: nn.Module, x: Tensor) -> Tensor:
    """The net itself while gradients are recorded, else the net of rounded inputs."""
    return net(x if torch.is_grad_enabled() else levels(x, 3))


FEEDBACK = tuple("brsf dfa dldfa fa frozen frsf quantised(fa) sdfa sparse(fa) usf".split())

ZOO = (
    Kept("convolutional net", "honest", base),
    Kept("the same, other seed", "honest", partial(base, 1)),
    Kept("the same, trained for long", "honest", lambda: trained("bp", steps=400)),
    Kept("MLP, ReLU", "honest", mlp),
    Kept("MLP, tanh", "honest", partial(mlp, nn.Tanh)),
    Kept("MLP, GELU", "honest", partial(mlp, nn.GELU)),
    Kept("MLP, SiLU", "honest", partial(mlp, nn.SiLU)),
    Kept("MLP, leaky ReLU", "honest", partial(mlp, nn.LeakyReLU)),
    Kept("MLP, ELU", "honest", partial(mlp, nn.ELU)),
    Kept("MLP, batch statistics fixed", "honest", partial(mlp, nn.ReLU, True)),
    Kept("linear classifier", "honest", linear),
    Kept("adversarially trained", "honest", hardened),
    Kept("vectors as inputs", "honest", lambda: nn.Sequential(*list(mlp())[1:]).eval(), flat=True),
    Kept("bfloat16", "honest", partial(half, torch.bfloat16), dtype=torch.bfloat16),
    Kept("float16", "honest", partial(half, torch.float16), dtype=torch.float16),
    Kept("float64", "honest", partial(half, torch.float64), dtype=torch.float64),
    Kept("feedback equals weights", "honest", partial(symmetric, 1.0)),
    Kept("feedback of length 1e-5", "honest", partial(symmetric, 1e-5)),
    simple("ensemble of three", "honest", ensemble),
    simple("normalised inputs", "honest", lambda net, x: net((x - 0.5) / 0.5 * 0.5 + 0.5)),
    simple("logits times 30", "honest", lambda net, x: 30 * net(x)),
    simple("logits times 1e-3", "honest", lambda net, x: 1e-3 * net(x)),
    simple("logits times 1e-12", "honest", lambda net, x: 1e-12 * net(x)),
    simple("log probabilities", "honest", lambda net, x: net(x).log_softmax(1)),
    simple("logits plus 100", "honest", lambda net, x: net(x) + 100),
    simple("gradient times 1e-30", "honest", lambda net, x: net(hooked(x, lambda g: g * 1e-30))),
    simple("gradient times 1e-15", "honest", lambda net, x: net(hooked(x, lambda g: g * 1e-15))),
    simple("gradient times 1e20", "honest", lambda net, x: net(hooked(x, lambda g: g * 1e20))),
    simple(
        "16 levels, straight through",
        "honest",
        lambda net, x: net(straight(partial(levels, count=15), x)),
    ),
    simple(
        "32 levels, straight through",
        "honest",
        lambda net, x: net(straight(partial(levels, count=31), x)),
    ),
    simple("jitter of 1e-7", "honest", lambda net, x: net(x) + 1e-7 * torch.randn(len(x), 10)),
    simple(
        "undefined outside the range",
        "honest",
        lambda net, x: net(torch.where((x < 0) | (x > 1), torch.nan, x)),
    ),
    simple("root of the inputs", "honest", lambda net, x: net((x + (x + 1e-8).sqrt()) / 2)),
    simple("scores as an object", "honest", lambda net, x: {"logits": net(x)}),
    *(
        Kept(f"trained by {rule}", "misaligned", partial(trained, rule, steps=150))
        for rule in FEEDBACK
    ),
    sine(5000, 0.002),
    sine(2000, 0.005),
    sine(20000, 0.001),
    simple("tenth of the gradient", "wrong", lambda net, x: net(masked_gradient(0.1, x))),
    simple("twentieth of the gradient", "wrong", lambda net, x: net(masked_gradient(0.05, x))),
    simple("shuffled gradient", "wrong", lambda net, x: net(shuffled(x))),
    simple("reversed gradient", "wrong", lambda net, x: net(hooked(x, lambda g: -g))),
    simple("absolute gradient", "wrong", lambda net, x: net(hooked(x, torch.abs))),
    simple("gradient of a linear net", "wrong", lambda net, x: passed_off(linear(), net, x)),
    simple("gradient of an MLP", "wrong", lambda net, x: passed_off(mlp(nn.Tanh), net, x)),
    simple("ensemble, one member's gradient", "partial", partly),
    simple(
        "gradient of an MLP for one class",
        "partial",
        lambda net, x: passed_off_where(lambda _, z: z.argmax(1) == 3, mlp(nn.Tanh), net, x),
    ),
    simple(
        "gradient of a linear net for bright images",
        "partial",
        lambda net, x: passed_off_where(lambda x, _: x.mean((1, 2, 3)) > 0.35, linear(), net, x),
    ),
    Kept("k winners take all", "honest", partial(mlp, Winners)),
    simple("switching by last digits", "honest", switching),
    simple("purified at test time", "wrong", purified),
    simple("sawtooth input", "wrong", lambda net, x: net(x + 0.02 * ((x * 200) % 1 - 0.5))),
    simple(
        "logits with steep ripples", "wrong", lambda net, x: net(x) + 3 * torch.sin(500 * net(x))
    ),
    simple("rounded inputs", "absent", lambda net, x: net(levels(x, 15))),
    simple("rounded logits", "absent", lambda net, x: net(x).round()),
    simple(
        "one-hot scores",
        "absent",
        lambda net, x: nn.functional.one_hot(net(x).argmax(1), 10).float(),
    ),
    simple("votes of fixed noise", "absent", smoothed),
    simple("detached", "absent", lambda net, x: net(x).detach()),
    simple("thermometer", "absent", lambda net, x: net(thermometer(x))),
    simple("noise on inputs", "random", lambda net, x: net(x + 0.1 * torch.randn_like(x))),
    simple("little noise on inputs", "random", lambda net, x: net(x + 0.02 * torch.randn_like(x))),
    simple("dropped inputs", "random", lambda net, x: net(nn.functional.dropout(x, 0.1))),
    simple("votes over noise", "random", voting),
    simple(
        "random gradient",
        "random",
        lambda net, x: net(hooked(x, lambda g: g * torch.rand_like(g).round())),
    ),
    Kept(
        "another function in every 20th pass",
        "random",
        lambda: Counting(lambda n, x: x if n % 20 else x.flip(3)).eval(),
    ),
    Kept(
        "rounded inputs after 300 passes",
        "random",
        lambda: Counting(lambda n, x: x if n <= 300 else levels(x, 3)).eval(),
    ),
    simple(
        "noise, mean of 8", "honest", lambda net, x: net(x + 0.05 * torch.randn_like(x)), samples=8
    ),
    simple(
        "scores minus their mean over the batch", "batch", lambda net, x: net(x) - net(x).mean(0)
    ),
    simple("minus the first input of the batch", "batch", lambda net, x: net(x - 0.05 * x[:1])),
    simple(
        "turned in batches of odd size",
        "batch",
        lambda net, x: net(x) if len(x) % 2 == 0 else net(x.flip(3)),
    ),
    simple(
        "inputs minus their mean over the batch",
        "batch",
        lambda net, x: net(x - 0.2 * x.mean(0) + 0.1),
    ),
    simple(
        "another net in batches below 10",
        "batch",
        lambda net, x: net(x) if len(x) >= 10 else base(1)(x),
    ),
    simple("rounded inputs unless gradients are recorded", "switch", where_recorded),
    simple(
        "turned where the input requires a gradient",
        "switch",
        lambda net, x: net(x.flip(3) if x.requires_grad else x),
    ),
    simple(
        "rounded inputs in inference mode",
        "switch",
        lambda net, x: net(levels(x, 3) if torch.is_inference_mode_enabled() else x),
    ),
    simple(
        "rounded inputs of other strides",
        "switch",
        lambda net, x: net(x if x.is_contiguous() else levels(x, 3)),
    ),
    simple(
        "rounded inputs that are results",
        "switch",
        lambda net, x: net(x if x.is_leaf else levels(x, 3)),
    ),
)


def judged(kept: Kept) -> RobustReport | str:
    """The report on a net, or "refused" where it is random or depends on the batch."""
    x = X.flatten(1) if kept.flat else X
    for needed in (base(1), mlp(), mlp(nn.Tanh), linear()):  # inside a report nothing is trained
        assert not needed.training
    net = kept.make()
    other = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), base(2)) if kept.flat else base(2)
    try:
        return robust_report(
            net,
            x.to(kept.dtype),
            Y,
            eps=EPS,
            effort=EFFORT,
            samples=kept.samples,
            surrogates={} if kept.dtype == torch.float64 else {"bp": other.eval()},
        )
    except ValueError as error:
        refusals = ("scores depend on", "scores of an example depend", "inputs differ")
        if any(each in str(error) for each in refusals):
            return "refused"
        raise
