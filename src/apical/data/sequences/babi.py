"""bAbI: stories of short sentences, with questions between them, and their files.

A file has lines `N text`, or `N question TAB answer TAB facts`; N = 1 starts a story. Two layouts
are read: the published one, a file for each of the 20 tasks and split
(`qa1_single-supporting-fact_train.txt`), and one file of all of them for each split
(`all_shuffled_train.txt`), which does not say to which task a story belongs.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from apical.data.places import candidates, damaged, missing
from apical.data.sequences.asked import NOTHING, AskedTask
from apical.data.sequences.base import Fixed

FOLDERS = ("babi", "babi/en", "babi/tasks_1-20_v1-2/en", "tasks_1-20_v1-2/en", "tasks_1-20_v1-2")
JOINT = "all_shuffled_{split}.txt"
SINGLE = re.compile(r"(qa\d+)_.*_(train|test)\.txt")
WORD = re.compile(r"[\w'-]+")
AGAIN = "unpack the published archive, tasks_1-20_v1-2, again"


class Line(NamedTuple):
    """One line of a story.

    Attributes: words: lower case, in order.     answer: of a question, as one word even where it
        lists several; None for a statement.     where: file and line, for messages.
    """

    words: tuple[str, ...]
    answer: str | None
    where: str


@dataclass(frozen=True)
class Story:
    """Statements and questions in order.     Args: task: "qa1" to "qa20", "" where unknown."""

    lines: tuple[Line, ...]
    task: str = ""

    @property
    def questions(self) -> int:
        return sum(line.answer is not None for line in self.lines)


class Stories(NamedTuple):
    """All stories of both splits, in the order of their files."""

    train: tuple[Story, ...]
    test: tuple[Story, ...]


def load(root: str | None = None) -> Stories:
    """The stories in the first folder that has any.

    Args: root: a folder of data sets, or that of the stories; else APICAL_DATA, then the cache.
    Raises: MissingData, saying where they were looked for; DamagedFile for a file of another
        format (see the head of this module), or a task with one split only.
    """
    for place in candidates(root, FOLDERS):
        names = {path.name for path in place.glob("*.txt")}
        if any(map(SINGLE.fullmatch, names)) or JOINT.format(split="train") in names:
            return _of_folder(place)
    raise missing(
        "babi",
        root,
        "the files of tasks_1-20_v1-2/en (qa1_*_train.txt, qa1_*_test.txt, ...) or "
        "all_shuffled_train.txt and all_shuffled_test.txt",
        "It is not downloaded.",
        downloads=False,
    )


@lru_cache(maxsize=2)
def _of_folder(folder: Path) -> Stories:
    files: dict[str, dict[str, Path]] = {}
    for path in folder.glob("qa*.txt"):
        match = SINGLE.fullmatch(path.name)
        if match:
            files.setdefault(match[1], {})[match[2]] = path
    if not files:
        files[""] = {split: folder / JOINT.format(split=split) for split in ("train", "test")}
    found: dict[str, list[Story]] = {"train": [], "test": []}
    for task in sorted(files, key=lambda name: int(name[2:] or 0)):
        for split, stories in found.items():
            path = files[task].get(split, folder / "absent")
            if not path.is_file():
                there = ", ".join(sorted(p.name for p in files[task].values() if p.is_file()))
                raise damaged(folder, f"{there} is there", f"its {split} split beside it", AGAIN)
            try:
                text = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise damaged(path, str(error), "text in UTF-8", AGAIN) from error
            stories += read(text.splitlines(), str(path), task)
    return Stories(tuple(found["train"]), tuple(found["test"]))


def read(lines: Iterable[str], source: str, task: str = "") -> list[Story]:
    """The stories in the lines of a file.

    Args: source: the file, for messages.     task: to which the stories belong.
    Raises: DamagedFile naming the first line that is not a line of a story.
    """
    stories: list[list[Line]] = []
    for place, text in enumerate(lines, 1):
        where = f"{source}, line {place}"
        number, _, rest = text.strip().partition(" ")
        due = len(stories[-1]) + 1 if stories else 1
        if number == "1":
            stories.append([])
        elif number != str(due):
            allowed = "1" if due == 1 else f"1 or {due}"
            raise damaged(where, f"it starts with {number[:20]!r}", allowed, AGAIN)
        stories[-1].append(_line(rest, where))
    if not stories:
        raise damaged(source, "it has no line", "stories", AGAIN)
    return [Story(tuple(story), task) for story in stories]


def _line(text: str, where: str) -> Line:
    parts = text.split("\t")
    words = tuple(WORD.findall(parts[0].lower()))
    if not words:
        raise damaged(where, "it has no word", "a statement or a question", AGAIN)
    if len(parts) == 1:
        return Line(words, None, where)
    if not parts[1].strip():
        raise damaged(where, "the question has no answer", "one after the tabulator", AGAIN)
    return Line(words, parts[1].strip().lower(), where)


HELD_OUT = 20
"""One training story of this many is for validation."""


@dataclass(frozen=True)
class Babi(AskedTask):
    """The 20 bAbI tasks together, a sentence at each step; a question is answered at its own step.

    Inputs: how often each word occurs in the sentence; the same weighted by its position, from 1/n
    for the first of n words to 1 for the last, so that their order is not lost; and 1 at a
    question. Classes are the answers of the training stories, a list such as "milk,apple" as one
    class; the last class stands for all other answers: it is never trained, so they count as wrong.

    Training samples stories in proportion to their number of questions, so that every question
    counts the same. One training story of 20 is held out: these are the validation split, of
    whatever size. The test split is every test story, however long, once; accuracy is the share of
    the questions.

    Args: length: steps of the longest training story, >= 2; longer ones are left out.
        root: folder of the files; see `load`. In the runner: --data-root.
    Raises: ValueError if no training story with a question is that short, or if a test story has a
        word that occurs in no training story.
    Source: Weston et al. 2015.
    """

    root: str | None = None

    from_files: ClassVar[bool] = True

    @cached_property
    def stories(self) -> "Encoded":
        """All stories, read at the first access."""
        return Encoded(load(self.root))

    @property
    def inputs(self) -> int:  # type: ignore[override]
        return 2 * len(self.stories.words) + 1

    @property
    def outputs(self) -> int:  # type: ignore[override]
        return len(self.stories.answers) + 1

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """As of every task, but as long as the longest of the sampled stories."""
        weights = torch.tensor([float(story.questions) for story in self._short])
        drawn = torch.multinomial(weights, count, replacement=True, generator=generator)
        return self.stories.batch([self._short[i] for i in drawn.tolist()])

    def fixed(self, purpose: str) -> Fixed | None:
        if purpose == "validation":
            return self._fixed(self.stories.train[::HELD_OUT])
        return self._fixed(self.stories.test) if purpose == "test" else None

    @cached_property
    def _short(self) -> list[Story]:
        """The training stories that training samples from."""
        trained = [story for i, story in enumerate(self.stories.train) if i % HELD_OUT]
        short = [story for story in trained if len(story.lines) <= self.length]
        if not any(story.questions for story in short):
            asked = [len(story.lines) for story in trained if story.questions]
            raise ValueError(
                f"babi: length={self.length}, but the shortest training story with a question has "
                f"{min(asked)} steps"
                if asked
                else f"babi: none of the {len(trained)} training stories has a question"
            )
        return short

    def _fixed(self, stories: Sequence[Story]) -> Fixed:
        """From the shortest to the longest story, so that batches have little padding."""
        in_order = sorted(stories, key=lambda story: len(story.lines))
        encoded = self.stories
        return Fixed(len(in_order), lambda start, end: encoded.batch(in_order[start:end]))


def errors(model: nn.Module, task: Babi, *, batch_size: int = 200) -> dict[str, float]:
    """Share of wrong answers to the test questions of each task, in [0, 1], and their mean, "mean".

    Where the files do not say to which task a story belongs, the mean is that over all questions:
    the same number, as every task has equally many.
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
    """Stories, and the numbers of the words and answers of the training stories.

    Raises: ValueError for a word of a test story that occurs in no training story.
    """

    def __init__(self, found: Stories) -> None:
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
        """Inputs and targets, as long as the longest of the stories."""
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
    """Each word with its number in alphabetical order."""
    return {word: number for number, word in enumerate(sorted(set(words)))}
