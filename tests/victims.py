"""Nets for tests of attacks: small ones, trained in a moment on real digits."""

import copy
from functools import cache

import torch
from torch import Tensor, nn

import apical


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1797 images (N, 1, 8, 8) in [0, 1] and their labels."""
    from sklearn.datasets import load_digits

    data = load_digits()
    return torch.tensor(data.images / 16, dtype=torch.float32)[:, None], torch.tensor(data.target)


def convolutional(width: int = 8, classes: int = 10) -> nn.Module:
    """An untrained net for the digits, in eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(width * 16, classes),
        ).eval()


def trained(rule: object = "bp", *, steps: int = 150, seed: int = 0) -> nn.Module:
    """A net for the digits, trained on the first 1300 by the rule; each call gives a copy."""
    return copy.deepcopy(_trained(rule, steps, seed))


@cache
def _trained(rule: object, steps: int, seed: int) -> nn.Module:
    net = convolutional()
    apical.convert(net, rule, example=digits()[0][:1], seed=seed)
    return fit(net, steps, seed)


def perceptron(rule: object, *, steps: int, seed: int = 0) -> nn.Module:
    """64-256-256-10, trained by SGD with momentum until its scores are large."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64, 256),
            nn.ReLU(),
            nn.Linear(256, 256),
            nn.ReLU(),
            nn.Linear(256, 10),
        )
    apical.convert(net, rule, example=digits()[0][:1], seed=seed)
    optimizer = torch.optim.SGD(net.parameters(), 0.1, momentum=0.9)
    return fit(net, steps, seed, optimizer)


def fit(
    net: nn.Module, steps: int, seed: int, optimizer: torch.optim.Optimizer | None = None
) -> nn.Module:
    images, labels = digits()
    optimizer = optimizer or torch.optim.Adam(net.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        rows = torch.randint(0, 1300, (64,), generator=generator)
        loss = nn.functional.cross_entropy(net(images[rows]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return net.eval()


def correct(net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return net(x).argmax(1) == y
