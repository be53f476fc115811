"""The second half of a study of hashing: the retrieval of every trained net is attacked."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apical.bench.evaluate import retrieval
from apical.bench.experiment.execution import Execution
from apical.bench.storage import records
from apical.bench.studies import assess
from apical.bench.studies.base import Entry, Study


@dataclass(frozen=True)
class Search:
    """The evaluation of one trained hash net: a job of a sweep.

    Args: run: its folder. surrogates: folders of the runs to transfer from, by name.
        folder: of the evaluation.
    """

    run: Path
    evaluation: retrieval.Evaluation
    surrogates: Mapping[str, Path]
    folder: Path

    def ended(self) -> dict[str, Any] | None:
        rows = retrieval.rows(self.folder)
        if not rows:
            return None
        seconds = sum(row["seconds"] for row in records.read(self.folder / "trials.jsonl"))
        left = {row["eps"]: row["map"] for row in rows if row.get("source") == "worst"}
        return {"kind": "final", "seconds": seconds, "clean": rows[0]["map"], "worst": left}

    def do(self, execution: Execution) -> dict[str, Any]:
        where: dict[str, Any] = {
            "device": execution.device,
            "data_root": execution.data_root,
            "download": execution.download,
            "trust": True,  # the study itself names what it runs, and the folder was checked
        }
        retrieval.evaluate(
            retrieval.from_run(self.run, **where),
            self.evaluation,
            self.folder,
            execution,
            surrogates={
                name: retrieval.from_run(run, **where) for name, run in self.surrogates.items()
            },
        )
        row = self.ended()
        assert row is not None
        return row

    def told(self, row: dict[str, Any]) -> str:
        left = ", ".join(f"{share:.1%} at eps {eps:.3g}" for eps, share in row["worst"].items())
        return (
            f"{self.run.name}: mAP {row['clean']:.1%}, worst case {left} ({row['seconds']:.0f} s)"
        )


def searches(study: Study, folder: Path) -> list[tuple[Entry, Search]]:
    """What there is to be evaluated, of the runs that are finished so far."""
    found = []
    for entry, victim, others in assess.victims(study, folder, study.retrievals):
        evaluation = study.retrievals[entry.setting]
        digests = {name: other.digest for name, other in others.items()}
        place = retrieval.place(victim.run, evaluation, victim.digest, digests)
        runs = {name: other.run for name, other in others.items()}
        found.append((entry, Search(victim.run, evaluation, runs, place)))
    return found


def described(study: Study, found: Sequence[tuple[Entry, Search]]) -> dict[str, Any]:
    """What study.json says of the evaluations; nothing for a study without any."""
    if not study.retrievals:
        return {}
    return {"retrieval": [assess.listed(entry, job.run, job.folder) for entry, job in found]}
