"""Product feedback: two populations in a row carry the error, neither symmetric to the weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.rules import factors
from apical.rules.base import Group, Init, bound, fans, uniform
from apical.rules.oja import orthonormal_rows
from apical.rules.ops import Local
from apical.rules.tracking import Follower, not_linear, trained_apart


@dataclass(frozen=True)
class ProductFeedback(Follower):
    """Product feedback: B = R A; R is random and fixed, A is a parameter with the gradient R^T dW.

    R R^T = I, so that dB = R dA = dW: under SGD the product follows W by the law of Kolen-Pollack,
    B - W = (1 - decay)^t (B_0 - W_0), while no synapse of R or A mirrors one of W. Convert first,
    then build the optimizer.

    Args:
        expansion: cells of the population between R and A for each output of the layer, at
            least 1: fewer cannot have R R^T = I.
        decay: share of W and of A that every update takes away, as in `KolenPollack`.
        init: the law of B_0 = R A_0 in norm: that of `FA`, whatever the expansion.

    Raises: ValueError for a value out of range.
    Source: after Li, Benna 2024 (arXiv 2405.20594), of which the product of two populations is
        taken; that R is orthogonal, and the law that follows from it, are this library's.
    """

    expansion: float = 2.0
    decay: float = 1e-4
    init: Init = "xavier"

    name: ClassVar[str] = "pfa"
    reference: ClassVar[str] = """@article{li2024,
  title = {Deep Learning without Weight Symmetry},
  author = {Li, Ji-An and Benna, Marcus K.},
  journal = {arXiv preprint arXiv:2405.20594}, year = {2024}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.expansion >= 1:
            raise ValueError(
                f"ProductFeedback: expansion={self.expansion} is below 1; R would have more rows"
                " than columns, and R R^T = I, from which B follows W, could not hold"
            )

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        outputs = len(weight)
        cells = max(outputs, round(self.expansion * outputs))
        half_width = bound(self.init, *fans(weight.shape))
        # A_0 = R^T M gives B_0 = M; what R does not see of A would never change
        drawn = uniform(weight.shape, half_width, generator)
        mixing = orthonormal_rows(outputs, cells, generator)
        return {"mixing": mixing, "factor": nn.Parameter(factors.through(mixing.t(), drawn))}

    def matrix(self, weight: Tensor, *memory: Tensor) -> Tensor:
        return factors.product(memory[0], memory[1], weight)

    def send(self, local: Local, *memory: Tensor) -> Tensor | None:
        return factors.send(local, memory[0], memory[1])

    def memory_gradients(self, local: Local, *memory: Tensor) -> Sequence[Tensor | None]:
        return (None, factors.gradient(local, memory[0], memory[1]))

    def following(self, *memory: Tensor) -> Tensor:
        return memory[1]

    def image(self, gradient: Tensor, *memory: Tensor) -> Tensor:
        return factors.through(memory[0].t(), gradient)

    def objection(self, optimizer: Optimizer, weight_group: Group, memory_group: Group) -> str:
        apart = trained_apart(weight_group, memory_group)
        return apart or not_linear(optimizer, "use SGD, or KolenPollack")
