"""Evaluations of hash nets under attack as values: what each has found, or why there is nothing.

An evaluation is a folder RUN/retrieval/<key>:
    setting.json    {key, versions, checkpoint, setting}; the last is {data, eps, norm, queries,
                    known, steps, seed, surrogates}
    records.jsonl   rows of kinds clean, attack, map, gap, targeted and, last, end; average
                    precisions are means over queries in [0, 1], with 95 % intervals over them
    trials.jsonl    one finished attack a line; read only to say how far an evaluation has come
    examples.npz    a few queries and what is found with them
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from apical import records
from apical.report.robust_read import Row, Status, quietly

COMPARED = ("data", "queries", "known", "norm", "eps", "steps")
"""Fields of a setting that evaluations must share for their numbers to be averaged."""


@dataclass(frozen=True)
class Evaluation:
    """One hash net under attack; `reason` says why it is not finished."""

    folder: Path
    shown: str
    setting: str
    rule: str
    seed: int
    status: Status
    reason: str = ""
    described: Mapping[str, Any] = field(default_factory=dict)
    rows: tuple[Row, ...] = ()

    def find(self, kind: str, **told: Any) -> Row:
        """The row of a kind that tells this, {} where there is none."""
        for row in self.rows:
            if row["kind"] == kind and all(row.get(key) == value for key, value in told.items()):
                return row
        return {}

    def of_kind(self, kind: str) -> list[Row]:
        return [row for row in self.rows if row["kind"] == kind]

    @property
    def clean(self) -> Row:
        return self.find("clean")

    @property
    def radii(self) -> list[float]:
        return [row["eps"] for row in self.of_kind("map") if row["source"] == "worst"]

    @property
    def protocol(self) -> tuple[str, ...]:
        """What must be equal for a comparison, as text."""
        return tuple(str(self.described.get(key, "")) for key in COMPARED)


def read_evaluation(study: Path, entry: Mapping[str, Any]) -> Evaluation:
    """One entry of `retrieval` in study.json: {folder, setting, rule, seed, evaluation}."""
    shown = f"{entry['folder']}/{entry['evaluation']}"
    return _read(study / shown, shown, {key: entry[key] for key in ("setting", "rule", "seed")})


def of_run(run: Path, setting: str, rule: str, seed: int) -> list[Evaluation]:
    """All evaluations a run folder holds, by name."""
    common = {"setting": setting, "rule": rule, "seed": seed}
    return [
        _read(folder, f"retrieval/{folder.name}", common)
        for folder in sorted((run / "retrieval").glob("*/"))
    ]


def _read(folder: Path, shown: str, common: Mapping[str, Any]) -> Evaluation:
    about = {"folder": folder, "shown": shown, **common}
    if not folder.is_dir():
        return Evaluation(**about, status="not started")
    try:
        path = folder / "setting.json"
        described = records.read_json(path)["setting"] if path.exists() else {}
        rows = tuple(quietly(folder / "records.jsonl"))
        done = len(quietly(folder / "trials.jsonl"))
    except (ValueError, OSError, KeyError) as error:
        reason = str(error).replace(f"{folder}/", "")  # pages are published: no absolute paths
        return Evaluation(**about, status="failed", reason=f"unreadable: {reason}")
    found = Evaluation(**about, status="finished", described=described, rows=rows)
    if not rows or rows[-1].get("kind") != "end":
        reason = f"{done} attacks done"
        return Evaluation(**about, status="unfinished", reason=reason, described=described)
    if not (found.clean and found.radii and found.of_kind("gap")):
        reason = "records.jsonl has no row of kind clean, map or gap"
        return Evaluation(**about, status="failed", reason=reason, described=described)
    return found
