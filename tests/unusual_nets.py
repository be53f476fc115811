"""Unusual nets for tests of attacks: honest ones, and ones whose gradient says nothing."""

import torch
from torch import Tensor, nn

from victims import trained


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = trained("bp", steps=150)


class Quantised(Wrapped):
    """Inputs rounded to 16 levels, differentiated as if they were not."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + ((x * 15).round() / 15 - x).detach())


class Rounded(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net((x * 15).round() / 15)


class Stepped(Wrapped):
    """A layer without a useful derivative in the middle."""

    def forward(self, x: Tensor) -> Tensor:
        return self.net[2:](torch.heaviside(self.net[0](x), torch.zeros(())))


class Detached(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x).detach()


class Noisy(Wrapped):
    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn_like(x))


class Scaled(Wrapped):
    """Scores so far apart that cross entropy has no gradient left in float32."""

    def forward(self, x: Tensor) -> Tensor:
        return 100 * self.net(x)
