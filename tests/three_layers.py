"""The net of three linear layers on which broadcast rules are worked out by hand."""

import torch
from torch import Tensor, nn

X, Y = torch.linspace(-1, 1, 28, dtype=torch.float64).view(7, 4).sin(), torch.arange(7) % 3


def mlp() -> nn.Sequential:
    """The same weights at every call."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)
    ).double()


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """What a backward pass left behind; the model gives it up."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return found
