"""Feedback alignment: a fixed random matrix carries the error downwards."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apical.rules.base import Law, Needs, Scale, TransportRule, drawn, with_norm_of


@dataclass(frozen=True)
class FA(TransportRule):
    """Feedback alignment: B is random and never changes.

    Args:
        init: the law of B, the one BioTorch draws W from: "xavier" U(-a, a) with
            a = sqrt(6 / (fan_in + fan_out)), or "kaiming" U(-a, a) with a = 1 / sqrt(fan_in); or
            "normal" N(0, 1 / (fan_in + fan_out)), the law of Akrout et al. 2019.
        scale: "init" keeps the drawn scale; "norm" gives B at every step the Frobenius norm of
            the current W, for networks that were trained before.

    Source: Lillicrap, Cownden, Tweed, Akerman 2016; scales: BioTorch (2021).
    """

    init: Law = "xavier"
    scale: Scale = "init"

    needs: ClassVar[Needs] = Needs("nothing", "layers above")
    reference: ClassVar[str] = """@article{lillicrap2016,
  title = {Random synaptic feedback weights support error backpropagation for deep learning},
  author = {Lillicrap, Timothy P. and Cownden, Daniel and Tweed, Douglas B. and
            Akerman, Colin J.},
  journal = {Nature Communications}, volume = {7}, pages = {13276}, year = {2016}
}"""

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"matrix": drawn(self.init, weight.shape, generator)}

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return matrix if self.scale == "init" else with_norm_of(matrix, weight)
