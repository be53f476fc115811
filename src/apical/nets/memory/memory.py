"""The memory: a feed-forward net whose weights are state, separate ones for every sample; and the
updates that write to it, after which keys recall values.

Writes run in the forward pass, at test time too, without autograd. Training differentiates through
them: they are out of place, batched over samples, the gradient of MNM-g written out by hand.

Shapes: N samples, H heads, D width. Weights are (N, D, D) for each layer, keys (N, H, D).
"""

import abc
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn


class Activation(NamedTuple):
    """A nonlinearity, and its slope as a function of what it returned."""

    value: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]


ACTIVATIONS: dict[str, Activation] = {
    "sigmoid": Activation(torch.sigmoid, lambda z: z * (1 - z)),
    "tanh": Activation(torch.tanh, lambda z: 1 - z.square()),
}
"""Of the hidden layers. The two known implementations differ: tanh and sigmoid."""

Memory = tuple[Tensor, ...]
"""The weights of each layer, from keys to values."""


def begin(start: Sequence[Tensor], samples: int) -> Memory:
    """The memory before a sequence: the same weights, (D, D) for each layer, for all samples."""
    return tuple(weight.expand(samples, -1, -1) for weight in start)


def activations(memory: Memory, keys: Tensor, activation: str) -> list[Tensor]:
    """The output of every layer: z_0 = keys, z_l = act(W_l z_(l-1)), the last layer linear.

    Returns: one tensor (N, H, D) more than there are layers.
    """
    value = ACTIVATIONS[activation].value
    found = [keys]
    for place, weight in enumerate(memory, 1):
        drive = found[-1] @ weight.mT
        found.append(drive if place == len(memory) else value(drive))
    return found


def recall(memory: Memory, keys: Tensor, activation: str) -> Tensor:
    """The output of the memory for keys, (N, H, D)."""
    return activations(memory, keys, activation)[-1]


def moved(memory: Memory, signals: Sequence[Tensor], inputs: Sequence[Tensor]) -> Memory:
    """New weights W_l - sum over heads of signal_l input_l^T; the memory given stays as it is.

    Shapes: signals and inputs (N, H, D), one for each layer.
    """
    return tuple(
        torch.baddbmm(weight, signal.mT, z, alpha=-1)
        for weight, signal, z in zip(memory, signals, inputs, strict=True)
    )


def norm(memory: Memory) -> Tensor:
    """Norm of all weights together, for each sample, (N,)."""
    return torch.stack([weight.square().sum((1, 2)) for weight in memory]).sum(0).sqrt()


class Write(nn.Module, abc.ABC):
    """An update that writes values to a memory.

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

    Training the controller through it takes second derivatives, which autograd computes: the step
    consists of ordinary operations.

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
    the activations before the write; q is one linear map with a bias. No error is propagated
    through the memory, and no derivative of an activation is needed.

    Args: learned: train q with the controller; or keep its initial values, a random projection of
        the target to every layer, as in direct random target projection.
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


def _scale(rate: Tensor, keys: Tensor) -> Tensor:
    """2 beta / (H D), (N, 1, 1)."""
    return rate[:, None, None] * (2 / (keys.shape[1] * keys.shape[2]))
