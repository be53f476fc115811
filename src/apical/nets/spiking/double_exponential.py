"""The neuron of DECOLLE: currents pass two filters, and a spike leaves a hole that fills again."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from apical.nets.spiking.neurons import check_decay
from apical.nets.spiking.surrogates import fired


class Filtered(NamedTuple):
    """A current behind the first filter, and behind both."""

    once: Tensor
    twice: Tensor


class Refractory(NamedTuple):
    """What spikes have left, and the spikes of the step before."""

    hole: Tensor
    spikes: Tensor


class DoubleExponential(nn.Module):
    """A neuron for `OverTime(neuron, steps, start=neuron.start)`. From the current I, at each step:

        Q = beta Q + (1 - beta) I        P = alpha P + (1 - alpha) Q
        R = rest R - (1 - rest) depth S  U = P + R        S = 1[U > 0]

    where on the right Q is the one just computed, S the spike before, of which no gradient is
    taken. Backward, dS/dU is the fast sigmoid 1 / (1 + slope |U|)^2. The filters are linear: behind
    synapses W they give what W makes of filtered inputs.

    Args: alpha, beta, rest: decays, in [0, 1).     depth: of the hole, at least 0.
        slope: of the surrogate, above 0.
    Raises: ValueError for a value out of range.
    Source: Kaiser, Mostafa, Neftci 2020 (alpha_rp is rest, W_rp depth). Their code takes Q from the
        step before. There too U = 0 does not fire, so that silence stays silent.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.97,
        beta: float = 0.92,
        rest: float = 0.65,
        depth: float = 1.0,
        slope: float = 10.0,
    ) -> None:
        super().__init__()
        for name, decay in (("alpha", alpha), ("beta", beta), ("rest", rest)):
            check_decay(f"DoubleExponential ({name})", decay)
            if decay == 1:
                raise ValueError(f"DoubleExponential: {name}=1 blocks all input: must be below 1")
        if not (depth >= 0 and slope > 0):
            raise ValueError(
                f"DoubleExponential: depth={depth} must be at least 0, slope={slope} above 0"
            )
        self.alpha, self.beta, self.rest = alpha, beta, rest
        self.depth, self.slope = depth, slope

    def extra_repr(self) -> str:
        return (
            f"alpha={self.alpha:g}, beta={self.beta:g}, rest={self.rest:g}, depth={self.depth:g}, "
            f"slope={self.slope:g}"
        )

    def start(self, x: Tensor) -> tuple[Filtered, Refractory]:
        """The state before the first step: all zero."""
        zero = torch.zeros_like(x)
        return Filtered(zero, zero), Refractory(zero, zero)

    def forward(
        self, current: Tensor, state: tuple[Filtered, Refractory]
    ) -> tuple[Tensor, tuple[Filtered, Refractory]]:
        filtered = self.filtered(current, state[0])
        spikes, refractory = self.fire(filtered.twice, state[1])
        return spikes, (filtered, refractory)

    def filtered(self, current: Tensor, before: Filtered) -> Filtered:
        """Q and P."""
        once = self.beta * before.once + (1 - self.beta) * current
        return Filtered(once, self.alpha * before.twice + (1 - self.alpha) * once)

    def fire(self, twice: Tensor, before: Refractory) -> tuple[Tensor, Refractory]:
        """S for this P, with R."""
        hole = self.rest * before.hole - (1 - self.rest) * self.depth * before.spikes
        spikes = fired(twice + hole, "fast_sigmoid", self.slope)
        return spikes, Refractory(hole, spikes.detach())
