"""The first control: the layer below receives nothing, so hidden layers keep their weights."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apical.rules.base import Needs, TransportRule


@dataclass(frozen=True)
class Frozen(TransportRule):
    """Control: hidden layers receive no error and keep their initial weights.

    The layer sends nothing to the layer below, as if its input were detached.

    Under `convert(model, "frozen")` the output layer learns by its exact gradient, and everything
    below it keeps its initial value: weights, biases, the affine parameters of norm layers,
    embeddings. What a rule gains over this control is what its hidden layers learned. Gradients
    below are absent (`None`), not zero, so that neither weight decay nor momentum moves anything.

    - In a mapping, `{"fc2": "frozen", "*": "fa"}`, all that reaches the output through fc2 alone
      keeps its values; fc2 itself learns from what the layer above sends. What bypasses fc2 still
      learns: a skip connection around it, a broadcast rule (DFA) of a layer further below.
    - A loss that enters below the output layer (auxiliary heads, a net's own loss, `OwnLoss`)
      trains the layers it enters at.
    - Running statistics of norm layers still follow the data; `eval()` on these layers stops that.
    - Under DistributedDataParallel give `find_unused_parameters=True`: DDP else waits for the
      absent gradients and raises at the second forward pass.
    - An attack by the net's own gradient has none to follow, and warns of it.

    Source: no learning rule; a random net with a trained readout, as in Rahimi and Recht 2007.
    """

    needs: ClassVar[Needs] = Needs("nothing", "nothing")
    sends_nothing: ClassVar[bool] = True
    reference: ClassVar[str] = """@inproceedings{rahimi2007,
  title = {Random Features for Large-Scale Kernel Machines},
  author = {Rahimi, Ali and Recht, Benjamin},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2007}
}"""

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def matrix(self, weight: Tensor) -> Tensor:
        """Zero, the matrix that would deliver zeros; no backward pass asks for it."""
        return torch.zeros_like(weight)
