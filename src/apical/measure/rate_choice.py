"""Which learning rate a row of a table gets, from the validation errors of a few seeds, and whether
that choice is stable."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Tried:
    """What one learning rate gave.

    Args: errors: validation error of each seed, in [0, 1], at least one.     examples: behind each
        (>= 1).     diverged: whether each seed diverged, whose error is then that of a guess;
        () for none.
    """

    rate: float
    errors: tuple[float, ...]
    examples: int
    diverged: tuple[bool, ...] = ()

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> "Tried":
        """From an entry of ``tries`` of study.json, where seeds that diverged have no loss."""
        losses = row["losses"] if row.get("diverged") else ()
        diverged = tuple(loss is None for loss in losses)
        return cls(row["lr"], tuple(row["errors"]), row["examples"], diverged)

    @property
    def mean(self) -> float:
        """Mean error over seeds, in [0, 1]."""
        return sum(self.errors) / len(self.errors)

    @property
    def standard_error(self) -> float:
        """Of the mean. At least that of a binomial variable of all examples that were judged: equal
        values of a few seeds are not certainty.

        >>> Tried(0.1, (0.25, 0.25, 0.25), 400).standard_error
        0.0125
        """
        seeds, mean = len(self.errors), self.mean
        squares = sum((error - mean) * (error - mean) for error in self.errors)
        spread = math.sqrt(squares / (seeds - 1)) / math.sqrt(seeds) if seeds > 1 else 0.0
        return max(spread, math.sqrt(self.mean * (1 - self.mean) / (self.examples * seeds)))


def choose(tried: Sequence[Tried]) -> Tried:
    """The smallest rate whose mean error is within one standard error of the lowest mean.

    The standard error is that of the rate with the lowest mean. Only rates at which the fewest
    seeds diverged, most often none, are compared.
    """
    fewest = min(sum(one.diverged) for one in tried)
    compared = [one for one in tried if sum(one.diverged) == fewest]
    best = min(compared, key=lambda one: (one.mean, one.rate))
    limit = best.mean + best.standard_error
    return min((one for one in compared if one.mean <= limit), key=lambda one: one.rate)


def others(tried: Sequence[Tried]) -> list[float]:
    """The rates that would be chosen with one seed of the tries fewer, where they are not the
    chosen one; rising. With any, the choice is unstable: another seed or CPU could change it.

    Raises: ValueError for tries of one seed, which cannot say.
    >>> others([Tried(0.1, (0.2, 0.25, 0.3), 400), Tried(0.01, (0.29, 0.29, 0.29), 400)])
    [0.01]
    """
    seeds = len(tried[0].errors)
    if seeds < 2:
        raise ValueError(f"{seeds} seed of each rate: a choice by one seed has no known stability")
    chosen = choose(tried).rate
    found = set()
    for left_out in range(seeds):
        kept = [seed for seed in range(seeds) if seed != left_out]
        fewer = [
            replace(
                one,
                errors=tuple(one.errors[seed] for seed in kept),
                diverged=tuple(one.diverged[seed] for seed in kept if one.diverged),
            )
            for one in tried
        ]
        found.add(choose(fewer).rate)
    return sorted(found - {chosen})
