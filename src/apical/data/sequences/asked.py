"""Tasks with a question at several steps of a sequence."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.data.sequences.base import Task

NOTHING = -100
"""Target of steps without a question; it is the `ignore_index` of PyTorch's losses."""
MOST_BITS = 24  # of a key: all 2^bits keys are shuffled in memory


@dataclass(frozen=True)
class AskedTask(Task):
    """A task whose target is a class at some of its steps and `NOTHING` at the others.

    Shapes: scores (N, T, outputs), targets (N, T).
    """

    answers: ClassVar[Literal["last", "every"]] = "every"
    shortest: ClassVar[int] = 2
    evidence_from: ClassVar[int] = 0  # the answers are resampled for every sequence

    def correct(self, scores: Tensor, targets: Tensor) -> Tensor:
        """The share of the questions of each sequence that are answered correctly, (N,) float64."""
        asked = targets != NOTHING
        right = (scores.argmax(2) == targets) & asked
        return right.sum(1) / asked.sum(1).clamp(min=1).double()

    def weights(self, targets: Tensor) -> Tensor:
        return (targets != NOTHING).sum(1).double()

    def parts_of(self, parts: int, what: str) -> int:
        """The length over the number of equal parts that a sequence has.

        Raises: ValueError for a length that does not divide.
        """
        if self.length % parts:
            near = max(parts, self.length - self.length % parts)
            raise ValueError(
                f"{self.name}: length={self.length}, but {what}: a multiple of {parts}, as {near}"
            )
        return self.length // parts


@dataclass(frozen=True)
class SymbolTask(AskedTask):
    """Symbols are shown, one-hot and one at each step; then questions ask for them.

    Further inputs follow those of the symbol; the last one is 1 at a question.
    Raises: ValueError for a length that does not divide into `parts`, or fewer than two symbols.
    """

    symbols: int = 8

    parts: ClassVar[int]
    """Equal parts of the sequence; the first one shows the symbols."""
    why: ClassVar[str]
    further: ClassVar[int] = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        option(self, "symbols", 2)
        self.parts_of(self.parts, self.why)  # raises where the length does not divide

    @property
    def shown(self) -> int:
        """n, the number of symbols of a sequence."""
        return self.parts_of(self.parts, self.why)

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.symbols + self.further

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return self.symbols

    def show(self, symbols: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs that show these symbols (N, n) and then ask for them; targets, all `NOTHING`."""
        count, shown = symbols.shape
        x = torch.zeros(count, self.length, self.inputs)
        x[:, :shown, : self.symbols] = F.one_hot(symbols, self.symbols).float()
        x[:, shown:, -1] = 1.0
        return x, torch.full((count, self.length), NOTHING)


@dataclass(frozen=True)
class DoubleCopy(SymbolTask):
    """n symbols, then 2 n questions, which ask for the same symbols in the same order, twice.

    Inputs: the symbol, one-hot, and 1 at a question.

    Args: length: T = 3 n.     symbols: classes, >= 2.
    Raises: ValueError for a length that is no multiple of 3.
    Source: Munkhdalai et al. 2019; symbols stand for its vectors of bits.
    """

    parts = 3
    why = "what is shown is asked for twice"

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        symbols = torch.randint(self.symbols, (count, self.shown), generator=generator)
        x, y = self.show(symbols)
        y[:, self.shown :] = symbols.repeat(1, 2)
        return x, y


@dataclass(frozen=True)
class PrioritySort(SymbolTask):
    """n symbols with priorities, then n questions, which ask for them by decreasing priority.

    Inputs: the symbol, one-hot, its priority, uniform in [-1, 1), and 1 at a question.

    Args: length: T = 2 n.     symbols: classes, >= 2.
    Raises: ValueError for an odd length.
    Source: Graves et al. 2014; Munkhdalai et al. 2019; symbols stand for vectors of bits.
    """

    parts = 2
    why = "every symbol is shown and asked for"
    further = 2

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        symbols = torch.randint(self.symbols, (count, self.shown), generator=generator)
        priorities = 2 * torch.rand(count, self.shown, generator=generator) - 1
        x, y = self.show(symbols)
        x[:, : self.shown, -2] = priorities
        y[:, self.shown :] = symbols.gather(1, priorities.argsort(1, descending=True))
        return x, y


@dataclass(frozen=True)
class Dictionary(AskedTask):
    """n keys with a value each, one pair at each step; then the keys alone, in random order: each
    is a question for its value.

    Keys are n different random patterns of bits (-1, 1). Values are one-hot and sampled
    independently, so that remembering only which values were shown is better than chance.
    Inputs: the bits, the value, and 1 at a question. A net trained on n pairs can be tested on
    more.

    Args: length: T = 2 n.     key_bits: of a key, 1 to 24; 2^bits >= n.     values: classes, >= 2.
    Raises: ValueError for an odd length, or more pairs than there are keys.
    Source: Munkhdalai et al. 2019, in the small form of one pair for each step.
    """

    key_bits: int = 4
    values: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        option(self, "values", 2)
        if option(self, "key_bits", 1) > MOST_BITS:
            raise ValueError(f"{self.name}: key_bits={self.key_bits} must be at most {MOST_BITS}")
        if self.pairs > 2**self.key_bits:
            raise ValueError(
                f"{self.name}: length={self.length} has {self.pairs} pairs, but "
                f"key_bits={self.key_bits} make only {2**self.key_bits} different keys"
            )

    @property
    def pairs(self) -> int:
        """n."""
        return self.parts_of(2, "every pair is shown and asked for")

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return self.key_bits + self.values + 1

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return self.values

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        pairs, bits = self.pairs, self.key_bits
        keys = torch.rand(count, 2**bits, generator=generator).argsort(1)[:, :pairs]
        values = torch.randint(self.values, (count, pairs), generator=generator)
        order = torch.rand(count, pairs, generator=generator).argsort(1)
        both = torch.cat([keys, keys.gather(1, order)], 1)
        x = torch.zeros(count, 2 * pairs, self.inputs)
        x[:, :, :bits] = 2.0 * (both[:, :, None] >> torch.arange(bits) & 1) - 1
        x[:, :pairs, bits:-1] = F.one_hot(values, self.values).float()
        x[:, pairs:, -1] = 1.0
        y = torch.full((count, 2 * pairs), NOTHING)
        y[:, pairs:] = values.gather(1, order)
        return x, y


def option(task: Task, name: str, low: int) -> int:
    """A whole number among the options of a task.     Raises: ValueError below `low`."""
    value = getattr(task, name)
    if type(value) is not int or value < low:
        raise ValueError(f"{task.name}: {name}={value!r} must be a whole number of at least {low}")
    return value
