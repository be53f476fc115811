"""What a task of sequences is, and its batches without end and in epochs."""

import abc
import hashlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Fixed:
    """All sequences of a purpose, where they are finite.

    Attributes: count: sequences.     batch: (start, end) -> inputs and targets of those.
    """

    count: int
    batch: Callable[[int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task(abc.ABC):
    """Sequences of one length with targets, resampled for every batch.

    Args: length: steps of a sequence; each task says how many it needs at least.
    Raises: ValueError for a sequence shorter than the task needs.
    Warns: of a length below `evidence_from`.
    """

    length: int

    inputs: ClassVar[int]
    """Numbers at each step."""
    outputs: ClassVar[int]
    """Outputs a net needs: classes, or numbers."""
    shortest: ClassVar[int] = 10
    evidence_from: ClassVar[int] = 11
    """Steps from which solving the task is evidence of learning in the recurrent weights: below, a
    random net of which only the readout is trained solves it, or nearly so."""
    loss: ClassVar[Literal["cross_entropy", "squared_error"]] = "cross_entropy"
    answers: ClassVar[Literal["last", "every"]] = "last"
    """Whether a net gives its outputs after the last step or at every one (`AskedTask`)."""
    from_files: ClassVar[bool] = False
    """Whether sequences are read from files, in a folder `root`."""

    def __post_init__(self) -> None:
        if type(self.length) is not int or self.length < self.shortest:
            raise ValueError(
                f"{self.name}: length={self.length!r}, but the task needs sequences of at least "
                f"{self.shortest} steps"
            )
        if self.length < self.evidence_from:
            warnings.warn(
                f"{self.name}: at length={self.length} a random recurrent net of which only the "
                "readout is trained solves the task, or nearly so; use at least "
                f"{self.evidence_from} steps as evidence of learning through time",
                stacklevel=4,
            )

    @property
    def name(self) -> str:
        """The name of the task in tables."""
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__)[1:]

    @abc.abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences and targets; all random numbers come from the generator.

        Shapes: (count, length, inputs) float32; (count,) int64 classes or (count, outputs) float32.
        """

    def correct(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Which sequences are solved, (N,) bool.

        Shapes: scores (N, outputs), targets as of `draw`.
        """
        return scores.argmax(1) == targets

    def weights(self, targets: Tensor) -> Tensor:
        """The weight of each sequence in an accuracy, (N,) float64: its number of questions."""
        return torch.ones(len(targets), dtype=torch.float64)

    def fixed(self, purpose: str) -> Fixed | None:
        """All sequences of a purpose ("validation", "test") where they are finite; else None."""
        return None

    def part(self, share: float) -> int:
        """This share of the length, in whole steps, rounded down."""
        return int(share * self.length)


def batches(
    task: Task, size: int, *, seed: int, purpose: str = "train", start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end; number i depends on (task, length, seed, purpose, i) alone, so that a
    resumed run gets the same ones.

    Args: size: sequences in a batch, >= 1.     purpose: each one has a stream of its own.
        start: number (>= 0) of the first batch.
    Raises: ValueError for a size or start out of range.
    """
    if size < 1 or start < 0:
        raise ValueError(f"batches of size={size} from start={start}: at least 1 and 0")
    while True:
        text = f"{task.name}:{task.length}:{purpose}:{seed}:{start}".encode()
        digest = hashlib.sha256(text).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield task.draw(size, generator)
        start += 1


class Stream:
    """Batches of a task, on a device, counted in epochs: epoch e of k batches consists of the
    batches e k to (e + 1) k - 1 of ``sequences.batches``, so that a resumed run gets the same bits.

    Where the sequences for a purpose are finite, an epoch is all of them, in their order.

    Args: count: sequences in an epoch, >= 1.     batch_size: sequences in a batch, >= 1; the last
            batch of an epoch has the rest.
        seed, purpose: of the stream.
        device: where the batches go.
    Attributes: split: an object whose length is the number of sequences in an epoch.
    Raises: ValueError for a count or batch_size below 1.
    """

    def __init__(
        self,
        task: Task,
        count: int,
        batch_size: int,
        *,
        seed: int,
        purpose: str = "train",
        device: torch.device | str = "cpu",
    ) -> None:
        if count < 1 or batch_size < 1:
            raise ValueError(
                f"Stream: count={count} and batch_size={batch_size} must be at least 1"
            )
        self.task, self.batch_size = task, batch_size
        self.seed, self.purpose = seed, purpose
        self.fixed = task.fixed(purpose)
        self.split = range(count if self.fixed is None else self.fixed.count)
        self.device = torch.device(device)

    def __len__(self) -> int:
        """Batches in an epoch."""
        return (len(self.split) - 1) // self.batch_size + 1

    def epoch(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of epoch ``number``: inputs and targets as of `Task.draw`."""
        if self.fixed is not None:
            for first in range(0, self.fixed.count, self.batch_size):
                x, y = self.fixed.batch(first, first + self.batch_size)
                yield x.to(self.device), y.to(self.device)
            return
        start, left = number * len(self), len(self.split)
        drawn = batches(
            self.task, self.batch_size, seed=self.seed, purpose=self.purpose, start=start
        )
        for _, (x, y) in zip(range(len(self)), drawn, strict=False):
            size = min(left, self.batch_size)
            yield x[:size].to(self.device), y[:size].to(self.device)
            left -= size

    def correct(self, scores: Tensor, targets: Tensor) -> Tensor:
        """As of the task."""
        return self.task.correct(scores, targets)

    def weights(self, targets: Tensor) -> Tensor:
        """As of the task."""
        return self.task.weights(targets)
