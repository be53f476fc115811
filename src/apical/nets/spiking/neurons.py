"""Spiking neurons over all steps at once, and surrogates of the derivative of a spike.

Sequences are rows, step by step: row t * N + n is sample n at step t. Layers without a state
(linear, convolution, pooling) then process all steps in one call, and rules apply to them as usual.
Shapes: T steps, N samples.

The derivative of a spike is that of a step function: zero or infinite. A surrogate takes its place,
as a function of v, the membrane potential minus the threshold. It returns gradient * phi(v), in the
order of operations of snnTorch where it has the same surrogate: gradients are bitwise equal.
"""

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from apical.names import unknown


class Surrogate(NamedTuple):
    """A surrogate: `product(v, gradient, slope)`, and its default slope."""

    product: Callable[[Tensor, Tensor, float], Tensor]
    slope: float


def arctan(v: Tensor, gradient: Tensor, slope: float) -> Tensor:
    """phi = (k / 2) / (1 + (pi k v / 2)^2).     Source: Fang et al. 2021."""
    return slope / 2 / (1 + (math.pi / 2 * slope * v).pow_(2)) * gradient


def exponential(v: Tensor, gradient: Tensor, slope: float) -> Tensor:
    """phi = exp(-k |v|).     Source: Shrestha and Orchard 2018; ELL, FELL and BELL with k = 1."""
    return gradient * torch.exp(-slope * v.abs())


def fast_sigmoid(v: Tensor, gradient: Tensor, slope: float) -> Tensor:
    """phi = 1 / (1 + k |v|)^2.     Source: Zenke and Ganguli 2018; DECOLLE has k = 10."""
    return gradient / (slope * torch.abs(v) + 1.0) ** 2


def triangular(v: Tensor, gradient: Tensor, slope: float) -> Tensor:
    """phi = max(0, 1 - k |v|).     Source: Bellec et al. 2018, without their damping of 0.3."""
    return gradient * (1 - slope * v.abs()).clamp_(min=0)


SURROGATES: dict[str, Surrogate] = {
    "arctan": Surrogate(arctan, 2.0),
    "exponential": Surrogate(exponential, 1.0),
    "fast_sigmoid": Surrogate(fast_sigmoid, 10.0),
    "triangular": Surrogate(triangular, 1.0),
}


def fired(above: Tensor, surrogate: str, slope: float) -> Tensor:
    """1[v > 0] with the surrogate as its derivative; v: membrane potential minus threshold.

    Args: surrogate: a name of `SURROGATES`.
    """
    v = above.detach()
    spikes = (v > 0).to(v.dtype)
    phi = SURROGATES[surrogate].product(v, torch.ones_like(v), slope)
    return spikes + phi * (above - v)


Reset = Literal["none", "subtract", "zero"]
RESETS = ("none", "subtract", "zero")


class LIF(nn.Module):
    """Leaky integrate-and-fire neurons with membrane potential m, zero before the first step.

    With r_t = 1[m_(t-1) > threshold], without a gradient, and I_t the input:

        subtract   m_t = decay m_(t-1) + I_t - threshold r_t
        zero       m_t = decay (1 - r_t) m_(t-1) + I_t
        none       m_t = decay m_(t-1) + I_t

    and a spike s_t = 1[m_t > threshold]. Backward, ds/dm is the surrogate at m - threshold.

    Args:
        steps: T, >= 1.
        decay: factor on the membrane potential from step to step, in [0, 1].
        threshold: above 0.
        surrogate: a name of `SURROGATES`.     slope: its k, above 0; None: that of `SURROGATES`.
    Shapes: (T * N, ...) -> the same, zeros and ones.
    Raises: ValueError for a value out of range, or if T does not divide the number of rows.
    Source: `Leaky` of snnTorch 1.0 (Eshraghian et al. 2023). In float32 spikes and gradients are
        bitwise equal; membrane potentials within rounding (5e-7).
    """

    def __init__(
        self,
        steps: int,
        *,
        decay: float = 0.9,
        threshold: float = 1.0,
        reset: Reset = "subtract",
        surrogate: str = "arctan",
        slope: float | None = None,
    ) -> None:
        super().__init__()
        check_steps("LIF", steps)
        check_decay("LIF", decay)
        if not (threshold > 0 and math.isfinite(threshold)):
            raise ValueError(f"LIF: threshold={threshold} must be a finite number above 0")
        if reset not in RESETS:
            raise unknown("reset of LIF", reset, RESETS)
        if surrogate not in SURROGATES:
            raise unknown("surrogate of LIF", surrogate, SURROGATES)
        slope = SURROGATES[surrogate].slope if slope is None else slope
        if not (slope > 0 and math.isfinite(slope)):
            raise ValueError(f"LIF: slope={slope} must be a finite number above 0")
        self.steps, self.decay, self.threshold = steps, float(decay), float(threshold)
        self.reset, self.surrogate, self.slope = reset, surrogate, float(slope)
        self.through_time = True  # see `within_steps`

    def extra_repr(self) -> str:
        return (
            f"steps={self.steps}, decay={self.decay:g}, threshold={self.threshold:g}, "
            f"reset={self.reset}, surrogate={self.surrogate}, slope={self.slope:g}"
        )

    def forward(self, current: Tensor) -> Tensor:
        sequence = over_steps("LIF", current, self.steps)
        return _Fire.apply(sequence, self, self.through_time).flatten(0, 1)

    def membrane(self, current: Tensor) -> Tensor:
        """The membrane potential m_t at every step, (T, N, ...), without a graph."""
        sequence = over_steps("LIF", current.detach(), self.steps)
        return _fired(sequence, self)[0] + self.threshold


class OverTime(nn.Module):
    """Any neuron with a state, `(input, state) -> (spike, state)`, unrolled over the steps.

    Args: cell: the neuron, such as `snntorch.Leaky(beta=0.9)`.     steps: T, >= 1.
        start: from the input of the first step to the first state; None: zeros like the input.
    Shapes: (T * N, ...) -> (T * N, ...).
    """

    def __init__(
        self, cell: nn.Module, steps: int, *, start: Callable[[Tensor], Any] | None = None
    ) -> None:
        super().__init__()
        check_steps("OverTime", steps)
        self.cell, self.steps, self.start = cell, steps, start or torch.zeros_like

    def forward(self, current: Tensor) -> Tensor:
        sequence = over_steps("OverTime", current, self.steps)
        state, spikes = self.start(sequence[0]), []
        for arriving in sequence:
            spike, state = self.cell(arriving, state)
            spikes.append(spike)
        return torch.cat(spikes)


class Filtered(NamedTuple):
    """A current after the first filter, and after both."""

    once: Tensor
    twice: Tensor


class Refractory(NamedTuple):
    """The refractory potential, and the spikes of the step before."""

    hole: Tensor
    spikes: Tensor


class DoubleExponential(nn.Module):
    """The neuron of DECOLLE, for `OverTime(neuron, steps, start=neuron.start)`: its current passes
    two filters, and spikes reduce a refractory potential R. From the current I, at each step:

        Q = beta Q + (1 - beta) I        P = alpha P + (1 - alpha) Q
        R = rest R - (1 - rest) depth S  U = P + R        S = 1[U > 0]

    where Q in the equation of P is the new one, and S in that of R the previous spike, without a
    gradient. Backward, dS/dU is the fast sigmoid 1 / (1 + slope |U|)^2. The filters are linear:
    after synapses W they give W times the filtered inputs.

    Args: alpha, beta, rest: decays, in [0, 1).     depth: factor of the refractory potential, at
        least 0.     slope: of the surrogate, above 0.
    Raises: ValueError for a value out of range.
    Source: Kaiser, Mostafa, Neftci 2020 (alpha_rp is rest, W_rp depth). Their code uses Q of the
        step before. As there, U = 0 does not fire, so that no input gives no spikes.
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


def over_steps(owner: str, rows: Tensor, steps: int) -> Tensor:
    """(T * N, ...) as (T, N, ...).     Raises: ValueError if T does not divide the rows."""
    if rows.shape[0] % steps:
        raise ValueError(
            f"{owner}: {rows.shape[0]} rows are no whole number of samples at {steps} steps; is the"
            " input encoded, with the same number of steps?"
        )
    return rows.unflatten(0, (steps, -1))


def check_steps(owner: str, steps: int) -> None:
    """Raises: ValueError unless there is at least one step."""
    if type(steps) is not int or steps < 1:
        raise ValueError(f"{owner}: steps={steps!r} must be a whole number of at least 1")


def check_decay(owner: str, decay: float) -> None:
    """Raises: ValueError for a decay outside [0, 1]."""
    if not 0 <= decay <= 1:
        raise ValueError(
            f"{owner}: decay={decay} is outside [0, 1]; it is the factor on the membrane potential"
            " from step to step, exp(-1 / tau)"
        )


class _Fire(torch.autograd.Function):
    """All steps as one node of the graph: ten times fewer, without autograd's work at each step."""

    @staticmethod
    def forward(ctx: Any, current: Tensor, lif: LIF, through_time: bool) -> Tensor:
        above, spikes = _fired(current, lif)
        ctx.save_for_backward(above)
        ctx.lif, ctx.through_time = lif, through_time
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (above,) = ctx.saved_tensors
        lif, found = ctx.lif, torch.empty_like(above)
        product = SURROGATES[lif.surrogate].product
        for t in range(len(found) - 1, -1, -1):  # step by step: one step fits into the cache
            here = product(above[t], gradient[t], lif.slope)
            if ctx.through_time and t + 1 < len(found):
                later = found[t + 1] * lif.decay
                if lif.reset == "zero":
                    later.mul_(above[t] <= 0)
                here.add_(later)
            found[t] = here
        return found, None, None


def _fired(current: Tensor, lif: LIF) -> tuple[Tensor, Tensor]:
    """m - threshold and spikes, (T, N, ...) each."""
    above, spikes = torch.empty_like(current), torch.empty_like(current)
    membrane = current[0].clone()
    for t in range(len(current)):
        if t:
            if lif.reset == "zero":
                membrane.mul_(1 - spikes[t - 1])
            membrane.mul_(lif.decay).add_(current[t])  # two roundings, as in snnTorch
            if lif.reset == "subtract":
                membrane.sub_(spikes[t - 1], alpha=lif.threshold)
        torch.sub(membrane, lif.threshold, out=above[t])
        torch.gt(above[t], 0, out=spikes[t])
    return above, spikes
