"""Target propagation through time: targets through a learned inverse of the net's step."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from apical.learners.base import Batch, Info, Memory, memory_of
from apical.learners.targets import Pairs, TargetLearner, local_gradients
from apical.learners.unrolled import (
    Gradients,
    Run,
    SimpleNet,
    activate,
    simple_net,
    slope_of,
    summed,
)


@dataclass(frozen=True)
class TPTT(TargetLearner):
    """Difference target propagation along time.

    G(x, z) = tanh(W_in x + V z + c) learns to undo a step F of the net. Targets are
    target_T = z_T - gamma dL/dz_T, target_(t-1) = z_(t-1) - G(x_t, z_t) + G(x_t, target_t).
    The recurrent weight and the bias learn from the squared error of each step's target; V and c
    from that of G(x_t, F(x_t, z_(t-1) + noise)) to z_(t-1); the readout by its gradient.
    `learners.attach(model, learner)` gives the net V and c; build the optimizer after it.

    Args:
        gamma: size (> 0) of the step to the last target.
        noise: standard deviation (>= 0) of the noise that G should also undo. It is drawn on the
            device of the net at every call: from the same seed CUDA draws other numbers than the
            CPU.
        inputs: the input weight learns by the "targets" too, or by "backprop" through time.
    Raises: ValueError for a reduction that is not stated, a value out of range.
    Source: Manchev, Spratling 2020, equations only; G has the input weight of the net.
    """

    gamma: float = 0.1
    noise: float = 0.0
    inputs: Literal["targets", "backprop"] = "targets"

    reference: ClassVar[str] = """@article{manchev2020,
  title = {Target Propagation in Recurrent Neural Networks},
  author = {Manchev, Nikolay and Spratling, Michael},
  journal = {Journal of Machine Learning Research}, volume = {21}, year = {2020}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.gamma > 0 or not self.noise >= 0:
            raise self.error(
                f"gamma={self.gamma} must be above 0 and noise={self.noise} at least 0"
            )

    def create(self, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        units = len(simple_net(model, self).w_rec)
        matrix = nn.init.orthogonal_(
            torch.empty(units, units, dtype=torch.float64), generator=generator
        )
        bias = torch.zeros(units, dtype=torch.float64)
        return {"weight": nn.Parameter(matrix), "bias": nn.Parameter(bias)}

    def gradients(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Info]:
        memory_of(model, self)  # its absence is an error before anything is computed
        return super().gradients(model, batch)

    def local_loss(self, z: Tensor, target: Tensor) -> Tensor:
        return (target - z).square_()

    def local_error(self, z: Tensor, target: Tensor) -> Tensor:
        return (z - target).mul_(2)

    def last_target(self, net: SimpleNet, run: Run, error: Tensor, y: Tensor) -> Tensor:
        scale = 1.0 if self.reduction == "sum" else 1 / len(error)
        return run.z[-1] - self.gamma * scale * (error @ net.w_out)

    def earlier_target(
        self, net: SimpleNet, run: Run, t: int, target: Tensor, signal: Tensor
    ) -> Tensor:
        drive = run.drive[t] - net.b_in
        return run.z[t - 1] - self._undo(net, drive, run.z[t]) + self._undo(net, drive, target)

    def weights(self, net: SimpleNet, run: Run, pairs: Pairs) -> Gradients:
        gradients = local_gradients(net, pairs)
        if self.inputs == "backprop":
            deltas = backpropagated(net, run, pairs["readout.weight"][1][0])
            gradients[net.w_in] = summed(deltas, run.x_TNI)
        return gradients | self._inverse_gradients(net, run)

    def _inverse_gradients(self, net: SimpleNet, run: Run) -> Gradients:
        """Gradients of V and c from the pairs (F(x, z + noise), z) of all steps."""
        memory, before = self._memory(net), run.before_TNH
        drive, noisy = torch.stack(run.drive), before
        if self.noise:
            draw = torch.empty_like(before).normal_(generator=memory.generator(before))
            noisy = before + self.noise * draw
        later = activate(net, drive + noisy @ net.w_rec.t())
        undone = self._undo(net, drive - net.b_in, later)
        share = 1 / before.shape[1] if self.reduction == "sum" else 1 / before[0].numel()
        delta = self.local_error(undone, before) * slope_of(net, undone) * share
        return {
            memory.get_parameter("weight"): summed(delta, later),
            memory.get_parameter("bias"): delta.sum((0, 1)),
        }

    def _memory(self, net: SimpleNet) -> Memory:
        assert isinstance(net.memory, Memory)  # `gradients` has looked
        return net.memory

    def _undo(self, net: SimpleNet, drive: Tensor, z: Tensor) -> Tensor:
        """G.     Shapes: drive (..., H), W_in x without the bias of F; z (..., H)."""
        memory = self._memory(net)
        weight, bias = memory.get_parameter("weight"), memory.get_parameter("bias")
        return activate(net, drive + nn.functional.linear(z, weight, bias))


def backpropagated(net: SimpleNet, run: Run, error: Tensor) -> Tensor:
    """Backpropagation through time by hand: the gradient at every step's input sums, (T, N, H).

    Shapes: error (N, O), the gradient at the outputs of the last step.
    """
    arriving, deltas = error @ net.w_out, []
    for slope in reversed(run.slope):
        deltas.append(arriving * slope)
        arriving = deltas[-1] @ net.w_rec
    return torch.stack(deltas[::-1])
