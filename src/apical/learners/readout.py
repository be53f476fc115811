"""Training the readout alone: what a random recurrent net can do without learning in it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from apical.learners.base import Batch, Info, Learner, add_gradients
from apical.nets.recurrent import Recurrent, Step


@dataclass(frozen=True)
class ReadOut(Learner):
    """The gradient of the readout; the cell keeps its initial weights (a reservoir).

    The baseline that every claim of learning through time is measured against.
    """

    reference: ClassVar[str] = """@techreport{jaeger2001,
  title = {The "echo state" approach to analysing and training recurrent neural networks},
  author = {Jaeger, Herbert}, institution = {GMD}, number = {148}, year = {2001}
}"""

    def pure(
        self, model: nn.Module, tensors: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        self._net(model)
        x, y = batch
        steps: list[Step] = []
        scores = functional_call(model, dict(tensors), (x,), {"into": steps})
        loss, at_weight, at_bias = self._taught(model, scores, steps, y)
        return loss, {"readout.weight": at_weight, "readout.bias": at_bias}

    @torch.no_grad()
    def gradients(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Info]:
        net, (x, y) = self._net(model), batch
        steps: list[Step] = []
        scores, readout = net(x, into=steps), net.readout
        loss, at_weight, at_bias = self._taught(model, scores, steps, y)
        add_gradients({readout.weight: at_weight, readout.bias: at_bias})
        return loss, Info(scores)

    def _net(self, model: nn.Module) -> Recurrent:
        if not isinstance(model, Recurrent):
            kind = type(model).__name__
            raise self.error(f"it needs a nets.Recurrent, with a readout; not {kind}")
        return model

    def _taught(
        self, model: nn.Module, scores: Tensor, steps: list[Step], y: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, gradient of the weight and of the bias."""
        loss = self.objective.value(scores, y)  # raises for targets that do not fit
        last = model.output == "last"
        read = [steps[-1].hidden] if last else [step.hidden for step in steps]
        error = self.objective.error(scores, y).flatten(0, -2)
        error = error / len(error)
        return loss, error.t() @ torch.stack(read, 1).flatten(0, 1), error.sum(0)
