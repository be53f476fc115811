"""Evaluations of nets as values: what each has found, or why there is nothing to show yet.

An evaluation is a folder RUN/<home>/<key> (see `evaluation_folder`), loose or packed:
    setting.json    {key, versions, checkpoint, setting} and optionally in the last {trials}, how
                    many attacks are planned
    records.jsonl   its rows; one of kind `last` ends a finished evaluation
    trials.jsonl    one finished attack a line
    examples.npz    a few examples, what attacks made of them, and the answers to both: see
                    `pictures`

The setting has the fields of the evaluation beside the names of net, data and surrogates; the
version is that of the attacks. Rows of
robustness are of the kinds clean, attack, worst, gap, check, audit and, last, verdict; rows of
retrieval of the kinds clean, attack, map, gap, targeted and, last, end.
"""

import warnings
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from apical.bench.storage import packing
from apical.bench.storage.records import Record

Status = Literal["finished", "unfinished", "failed", "not started"]


@dataclass(frozen=True)
class Evaluated:
    """One net under attack; `reason` says why it is not finished.

    Attributes: source, place: where it was read from, and its path in there. shown: its name in
        messages.
    """

    source: packing.Folder
    place: str
    shown: str
    setting: str
    rule: str
    seed: int
    status: Status
    reason: str = ""
    described: Record = field(default_factory=dict)
    rows: tuple[Record, ...] = ()

    home: ClassVar[str]
    """The folder of a run in which its evaluations lie."""
    last: ClassVar[str]
    """The kind of the row that ends a finished evaluation."""
    needed: ClassVar[tuple[str, ...]]
    """Kinds of which a finished evaluation has rows."""
    compared: ClassVar[tuple[str, ...]]
    """Fields of a setting that evaluations must share for their numbers to be averaged."""

    @property
    def folder(self) -> Path:
        """Where pictures lie, if there are any: packing leaves them behind."""
        return self.source.path / self.place

    @cached_property
    def trials(self) -> list[dict[str, Any]]:
        """One finished attack each."""
        return quietly(self.source, f"{self.place}/trials.jsonl")

    def of_kind(self, kind: str) -> list[Record]:
        return [row for row in self.rows if row.get("kind") == kind]

    def find(self, kind: str, **fields: Any) -> Record:
        """The first row of a kind with these fields, {} where there is none."""
        rows = (row for row in self.of_kind(kind) if fields.items() <= row.items())
        return next(rows, {})

    @property
    def clean(self) -> Record:
        return self.find("clean")

    @property
    def protocol(self) -> tuple[str, ...]:
        """What must be equal for a comparison, as text."""
        return tuple(str(self.described.get(key, "")) for key in self.compared)

    @classmethod
    def of_entry(cls, study: packing.Folder, entry: Record) -> Self:
        """One entry of study.json: {folder, setting, rule, seed, evaluation}."""
        place = f"{entry['folder']}/{entry['evaluation']}"
        about = (entry["setting"], entry["rule"], entry["seed"])
        return cls._read(study, place, place, *about, listed=True)

    @classmethod
    def of_run(cls, run: Path, setting: str, rule: str, seed: int) -> list[Self]:
        """All evaluations a run folder holds, by name."""
        source, home = packing.open_folder(run.parent), f"{run.name}/{cls.home}"
        return [
            cls._read(source, f"{home}/{name}", f"{cls.home}/{name}", setting, rule, seed)
            for name in source.folders(home)
        ]

    @classmethod
    def _read(
        cls, source: packing.Folder, place: str, shown: str, setting: str, rule: str, seed: int,
        *, listed: bool = False,
    ) -> Self:  # fmt: skip
        """Args: listed: whether a study names the folder, which then ends in the key."""
        about = (source, place, shown, setting, rule, seed)
        try:
            name = f"{place}/setting.json"
            whole = source.read_json(name) if source.has(name) else {"setting": {}}
            described, key = dict(whole["setting"]), whole.get("key", "")
            if described:
                described["version"] = whole.get("versions", {}).get(cls.home, "")
            if listed and not place.endswith(key):
                raise ValueError(f"setting.json is that of another evaluation, {key}")
            rows = tuple(map(cls.current, quietly(source, f"{place}/records.jsonl")))
            status, reason = cls._status(source, place, rows, described)
        except (ValueError, OSError, KeyError) as error:
            # Pages are published: no absolute paths.
            reason = str(error).replace(f"{source.path / place}/", "")
            return cls(*about, "failed", f"unreadable: {reason}")
        return cls(*about, status, reason, described, rows)

    @classmethod
    def current(cls, row: Record) -> Record:
        """A row in the words of today's version."""
        return row

    @classmethod
    def _status(
        cls, source: packing.Folder, place: str, rows: tuple[Record, ...], described: Record
    ) -> tuple[Status, str]:
        if not source.has(place):
            return "not started", ""
        if rows and rows[-1].get("kind") == cls.last:
            missing = set(cls.needed) - {row.get("kind") for row in rows}
            if missing:
                return "failed", f"records.jsonl has no row of kind {', '.join(sorted(missing))}"
            return "finished", ""
        done = len(quietly(source, f"{place}/trials.jsonl"))
        total = f" of {described['trials']}" if "trials" in described else ""
        return "unfinished", f"{done}{total} attacks done"


def check_entries(study: Record, where: str) -> None:
    """Raises: ValueError for an evaluation in a study.json that is of another run than listed."""
    runs = {(run["setting"], run["rule"], run["seed"]): run["folder"] for run in study["runs"]}
    for entry in (*study.get(Robustness.home, ()), *study.get(Retrieval.home, ())):
        setting, rule, seed = listed = entry["setting"], entry["rule"], entry["seed"]
        if runs.get(listed) != entry["folder"]:
            raise ValueError(
                f"{where}: the evaluation of {setting}, {rule}, seed={seed} is that of "
                f"{entry['folder']}, the run is {runs.get(listed, 'not listed')}"
            )


def quietly(source: packing.Folder, name: str) -> list[dict[str, Any]]:
    """Rows of a file that may still grow, without a warning of a torn last line."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return source.rows(name)


class Robustness(Evaluated):
    """A classifier under attack. Accuracies are fractions of all examples."""

    home = "robustness"
    last = "verdict"
    needed = ("clean", "worst", "gap", "audit")
    compared = (
        "data", "images", "norm", "eps", "effort", "protocol", "samples", "substitute", "version"
    )  # fmt: skip

    @property
    def radii(self) -> list[float]:
        return [row["eps"] for row in self.of_kind("worst")]


class Retrieval(Evaluated):
    """A hash net under attack. Average precisions are means over queries in [0, 1]."""

    home = "retrieval"
    last = "end"
    needed = ("clean", "map", "gap")
    compared = ("data", "queries", "known", "norm", "eps", "steps", "version")

    @property
    def radii(self) -> list[float]:
        return [row["eps"] for row in self.of_kind("map") if row["source"] == "worst"]

    @classmethod
    def current(cls, row: Record) -> Record:
        """Before version 3 there were two attacks, and "both" stood for any of them."""
        return {**row, "attack": "any"} if row.get("attack") == "both" else row
