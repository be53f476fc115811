"""What a learner is: it fills `.grad` of a whole net in its own way, where others would call
`loss.backward()`. Any torch optimizer follows.

A learner is a frozen dataclass, and its fields are its configuration. What it remembers for one
net (an inverse, random feedback) is made by `create` and kept by the net, see `attach`.
"""

import abc
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.names import check_literals

Batch = tuple[Tensor, Tensor]
"""Inputs and targets."""

LEARNER_VERSION = 1
"""Part of the seed of every draw; raised when a change alters the numbers."""


class Objective(NamedTuple):
    """A loss of a net's outputs, with its gradient written out: a sum over outputs and a mean over
    samples (and over steps, where each is read out).

    Attributes:
        value: (scores, targets) -> the mean loss, a number that autograd can follow.
        error: (scores, targets) -> gradient of each sample's own loss at the scores, without the
            1 / N of the mean; shaped as the scores.
        minuend: scores -> the first term of the difference that `error` is; shaped as the scores.
    """

    value: Callable[[Tensor, Tensor], Tensor]
    error: Callable[[Tensor, Tensor], Tensor]
    minuend: Callable[[Tensor], Tensor]


def _cross_entropy(scores: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(scores.flatten(0, -2), targets.flatten())


def _cross_entropy_error(scores: Tensor, targets: Tensor) -> Tensor:
    error = torch.softmax(scores, -1)
    places = targets.unsqueeze(-1)
    return error.scatter_add_(-1, places, -torch.ones_like(places, dtype=error.dtype))


def _squared_error(scores: Tensor, targets: Tensor) -> Tensor:
    if scores.shape != targets.shape:
        raise ValueError(
            f"squared_error: outputs {tuple(scores.shape)} and targets {tuple(targets.shape)} must "
            "have the same shape"
        )
    return (scores - targets).square().sum(-1).mean()


OBJECTIVES: dict[str, Objective] = {
    "cross_entropy": Objective(
        _cross_entropy, _cross_entropy_error, lambda scores: torch.softmax(scores, -1)
    ),
    "squared_error": Objective(
        _squared_error, lambda scores, targets: 2 * (scores - targets), lambda scores: 2 * scores
    ),
}


class Info:
    """What a learner saw on the way: tensors without a graph, computed when first asked for.

    What they are computed from is held until the `Info` is dropped.

    Attributes:
        scores: output of the net.
    """

    def __init__(
        self,
        scores: Tensor,
        *,
        signals: Callable[[], Tensor] | None = None,
        norms: Callable[[], Mapping[str, Tensor]] | None = None,
        local_losses: Callable[[], Tensor] | None = None,
    ) -> None:
        self.scores = scores
        self._signals, self._norms, self._local_losses = signals, norms, local_losses

    @cached_property
    @torch.no_grad()
    def signals(self) -> Tensor:
        """Norm of the teaching signal at each step, (T,): of what stands where backprop has the
        gradient of the loss at the input sums of the cell. Empty for nets without steps."""
        return torch.zeros(0) if self._signals is None else self._signals()

    @cached_property
    @torch.no_grad()
    def norms(self) -> Mapping[str, Tensor]:
        """Weight -> norm of each step's share in its gradient, (T,), before it is clipped."""
        return {} if self._norms is None else self._norms()

    @cached_property
    @torch.no_grad()
    def local_losses(self) -> Tensor:
        """Loss of each step's own target, (T,); empty for learners without targets."""
        return torch.zeros(0) if self._local_losses is None else self._local_losses()


@dataclass(frozen=True)
class Learner(abc.ABC):
    """A way to fill `.grad`.

    Args:
        loss: what the net's outputs should minimise, a mean over samples (and steps, where every
            one is read out): "cross_entropy" with class numbers, or "squared_error", summed over
            outputs.
    Raises: ValueError if a field annotated as a `Literal` holds another value.
    """

    loss: Literal["cross_entropy", "squared_error"] = field(default="cross_entropy", kw_only=True)

    reference: ClassVar[str]
    """BibTeX of the source."""

    def __post_init__(self) -> None:
        check_literals(self, type(self).__name__)

    @abc.abstractmethod
    def gradients(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Info]:
        """Add the gradients of this batch to `.grad`; parameters it does not train are left alone.

        Args: batch: inputs and targets.
        Returns: the loss, a number without a graph; and what was seen.
        Raises: ValueError for a net this learner cannot train, with the remedy.
        """

    def stepwise(
        self, model: nn.Module, batch: Batch, update: Callable[[], object]
    ) -> tuple[Tensor, Info]:
        """As `gradients`, for learners that change the weights within a batch as well.

        Args: update: an optimizer step that empties `.grad`; most learners never call it. The
            gradients that are there at the end are for the caller's own step, as ever.
        """
        return self.gradients(model, batch)

    def pure(
        self, model: nn.Module, tensors: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss and gradients, by name, as a function that `torch.func.vmap` can batch.

        Args: tensors: what stands for the parameters of the model, by their names.
        Raises: ValueError for a learner that has no such form.
        """
        raise self.error("it trains one net at a time; train the nets one by one")

    def create(self, model: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        """What the learner remembers for this net: name -> tensor on the CPU, in float64.

        A `torch.nn.Parameter` is trained by the user's optimizer. Empty for most.
        """
        return {}

    @property
    def objective(self) -> Objective:
        """The loss, and its gradient at the outputs."""
        return OBJECTIVES[self.loss]

    @property
    def version(self) -> int:
        """Part of the key of an experiment; raised where a change alters what it learns."""
        return 1

    def error(self, problem: str) -> ValueError:
        """The error for a problem, in this learner's name; the caller raises it."""
        return ValueError(f"{type(self).__name__}: {problem}")


class Memory(nn.Module):
    """The tensors a learner made by `create`, and a generator for each of its calls."""

    def __init__(self, learner: Learner, seed: int, made: dict[str, Tensor], like: Tensor) -> None:
        super().__init__()
        self.learner, self.seed = learner, seed
        for name, tensor in made.items():
            placed = tensor.detach().to(like.device, like.dtype)
            if isinstance(tensor, nn.Parameter):
                self.register_parameter(name, nn.Parameter(placed))
            else:
                self.register_buffer(name, placed)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """What it gets: in a Sequential it stands behind the last layer."""
        return x

    def generator(self, like: Tensor) -> torch.Generator:
        """For the random numbers of this call of the learner: another one at the next call."""
        self.calls += 1
        return _generator(self.seed, int(self.calls), like.device)


def attach(model: nn.Module, learner: Learner, *, seed: int = 0) -> nn.Module:
    """Give the net what the learner remembers, in place; returns the net. Before the optimizer.

    For learners that remember nothing it does nothing. State-dict keys `learner.*` are added.

    Args: seed: of random feedback, inverses and noise; global generators are left alone.
    Raises: ValueError if the net already has a learner's memory.
    """
    with torch.device("cpu"):  # whatever torch's default device is
        made = learner.create(model, _generator(seed, 0, torch.device("cpu")))
        if hasattr(model, "learner"):
            raise learner.error("this net already has the memory of a learner; `detach` it first")
        if made:
            model.learner = Memory(learner, seed, made, next(model.parameters()))
    return model


def detach(model: nn.Module) -> nn.Module:
    """Take the learner's memory away again, in place; returns the net."""
    if hasattr(model, "learner"):
        del model.learner
    return model


def memory_of(model: nn.Module, learner: Learner) -> Memory:
    """The memory that `attach` made for this learner.

    Raises: ValueError if there is none, or that of another learner.
    """
    memory = getattr(model, "learner", None)
    if not isinstance(memory, Memory):
        raise learner.error(
            "it has tensors of its own; call learners.attach(model, learner) before the "
            "optimizer is built"
        )
    if memory.learner != learner:
        raise learner.error(f"the net has the memory of another learner, {memory.learner}")
    return memory


def check_reduction(learner: Any) -> None:
    """Whether sum or mean over units was stated; they differ by a factor of thousands.

    Raises: ValueError with what each of them means.
    """
    if learner.reduction not in ("sum", "mean"):
        given = learner.reduction
        problem = "reduction is not stated" if given is None else f"reduction={given!r} is unknown"
        raise learner.error(
            f"{problem}. Write reduction='sum': the loss of a local target is summed over "
            "units for each sample, and only weight gradients are means over the batch; or "
            "reduction='mean': it is the mean over units and batch everywhere, which shrinks "
            "signals by units * batch at every step"
        )


def add_gradients(gradients: Mapping[Tensor, Tensor | None]) -> None:
    """Add each gradient to `.grad` of its parameter, as `backward` would; frozen ones get none.

    A new `.grad` lies in memory as its parameter does: torch's fused optimizers on the CPU read
    another order wrongly, without an error. It is a plain tensor also where the gradient is one of
    inference mode, which nothing may change in place.
    """
    for parameter, gradient in gradients.items():
        if gradient is None or not parameter.requires_grad:
            continue
        if parameter.grad is not None:
            parameter.grad += gradient
        elif gradient.stride() == parameter.stride() and not gradient.is_inference():
            parameter.grad = gradient
        else:
            parameter.grad = torch.empty_like(parameter, requires_grad=False).copy_(gradient)


def _generator(seed: int, call: int, device: torch.device) -> torch.Generator:
    digest = hashlib.sha256(f"{LEARNER_VERSION}/{seed}/{call}".encode()).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest[:8], "big") >> 1)
