"""e-prop: learning signals from the outputs times eligibility traces that run forward in time."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from apical.learners import spiking_eprop
from apical.learners.base import Batch, Info, memory_of
from apical.learners.unrolled import (
    Gradients,
    Run,
    SimpleLearner,
    SimpleNet,
    exact_norms,
    signal_norms,
    simple_net,
    summed,
    unroll,
)
from apical.nets.spiking import SpikingNet
from apical.rules.base import uniform


@dataclass(frozen=True)
class EProp(SimpleLearner):
    """Each weight keeps an eligibility trace; its gradient is the trace times the present error.

    With h_t = leak h_(t-1) + W_in x_t + W_rec z_(t-1) + b and z_t = phi(h_t), the trace of an input
    x is xbar_t = leak xbar_(t-1) + x_t, and dW = sum_t (B e_t * phi'(h_t)) xbar_t, where e_t is the
    error at the outputs of step t (zero where none is read out). What passes through other units
    and later steps is left out: with W_rec = 0 it is backpropagation through time exactly, with
    leak = 0 only the last connection in time learns.

    In spiking nets (`spiking_mlp`) membranes leak, and what is remembered of a step until the
    readout counts too; with one hidden layer it is backpropagation through time exactly. Several
    need random feedback.

    Args: feedback: what carries the error to the units: the readout's own weights ("symmetric"),
        or a fixed random matrix of the same law ("random", `learners.attach` first).
    Source: Bellec et al. 2020, with the derivative of the net's activation for spikes' surrogate.
    """

    feedback: Literal["symmetric", "random"] = "symmetric"

    leaks: ClassVar[bool] = True
    reference: ClassVar[str] = """@article{bellec2020,
  title = {A solution to the learning dilemma for recurrent networks of spiking neurons},
  author = {Bellec, Guillaume and Scherr, Franz and Subramoney, Anand and Hajek, Elias and
            Salaj, Darjan and Legenstein, Robert and Maass, Wolfgang},
  journal = {Nature Communications}, volume = {11}, year = {2020}
}"""

    def create(self, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        if isinstance(model, SpikingNet):
            return spiking_eprop.create(model, self, self.feedback, generator)
        if self.feedback == "symmetric":
            return {}
        weight = simple_net(model, self, leak=True).w_out
        return {"matrix": uniform(weight.shape, weight.shape[1] ** -0.5, generator)}

    def teach(self, net: SimpleNet, x: Tensor, y: Tensor) -> tuple[Tensor, Gradients, Info]:
        matrix = net.w_out
        if self.feedback == "random":
            assert net.memory is not None  # `gradients` has looked
            matrix = net.memory.get_buffer("matrix")
        run = unroll(net, x)
        scores = run.scores.transpose(0, 1) if net.every else run.scores
        loss = self.objective.value(scores, y)  # raises for targets that do not fit
        error = self.objective.error(scores, y)
        error /= error[..., 0].numel()
        error_TNO = error.transpose(0, 1) if net.every else error[None]
        start = 0 if net.every else len(run.z) - 1  # without an error there is nothing to learn
        signals = (error_TNO @ matrix) * run.slope_TNH[start:]
        traces = _traces(run, net.leak)
        gradients = {
            net.w_in: summed(signals, traces[0][start:]),
            net.b_in: torch.einsum("tnh,t->h", signals, traces[2][start:]),
            net.w_rec: summed(signals, traces[1][start:]),
            net.w_out: summed(error_TNO, run.z_TNH[start:]),
            net.b_out: error_TNO.sum((0, 1)),
        }
        return loss, gradients, _info(scores, signals, traces[1], start)

    def gradients(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Info]:
        if isinstance(model, SpikingNet):
            return spiking_eprop.gradients(model, batch, self, self.feedback)
        if self.feedback == "random":
            memory_of(model, self)  # its absence is an error before anything is computed
        return super().gradients(model, batch)


def _info(scores: Tensor, signals: Tensor, trace_TNH: Tensor, start: int) -> Info:
    def behind_silence(values: Tensor) -> Tensor:
        return torch.cat([values.new_zeros(start), values])

    def norms() -> dict[str, Tensor]:
        found = exact_norms(signals, trace_TNH[start:])
        return {"cell.recurrent.weight": behind_silence(found)}

    return Info(scores, signals=lambda: behind_silence(signal_norms(signals)), norms=norms)


def _traces(run: Run, leak: float) -> tuple[Tensor, Tensor, Tensor]:
    """Traces of the inputs, of the activations before, and of the bias's input, which is 1."""
    ones = run.x_TNI.new_ones(len(run.z))
    if not leak:
        return run.x_TNI, run.before_TNH, ones
    found = []
    for tensor in (run.x_TNI, run.before_TNH, ones):
        steps = [tensor[0]]
        for arriving in tensor[1:]:
            steps.append(torch.add(arriving, steps[-1], alpha=leak))
        found.append(torch.stack(steps))
    return found[0], found[1], found[2]
