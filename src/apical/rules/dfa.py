"""Direct feedback alignment: each layer receives the output error through a random matrix."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from apical.rules.base import BroadcastRule, Geometry, Needs, uniform
from apical.rules.ops import ConvOp
from apical.rules.spatial import spread


@dataclass(frozen=True)
class DFA(BroadcastRule):
    """Direct feedback alignment: the layer's input receives `e B`, B random and fixed.

    The signal enters where the layer takes its input: after the activation, norm and pooling
    below it, whose derivatives stay exact. Skip connections carry their own gradient past it.

    Args:
        layout: "full" (Noekland): one column of B per input unit. "kernel" (BioTorch): B has the
            shape of the layer's kernel; the error is repeated over all output positions and sent
            through the transposed convolution. "channel": one column per channel, the same at
            every position. For a linear layer, whose channels are its features, "kernel" and
            "channel" agree; where its input is (N, features), all three do. The default is the
            original and learns best here: LeNet on 6,000 CIFAR-10 images, 5 epochs, the learning
            rate chosen for each layout: test accuracy 23.4 % (sd 1.1, n = 3) against 21.2 % (2.4)
            for "kernel" and 14.3 % (4.5) for "channel"; on MNIST the spread hides the first two's
            order. `benchmarks/dfa_layouts.py` repeats it.
        init: the law of B. "xavier", "kaiming": as BioTorch, with the fans of B's own shape;
            "noekland": U(-1/sqrt(error_size), 1/sqrt(error_size)).
        shared: all layers use slices of one matrix, each at its own scale, so that feedback
            costs the memory of the largest layer (after Launay et al. 2020).
        sample_axis: the axis of the layer's input that counts samples; "folded" where axis 0
            holds several rows for each sample, one sample after the other (windows, patches);
            "steps" where it holds all samples of the first step, then all of the next, as in
            spiking nets: the error is sent to every step, by the same B.
        positions: "joint": the error of a sample is that of all its positions, which B maps to all
            positions of the layer's input. "samples": every position of the output (samples,
            positions, features) is a sample of its own. One B (features of the output x features
            of the layer) then serves all positions and sequences of any length; `sample_axis`
            still names the axis of whole sequences, "folded" for inputs (samples * positions,
            features). The input needs the positions of the output. "pixels": the same for maps
            (samples, classes, *space), as in segmentation; a layer of a lower resolution receives
            the sum of the errors of the pixels over each of its own.

    Raises: ValueError for `shared` with "kernel", whose matrices do not nest, and for
        positions="samples" with sample_axis="steps".
    Source: Noekland 2016, equation 6; "kernel": BioTorch (2021), computed here in closed form;
        positions="samples": language models in Launay, Poli, Boniface, Krzakala 2020.
    """

    layout: Literal["full", "kernel", "channel"] = "full"
    init: Literal["xavier", "kaiming", "noekland"] = "xavier"
    shared: bool = False
    sample_axis: int | Literal["folded", "steps"] = 0
    positions: Literal["joint", "samples", "pixels"] = "joint"

    needs: ClassVar[Needs] = Needs("nothing", "output")
    reference: ClassVar[str] = """@inproceedings{nokland2016,
  title = {Direct Feedback Alignment Provides Learning in Deep Neural Networks},
  author = {N{\\o}kland, Arild},
  booktitle = {Advances in Neural Information Processing Systems}, year = {2016}
}"""

    def __post_init__(self) -> None:
        super().__post_init__()
        axis = self.sample_axis
        if axis not in ("folded", "steps") and (not isinstance(axis, int) or axis < 0):
            raise ValueError(
                f"DFA: sample_axis={axis!r} is neither 'folded' nor 'steps' nor an axis from 0"
            )
        if self.shared and self.layout == "kernel":
            raise ValueError("DFA: shared=True needs layout='full' or 'channel', not 'kernel'")
        if self.by_position and axis == "steps":
            raise ValueError(
                "DFA: positions='samples' needs sample_axis as a number or 'folded', not 'steps'"
            )
        if self.by_pixel and axis != 0:
            raise ValueError(f"DFA: positions='pixels' needs sample_axis=0, not {axis!r}")

    @property
    def by_position(self) -> bool:
        return self.positions != "joint"

    @property
    def by_pixel(self) -> bool:
        return self.positions == "pixels"

    def samples(self, shape: torch.Size, error_shape: Sequence[int]) -> int | None:
        if self.by_position or not isinstance(self.sample_axis, int):
            return None
        return shape[self.sample_axis]

    def create(
        self, geometry: Geometry, error_size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        if self.sample_axis == "steps":
            return self._at_one_step.create(one_step(geometry), error_size, generator)
        unit, receptive = self._columns(geometry), 1
        if self._by_kernel(geometry):
            receptive = math.prod(unit[1:])
        fan_in, fan_out = math.prod(unit), error_size * receptive
        half_width = {
            "xavier": math.sqrt(6 / (fan_in + fan_out)),
            "kaiming": 1 / math.sqrt(fan_in),
            "noekland": 1 / math.sqrt(error_size),
        }[self.init]
        if not self.shared:
            return {"matrix": uniform((error_size, *unit), half_width, generator)}
        rows = uniform((fan_in, error_size), 1.0, generator)
        return {"shared": rows, "half_width": torch.tensor(half_width, dtype=torch.float64)}

    def signal(self, error: Tensor, geometry: Geometry, *memory: Tensor) -> Tensor:
        if self.sample_axis == "steps":
            signal = self._at_one_step.signal(error, one_step(geometry), *memory)
            return to_every_step(signal, geometry)
        matrix, unit = memory[0], self._columns(geometry)
        if self.shared:
            error, matrix = error * memory[1], matrix.t()
        elif self._by_kernel(geometry):
            return self._to_input(spread(error, matrix, geometry), geometry)
        inner = self._inner(geometry)
        if geometry.channels_last and len(unit) == 3:
            matrix = matrix.view(-1, *unit).permute(0, 2, 3, 1).reshape(len(error.t()), -1)
            signal = error.mm(matrix).view(-1, *unit[1:], unit[0]).permute(0, 3, 1, 2)
        else:
            signal = error.mm(matrix.reshape(len(error.t()), -1)).view(-1, *unit)
        if unit != inner:
            layout = torch.channels_last if geometry.channels_last else torch.contiguous_format
            signal = signal.expand(len(error), *inner).contiguous(memory_format=layout)
        return self._to_input(signal, geometry)

    def gather(self, x: Tensor, geometry: Geometry) -> Tensor:
        """The layer's input as the columns of B see it: the transpose of what `signal` spreads.

        Positions that share a column are summed. Not for the layout "kernel".
        Shapes: x `geometry.input_shape` -> (N, units of one row of B).
        """
        if self.sample_axis == "steps":
            summed = x.unflatten(0, (-1, geometry.samples)).sum(0)
            return self._at_one_step.gather(summed, one_step(geometry))
        assert not self._by_kernel(geometry)
        inner, unit = self._inner(geometry), self._columns(geometry)
        if isinstance(self._axis, int):
            x = x.movedim(self._axis, 0)
        x = x.reshape(-1, *inner)
        shared = [1 + i for i, (a, b) in enumerate(zip(inner, unit, strict=True)) if a != b]
        return (x.sum(shared) if shared else x).flatten(1)

    def _by_kernel(self, geometry: Geometry) -> bool:
        return self.layout == "kernel" and isinstance(geometry.op, ConvOp)

    def _inner(self, geometry: Geometry) -> tuple[int, ...]:
        """Shape of one sample of the layer's input."""
        shape = tuple(geometry.input_shape)
        if self._axis == "folded":
            return (shape[0] // geometry.samples, *shape[1:])
        assert isinstance(self._axis, int)
        return shape[: self._axis] + shape[self._axis + 1 :]

    def _columns(self, geometry: Geometry) -> tuple[int, ...]:
        """Shape of one row of B; ones where all positions share a column."""
        inner = self._inner(geometry)
        if self.layout == "full":
            return inner
        if not isinstance(geometry.op, ConvOp):
            return (*(1 for _ in inner[:-1]), inner[-1])
        if self.layout == "kernel":
            return (geometry.input_shape[1], *geometry.weight_shape[2:])
        return (geometry.input_shape[1], *(1 for _ in geometry.weight_shape[2:]))

    def _to_input(self, signal: Tensor, geometry: Geometry) -> Tensor:
        if self._axis == "folded":
            return signal.reshape(geometry.input_shape)
        assert isinstance(self._axis, int)
        return signal.movedim(0, self._axis) if self._axis else signal

    @property
    def _axis(self) -> int | Literal["folded", "steps"]:
        """The axis of samples in the inputs that the rule is given."""
        return 0 if self.by_position else self.sample_axis

    @property
    def _at_one_step(self) -> "DFA":
        return replace(self, sample_axis=0)


def one_step(geometry: Geometry) -> Geometry:
    """The geometry of a single step, where axis 0 holds all samples of step after step."""
    shape = torch.Size((geometry.samples, *geometry.input_shape[1:]))
    return geometry._replace(input_shape=shape)


def to_every_step(signal: Tensor, geometry: Geometry) -> Tensor:
    """The signal of one step, repeated for all."""
    steps = geometry.input_shape[0] // geometry.samples
    return signal.expand(steps, *signal.shape).reshape(geometry.input_shape)


def counted(rows: Tensor) -> Tensor:
    """How many rows are not zero: the positions whose error or target counts. A tensor ()."""
    return rows.ne(0).any(1).sum()
