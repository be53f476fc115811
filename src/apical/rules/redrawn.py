"""The second control: feedback that changes at every update, so no weight can align with it."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from apical.rules.base import Law, Needs, Scale, TransportRule, Update, drawn, redraw, with_norm_of
from apical.rules.fa import FA


@dataclass(frozen=True)
class Redrawn(TransportRule):
    """Control: feedback alignment with B resampled after every update.

    Hidden layers move as far as under FA, but in directions that are unrelated from one update to
    the next, so weights cannot align with B. What FA gains over this control is due to alignment.
    Evaluation, attacks and repeated passes draw nothing. The numbers depend only on the seed, the
    layer's name and the number of the update, so that a resumed run draws the same. B is drawn on
    the weight's device: from the same seed CUDA draws other numbers than the CPU; B_0 is
    the same.

    Args: init, scale: as in `FA`.

    Source: no learning rule; `FA` of Lillicrap et al. 2016, redrawn as `SignSymmetric("fresh")`.
    """

    init: Law = "xavier"
    scale: Scale = "init"

    needs: ClassVar[Needs] = Needs("nothing", "layers above")
    acts_after_update: ClassVar[bool] = True
    reference: ClassVar[str] = FA.reference

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"matrix": drawn(self.init, weight.shape, generator)}

    def matrix(self, weight: Tensor, matrix: Tensor) -> Tensor:
        return matrix if self.scale == "init" else with_norm_of(matrix, weight)

    def after_update(self, update: Update, matrix: Tensor) -> None:
        redraw(matrix, self.init, update.generator())
