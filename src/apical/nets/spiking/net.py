"""Spiking nets as sequences of layers: readouts, and measurements of their spikes."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apical.nets.spiking.neurons import LIF, OverTime, check_decay, check_steps, over_steps


class Membrane(nn.Module):
    """Readout by neurons that do not fire: o_t = decay o_(t-1) + I_t; scores are their means over
    steps.

    The mean over steps is a weighted sum of the inputs, by sum_(u <= T - t) decay^u / T at step t.

    Args: steps: T, >= 1.     decay: in [0, 1].     Shapes: (T * N, classes) -> (N, classes).
    """

    weights: Tensor

    def __init__(self, steps: int, decay: float) -> None:
        super().__init__()
        check_steps("Membrane", steps)
        check_decay("Membrane", decay)
        self.steps, self.decay = steps, float(decay)
        powers = decay ** torch.arange(steps, dtype=torch.float64)
        weights = (powers.cumsum(0).flip(0) / steps).to(torch.get_default_dtype())
        self.register_buffer("weights", weights, persistent=False)

    def extra_repr(self) -> str:
        return f"steps={self.steps}, decay={self.decay:g}"

    def forward(self, current: Tensor) -> Tensor:
        return torch.einsum("tnc,t->nc", over_steps("Membrane", current, self.steps), self.weights)


class Count(nn.Module):
    """Readout by the number of spikes of each output neuron, 0 to T.

    Args: steps: T, >= 1.     Shapes: (T * N, classes) -> (N, classes).
    """

    def __init__(self, steps: int) -> None:
        super().__init__()
        check_steps("Count", steps)
        self.steps = steps

    def extra_repr(self) -> str:
        return f"steps={self.steps}"

    def forward(self, spikes: Tensor) -> Tensor:
        return over_steps("Count", spikes, self.steps).sum(0)


class SpikingNet(nn.Module):
    """A sequence of layers that process the rows of all steps, from images to class scores.

    Rules convert its linear layers and convolutions as those of other nets; attacks follow its
    gradient, which is that of the surrogates.

    Args: layers: by their names, in order.
    """

    def __init__(self, layers: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.order = tuple(layers)
        for name, layer in layers.items():
            self.add_module(name, layer)

    def layers(self) -> Iterator[tuple[str, nn.Module]]:
        """Name and module of each layer, in order, without modules that learners attached."""
        return ((name, self.get_submodule(name)) for name in self.order)

    def forward(self, x: Tensor) -> Tensor:
        for _, layer in self.layers():
            x = layer(x)
        return x


class SilentWarning(UserWarning):
    """Neurons that never fire, or fire at every step: they transmit nothing, and hardly learn."""


class Activity(NamedTuple):
    """The activity of the neurons of a layer on a batch.

    Attributes: rate: mean share of steps with a spike.     silent: share of neurons that never
        fired.     busy: share of neurons that fired at every step for every sample.
    """

    rate: float
    silent: float
    busy: float


def spikes(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The spikes of every layer of neurons on these inputs, by its name.

    The model is left as it was. Shapes: x (N, ...); results (T, N, ...).
    Raises: ValueError for a model without spiking neurons.
    """
    found: dict[str, Tensor] = {}

    def keep(name: str, neurons: LIF | OverTime, inputs: object, output: Tensor) -> None:
        found[name] = over_steps(name, output.detach(), neurons.steps)

    if not has_spikes(model):
        raise ValueError(f"{type(model).__name__} has no spiking neurons (spiking.LIF, OverTime)")
    with ExitStack() as hooks, torch.no_grad():
        for name, module in model.named_modules():
            if isinstance(module, LIF | OverTime):
                hooks.enter_context(module.register_forward_hook(partial(keep, name)))
        model(x)
    return found


def has_spikes(model: nn.Module) -> bool:
    """Whether a model has spiking neurons, so that its scores are piecewise constant."""
    return any(isinstance(module, LIF | OverTime) for module in model.modules())


def activity(model: nn.Module, x: Tensor) -> dict[str, Activity]:
    """How active each layer of neurons is on these inputs, by its name.

    Raises: ValueError for a model without spiking neurons.
    """
    return {name: _activity(fired) for name, fired in spikes(model, x).items()}


def check_activity(model: nn.Module, x: Tensor, *, share: float = 0.5) -> dict[str, Activity]:
    """`activity`, with a warning for each layer in which many neurons transmit nothing.

    Args: share: of neurons that never or always fire, in (0, 1], at which to warn.
    Warns: SilentWarning, with the layer.
    """
    if not 0 < share <= 1:
        raise ValueError(f"check_activity: share={share} is outside (0, 1]")
    found = activity(model, x)
    for name, layer in found.items():
        for part, what, remedy in (
            (layer.silent, "never fire", "larger weights (gain) or a lower threshold"),
            (layer.busy, "fire at every step", "smaller weights, a shorter memory (decay)"),
        ):
            if part >= share:
                warnings.warn(
                    f"{name}: {part:.0%} of its neurons {what} on {len(x)} inputs; try {remedy}",
                    SilentWarning,
                    stacklevel=2,
                )
    return found


@contextmanager
def within_steps(model: nn.Module) -> Iterator[nn.Module]:
    """Within the block no error is propagated through the membrane potentials from step to step:
    spikes are the same, but gradients treat the potential of the step before as an input."""
    neurons = [module for module in model.modules() if isinstance(module, LIF)]
    before = [module.through_time for module in neurons]
    try:
        for module in neurons:
            module.through_time = False
        yield model
    finally:
        for module, value in zip(neurons, before, strict=True):
            module.through_time = value


def _activity(fired: Tensor) -> Activity:
    share_NU = fired.flatten(2).mean(0)  # of steps, for each sample and neuron
    return Activity(
        share_NU.mean().item(),
        (share_NU.amax(0) == 0).float().mean().item(),
        (share_NU.amin(0) == 1).float().mean().item(),
    )
