"""Text that is part of every Python: the names of the characters of Unicode."""

import hashlib
import sys
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from apical.data.sequences.asked import AskedTask
from apical.data.sequences.base import Fixed

ALPHABET = "\n -0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
SHARES = 10
"""Of this many names one is for validation and another one for the test."""
COUNTED = ("CJK UNIFIED IDEOGRAPH", "CJK COMPATIBILITY IDEOGRAPH", "HANGUL SYLLABLE")
"""Beginnings of names that continue with a number or a transcription only."""
LONGEST = 35_812
"""Steps of a sequence at most: the validation text has one character more."""


class Text(NamedTuple):
    """Numbers in `ALPHABET` of the characters of each split, (length,) int64."""

    train: Tensor
    validation: Tensor
    test: Tensor


@dataclass(frozen=True)
class UnicodeNames(AskedTask):
    """Predict the next character of text: the names of the characters of Unicode 3.2, a line each.

    12,886 different names, such as LATIN SMALL LETTER A WITH GRAVE, of 355,000 characters in all. A
    database of that version is part of every Python, so the text is the same everywhere. Names are
    ordered by their SHA-256; a tenth of them is held out for validation and a tenth for the test.
    Training samples windows at random places of the remaining text; validation and test, of
    whatever size, are all windows of their split, one after the other.

    Inputs: the character, one-hot in `ALPHABET`. Classes: the next character, at every step.

    Args: length: characters of a window, 2 to 35,812.
    Raises: ValueError for another length.
    Source: the Unicode Character Database, `unicodedata.ucd_3_2_0`.
    """

    inputs: ClassVar[int] = len(ALPHABET)
    outputs: ClassVar[int] = len(ALPHABET)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.length > LONGEST:
            raise ValueError(
                f"{self.name}: length={self.length} is above {LONGEST}: the validation and test "
                "text would have no window of that length"
            )

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        train = text().train
        starts = torch.randint(len(train) - self.length, (count,), generator=generator)
        return self._windows(train, starts)

    def fixed(self, purpose: str) -> Fixed | None:
        if purpose not in ("validation", "test"):
            return None
        split = getattr(text(), purpose)
        starts = torch.arange(0, len(split) - self.length, self.length)
        return Fixed(len(starts), lambda first, end: self._windows(split, starts[first:end]))

    def _windows(self, split: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        windows = split[starts[:, None] + torch.arange(self.length + 1)]
        return F.one_hot(windows[:, :-1], len(ALPHABET)).float(), windows[:, 1:]


@cache
def text() -> Text:
    """The three splits."""
    database = unicodedata.ucd_3_2_0
    names = (database.name(chr(code), "") for code in range(sys.maxunicode + 1))
    chosen = {name for name in names if name and not name.startswith(COUNTED)}
    hashed = sorted((hashlib.sha256(name.encode()).digest(), name) for name in chosen)
    part = len(hashed) // SHARES
    splits = hashed[2 * part :], hashed[:part], hashed[part : 2 * part]
    texts = ["".join(f"{name}\n" for _, name in split) for split in splits]
    return Text(*(torch.tensor([ALPHABET.index(c) for c in characters]) for characters in texts))
