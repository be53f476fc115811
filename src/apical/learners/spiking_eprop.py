"""e-prop in spiking nets: the error of the whole trial times eligibility traces of the synapses."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from apical.learners.base import Batch, Info, Learner, add_gradients, memory_of
from apical.nets.spiking import LIF, SURROGATES, Membrane, SpikingNet
from apical.nets.spiking.neurons import over_steps
from apical.rules.base import uniform


class _Layer(NamedTuple):
    """Synapses, the neurons behind them, and what came in and was left after the threshold."""

    name: str
    synapses: nn.Linear
    lif: LIF
    x_TNI: Tensor
    above_TNO: Tensor


def create(
    model: SpikingNet, learner: Learner, feedback: str, generator: torch.Generator
) -> dict[str, Tensor]:
    """Random feedback of each hidden layer, by its name; none for symmetric feedback."""
    *hidden, last = synapses(model, learner, feedback)
    if feedback == "symmetric":
        return {}
    shapes = {name: (last[1].out_features, layer.out_features) for name, layer in hidden}
    return {name: uniform(shape, shape[1] ** -0.5, generator) for name, shape in shapes.items()}


@torch.no_grad()
def gradients(
    model: SpikingNet, batch: Batch, learner: Learner, feedback: str
) -> tuple[Tensor, Info]:
    """With membranes m_t = decay m_(t-1) + W x_t + b - threshold r_t, the trace of an input is
    xbar_t = decay xbar_(t-1) + x_t, and that of a synapse ebar_t = kappa ebar_(t-1) + phi(m_t)
    xbar_t, kappa the decay of the readout. dW = sum_t (B delta) ebar_t, where delta = e / T is the
    error at the readout's membrane, the same at all steps, as scores are its mean: so that each
    phi xbar counts sum_(u >= t) kappa^(u - t) times.
    """
    *hidden, (_, readout) = synapses(model, learner, feedback)
    if feedback == "symmetric":
        matrices = {hidden[0][0]: readout.weight}
    else:
        memory = memory_of(model, learner)
        matrices = {name: memory.get_buffer(name) for name, _ in hidden}
    x, y = batch
    layers, rows_TNH, scores = _run(model, readout, x)
    loss, error = learner.objective.value(scores, y), learner.objective.error(scores, y)
    error = error / len(scores)
    worth = model.get_submodule("read").get_buffer("weights").to(scores.dtype)
    found = {
        readout.weight: error.t() @ torch.einsum("tnh,t->nh", rows_TNH, worth),
        readout.bias: error.sum(0) * worth.sum(),
    }
    for layer in layers:
        surrogate = SURROGATES[layer.lif.surrogate].product
        phi = surrogate(layer.above_TNO, torch.ones_like(layer.above_TNO), layer.lif.slope)
        signal = (error @ matrices[layer.name]) * phi * worth.view(-1, 1, 1)
        trace_TNI = torch.stack(list(_traced(layer.x_TNI, layer.lif.decay)))
        ones = torch.stack(list(_traced(worth.new_ones(len(worth)), layer.lif.decay)))
        found[layer.synapses.weight] = torch.einsum("tno,tni->oi", signal, trace_TNI)
        found[layer.synapses.bias] = torch.einsum("tno,t->o", signal, ones)
    add_gradients(found)
    return loss, Info(scores)


def synapses(model: SpikingNet, learner: Learner, feedback: str) -> list[tuple[str, nn.Linear]]:
    """Name and module of the layers with weights, the readout last.

    Raises: ValueError for another net than a `spiking_mlp` with output="membrane" and reset
        "subtract" or "none"; for several hidden layers with symmetric feedback.
    """
    found = [(n, m) for n, m in model.layers() if isinstance(m, nn.Linear | nn.Conv2d)]
    neurons = [m for _, m in model.layers() if isinstance(m, LIF)]
    fits = (
        isinstance(getattr(model, "read", None), Membrane)
        and len(neurons) == len(found) - 1 > 0
        and all(isinstance(m, nn.Linear) for _, m in found)
        and all(lif.reset != "zero" for lif in neurons)
    )
    if not fits:
        raise learner.error(
            f"this {type(model).__name__} is no spiking_mlp with hidden layers, output='membrane' "
            "and reset 'subtract' or 'none'"
        )
    if feedback == "symmetric" and len(found) > 2:
        raise learner.error(
            f"feedback='symmetric' is for one hidden layer, this net has {len(found) - 1}; use "
            "'random'"
        )
    return found  # type: ignore[return-value]


def _run(model: SpikingNet, readout: nn.Linear, x: Tensor) -> tuple[list[_Layer], Tensor, Tensor]:
    """The hidden layers with what they saw, the rows that the readout saw, and the scores."""
    steps = len(model.get_submodule("read").get_buffer("weights"))
    layers, waiting, rows = [], None, x
    for name, module in model.layers():
        if isinstance(module, nn.Linear) and module is not readout:
            waiting = name, module, rows
        if isinstance(module, LIF):
            assert waiting is not None
            above = module.membrane(rows) - module.threshold
            seen = waiting[2]
            if len(seen) == len(x):  # a constant current: the same input at every step
                seen_TNI = seen.expand(steps, *seen.shape)
            else:
                seen_TNI = over_steps(name, seen, steps)
            layers.append(_Layer(waiting[0], waiting[1], module, seen_TNI, above))
        if module is readout:
            at_readout = over_steps(name, rows, steps)
        rows = module(rows)
    return layers, at_readout, rows


def _traced(values: Tensor, decay: float) -> Iterator[Tensor]:
    """decay-filtered sums of what has come in so far, for each step (axis 0)."""
    trace = torch.zeros_like(values[0])
    for arriving in values:
        trace = decay * trace + arriving
        yield trace
