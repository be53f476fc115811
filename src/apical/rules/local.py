"""Local errors: every layer has a classifier of its own, and learns from what that gets wrong."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from apical.rules.base import BroadcastRule, Geometry, Needs, bound, uniform
from apical.rules.dfa import counted


@dataclass(frozen=True)
class LocalError(BroadcastRule):
    """Local error: the layer's input x receives `c e B`, e the error of a readout of x.

    The readout computes B x, for all units of x, and e is the gradient of its loss: softmax(B x) -
    t with t the one-hot target. Nothing comes from above, only labels: run forward and backward
    pass inside `with apical.labels(model, targets):`.

    Args:
        readout: "fixed": B stays as drawn, U(-a, a) with a = 1 / sqrt(units). "trained": B learns
            by the loss of its own readout, with the user's optimizer: convert (with `example=`)
            first.
        loss: of the readout: "cross_entropy", or "squared_error" to the one-hot target.
        each: with steps, whether the readout sees the "mean" over steps, or each "step" and has a
            loss at every one.
        magnitude: c. "error": e is given the mean absolute size of the error at the model's output,
            so that hidden layers follow the scale of the loss; "one": c = 1 / N for a batch of N,
            the gradient of the mean local loss. It ignores the scale of the loss.
        sample_axis: the axis of x that counts samples, or "steps", as in `DFA`.
        positions: "samples": every position is a sample, with one readout for all, as in `DFA`; a
            negative label marks a position that has no loss.

    Raises: ValueError for a negative axis, for `each="step"` without steps, and for
        positions="samples" with steps.
    Source: Mostafa, Ramesh, Cauwenberghs 2018, fixed and trained; with a loss at each step:
        Kaiser, Mostafa, Neftci 2020 (DECOLLE, whose neurons and smooth loss are others); trained,
        in spiking nets: Ma, Yan, Yu, Yu 2022 (BELL, whose readouts spike).
    """

    readout: Literal["fixed", "trained"] = "fixed"
    loss: Literal["cross_entropy", "squared_error"] = "cross_entropy"
    each: Literal["mean", "step"] = "mean"
    magnitude: Literal["error", "one"] = "error"
    sample_axis: int | Literal["steps"] = 0
    positions: Literal["joint", "samples"] = "joint"

    name: ClassVar[str] = "le"
    needs_labels: ClassVar[bool] = True
    needs_input: ClassVar[bool] = True
    reference: ClassVar[str] = """@article{mostafa2018,
  title = {Deep Supervised Learning Using Local Errors},
  author = {Mostafa, Hesham and Ramesh, Vishwajith and Cauwenberghs, Gert},
  journal = {Frontiers in Neuroscience}, volume = {12}, pages = {608}, year = {2018}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        axis = self.sample_axis
        if axis != "steps" and (not isinstance(axis, int) or axis < 0):
            raise ValueError(
                f"LocalError: sample_axis={axis!r} is neither 'steps' nor an axis from 0"
            )
        if self.each == "step" and self.sample_axis != "steps":
            raise ValueError("LocalError: each='step' has no effect without sample_axis='steps'")
        if self.by_position and axis == "steps":
            raise ValueError("LocalError: positions='samples' needs sample_axis as a number")

    @property
    def needs(self) -> Needs:
        return Needs("nothing", "output" if self.magnitude == "error" else "nothing", labels=True)

    @property
    def by_position(self) -> bool:
        return self.positions == "samples"

    def samples(self, shape: torch.Size, error_shape: Sequence[int]) -> int | None:
        if self.by_position or not isinstance(self.sample_axis, int):
            return None
        return shape[self.sample_axis]

    def create(
        self, geometry: Geometry, error_size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        units = self._units(geometry)
        matrix = uniform((error_size, units), bound("kaiming", units, error_size), generator)
        return {"matrix": nn.Parameter(matrix) if self.readout == "trained" else matrix}

    def signal(self, error: Tensor, geometry: Geometry, *memory: Tensor) -> Tensor:
        matrix, targets, x = memory
        steps = self._steps(geometry)
        wrong_TNC = self._wrong(self._seen(x, geometry), matrix, targets)
        scale = 1 / self._count(geometry, targets)
        if self.magnitude == "error":  # the positions that are ignored cancel in the ratio
            size = wrong_TNC.abs().mean().clamp_min(torch.finfo(wrong_TNC.dtype).tiny)
            # with nothing wrong, the ratio may be infinite
            scale = (error.abs().mean() / size).clamp_max(torch.finfo(size.dtype).max)
        signal_TNU = (wrong_TNC * (scale / steps)) @ matrix
        every = signal_TNU.expand(steps, *signal_TNU.shape[1:])
        if isinstance(self._axis, int):
            shape = torch.empty(geometry.input_shape, device="meta").movedim(self._axis, 0).shape
            return every.reshape(shape).movedim(0, self._axis)
        return every.reshape(geometry.input_shape)

    def memory_gradients(
        self, error: Tensor, x: Tensor, geometry: Geometry, *memory: Tensor
    ) -> Sequence[Tensor | None]:
        matrix, targets = memory
        seen_TNU = self._seen(x.to(matrix.dtype), geometry)
        wrong_TNC = self._wrong(seen_TNU, matrix, targets)
        shares = self._count(geometry, targets) * len(seen_TNU)
        return (wrong_TNC.flatten(0, 1).t().mm(seen_TNU.flatten(0, 1)) / shares,)

    def _steps(self, geometry: Geometry) -> int:
        return geometry.input_shape[0] // geometry.samples if self.sample_axis == "steps" else 1

    def _units(self, geometry: Geometry) -> int:
        """What one readout sees, of a sample at one step."""
        sizes = list(geometry.input_shape)
        del sizes[self._axis if isinstance(self._axis, int) else 0]
        return math.prod(sizes)

    def _seen(self, x: Tensor, geometry: Geometry) -> Tensor:
        """What readouts see, (T, N, units), T = 1 for the mean or without steps."""
        if isinstance(self._axis, int):
            x = x.movedim(self._axis, 0)
        rows = x.reshape(self._steps(geometry), geometry.samples, self._units(geometry))
        return rows.mean(0, keepdim=True) if self.each == "mean" else rows

    def _wrong(self, seen: Tensor, matrix: Tensor, targets: Tensor) -> Tensor:
        """The gradient of each sample's loss at its scores."""
        scores = seen @ matrix.t()
        if self.loss == "cross_entropy":
            wrong = torch.softmax(scores, -1) - targets
        else:
            wrong = 2 * (scores - targets)
        return wrong * targets.ne(0).any(1, keepdim=True) if self.by_position else wrong

    def _count(self, geometry: Geometry, targets: Tensor) -> Any:
        """Samples in the mean loss: a number, or of positions a tensor ()."""
        if self.by_position:
            return counted(targets).clamp_min(1)
        return max(geometry.samples, 1)

    @property
    def _axis(self) -> int | Literal["steps"]:
        """The axis of samples in the inputs that the rule is given."""
        return 0 if self.by_position else self.sample_axis

    @property
    def trains_memory(self) -> bool:
        return self.readout == "trained"
