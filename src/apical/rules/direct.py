"""Relatives of direct feedback alignment: other signals, and feedback that learns.

All send `s B_l` to the taps of `DFA`, whose layouts and sample axes they share. They differ in the
signal s (the error, its signs, the labels) and in what becomes of B_l.
"""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from apical.rules import oja
from apical.rules.base import BroadcastRule, Geometry, Needs, Update
from apical.rules.dfa import DFA, counted
from apical.rules.oja import Rank


@dataclass(frozen=True)
class _Direct(BroadcastRule, abc.ABC):
    """What DFA's relatives share with it.

    Args:
        layout, init, sample_axis, positions: as in `DFA`.
    """

    layout: Literal["full", "kernel", "channel"] = "full"
    init: Literal["xavier", "kaiming", "noekland"] = "xavier"
    sample_axis: int | Literal["folded", "steps"] = 0
    positions: Literal["joint", "samples", "pixels"] = "joint"

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self._taps  # checked now, and made once
        if self.trains_memory and self.layout == "kernel":  # a repeated kernel has no gradient
            raise ValueError(
                f"{type(self).__name__}: layout='kernel' has no learning form; use 'full' or"
                " 'channel'"
            )

    @cached_property
    def _taps(self) -> DFA:
        return DFA(
            layout=self.layout,
            init=self.init,
            sample_axis=self.sample_axis,
            positions=self.positions,
        )

    @property
    def by_position(self) -> bool:
        return self._taps.by_position

    @property
    def by_pixel(self) -> bool:
        return self._taps.by_pixel

    def _mean_size(self, error: Tensor) -> Tensor:
        """The mean of |e|; of positions, those alone that have an error (others are ignored)."""
        if not self.by_position:
            return error.abs().mean()
        return error.abs().sum() / counted(error).clamp_min(1) / error.shape[1]

    @property
    def needs(self) -> Needs:
        return Needs("nothing", "output", labels=self.needs_labels)

    def samples(self, shape: torch.Size, error_shape: Sequence[int]) -> int | None:
        return self._taps.samples(shape, error_shape)

    def create(
        self, geometry: Geometry, error_size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        return self._taps.create(geometry, error_size, generator)


@dataclass(frozen=True)
class SignDFA(_Direct):
    """Sign-DFA: the layer's input receives `m sign(e) B`, with B as drawn.

    m is the mean of |e| over the batch and the outputs, so that the signal keeps the scale of the
    error, and with it that of the loss: its reduction, loss scaling, accumulation.

    Source: Frenkel, Lefebvre, Bol 2021 (sDFA), whose signal is the bare sign.
    """

    name: ClassVar[str] = "sdfa"
    reference: ClassVar[str] = """@article{frenkel2021,
  title = {Learning Without Feedback: Fixed Random Learning Signals Allow for Feedforward Training
           of Deep Neural Networks},
  author = {Frenkel, Charlotte and Lefebvre, Martin and Bol, David},
  journal = {Frontiers in Neuroscience}, volume = {15}, pages = {629892}, year = {2021}
}"""

    def signal(self, error: Tensor, geometry: Geometry, *memory: Tensor) -> Tensor:
        return self._taps.signal(error.sign() * self._mean_size(error), geometry, *memory)


@dataclass(frozen=True)
class DRTP(_Direct):
    """Direct random target projection: the layer's input receives `m t B`, t the one-hot target.

    No error is needed below the output layer, only labels: run forward and backward pass inside
    `with apical.labels(model, targets):`. The sign is the source's; the law of B is symmetric, so
    the opposite sign would be the same rule under another seed. Where sign(e) = 1 - 2t, as for
    sigmoid outputs, sign-DFA's signal is that of a constant less twice this one.

    Args:
        magnitude: "error": m is the mean of |e| over the batch and the outputs, so that hidden
            layers follow the scale of the loss (its reduction, loss scaling, accumulation);
            "one": m = 1 / N for a batch of N, the source's constant magnitude under a loss that
            is a mean. It ignores the scale of the loss.

    With positions="samples" a negative label marks a position that sends nothing.

    Source: Frenkel, Lefebvre, Bol 2021. Its code gives hidden layers sums over the batch and the
        output layer means; here both are means.
    """

    magnitude: Literal["error", "one"] = "error"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.by_pixel:
            raise ValueError(
                "DRTP: positions='pixels' has no labels at the resolution of every layer; use DFA"
            )

    needs_labels: ClassVar[bool] = True
    reference: ClassVar[str] = SignDFA.reference

    @property
    def needs(self) -> Needs:
        return Needs("nothing", "output" if self.magnitude == "error" else "nothing", labels=True)

    def signal(self, error: Tensor, geometry: Geometry, *memory: Tensor) -> Tensor:
        *matrices, targets = memory
        scale: float | Tensor = 1 / max(len(error), 1)
        if self.magnitude == "error":
            scale = self._mean_size(error)
        elif self.by_position:
            scale = 1 / counted(targets).clamp_min(1)
        return self._taps.signal(targets * scale, geometry, *matrices)


@dataclass(frozen=True)
class DirectKolenPollack(_Direct):
    """Direct Kolen-Pollack: the layer's input h receives `e B`, and B learns by dB = e^T h.

    B is a parameter, trained by the user's optimizer: convert (with `example=`) first, then build
    the optimizer. For the output layer dB = dW, so there B - W obeys the laws of `KolenPollack`
    under the optimizer's weight decay; other layers have no such law.

    Args:
        layout: "full" or "channel", as in `DFA`; "channel" sums h over the positions.

    Raises: ValueError for the layout "kernel".
    Source: Webster, Choi, Ahn 2021.
    """

    name: ClassVar[str] = "dkp"
    reference: ClassVar[str] = """@article{webster2021,
  title = {Learning the Connections in Direct Feedback Alignment},
  author = {Webster, Matthew Bailey and Choi, Jonghyun and Ahn, Changwook},
  journal = {OpenReview preprint}, year = {2021}
}"""

    def create(
        self, geometry: Geometry, error_size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        drawn = super().create(geometry, error_size, generator)
        return {name: nn.Parameter(tensor) for name, tensor in drawn.items()}

    def signal(self, error: Tensor, geometry: Geometry, *memory: Tensor) -> Tensor:
        return self._taps.signal(error, geometry, *memory)

    def memory_gradients(
        self, error: Tensor, x: Tensor, geometry: Geometry, *memory: Tensor
    ) -> Sequence[Tensor | None]:
        seen = self._taps.gather(x, geometry).to(error.dtype)
        return (error.t().mm(seen).view_as(memory[0]),)


@dataclass(frozen=True)
class DirectLowDimensional(_Direct):
    """Direct low-dimensional feedback: the layer's input h receives `e P^T Q`, of rank r.

    Q is a parameter with dQ = (e P^T)^T h: direct Kolen-Pollack seen through P (r x outputs),
    whose rows are orthonormal. P = I is direct Kolen-Pollack.

    Args:
        rank: dimensions of the error, at most the model's outputs; or a fraction of them.
        projection: "oja" turns P towards the leading directions of the error, "labels" towards
            those of the targets (inside `with apical.labels(model, targets):`), by Oja's
            subspace rule; "fixed" leaves it as drawn.
        rate: of Oja's rule, in (0, 1], per update; the second moment is divided by its trace.

    Raises: ValueError for a value out of range, the layout "kernel", a rate with "fixed", and
        at the first forward pass for a rank above the number of outputs.
    Source: Hanut, Kadmon 2025 (arXiv 2502.20580), the direct form; Oja's rule as in
        `LowDimensional`.
    """

    rank: Rank = 0.5
    projection: Literal["oja", "labels", "fixed"] = "oja"
    rate: float = 0.1

    name: ClassVar[str] = "dldfa"
    reference: ClassVar[str] = oja.HANUT_2025

    def __post_init__(self) -> None:
        super().__post_init__()
        oja.check_rank("DirectLowDimensional", self.rank)
        oja.check_learning("DirectLowDimensional", self.rate, 0.0, 0)
        if self.projection == "fixed" and self.rate != 0.1:
            raise ValueError("DirectLowDimensional: rate has no effect with projection='fixed'")

    @property
    def acts_after_update(self) -> bool:
        return self.projection != "fixed"

    @property
    def needs_labels(self) -> bool:
        return self.projection == "labels"

    def create(
        self, geometry: Geometry, error_size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        rank = oja.dimensions(self.rank, error_size)
        if rank > error_size:
            raise ValueError(
                f"DirectLowDimensional: rank={self.rank} is above {error_size}, the number of the"
                " model's outputs; use at most that, or a fraction"
            )
        rows = oja.orthonormal_rows(rank, error_size, generator)
        matrix = super().create(geometry, error_size, generator)["matrix"]
        return {"projection": rows, "factor": nn.Parameter(matrix[:rank].clone())}

    def note(self, *memory: Tensor) -> dict[str, Tensor]:
        return {} if self.projection == "fixed" else oja.collected(memory[0])

    def signal(self, error: Tensor, geometry: Geometry, *memory: Tensor) -> Tensor:
        rows, factor = memory[:2]
        return self._taps.signal(error.mm(rows.t()), geometry, factor)

    def observe(self, error: Tensor, *targets_memory_and_notes: Tensor) -> None:
        *targets, rows, _, projected, power = targets_memory_and_notes
        oja.collect(rows, targets[0] if targets else error, projected, power)

    def memory_gradients(
        self, error: Tensor, x: Tensor, geometry: Geometry, *memory: Tensor
    ) -> Sequence[Tensor | None]:
        seen = self._taps.gather(x, geometry).to(error.dtype)
        low = error.mm(memory[0].t())
        return (None, low.t().mm(seen).view_as(memory[1]))

    def after_update(self, update: Update, *memory: Tensor) -> None:
        rows, projected, power = memory[0], *memory[-2:]
        oja.turn(rows, projected, power, rate=self.rate, decay=0.0)
