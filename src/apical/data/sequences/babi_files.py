"""The files of bAbI stories: lines `N text`, or `N question TAB answer TAB facts`.

N = 1 starts a story. Two layouts are read: the published one, a file for each of the 20 tasks and
split (`qa1_single-supporting-fact_train.txt`), and one file of all of them for each split
(`all_shuffled_train.txt`), which does not say to which task a story belongs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

from apical.data.places import candidates, damaged, missing

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
