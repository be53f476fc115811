"""The small nets on which rules are tested, and comparisons that say what was seen."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.core.convert import convert
from apical.core.converted import labels
from apical.rules import Rule

Tensors = dict[str, Tensor]
LAST = "7"
"""Name of the output layer of `net`."""


class Broken(Exception):
    """A check failed: what it expects, and what was seen."""

    def __init__(self, expected: str | None, seen: str) -> None:
        super().__init__(
            f"expected: {' '.join((expected or '').split()).rstrip('.')}; seen: {seen}"
        )


def net(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """Two convolutions, one of them grouped, and two linear layers; some weights are zero."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)  # leaves alone those of GPUs
        model = nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1), nn.Tanh(),
            nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(),
            nn.Linear(36, 6), nn.Tanh(),
            nn.Linear(6, 3),
        ).to(dtype)  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.view(-1)[1] = 0
    return model


def batch(dtype: torch.dtype = torch.float64, count: int = 6) -> tuple[Tensor, Tensor]:
    """Inputs for `net`, and classes that can be told from them."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(count) % 3
    x = torch.randn(count, 2, 5, 5, generator=generator, dtype=torch.float64)
    x[:, 0, :, 0] += 2.0 * (y == 1)[:, None]
    x[:, 1, 0, :] += 2.0 * (y == 2)[:, None]
    return x.to(dtype), y


def converted(
    rule: Rule, *, seed: int = 0, dtype: torch.dtype = torch.float64, model: nn.Module | None = None
) -> nn.Module:
    """`net` under the rule, its feedback sized; layers that the rule refuses stay exact."""
    model = net(dtype) if model is None else model
    return convert(model, rule, example=batch(dtype)[0], seed=seed, on_unsupported="keep")


def gradients(model: nn.Module, x: Tensor, y: Tensor, *, scale: float = 1.0) -> Tensors:
    """What one backward pass leaves in `.grad`; absent where it left nothing."""
    model.zero_grad()
    with labels(model, y):
        (scale * F.cross_entropy(model(x), y)).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found


def train(model: nn.Module, steps: int, *, lr: float = 0.05) -> list[float]:
    """Losses of some steps of plain gradient descent on one batch."""
    x, y = batch()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        with labels(model, y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
        optimizer.step()
        losses.append(loss.item())
    model.zero_grad()
    return losses


def expect_equal(
    seen: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    what: str | None,
    *,
    rtol: float = 0.0,
) -> None:
    """Raise Broken naming the tensors that are missing, added or differ; rtol 0 means bitwise.

    The tolerance is relative to each tensor's largest entry.
    """
    found = difference(seen, expected, rtol=rtol)
    if found:
        raise Broken(what, found)


def difference(
    seen: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, rtol: float = 0.0
) -> str:
    """In words; empty if there is none."""
    parts = [f"no {name}" for name in expected if name not in seen]
    parts += [f"also {name}" for name in seen if name not in expected]
    for name in expected:
        if name not in seen:
            continue
        a, b = seen[name].detach(), expected[name].detach()
        if a.shape != b.shape:
            parts.append(f"{name} {tuple(a.shape)} instead of {tuple(b.shape)}")
        elif not torch.equal(a, b):
            error, size = (a - b).abs().max().item(), b.abs().max().item()
            if not error <= rtol * size:
                parts.append(f"{name} differs by {error:.3g} where entries reach {size:.3g}")
    return ", ".join(parts)
