"""Backpropagation, the exact gradient: what every other rule is measured against."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apical.rules.base import Needs, TransportRule


@dataclass(frozen=True)
class BP(TransportRule):
    """Backpropagation: the layer below receives the exact gradient `op^T(gradient, W)`.

    A layer under `BP()` is left as it is; with `constrain_weights` it is converted, so that its
    weight keeps its norm. Source: Rumelhart, Hinton, Williams 1986.
    """

    needs: ClassVar[Needs] = Needs("values", "layers above")
    reference: ClassVar[str] = """@article{rumelhart1986,
  title = {Learning representations by back-propagating errors},
  author = {Rumelhart, David E. and Hinton, Geoffrey E. and Williams, Ronald J.},
  journal = {Nature}, volume = {323}, pages = {533--536}, year = {1986}
}"""

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {}

    def matrix(self, weight: Tensor) -> Tensor:
        return weight
