"""Sign symmetry: the feedback matrix shares the signs of the weight, not its magnitudes."""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from apical.rules.base import (
    Needs,
    Scale,
    TransportRule,
    Update,
    bound,
    fans,
    uniform,
    with_norm_of,
)

_POOL_SPARE = 4096


@dataclass(frozen=True)
class SignSymmetric(TransportRule):
    """Sign symmetry: B = magnitude * sign(W), with the sign of the current W.

    Args:
        magnitude: "uniform" (uSF): one number s for the whole layer, the standard deviation of
            the law of `init`. "fixed" (frSF): |M|, M drawn once from that law. "fresh" (brSF):
            |M|, M drawn again after every update of the weight; evaluation, attacks and repeated
            forward passes draw nothing. They are drawn on the weight's device, at every update:
            from the same seed CUDA draws other numbers than the CPU.
        init: the law of the magnitudes, as in `FA`; or "xiao", with the standard deviation
            sqrt(2 / (k^2 C_out)) of the code released with Xiao et al., k^2 C_out the fan-out.
        scale: "init" or "norm", as in `FA`.
        redraw: for "fresh" only. "exact" draws independent magnitudes; "pool" takes each time
            another stretch of a pool drawn once: cheaper, but successive draws are correlated. Pool
            and stretches are the same on every device.
        zero_sign: what a weight of exactly zero sends: "zero" nothing, as sign(0) = 0 says, or
            "plus" the magnitude.

    Source: Liao, Leibo, Poggio 2016: random magnitudes with signs that all agree with the weights'.
    BioTorch cites Xiao, Chen, Liao, Poggio 2018 (arXiv 1811.03567) for the scale of uSF, and uses
    the laws "xavier" and "kaiming". It redraws brSF at every forward pass, evaluation included;
    here it is once per update.
    """

    magnitude: Literal["uniform", "fixed", "fresh"] = "uniform"
    init: Literal["xavier", "kaiming", "xiao"] = "xavier"
    scale: Scale = "init"
    redraw: Literal["exact", "pool"] = "exact"
    zero_sign: Literal["zero", "plus"] = "zero"

    needs: ClassVar[Needs] = Needs("signs", "layers above")
    reference: ClassVar[str] = """@inproceedings{liao2016,
  title = {How Important Is Weight Symmetry in Backpropagation?},
  author = {Liao, Qianli and Leibo, Joel Z. and Poggio, Tomaso},
  booktitle = {AAAI Conference on Artificial Intelligence}, year = {2016}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.redraw == "pool" and self.magnitude != "fresh":
            raise ValueError(
                f"SignSymmetric: redraw='pool' needs magnitude='fresh', not {self.magnitude!r}"
            )

    @property
    def name(self) -> str:
        return {"uniform": "usf", "fixed": "frsf", "fresh": "brsf"}[self.magnitude]

    @property
    def acts_after_update(self) -> bool:
        return self.magnitude == "fresh"

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        if self.magnitude == "uniform":
            return {}
        half_width = self._half_width(weight)
        memory = {"magnitude": uniform(weight.shape, half_width, generator).abs()}
        if self.redraw == "pool":
            size = weight.numel() + _POOL_SPARE
            memory["pool"] = uniform((size,), half_width, generator).abs()
        return memory

    def matrix(self, weight: Tensor, *memory: Tensor) -> Tensor:
        sign = torch.sign(weight)
        if self.zero_sign == "plus":
            sign.add_(0.5).sign_()  # a comparison with zero would take ten times as long
        if self.magnitude == "uniform":
            matrix = sign.mul_(self._half_width(weight) / 3**0.5)
        else:
            matrix = sign.mul_(memory[0])
        return matrix if self.scale == "init" else with_norm_of(matrix, weight)

    def after_update(self, update: Update, *memory: Tensor) -> None:
        magnitude, draw = memory[0], update.generator()
        if self.redraw == "exact":
            half_width = self._half_width(update.weight)
            magnitude.uniform_(0, half_width, generator=draw)
            return
        if draw.device.type != "cpu":  # on the CPU: the same place everywhere, no wait for a GPU
            draw = torch.Generator().manual_seed(draw.initial_seed())
        start = int(torch.randint(_POOL_SPARE, (1,), generator=draw, device="cpu"))
        magnitude.copy_(memory[1][start : start + magnitude.numel()].view(magnitude.shape))

    def _half_width(self, weight: Tensor) -> float:
        """a of the law U(-a, a), whose standard deviation is a / sqrt(3)."""
        fan_in, fan_out = fans(weight.shape)
        if self.init == "xiao":
            return math.sqrt(6 / fan_out)
        return bound(self.init, fan_in, fan_out)
