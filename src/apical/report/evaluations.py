"""Evaluations of nets as values: what each has found, or why there is nothing to show yet.

An evaluation is a folder RUN/<home>/<key> (see `evaluation_folder`):
    setting.json    {key, versions, checkpoint, setting} and optionally in the last {trials}, how
                    many attacks are planned
    records.jsonl   its rows; one of kind `last` ends a finished evaluation
    trials.jsonl    one finished attack a line; read only to say how far an evaluation has come
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from apical import records

Status = Literal["finished", "unfinished", "failed", "not started"]
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluated:
    """One net under attack; `reason` says why it is not finished."""

    folder: Path
    shown: str
    setting: str
    rule: str
    seed: int
    status: Status
    reason: str = ""
    described: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()

    home: ClassVar[str]
    """The folder of a run in which its evaluations lie."""
    last: ClassVar[str]
    """The kind of the row that ends a finished evaluation."""
    needed: ClassVar[tuple[str, ...]]
    """Kinds of which a finished evaluation has rows."""
    compared: ClassVar[tuple[str, ...]]
    """Fields of a setting that evaluations must share for their numbers to be averaged."""

    def of_kind(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row.get("kind") == kind]

    def find(self, kind: str, **told: Any) -> Row:
        """The row of a kind that tells this, {} where there is none."""
        for row in self.of_kind(kind):
            if all(row.get(key) == value for key, value in told.items()):
                return row
        return {}

    @property
    def clean(self) -> Row:
        return self.find("clean")

    @property
    def protocol(self) -> tuple[str, ...]:
        """What must be equal for a comparison, as text."""
        return tuple(str(self.described.get(key, "")) for key in self.compared)

    @classmethod
    def of_entry(cls, study: Path, entry: Mapping[str, Any]) -> Self:
        """One entry of study.json: {folder, setting, rule, seed, evaluation}."""
        shown = f"{entry['folder']}/{entry['evaluation']}"
        return cls._read(study / shown, shown, entry["setting"], entry["rule"], entry["seed"])

    @classmethod
    def of_run(cls, run: Path, setting: str, rule: str, seed: int) -> list[Self]:
        """All evaluations a run folder holds, by name."""
        return [
            cls._read(folder, f"{cls.home}/{folder.name}", setting, rule, seed)
            for folder in sorted((run / cls.home).glob("*/"))
        ]

    @classmethod
    def _read(cls, folder: Path, shown: str, setting: str, rule: str, seed: int) -> Self:
        about = (folder, shown, setting, rule, seed)
        try:
            path = folder / "setting.json"
            described = records.read_json(path)["setting"] if path.exists() else {}
            rows = tuple(quietly(folder / "records.jsonl"))
            status, reason = cls._status(folder, rows, described)
        except (ValueError, OSError, KeyError) as error:
            reason = str(error).replace(f"{folder}/", "")  # pages are published: no absolute paths
            return cls(*about, "failed", f"unreadable: {reason}")
        return cls(*about, status, reason, described, rows)

    @classmethod
    def _status(cls, folder: Path, rows: tuple[Row, ...], described: Row) -> tuple[Status, str]:
        if not folder.is_dir():
            return "not started", ""
        if rows and rows[-1].get("kind") == cls.last:
            missing = set(cls.needed) - {row.get("kind") for row in rows}
            if missing:
                return "failed", f"records.jsonl has no row of kind {', '.join(sorted(missing))}"
            return "finished", ""
        done = len(quietly(folder / "trials.jsonl"))
        total = f" of {described['trials']}" if "trials" in described else ""
        return "unfinished", f"{done}{total} attacks done"


def quietly(path: Path) -> list[dict[str, Any]]:
    """Rows of a file that may still grow: a torn last line is no news."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return records.read(path)
