"""What `apical verify` has found of every kept study, as one table for documents."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apical.bench.report.names import display_name
from apical.bench.report.read import is_study, read_study, test_error
from apical.bench.report.table import Column, Table, each, number
from apical.bench.storage import records

FILE = "verified.json"
"""Beside the studies: the record of each that was verified, by the name of its folder."""

OUTCOMES = ("same bits", "same within tolerance", "differs", "not comparable")
SAME, CLOSE, DIFFERS, NOT_COMPARABLE = OUTCOMES


@dataclass(frozen=True)
class Line:
    """A kept study: recorded seconds of its runs, and the record of its verification, {} where
    there is none."""

    study: str
    seconds: tuple[float, ...]
    record: Mapping[str, Any]

    @property
    def runs(self) -> Sequence[Mapping[str, Any]]:
        """Those that were trained again."""
        return self.record.get("runs", ())

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(run["outcome"] for run in self.runs)

    @property
    def largest(self) -> float | None:
        compared = [run for run in self.runs if "rerun" in run]
        return max((abs(run["rerun"] - run["recorded"]) for run in compared), default=None)

    @property
    def environment(self) -> str:
        """ "cpu, torch": names of what differed in any rerun, the commit aside."""
        names = {name for run in self.runs for name in run.get("environment", ())}
        return ", ".join(sorted(names - {"git", "git_dirty", "cores"}))

    @property
    def left_out(self) -> str:
        """ "DFA 7.7 min": rules without a rerun, and what one would take."""
        rules = self.record.get("left_out", {})
        if not self.record:
            least, most = min(self.seconds) / 60, max(self.seconds) / 60
            return f"not verified, a run takes {least:.1f} to {most:.1f} min"
        return "; ".join(f"{display_name(rule)} {least:g} min" for rule, least in rules.items())


def read(results: Path) -> dict[str, Any]:
    """The records of the studies in a folder."""
    return records.read_json(results / FILE) if (results / FILE).exists() else {}


def lines(results: Path) -> list[Line]:
    """A line for every study in a folder. A rerun counts while the study holds its run, with the
    test error that it was compared with: what an earlier version of a study gave, or the same runs
    of another machine, do not verify this one."""
    found, made = read(results), []
    for folder in sorted(path for path in results.iterdir() if is_study(path)):
        runs = read_study(folder).runs
        seconds = tuple(run.final.get("seconds", 0.0) for run in runs)
        record = found.get(folder.name, {})
        kept = {run.folder: test_error(run) for run in runs if run.status == "finished"}
        again = [
            run
            for run in record.get("runs", ())
            if run["folder"] in kept and run.get("recorded") in (None, kept[run["folder"]])
        ]
        if record.get("runs") and not again:
            record = {}
        made.append(Line(folder.name, seconds, record and {**record, "runs": again}))
    return made


def finding(rows: Sequence[Line]) -> str:
    """How many reruns had which outcome, and where they differ."""
    total = sum((line.outcomes for line in rows), Counter[str]())
    differing = [line.study for line in rows if line.outcomes[DIFFERS]]
    counts = ", ".join(f"{total[name]} {name}" for name in OUTCOMES if total[name])
    where = f"; those that differ are in {', '.join(differing)}" if differing else ""
    without = sum(not line.runs for line in rows)
    end = f" {without} of {len(rows)} studies have no rerun yet." if without else ""
    return f"Of {sum(total.values())} runs trained again: {counts}{where}.{end}"


def table(rows: Sequence[Line]) -> Table:
    columns = [
        Column("study", "study", left=True),
        Column("runs", lambda line: str(len(line.seconds))),
        Column("again", lambda line: str(len(line.runs))),
        *each(OUTCOMES, lambda name, line: str(line.outcomes[name] or ""), "{}"),
        Column("largest", "largest", text=number),
        Column("environment that differs", "environment", left=True),
        Column("without a rerun", "left_out", left=True),
    ]
    return Table(columns, rows)
