"""What a learning rule is: the signal that the layer below receives in the place of a gradient.

A rule is a frozen dataclass, and its fields are its configuration. What it remembers for one
layer (its *memory*: feedback matrices, magnitudes) is made by `create` and kept by the layer.
"""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.optim import Optimizer

from apical.names import check_literals
from apical.rules.ops import Geometry, Local, Op

Init = Literal["xavier", "kaiming"]
Law = Literal["xavier", "kaiming", "normal"]
Scale = Literal["init", "norm"]
Group = Mapping[str, Any]
"""Options of an optimizer for some of its parameters."""


class Needs(NamedTuple):
    """What a rule requires of the biological tissue or the hardware that it runs on.

    weights: what the backward path reads of the forward weights: their "values" (weight transport),
        their "signs", or "nothing"; the responses and updates of a layer are always available.
    waits_for: what a hidden layer waits for until it can learn: the backward pass through all
        "layers above", the error at the model's "output", or "nothing" beyond its own response.
    labels: whether hidden layers learn from labels.
    phase: whether it learns in a separate phase, in addition to the passes of training.
    """

    weights: Literal["values", "signs", "nothing"]
    waits_for: Literal["layers above", "output", "nothing"]
    labels: bool = False
    phase: bool = False


@dataclass(frozen=True)
class Rule(abc.ABC):
    """A learning rule. Derive from `TransportRule` or `BroadcastRule`.

    Args:
        constrain_weights: after every update, rescale each weight to the Frobenius norm it had
            when it was converted (attributed by BioTorch to Moskovitz et al. 2018).

    Raises: ValueError if a field annotated as a `Literal` holds another value.
    """

    constrain_weights: bool = field(default=False, kw_only=True)

    reference: ClassVar[str]
    """BibTeX of the source."""

    def __post_init__(self) -> None:
        check_literals(self, type(self).__name__)

    @property
    def name(self) -> str:
        """The name of the rule in tables and plans."""
        return type(self).__name__.lower()

    @property
    def needs(self) -> Needs | None:
        """What the rule requires of where it runs; None: not stated."""
        return None

    @property
    def acts_after_update(self) -> bool:
        """Whether `after_update` does anything."""
        return False

    @property
    def changes_weight(self) -> bool:
        """Whether something after an update changes the weight itself, which then must be a
        parameter and cannot be computed from others."""
        return self.constrain_weights

    @property
    def follows_weight(self) -> bool:
        """Whether the memory gets each update of the weight, as in Kolen-Pollack's rule.

        Then every update counts, also where no layer below receives a signal; memory that is
        trained does not change while the weight is frozen; and one weight cannot have two such
        rules.
        """
        return False

    @property
    def sends_nothing(self) -> bool:
        """Whether the layer's input is detached: below it gradients are absent, not zero."""
        return False

    def after_update(self, update: "Update", *memory: Tensor) -> None:
        """Change the memory in place; called once after each update of the weight that counts.

        A rule with notes receives them after its memory.
        """

    def adopt(self, weight: Tensor, *memory: Tensor) -> None:
        """Bring up to date, in place, what the memory stores of the weight's value: a checkpoint of
        the plain model has replaced the weight, which is no update of it."""

    def note(self, *memory: Tensor) -> dict[str, Tensor]:
        """Tensors in which `observe` keeps what backward passes show, until `after_update` uses
        them; saved with the model. Unlike the memory they may change between the forward and the
        backward pass."""
        return {}

    def observes_before(self, number: int) -> bool:
        """Whether `observe` is wanted in the passes before this update, counted as in `Update`."""
        return True

    def obstacle(self, op: Op, weight: Tensor) -> str:
        """Why this layer cannot learn by the rule, with the remedy; empty if it can."""
        return ""

    def objection(self, optimizer: Optimizer, weight_group: Group, memory_group: Group) -> str:
        """Why this optimizer breaks what the rule promises, with the remedy; empty if it does not.

        Asked once, of rules whose memory is trained. The groups are those of the optimizer that
        hold the weight and the memory.
        """
        return ""


class Update(NamedTuple):
    """What a rule is given when the weight of a layer was updated.

    `number` counts from 1 the updates that the rule acts on: those before which it took part in a
    pass (a layer below received a signal, or the memory learns). `generator()` returns a new
    generator on the weight's device, whose numbers depend only on the conversion's seed, the
    layer's name, `number` and the kind of device: from the same seed CUDA draws other numbers than
    the CPU. For a few numbers that should be the same everywhere, draw them on the CPU, from
    `torch.Generator().manual_seed(generator().initial_seed())`.
    """

    weight: Tensor
    bias: Tensor | None
    op: Op
    number: int
    generator: Callable[[], torch.Generator]


class TransportRule(Rule):
    """Sends `op^T(gradient, B)` to the layer below, where backprop sends `op^T(gradient, W)`."""

    @abc.abstractmethod
    def create(self, weight: Tensor, generator: torch.Generator) -> dict[str, Tensor]:
        """The memory of one layer, on the CPU in float64: name -> tensor.

        A tensor shaped like `weight` is given its dtype, device and memory layout. A
        `torch.nn.Parameter` is trained by the user's optimizer (see `memory_gradients`).
        """

    @abc.abstractmethod
    def matrix(self, weight: Tensor, *memory: Tensor) -> Tensor:
        """The feedback matrix B, in the layout of `weight`: B = W would be backprop."""

    def send(self, local: Local, *memory: Tensor) -> Tensor | None:
        """The signal for the layer below, where it can be formed without B; None: from `matrix`.

        Shapes: the result as `local.x`.
        """
        return None

    def observe(self, local: Local, *memory_and_notes: Tensor) -> None:
        """Write into the notes, in place, what a backward pass shows. Called in training mode
        only, as a norm layer keeps its statistics, and where a layer below receives a signal."""

    def memory_gradients(self, local: Local, *memory: Tensor) -> Sequence[Tensor | None]:
        """The gradient of each memory tensor that is a parameter; never `grad_weight` itself."""
        return (None,) * len(memory)


class BroadcastRule(Rule):
    """Sends a function of the error at the model's output to the input of every layer."""

    @property
    def shared(self) -> bool:
        """Whether all layers use slices of one tensor: `create` then returns, for every layer, the
        first rows of the same tensor, and the layers share its storage."""
        return False

    @abc.abstractmethod
    def create(
        self, geometry: Geometry, error_size: int, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """The memory of one layer, on the CPU in float64: name -> tensor.

        Args:
            geometry: shape of the layer's input and of its weight, and its operation.
            error_size: number of outputs of the model for one sample.
        """

    @abc.abstractmethod
    def signal(self, error: Tensor, geometry: Geometry, *memory: Tensor) -> Tensor:
        """The gradient that the layer's input receives.

        Shapes: error (N, error_size), the loss's gradient at the output, reduction included;
            result: `geometry.input_shape`. Rules that need labels receive the targets after
            their memory, shaped like the error, one-hot for class labels; rules that need the
            layer's input receive it after these.
        """

    @property
    def needs_labels(self) -> bool:
        """Whether the rule learns from `apical.labels(model, targets)`."""
        return False

    @property
    def needs_input(self) -> bool:
        """Whether the signal depends on the layer's input, which is then kept until the backward
        pass."""
        return False

    def observe(self, error: Tensor, *targets_memory_and_notes: Tensor) -> None:
        """Write into the notes, in place, what a backward pass shows; in training mode only."""

    def memory_gradients(
        self, error: Tensor, x: Tensor, geometry: Geometry, *memory: Tensor
    ) -> Sequence[Tensor | None]:
        """The gradient of each memory tensor that is a parameter.

        Shapes: error (N, error_size); x `geometry.input_shape`, the layer's input. Rules whose
            signal needs the input receive the targets, where they need these, after their memory.
        """
        return (None,) * len(memory)

    @property
    def by_position(self) -> bool:
        """Whether every position of the output is a sample of its own: the rule is then given
        inputs and errors as rows, (samples * positions, features), in any number."""
        return False

    @property
    def by_pixel(self) -> bool:
        """Whether the positions are the pixels of a map (samples, classes, *space), to whose
        resolution that of every layer is brought."""
        return False

    @property
    def trains_memory(self) -> bool:
        """Whether a tensor of the memory is a parameter."""
        return type(self).memory_gradients is not BroadcastRule.memory_gradients

    def samples(self, shape: torch.Size, error_shape: Sequence[int]) -> int | None:
        """Number of samples in a layer input of this shape; None where that is only known
        at the model's output."""
        return shape[0]


def fans(shape: Sequence[int]) -> tuple[int, int]:
    """Fan-in and fan-out of a weight, as `torch.nn.init` counts them."""
    receptive = math.prod(shape[2:])
    return shape[1] * receptive, shape[0] * receptive


def bound(init: Init, fan_in: int, fan_out: int) -> float:
    """Half width a of the uniform law U(-a, a) that BioTorch draws weights and feedback from.

    xavier: a = sqrt(6 / (fan_in + fan_out)). kaiming: a = 1 / sqrt(fan_in), PyTorch's default
    for Linear and convolution layers. Its standard deviation is a / sqrt(3).
    """
    return math.sqrt(6 / (fan_in + fan_out)) if init == "xavier" else 1 / math.sqrt(fan_in)


def uniform(shape: Sequence[int], half_width: float, generator: torch.Generator) -> Tensor:
    """U(-half_width, half_width) in float64 on the CPU: the same numbers for every model dtype."""
    return torch.empty(tuple(shape), dtype=torch.float64).uniform_(
        -half_width, half_width, generator=generator
    )


def drawn(law: Law, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    """A feedback matrix in the layout of a weight of this shape, in float64 on the CPU.

    "normal" is N(0, 1 / (fan_in + fan_out)), as the code published with Akrout et al. 2019 draws
    weights, feedback and biases; the others are U(-a, a) with the a of `bound`.
    """
    return redraw(torch.empty(tuple(shape), dtype=torch.float64), law, generator)


def redraw(matrix: Tensor, law: Law, generator: torch.Generator) -> Tensor:
    """The same in place, in the dtype and on the device of the matrix."""
    fan_in, fan_out = fans(matrix.shape)
    if law == "normal":
        return matrix.normal_(0, (fan_in + fan_out) ** -0.5, generator=generator)
    half_width = bound(law, fan_in, fan_out)
    return matrix.uniform_(-half_width, half_width, generator=generator)


def with_norm_of(matrix: Tensor, weight: Tensor) -> Tensor:
    """`matrix`, rescaled to the Frobenius norm of `weight`; a zero matrix stays zero."""
    norm = torch.linalg.vector_norm(matrix).clamp_min(torch.finfo(matrix.dtype).tiny)
    return matrix * (torch.linalg.vector_norm(weight) / norm)
