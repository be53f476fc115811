"""How a memory is written: what changes its weights so that keys recall values from then on.

All of them run in the forward pass, at test time too and without autograd. Training differentiates
through them: out of place, batched over samples, the gradient of MNM-g written out by hand.
"""

from __future__ import annotations

import abc

import torch
from torch import Tensor, nn

from apical.nets.memory.memory import ACTIVATIONS, Memory, activations, moved


class Write(nn.Module, abc.ABC):
    """A way to write.

    Args: width: of the memory, D >= 1.     layers: of the memory, >= 1.
        activation: of its hidden layers.
    """

    def __init__(self, width: int, layers: int, activation: str) -> None:
        super().__init__()
        self.layers, self.activation = layers, activation

    @abc.abstractmethod
    def forward(self, memory: Memory, keys: Tensor, values: Tensor, rate: Tensor) -> Memory:
        """The memory after the write; the one given stays as it is.

        Shapes: keys, values (N, H, D); rate (N,), in [0, 1], beta of the paper: 0 changes nothing.
        """


class Gradient(Write):
    """MNM-g: a step down the gradient of the squared error, W - beta dL/dW with
    L = 1 / (H D) sum over heads of |f(key) - value|^2.

    Training the controller through it takes second derivatives, which autograd finds by itself:
    the step is made of ordinary operations.

    Source: Munkhdalai et al. 2019, MNM-g; its learning rate from the paper's reviews.
    """

    def forward(self, memory: Memory, keys: Tensor, values: Tensor, rate: Tensor) -> Memory:
        z = activations(memory, keys, self.activation)
        slope = ACTIVATIONS[self.activation].slope
        signal = _scale(rate, keys) * (z[-1] - values)
        signals = [signal]
        for layer in range(self.layers - 1, 0, -1):
            signal = (signal @ memory[layer]) * slope(z[layer])
            signals.insert(0, signal)
        return moved(memory, signals, z[:-1])


class Local(Write):
    """MNM-p: every layer is moved towards an activation of its own, predicted from the value.

    W_l - 2 beta / (H D) sum over heads of (z_l - q_l(value)) z_(l-1)^T, all layers at once, from
    the activations before the write; q is one linear map with a bias. No error travels through
    the memory, and no slope of an activation is asked for.

    Args: learned: train q with the controller; or leave it as it was drawn, a random projection
        of the target to every layer, as in direct random target projection.
    Source: Munkhdalai et al. 2019, MNM-p, as in the code of Webb et al. 2021.
    """

    def __init__(self, width: int, layers: int, activation: str, *, learned: bool = True) -> None:
        super().__init__(width, layers, activation)
        self.targets = nn.Linear(width, layers * width).requires_grad_(learned)

    def forward(self, memory: Memory, keys: Tensor, values: Tensor, rate: Tensor) -> Memory:
        z = activations(memory, keys, self.activation)
        off = torch.cat(z[1:], 2) - self.targets(values)
        signals = (_scale(rate, keys) * off).chunk(self.layers, 2)
        return moved(memory, list(signals), z[:-1])


def random(width: int, layers: int, activation: str) -> Local:
    """The local write with random targets that are never trained."""
    return Local(width, layers, activation, learned=False)


def _scale(rate: Tensor, keys: Tensor) -> Tensor:
    """2 beta / (H D), (N, 1, 1)."""
    return rate[:, None, None] * (2 / (keys.shape[1] * keys.shape[2]))
