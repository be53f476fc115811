"""What a task of sequences is: inputs over time, and a target after the last of them."""

from __future__ import annotations

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
    """All there is of a purpose.

    Attributes: count: sequences.     batch: (start, end) -> inputs and targets of those.
    """

    count: int
    batch: Callable[[int, int], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Task(abc.ABC):
    """Sequences of one length, resampled for every batch.

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
    """Steps below which a random net solves the task, or nearly so, once its readout is trained:
    such lengths say nothing of learning in the recurrent weights."""
    loss: ClassVar[Literal["cross_entropy", "squared_error"]] = "cross_entropy"
    answers: ClassVar[Literal["last", "every"]] = "last"
    """Whether a net answers after the last step, or at every one: see `asked.AskedTask`."""
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
        """As tables call it."""
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__)[1:]

    @abc.abstractmethod
    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences and targets from this generator alone.

        Shapes: (count, length, inputs) float32; (count,) int64 classes or (count, outputs) float32.
        """

    def correct(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Which sequences are solved, (N,) bool.     Shapes: scores (N, outputs), targets drawn."""
        return scores.argmax(1) == targets

    def weights(self, targets: Tensor) -> Tensor:
        """How much each sequence counts in an accuracy, (N,) float64: the answers it asks for."""
        return torch.ones(len(targets), dtype=torch.float64)

    def fixed(self, purpose: str) -> Fixed | None:
        """All sequences of a purpose ("validation", "test") where they are finite; else None."""
        return None

    def part(self, share: float) -> int:
        """So much of the length, in whole steps."""
        return int(share * self.length)


def batches(
    task: Task, size: int, *, seed: int, purpose: str = "train", start: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches without end; number i depends on (seed, purpose, i) alone, so that a run resumes.

    Args: size: sequences in a batch, >= 1.     purpose: another one is another stream.
        start: number (>= 0) of the first batch.

    Other tasks, and other lengths, see unrelated streams.
    """
    if size < 1 or start < 0:
        raise ValueError(f"batches of size={size} from start={start}: at least 1 and 0")
    while True:
        text = f"{task.name}:{task.length}:{purpose}:{seed}:{start}".encode()
        digest = hashlib.sha256(text).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        yield task.draw(size, generator)
        start += 1


def whole(below: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Whole numbers 0 to below - 1, each as likely."""
    return torch.randint(below, shape, generator=generator)
