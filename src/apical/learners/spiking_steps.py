"""Spiking layers a step at a time, for learners whose weights may change between two steps.

What is kept from one step to the next has no graph (but where errors go through time), so that an
update in between invalidates nothing.
"""

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn

from apical.core.layers import is_converted
from apical.learners.base import Learner
from apical.nets.spiking import LIF, DoubleExponential, OverTime, SpikingNet
from apical.nets.spiking.neurons import fired, over_steps

Reach = Literal["step", "time", "traces"]
"""What errors meet: the inputs of the step alone, the steps before as well, or their traces."""


class Layer:
    """Synapses and the neurons behind them.

    Inputs are taken without their graph. With reach "traces" membranes are what they are, and
    their derivative by the weights is xbar_t = decay xbar_(t-1) + x_t, by the biases that of ones.

    Args: weight (O, I), bias: of the synapses.     lif: the neurons.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, lif: LIF, reach: Reach) -> None:
        self.weight, self.bias, self.lif, self.reach = weight, bias, lif, reach
        self.membrane: Tensor | None = None
        self.spikes: Tensor | None = None
        self.trace: Tensor | None = None
        self.ones = 0.0

    def step(self, x: Tensor, sent: Tensor | float = 0.0) -> Tensor:
        """Spikes, (N, O), for what comes in, (N, I).     Args: sent: `carrier` of an error."""
        current = F.linear(x.detach(), self.weight, self.bias)
        if self.reach == "traces":
            traced = self._traced(x.detach())
            current = current.detach() + (traced - traced.detach())
        membrane = self._kept(current + sent)
        spikes = fired(membrane - self.lif.threshold, self.lif.surrogate, self.lif.slope)
        through = self.reach == "time"
        self.membrane = membrane if through else membrane.detach()
        self.spikes = spikes.detach()
        return spikes

    def _kept(self, current: Tensor) -> Tensor:
        """The membrane, in the order of operations of `LIF`."""
        if self.membrane is None or self.spikes is None:
            return current
        membrane = self.membrane
        if self.lif.reset == "zero":
            membrane = membrane * (1 - self.spikes)
        membrane = membrane * self.lif.decay + current
        if self.lif.reset == "subtract":
            membrane = membrane - self.lif.threshold * self.spikes
        return membrane

    def _traced(self, x: Tensor) -> Tensor:
        self.trace = x if self.trace is None else self.lif.decay * self.trace + x
        self.ones = self.lif.decay * self.ones + 1
        bias = None if self.bias is None else self.bias * self.ones
        return F.linear(self.trace, self.weight, bias)


class Doubly:
    """Synapses and neurons of DECOLLE: the trace of an input is what both filters make of it."""

    def __init__(self, weight: Tensor, bias: Tensor | None, cell: DoubleExponential) -> None:
        self.weight, self.bias, self.cell = weight, bias, cell
        zero = weight.new_zeros(())
        (self.trace, self.refractory), (self.ones, _) = cell.start(zero), cell.start(zero)

    def step(self, x: Tensor) -> Tensor:
        """Spikes, (N, O), for what comes in, (N, I)."""
        self.trace = self.cell.filtered(x.detach(), self.trace)
        self.ones = self.cell.filtered(x.new_ones(()), self.ones)
        bias = None if self.bias is None else self.bias * self.ones.twice
        current = F.linear(self.trace.twice, self.weight, bias)
        spikes, self.refractory = self.cell.fire(current, self.refractory)
        return spikes


class Fixed(NamedTuple):
    """A linear classifier without a state, that does not learn."""

    weight: Tensor
    bias: Tensor | None

    def step(self, x: Tensor, sent: Tensor) -> Tensor:
        """Its scores, (N, O).     Args: as of `Layer`."""
        bias = None if self.bias is None else self.bias.detach()
        return F.linear(x.detach(), self.weight.detach(), bias) + sent


def carrier(spikes: Tensor, matrix: Tensor) -> Tensor:
    """Zero, with a gradient: the error e at the outputs reaches the spikes as e M, M (O, I)."""
    sent = F.linear(spikes, matrix.detach())
    return sent - sent.detach()


def inputs(model: SpikingNet, x: Tensor, steps: int) -> list[Tensor]:
    """What the first synapses see at each step, without a graph."""
    rows = x.detach()
    for _, module in model.layers():
        if isinstance(module, nn.Linear):
            break
        rows = module(rows)
    if len(rows) == len(x):  # a constant current
        return [rows] * steps
    return list(over_steps("the first synapses", rows, steps))


def synapses(model: nn.Module, learner: Learner) -> list[tuple[str, nn.Linear]]:
    """Name and module of the dense layers of a `spiking_mlp`, in order.

    Raises: ValueError for another net, one without hidden layers, and one that is converted.
    """
    named = list(model.layers()) if isinstance(model, SpikingNet) else []
    if any(is_converted(m) for _, m in named):
        raise learner.error(
            "it does not use the feedback of converted layers; call apical.revert(model), or leave "
            "out the rule"
        )
    found = [(n, m) for n, m in named if isinstance(m, nn.Linear)]
    if len(found) < 2 or any(isinstance(m, nn.Conv2d) for _, m in named):
        raise learner.error(
            f"this {type(model).__name__} is no spiking_mlp: it trains dense hidden layers"
        )
    return found


def neurons(model: nn.Module) -> list[LIF | OverTime]:
    """The layers of neurons, in order."""
    return [module for module in model.modules() if isinstance(module, LIF | OverTime)]
