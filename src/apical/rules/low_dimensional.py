"""Low-dimensional feedback alignment: the error passes a bottleneck on its way down."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from apical.rules import factors, oja
from apical.rules.base import Group, Init, Scale, Update, bound, fans, uniform
from apical.rules.oja import Rank
from apical.rules.ops import ConvOp, Local, Op
from apical.rules.tracking import Follower, not_linear, trained_apart


@dataclass(frozen=True)
class LowDimensional(Follower):
    """Low-dimensional feedback: B = Q P of rank r; P selects r directions of the error.

    Q maps them to the input of the layer.

    Q is a parameter with the gradient P dW, so that under SGD it follows W as Kolen-Pollack
    feedback does, seen through P: convert first, then build the optimizer. For a P that does not
    change, Q - P W = (1 - decay)^t (Q_0 - P W_0) after t updates. P = I is Kolen-Pollack. Where
    the error lies in the row space of P and Q has arrived, the message is that of backprop: so
    what counts is the dimension of the error, not the width of the layer. The rank of the output
    layer bounds what all layers below receive; give that layer a rank of its own where it must.

    Args:
        rank: dimensions of the error that a layer sends down: a whole number, at most the layer's
            outputs; or a fraction of its outputs, in (0, 1].
        projection: "oja" turns P towards the leading directions of the error, by Oja's subspace
            rule on its second moment; "fixed" leaves it as drawn. Its rows are orthonormal.
        rate: of Oja's rule, in (0, 1], per turn of P; the second moment is divided by its trace.
        every: updates of the weight (>= 1) from one turn of P to the next, which sees the passes
            before its own update only; the first update has one. Where a layer reads many tokens
            or positions, what Oja's rule costs is nearly divided by it.
        projection_decay: of Oja's rule, in [0, 1) per turn: directions whose share of the power
            of the error is below projection_decay / rate die out.
        orthonormalise: updates between two orthonormalisations of the rows of P; 0: never.
        decay: share of W and of Q that every update takes away, as in `KolenPollack`.
        follows: "gradient": Q is a parameter, exact under SGD; "update": Q is not trained but
            gets P times each change of W, exact under every optimizer (as in the sources'
            equations), for P W once more in memory.
        init: the law of Q_0, that of `KolenPollack` for P = I.
        scale: "init" keeps the scale; "norm" gives B at every step the Frobenius norm of the
            current W, to compare ranks at equal feedback.

    Raises: ValueError for a value out of range, or an option of "oja" with "fixed".
    Source: Hanut, Kadmon 2025 (arXiv 2502.20580); the trace-normalised form of Oja's rule and
        its options are this library's.
    """

    rank: Rank = 0.5
    projection: Literal["oja", "fixed"] = "oja"
    rate: float = 0.1
    every: int = 1
    projection_decay: float = 0.0
    orthonormalise: int = 0
    decay: float = 1e-4
    follows: Literal["gradient", "update"] = "gradient"
    init: Init = "xavier"
    scale: Scale = "init"

    name: ClassVar[str] = "ldfa"
    reference: ClassVar[str] = oja.HANUT_2025

    def __post_init__(self) -> None:
        super().__post_init__()
        oja.check_rank("LowDimensional", self.rank)
        oja.check_learning("LowDimensional", self.rate, self.projection_decay, self.orthonormalise)
        if self.every < 1:
            raise ValueError(f"LowDimensional: every={self.every} must count updates, at least 1")
        learning = self.rate, self.every, self.projection_decay, self.orthonormalise
        if self.projection == "fixed" and learning != (0.1, 1, 0.0, 0):
            raise ValueError(
                "LowDimensional: rate, every, projection_decay and orthonormalise have no effect"
                " with projection='fixed'; leave them out, or use projection='oja'"
            )

    @property
    def acts_after_update(self) -> bool:
        return super().acts_after_update or self.projection == "oja" or self.follows == "update"

    def obstacle(self, op: Op, weight: Tensor) -> str:
        if isinstance(op, ConvOp) and (op.transposed or op.groups > 1):
            kind = "transposed" if op.transposed else "grouped"
            return (
                f"is a {kind} convolution, for which LowDimensional is not defined; give it another"
                " rule by name, for example KolenPollack, and LowDimensional to the rest"
            )
        if oja.dimensions(self.rank, len(weight)) > len(weight):
            return (
                f"rank={self.rank} is above {len(weight)}, the number of its outputs; give it a"
                f" LowDimensional(rank={len(weight)}) of its own, by name, or a fraction as rank"
            )
        return super().obstacle(op, weight)

    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        rank = oja.dimensions(self.rank, len(weight))
        rows = oja.orthonormal_rows(rank, len(weight), generator)
        half_width = bound(self.init, *fans(weight.shape))
        factor = uniform((rank, *weight.shape[1:]), half_width, generator)
        if self.follows == "gradient":
            return {"projection": rows, "factor": nn.Parameter(factor)}
        carried = factors.through(rows, weight.detach().double().cpu())
        return {"projection": rows, "factor": factor, "carried": carried}

    def note(self, *memory: Tensor) -> dict[str, Tensor]:
        return oja.collected(memory[0]) if self.projection == "oja" else {}

    def matrix(self, weight: Tensor, *memory: Tensor) -> Tensor:
        return factors.product(memory[0].t(), self._scaled(weight, *memory), weight)

    def send(self, local: Local, *memory: Tensor) -> Tensor | None:
        return factors.send(local, memory[0].t(), self._scaled(local.weight, *memory))

    def observes_before(self, number: int) -> bool:
        return (number - 1) % self.every == 0

    def observe(self, local: Local, *memory_and_notes: Tensor) -> None:
        rows, (change, power) = memory_and_notes[0], memory_and_notes[-2:]
        grad, low = local.grad, None
        if grad.dtype == rows.dtype:
            low = _as_rows(local, factors.lowered(local, rows.t()))
        oja.collect(rows, _as_rows(local, grad), change, power, low)

    def memory_gradients(self, local: Local, *memory: Tensor) -> Sequence[Tensor | None]:
        return (None, factors.gradient(local, memory[0].t(), memory[1]))

    def after_update(self, update: Update, *memory: Tensor) -> None:
        rows, factor = memory[:2]
        if self.follows == "update":
            factor.add_(factors.through(rows, update.weight) - memory[2])
        super().after_update(update, *memory)
        if self.projection == "oja" and self.observes_before(update.number):
            oja.turn(rows, *memory[-2:], rate=self.rate, decay=self.projection_decay)
        if self.orthonormalise and update.number % self.orthonormalise == 0:
            rows.copy_(oja.orthonormalised(rows))
        self.adopt(update.weight, *memory)

    def following(self, *memory: Tensor) -> Tensor:
        return memory[1]

    def image(self, gradient: Tensor, *memory: Tensor) -> Tensor:
        return factors.through(memory[0], gradient)

    def adopt(self, weight: Tensor, *memory: Tensor) -> None:
        if self.follows == "update":
            memory[2].copy_(factors.through(memory[0], weight))

    def objection(self, optimizer: Optimizer, weight_group: Group, memory_group: Group) -> str:
        remedy = "use SGD, or LowDimensional(follows='update')"
        return trained_apart(weight_group, memory_group) or not_linear(optimizer, remedy)

    def _scaled(self, weight: Tensor, rows: Tensor, factor: Tensor, *rest: Tensor) -> Tensor:
        """Q, or the multiple of it that gives Q P the norm of W."""
        if self.scale == "init":
            return factor
        flat = factor.flatten(1)
        squared = (rows.mm(rows.t()).mm(flat) * flat).sum()  # |Q P|^2 without forming Q P
        tiny = torch.finfo(flat.dtype).tiny
        return factor * (torch.linalg.vector_norm(weight) / squared.clamp_min(tiny).sqrt())


def _as_rows(local: Local, signal: Tensor) -> Tensor:
    """A signal at the outputs as samples, or as images where their layout costs a copy."""
    if not isinstance(local.op, ConvOp):
        return signal.reshape(-1, signal.shape[-1])
    if local.grad.stride(1) == 1:  # channels last: positions are rows already
        return signal.movedim(1, -1).reshape(-1, signal.shape[1])
    return signal.flatten(2)
