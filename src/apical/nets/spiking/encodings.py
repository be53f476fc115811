"""From images to sequences: rows of all steps, step by step (see `neurons`).

Shapes: T steps, N samples; images (N, C, H, W) -> (T * N, ..., H, W). Each encoding propagates a
gradient to the image, which attacks need.
"""

import torch
from torch import Tensor, nn

from apical.nets.spiking.neurons import check_steps


class Encoding(nn.Module):
    """The base class.     Args: steps: T, >= 1.     Raises: ValueError below 1."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        check_steps(type(self).__name__, steps)
        self.steps = steps

    def extra_repr(self) -> str:
        return f"steps={self.steps}"


class Direct(Encoding):
    """The same image at every step: a constant current. It may also be placed after the first
    synapses, which then compute only once.

    Args: steps: T, >= 1.     Shapes: (N, ...) -> (T * N, ...).
    """

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(self.steps, *x.shape).reshape(-1, *x.shape[1:])


class Poisson(Encoding):
    """A spike at each step with the pixel's value as its probability, by the global generator.

    The gradient is a straight-through estimate: that of the spike is used for the probability.
    Scores are random, in evaluation, too: attack with `attacks.EOT`.

    Args: steps: T, >= 1.
    Raises: ValueError for values outside [0, 1]: train with `pixels="unit"`.
    """

    def forward(self, x: Tensor) -> Tensor:
        check_unit("Poisson", x)
        rate = x.expand(self.steps, *x.shape).reshape(-1, *x.shape[1:])
        return _straight_through((torch.rand_like(rate) < rate).to(x.dtype), rate)


class Latency(Encoding):
    """One spike for each pixel, at step round((1 - x) (T - 1)), and none for x = 0.

    The gradient of a pixel is that of its spike.

    Args: steps: T, >= 1.     Raises: ValueError for values outside [0, 1].
    """

    def forward(self, x: Tensor) -> Tensor:
        check_unit("Latency", x)
        at = ((1 - x.detach()) * (self.steps - 1)).round()
        step = torch.arange(self.steps, device=x.device).view(-1, *[1] * x.dim())
        spikes = ((step == at) & (x > 0)).to(x.dtype)
        return (spikes * (1 + x - x.detach())).flatten(0, 1)


class Frames(Encoding):
    """Frames that are in the channels, step by step: (N, T * C, H, W) -> (T * N, C, H, W).

    Args: steps: T, >= 1.     Raises: ValueError if the channels are no multiple of T.
    """

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[1] % self.steps:
            raise ValueError(
                f"{type(self).__name__}: {x.shape[1]} channels are no whole number of frames at "
                f"{self.steps} steps"
            )
        return x.unflatten(1, (self.steps, -1)).transpose(0, 1).flatten(0, 1)


class Delta(Frames):
    """Events where frames change: ON where a value rose by the threshold or more, OFF where it
    fell, against the frame before (zeros before the first).

    The gradient is a straight-through estimate: that of the ON channel is used for the change, that
    of the OFF channel for its negative.

    Args: steps: T, >= 1.     threshold: smallest change that causes an event, above 0.
    Shapes: (N, T * C, H, W) -> (T * N, 2 * C, H, W), the ON channels first.
    """

    def __init__(self, steps: int, threshold: float = 0.1) -> None:
        super().__init__(steps)
        if not threshold > 0:
            raise ValueError(f"Delta: threshold={threshold} must be above 0")
        self.threshold = threshold

    def extra_repr(self) -> str:
        return f"steps={self.steps}, threshold={self.threshold:g}"

    def forward(self, x: Tensor) -> Tensor:
        frames = super().forward(x).unflatten(0, (self.steps, -1))
        change = torch.cat([frames[:1], frames[1:] - frames[:-1]]).flatten(0, 1)
        signed = torch.cat([change, -change], 1)
        return _straight_through((signed >= self.threshold).to(x.dtype), signed)


def check_unit(owner: str, x: Tensor) -> None:
    """Raises: ValueError for values that are no pixels in [0, 1]."""
    low, high = (x.min().item(), x.max().item()) if x.numel() else (0.0, 0.0)
    if low < 0 or high > 1:
        raise ValueError(
            f"{owner}: inputs between {low:.4g} and {high:.4g}; it takes pixels in [0, 1]: train "
            "with pixels='unit'"
        )


def _straight_through(spikes: Tensor, values: Tensor) -> Tensor:
    """The spikes, with the gradient of the values."""
    return spikes + (values - values.detach())
