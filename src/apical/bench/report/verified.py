"""What `apical verify` has found of every kept study, as one table for documents."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apical.bench.report.names import display_name
from apical.bench.report.read import is_study, read_study
from apical.bench.report.table import Column, Shown, Table, each, for_markdown
from apical.bench.storage import records

FOLDER = "verify"
"""Beside the studies: a record of each that was verified."""

SAME, CLOSE, DIFFERS, NOT_COMPARABLE = (
    "same bits",
    "same within tolerance",
    "differs",
    "not comparable",
)
OUTCOMES = (SAME, CLOSE, DIFFERS, NOT_COMPARABLE)

LEGEND = (
    "`apical verify STUDY` trains a sample of a study's runs again, the cheapest of each rule "
    "first, and compares all numbers of training. Same bits: all are equal. Same within tolerance: "
    "the test errors differ by at most one standard deviation that the test set alone gives the "
    "recorded one (binomial; 0.9 points for 3 % of 360 images, 0.2 for 3 % of 10,000). Differs: by "
    "more. Not comparable: this version computes something else from the settings, or lacks what "
    "they need. Largest: largest difference of the test error, in points. Attacks on trained nets "
    "are not repeated. Every rerun is in `results/verify/STUDY.json`, with both environments."
)


@dataclass(frozen=True)
class Line:
    """A kept study: recorded seconds of its runs, and the record of its verification, {} where
    there is none."""

    study: str
    seconds: tuple[float, ...]
    record: Mapping[str, Any]

    @property
    def outcomes(self) -> Counter[str]:
        return Counter(run["outcome"] for run in self.record.get("runs", ()))

    @property
    def largest(self) -> float | None:
        compared = [run for run in self.record.get("runs", ()) if "rerun" in run]
        return max((abs(run["rerun"] - run["recorded"]) for run in compared), default=None)

    @property
    def environment(self) -> str:
        """ "cpu, torch": names of what differed in any rerun, the commit aside."""
        names = {n for run in self.record.get("runs", ()) for n in run.get("environment", ())}
        return ", ".join(sorted(names - {"git", "git_dirty", "cores"}))

    @property
    def left_out(self) -> str:
        """ "DFA 7.7 min": rules without a rerun, and what one would take."""
        found = self.record.get("left_out", {})
        if not self.record:
            least, most = min(self.seconds) / 60, max(self.seconds) / 60
            return f"not verified, a run takes {least:.1f} to {most:.1f} min"
        if found and not self.record["runs"]:
            return f"all: a run takes {min(found.values()):g} to {max(found.values()):g} min"
        return "; ".join(f"{display_name(rule)} {least:g} min" for rule, least in found.items())


def lines(results: Path) -> list[Line]:
    """A line for every study in a folder."""
    made = []
    for folder in sorted(path for path in results.iterdir() if is_study(path)):
        path = results / FOLDER / f"{folder.name}.json"
        record = records.read_json(path) if path.exists() else {}
        seconds = tuple(run.final.get("seconds", 0.0) for run in read_study(folder).runs)
        made.append(Line(folder.name, seconds, record))
    return made


def finding(found: list[Line]) -> str:
    """How many reruns had which outcome, and where they differ."""
    total: Counter[str] = Counter()
    for line in found:
        total += line.outcomes
    differing = [line.study for line in found if line.outcomes[DIFFERS]]
    said = ", ".join(f"{total[name]} {name}" for name in OUTCOMES if total[name])
    where = f"; those that differ are in {', '.join(differing)}" if differing else ""
    without = [line.study for line in found if not line.record.get("runs")]
    too_dear = f" {len(without)} of {len(found)} studies have no rerun yet." if without else ""
    return f"Of {sum(total.values())} runs trained again: {said}{where}.{too_dear}"


def to_markdown(results: Path) -> str:
    """The finding, the table, and what its columns mean."""
    found = lines(results)
    table = Table(
        [
            Column("study", lambda line: line.study, left=True),
            Column("runs", lambda line: str(len(line.seconds))),
            Column("again", lambda line: str(sum(line.outcomes.values()))),
            *each(OUTCOMES, _count, "{}"),
            Column("largest", _largest),
            Column("environment that differs", lambda line: line.environment, left=True),
            Column("without a rerun", lambda line: line.left_out, left=True),
        ],
        found,
    )
    return f"**{for_markdown(finding(found))}**\n\n{table.markdown()}\n{LEGEND}\n"


def _count(outcome: str, line: Line) -> str:
    return str(line.outcomes[outcome]) if line.outcomes[outcome] else ""


def _largest(line: Line) -> Shown:
    value = line.largest
    return Shown("" if value is None else f"{value:.2f}")
