"""Learning by local targets along time: what all learners of this kind share.

Every step t gets a target for its activation z_t. Its weights learn from the local loss between
the two alone, with the activation before as a constant; the target of step t - 1 is made from that
of step t. A learner says how the last target comes from the loss and an earlier one from a later.
Shapes as in `unrolled`.
"""

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from apical.learners.base import Info, check_reduction
from apical.learners.unrolled import (
    Gradients,
    Run,
    SimpleLearner,
    SimpleNet,
    exact_norms,
    signal_norms,
    summed,
    unroll,
)

Pairs = dict[str, tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class TargetLearner(SimpleLearner):
    """A learner by local targets, of simple recurrent nets that are read out at the last step.

    Args:
        reduction: must be stated. "sum": a local loss is summed over units for each sample, and
            so is the loss at the outputs while a target is searched; weight gradients are means
            over the batch. "mean": local losses are means over units and batch, the loss at the
            outputs a mean over the batch, everywhere.
    """

    reduction: Literal["sum", "mean"] | None = None

    def __post_init__(self) -> None:
        check_reduction(self)
        super().__post_init__()

    @abc.abstractmethod
    def local_loss(self, z: Tensor, target: Tensor) -> Tensor:
        """The loss of each unit of each sample; shapes alike."""

    @abc.abstractmethod
    def local_error(self, z: Tensor, target: Tensor) -> Tensor:
        """Its derivative by z; a new tensor."""

    @abc.abstractmethod
    def last_target(self, net: SimpleNet, run: Run, error: Tensor, y: Tensor) -> Tensor:
        """The target of the last activation, (N, H).

        Shapes: error (N, O), the gradient of each sample's loss at the outputs; y its targets.
        """

    @abc.abstractmethod
    def earlier_target(
        self, net: SimpleNet, run: Run, t: int, target: Tensor, signal: Tensor
    ) -> Tensor:
        """The target of the activation before step t (>= 1, from 0), from that of step t.

        Shapes: target, signal (N, H); signal is `local_error` at the input sums of step t.
        """

    @abc.abstractmethod
    def weights(self, net: SimpleNet, run: Run, pairs: Pairs) -> Gradients:
        """Gradients of the parameters, from the signals at each weight (see `taught_by`)."""

    def teach(self, net: SimpleNet, x: Tensor, y: Tensor) -> tuple[Tensor, Gradients, Info]:
        if net.every:
            raise self.error("it learns from the last step; the net is read out at every one")
        run = unroll(net, x)
        loss = self.objective.value(run.scores, y)  # raises for targets that do not fit
        error = self.objective.error(run.scores, y)
        target = self.last_target(net, run, error, y)
        targets, signals = [], []
        for t in reversed(range(len(run.z))):
            signals.append(self.local_error(run.z[t], target).mul_(run.slope[t]))
            targets.append(target)
            if t:
                target = self.earlier_target(net, run, t, target, signals[-1])
        share = 1 / len(x) if self.reduction == "sum" else 1 / run.z[0].numel()
        signals_TNH = torch.stack(signals[::-1]).mul_(share)
        pairs = taught_by(net, run, signals_TNH, error.div_(len(x)))

        def local_losses() -> Tensor:
            return self.local_loss(run.z_TNH, torch.stack(targets[::-1])).sum((1, 2)) * share

        info = Info(
            run.scores,
            signals=lambda: signal_norms(signals_TNH),
            norms=lambda: {name: exact_norms(*pair[1:]) for name, pair in pairs.items()},
            local_losses=local_losses,
        )
        return loss, self.weights(net, run, pairs), info

    def search_scale(self, z: Tensor) -> float:
        """What the reduction makes of a local signal while targets are searched."""
        return 1.0 if self.reduction == "sum" else 1 / z.numel()


def taught_by(net: SimpleNet, run: Run, signals_TNH: Tensor, error: Tensor) -> Pairs:
    """Name -> (weight, signals above it, activations below it), the gradient of the weight being
    the sum over steps and samples of signal^T activation.

    Shapes: error (N, O). Signals and error with the shares of the reduction.
    """
    return {
        "cell.recurrent.weight": (net.w_rec, signals_TNH, run.before_TNH),
        "cell.input.weight": (net.w_in, signals_TNH, run.x_TNI),
        "readout.weight": (net.w_out, error[None], run.z_TNH[-1:]),
    }


def local_gradients(
    net: SimpleNet, pairs: Pairs, factor: Callable[[Tensor], Tensor] | None = None
) -> Gradients:
    """Gradients of local losses, summed over steps, and of the readout.

    Args: factor: what a step's gradient of a weight is multiplied by, given its norm.
    """
    _, signals, _ = pairs["cell.recurrent.weight"]
    few = signals.shape[1] < signals.shape[2] / 2  # samples, units: as `step_norms` would decide
    products = signals @ signals.mT if factor is not None and few else None
    gradients = {
        weight: summed(above, below, factor, products if above is signals else None)
        for weight, above, below in pairs.values()
    }
    gradients[net.b_in] = pairs["cell.input.weight"][1].sum((0, 1))
    gradients[net.b_out] = pairs["readout.weight"][1].sum((0, 1))
    return gradients
