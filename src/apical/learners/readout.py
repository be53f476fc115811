"""Training the read-out alone: what a random recurrent net can do without learning in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from apical.learners.base import Batch, Info, Learner, add_gradients
from apical.nets.recurrent import Recurrent, Step


@dataclass(frozen=True)
class ReadOut(Learner):
    """The gradient of the read-out; the cell keeps its initial weights (a reservoir).

    The baseline that every claim of learning through time is measured against.
    """

    reference: ClassVar[str] = """@techreport{jaeger2001,
  title = {The "echo state" approach to analysing and training recurrent neural networks},
  author = {Jaeger, Herbert}, institution = {GMD}, number = {148}, year = {2001}
}"""

    @torch.no_grad()
    def gradients(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Info]:
        if not isinstance(model, Recurrent):
            raise self.error(f"it needs a nets.Recurrent, with a read-out; not {type(model)}")
        x, y = batch
        steps: list[Step] = []
        scores, readout = model(x, into=steps), model.readout
        read = [steps[-1].hidden] if model.output == "last" else [step.hidden for step in steps]
        loss = self.objective.value(scores, y)  # it knows what is wrong with the targets
        error = self.objective.error(scores, y).flatten(0, -2)
        error /= len(error)
        add_gradients(
            {
                readout.weight: error.t() @ torch.stack(read, 1).flatten(0, 1),
                readout.bias: error.sum(0),
            }
        )
        return loss, Info(scores)
