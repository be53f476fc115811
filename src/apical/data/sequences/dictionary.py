"""Dictionary inference: pairs are shown, then every key is asked for its value."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.data.sequences.asked import NOTHING, AskedTask, option
from apical.data.sequences.base import whole


@dataclass(frozen=True)
class Dictionary(AskedTask):
    """n keys with a value each, one pair at a step; then the keys alone, in random order.

    Keys are n different random patterns of bits (-1, 1), values are one-hot and drawn
    independently: remembering only which values were shown is right more often than chance.
    Inputs: the bits, the value, and 1 where a key is asked. A net trained on n pairs can be tested
    on more.

    Args: length: T = 2 n.     key_bits: of a key, >= 1; 2^bits >= n.     values: classes, >= 2.
    Raises: ValueError for an odd length, or more pairs than there are keys.
    Source: Munkhdalai et al. 2019, in the small form of one pair for each step.
    """

    key_bits: int = 4
    values: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        option(self, "values", 2)
        there = 2 ** option(self, "key_bits", 1)
        if self.pairs > there:
            raise ValueError(
                f"{self.name}: length={self.length} has {self.pairs} pairs, but "
                f"key_bits={self.key_bits} make only {there} different keys"
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
        values = whole(self.values, (count, pairs), generator)
        order = torch.rand(count, pairs, generator=generator).argsort(1)
        both = torch.cat([keys, keys.gather(1, order)], 1)
        x = torch.zeros(count, 2 * pairs, self.inputs)
        x[:, :, :bits] = 2.0 * (both[:, :, None] >> torch.arange(bits) & 1) - 1
        x[:, :pairs, bits:-1] = F.one_hot(values, self.values).float()
        x[:, pairs:, -1] = 1.0
        y = torch.full((count, 2 * pairs), NOTHING)
        y[:, pairs:] = values.gather(1, order)
        return x, y
