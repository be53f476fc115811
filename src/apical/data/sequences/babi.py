"""bAbI: stories of short sentences, with questions in between."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from apical.data.sequences import babi_files
from apical.data.sequences.asked import NOTHING, AskedTask
from apical.data.sequences.babi_files import Story
from apical.data.sequences.base import Fixed

HELD_OUT = 20
"""Of so many training stories, one is for validation."""


@dataclass(frozen=True)
class Babi(AskedTask):
    """The 20 bAbI tasks together, a sentence at each step; questions are answered at their step.

    Inputs: how often each word occurs in the sentence; the same weighted by its place, from 1/n
    for the first of n words to 1 for the last, so that order is not lost; and 1 for a question.
    Classes are the answers of the training stories, lists such as "milk,apple" as one; the last
    class stands for answers that do not occur there: it is never trained, so they count as wrong.

    Training draws stories in proportion to their questions, so that every question counts alike.
    One story of 20 is held out: it is what validation, of whatever size, looks at. The test split
    is every test story, however long, once; right is counted over questions.

    Args: length: steps of the longest story trained on, >= 2; longer ones are left out.
        root: where the files are; see `babi_files.load`. In the runner: --data-root.
    Raises: ValueError where no training story is as short as that, or a test story has a word
        that occurs in no training story.
    Source: Weston et al. 2015. Its tasks stand in one file each, or all in one: `babi_files`.
    """

    root: str | None = None

    from_files: ClassVar[bool] = True

    @cached_property
    def stories(self) -> Encoded:
        """Read when first asked for."""
        return Encoded(babi_files.load(self.root))

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return 2 * len(self.stories.words) + 1

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return len(self.stories.answers) + 1

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As of every task, but as long as the longest story drawn."""
        weights = torch.tensor([float(story.questions) for story in self._short])
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
        return self.stories.batch([self._short[i] for i in drawn.tolist()])

    def fixed(self, purpose: str) -> Fixed | None:
        if purpose == "validation":
            return self._fixed(self.stories.train[::HELD_OUT])
        return self._fixed(self.stories.test) if purpose == "test" else None

    def share_trained_on(self) -> float:
        """The share of the training questions that are in stories drawn."""
        there = sum(story.questions for story in self.stories.train)
        return sum(story.questions for story in self._short) / there

    @cached_property
    def _short(self) -> list[Story]:
        """The training stories that are drawn."""
        taught = [story for i, story in enumerate(self.stories.train) if i % HELD_OUT]
        short = [story for story in taught if len(story.lines) <= self.length]
        if not any(story.questions for story in short):
            least = min(len(story.lines) for story in taught if story.questions)
            raise ValueError(
                f"babi: length={self.length}, but the shortest training story with a question has "
                f"{least} steps"
            )
        return short

    def _fixed(self, stories: Sequence[Story]) -> Fixed:
        """From the shortest to the longest, so that batches hold little padding."""
        in_order = sorted(stories, key=lambda story: len(story.lines))
        encoded = self.stories
        return Fixed(len(in_order), lambda start, end: encoded.batch(in_order[start:end]))


def errors(model: nn.Module, task: Babi, *, batch_size: int = 200) -> dict[str, float]:
    """Share of wrong answers to the test questions, by task, and their mean, "mean".

    Where the files do not say which task a story is of, the mean is that over all questions: the
    same number, as every task has as many.
    """
    right: dict[str, float] = {}
    asked: dict[str, float] = {}
    with torch.no_grad():
        for start in range(0, len(task.stories.test), batch_size):
            stories = task.stories.test[start : start + batch_size]
            x, y = task.stories.batch(stories)
            shares, questions = task.correct(model(x), y), task.weights(y)
            for story, share, count in zip(
                stories, shares.tolist(), questions.tolist(), strict=True
            ):
                right[story.task] = right.get(story.task, 0.0) + share * count
                asked[story.task] = asked.get(story.task, 0.0) + count
    found = {name: 1 - right[name] / asked[name] for name in asked}
    mean = sum(found.values()) / len(found)
    return {name: error for name, error in found.items() if name} | {"mean": mean}


class Encoded:
    """Stories with the numbers of their words and answers.

    Attributes: train, test: stories.     words, answers: of the training stories, numbered.
    Raises: ValueError for a word of a test story that occurs in no training story.
    """

    def __init__(self, found: babi_files.Stories) -> None:
        self.train, self.test = found
        lines = [line for story in self.train for line in story.lines]
        self.words = _numbered(word for line in lines for word in line.words)
        self.answers = _numbered(line.answer for line in lines if line.answer is not None)
        for line in (line for story in self.test for line in story.lines):
            unknown = [word for word in line.words if word not in self.words]
            if unknown:
                raise ValueError(
                    f"babi: {line.where}: {', '.join(map(repr, unknown))} of the test story occurs "
                    f"in none of the {len(self.train)} training stories ({len(self.words)} words): "
                    "nothing can be learned of it. Take both splits from one edition"
                )

    def batch(self, stories: Sequence[Story]) -> tuple[Tensor, Tensor]:
        """Inputs and targets, as long as the longest of them."""
        steps, words = max(len(story.lines) for story in stories), len(self.words)
        x = torch.zeros(len(stories), steps, 2 * words + 1)
        y = torch.full((len(stories), steps), NOTHING)
        places: list[tuple[int, int, int, float]] = []
        for n, story in enumerate(stories):
            for t, line in enumerate(story.lines):
                for j, word in enumerate(line.words, 1):
                    number = self.words[word]
                    places.append((n, t, number, 1.0))
                    places.append((n, t, words + number, j / len(line.words)))
                if line.answer is not None:
                    x[n, t, -1] = 1.0
                    y[n, t] = self.answers.get(line.answer, len(self.answers))
        *at, values = map(torch.tensor, zip(*places, strict=True))
        return x.index_put_(tuple(at), values, accumulate=True), y


def _numbered(words: Iterable[str]) -> dict[str, int]:
    """Each word with its number, in the order of the alphabet."""
    return {word: number for number, word in enumerate(sorted(set(words)))}
