"""Alignment losses: feedback that learns by gradient descent on a loss of its own layer."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.rules.base import Group, Law, Needs, TransportRule, drawn
from apical.rules.ops import ConvOp, Local, Op, mean_product
from apical.rules.tracking import loss_scale

Kind = Literal["symmetric", "activation", "information", "mirror"]


@dataclass(frozen=True)
class AlignmentLoss(TransportRule):
    """Alignment loss: B is a parameter trained by a loss R of its layer; W is not.

        R = decay D - amp A + null |B^T W x|^2

        kind            D               A
        "symmetric"     |W|^2 + |B|^2   <W, B>
        "activation"    |Wx|^2+|Bx|^2   <Wx, Bx>
        "mirror"        |W|^2 + |B|^2   <Wx, Bx>
        "information"   |W|^2 + |B|^2   <Wx, Bx>

    With amp = 2 decay the first is decay |W - B|^2, the second decay |Wx - Bx|^2. x is what the
    layer read in the forward pass, and B^T W x lies at the layer's input. Terms of x are a mean
    over samples and, by default, over positions. The source's code sums over positions, so that its
    A and null have as many times more weight relative to decay as there are positions. The
    optimizer trains B with the learning rate of its group: convert first, then build it.

    The gradient does not depend on the loss of the model: multiplying that loss does not multiply
    it, and k backward passes before one step count k times. A gradient scaler for float16 would
    divide it all the same, so a warning says what to do instead.

    Args:
        kind: of loss.
        decay: weight of D, >= 0.
        amp: weight of A, > 0.
        null: weight of the term that keeps B from transmitting what W does not need to know:
            above 0 for "information", 0 for the others.
        init: the law of B_0, as in `FA`.
        positions: of convolutions and sequences: "mean", or "sum" as in the source's code; not for
            "symmetric", which has no x.

    Raises: ValueError for values out of range, and for "sum" with "symmetric".
    Source: Kunin, Nayebi, Sagastuy-Brena, Ganguli, Bloom, Yamins 2020. The defaults of decay, amp
        and null are their code's; its sum over positions is `positions="sum"`.
    """

    kind: Kind = "symmetric"
    decay: float = 1e-3
    amp: float = 2e-3
    null: float = 0.0
    init: Law = "xavier"
    positions: Literal["mean", "sum"] = "mean"

    reference: ClassVar[str] = """@inproceedings{kunin2020,
  title = {Two Routes to Scalable Credit Assignment without Weight Symmetry},
  author = {Kunin, Daniel and Nayebi, Aran and Sagastuy-Brena, Javier and Ganguli, Surya and
            Bloom, Jonathan M. and Yamins, Daniel L. K.},
  booktitle = {International Conference on Machine Learning}, year = {2020}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = []
        if not self.decay >= 0:
            problems.append(f"decay={self.decay} must be at least 0; below, B would diverge")
        if not self.amp > 0:
            problems.append(f"amp={self.amp} must be above 0, or B would not align")
        if (self.kind == "information") != (self.null > 0):
            problems.append(
                f"null={self.null} with kind={self.kind!r}: it must be above 0 for 'information'"
                " (1e-3 in the source) and 0 for the others"
            )
        if self.kind == "symmetric" and self.positions == "sum":
            problems.append("positions='sum' has no effect with kind='symmetric'")
        if problems:
            raise ValueError("AlignmentLoss: " + "; ".join(problems))

    @property
    def name(self) -> str:
        names = {
            "symmetric": "sa",
            "activation": "aa",
            "information": "ia",
            "mirror": "mirror-loss",
        }
        return names[self.kind]

    @property
    def needs(self) -> Needs:
        return Needs("values" if self.kind == "symmetric" else "nothing", "layers above")

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        return {"matrix": nn.Parameter(drawn(self.init, weight.shape, generator))}

    def matrix(self, weight: Tensor, *memory: Tensor) -> Tensor:
        return memory[0]

    def memory_gradients(self, local: Local, *memory: Tensor) -> Sequence[Tensor | None]:
        op, x, weight = local.op, local.x, local.weight
        feedback = memory[0].to(weight.dtype)
        if self.kind == "symmetric":
            return (2 * self.decay * feedback - self.amp * weight,)
        if self.kind == "activation":  # 2 decay <Bx x^T> - amp <Wx x^T>, in one
            difference = 2 * self.decay * feedback - self.amp * weight
            return (self._mean(op, op.forward(x, difference, None), x, weight),)
        y, seen = op.forward(x, weight, None), -self.amp * x
        if self.null:
            back = op.backward(y, x, feedback, (True, False, False))[0]
            assert back is not None
            seen.add_(op.prepare(op.unprepare(back)), alpha=2 * self.null)
        return (self._mean(op, y, seen, weight).add_(feedback, alpha=2 * self.decay),)

    def _mean(self, op: Op, y: Tensor, x: Tensor, weight: Tensor) -> Tensor:
        """The product of y and x, as a mean over samples and a mean or sum over positions."""
        product = mean_product(op, y, x, weight)
        if self.positions == "mean":
            return product
        if isinstance(op, ConvOp):
            return product * (x if op.transposed else y).shape[2:].numel()
        return product * x.shape[1:-1].numel()

    def objection(self, optimizer: Optimizer, weight_group: Group, memory_group: Group) -> str:
        scale = loss_scale()
        if scale == 1:
            return ""
        return (
            f"a gradient scaler divides the gradients by {scale:g}, but that of this feedback, with"
            " a loss of its own, was never multiplied: it hardly learns. Use bfloat16, or give"
            " apical.feedback_parameters(model) an optimizer of their own and call its step()"
            " without the scaler"
        )
