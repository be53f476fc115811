"""e-prop: learning signals from the outputs meet eligibility traces that run forward in time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from apical.learners.base import Batch, Info, Learner, add_gradients
from apical.learners.memory import memory_of
from apical.learners.unrolled import Run, simple_net, step_norms, summed, unroll


@dataclass(frozen=True)
class EProp(Learner):
    """Each weight keeps a trace of its influence; the error of the moment says its worth.

    With h_t = leak h_(t-1) + W_in x_t + W_rec z_(t-1) + b and z_t = phi(h_t), the trace of an input
    x is xbar_t = leak xbar_(t-1) + x_t, and dW = sum_t (B e_t * phi'(h_t)) xbar_t, where e_t is the
    error at the outputs of step t (zero where none is read out). What passes through other units
    and later steps is left out: with W_rec = 0 it is backpropagation through time exactly, with
    leak = 0 only the last connection in time learns.

    Args: feedback: what carries the error to the units: the read-out's own weights ("symmetric"),
        or a fixed random matrix of the same law ("random", `learners.attach` first).
    Source: Bellec et al. 2020, with the derivative of the net's activation for spikes' surrogate.
    """

    feedback: Literal["symmetric", "random"] = "symmetric"

    reference: ClassVar[str] = """@article{bellec2020,
  title = {A solution to the learning dilemma for recurrent networks of spiking neurons},
  author = {Bellec, Guillaume and Scherr, Franz and Subramoney, Anand and Hajek, Elias and
            Salaj, Darjan and Legenstein, Robert and Maass, Wolfgang},
  journal = {Nature Communications}, volume = {11}, year = {2020}
}"""

    def create(self, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        if self.feedback == "symmetric":
            return {}
        weight = simple_net(model, self, leak=True).readout.weight
        half_width = weight.shape[1] ** -0.5
        matrix = torch.empty(weight.shape, dtype=torch.float64)
        return {"matrix": matrix.uniform_(-half_width, half_width, generator=generator)}

    @torch.no_grad()
    def gradients(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Info]:
        net, (x, y) = simple_net(model, self, leak=True), batch
        matrix: Tensor = net.readout.weight
        if self.feedback == "random":
            matrix = memory_of(model, self).get_buffer("matrix")
        run = unroll(net, x)
        every = net.whole.output == "every"
        scores = run.scores.transpose(0, 1) if every else run.scores
        loss = self.objective.value(scores, y)  # it knows what is wrong with the targets
        error = self.objective.error(scores, y)
        error /= error[..., 0].numel()
        error_TNO = error.transpose(0, 1) if every else error[None]
        start = 0 if every else len(run.z) - 1  # without an error there is nothing to learn
        signals = (error_TNO @ matrix) * run.slope_TNH[start:]
        traces = _traces(run, net.cell.leak)
        cell, readout = net.cell, net.readout
        add_gradients(
            {
                cell.input.weight: summed(signals, traces[0][start:]),
                cell.input.bias: torch.einsum("tnh,t->h", signals, traces[2][start:]),
                cell.recurrent.weight: summed(signals, traces[1][start:]),
                readout.weight: summed(error_TNO, run.z_TNH[start:]),
                readout.bias: error_TNO.sum((0, 1)),
            }
        )
        return loss, _info(scores, signals, traces[1], start)


def _info(scores: Tensor, signals: Tensor, trace_TNH: Tensor, start: int) -> Info:
    def behind_silence(values: Tensor) -> Tensor:
        return torch.cat([values.new_zeros(start), values])

    def norms() -> dict[str, Tensor]:
        found = step_norms(signals, trace_TNH[start:])
        return {"cell.recurrent.weight": behind_silence(found)}

    return Info(
        scores, signals=lambda: behind_silence(torch.linalg.matrix_norm(signals)), norms=norms
    )


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
