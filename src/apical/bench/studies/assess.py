"""The second half of a robustness study: every trained net is attacked, in its own run folder."""

import dataclasses
import shutil
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from apical.bench.evaluate import robustness
from apical.bench.evaluate.robustness import Evaluation
from apical.bench.evaluate.trained_net import digest_of_run, from_run
from apical.bench.experiment.execution import Execution
from apical.bench.storage import records, run_folder
from apical.bench.studies.base import Choice, Entry, Study
from apical.measure import robustness_verdict


@dataclass(frozen=True)
class Victim:
    """A trained net: the folder of its run, and the digest."""

    run: Path
    digest: str


@dataclass(frozen=True)
class Assessment:
    """The evaluation of one trained net: a job of a sweep.

    Args: run: its folder. surrogates: folders of the runs to transfer from, by name.
        folder: of the evaluation.
    """

    run: Path
    evaluation: Evaluation
    surrogates: Mapping[str, Path]
    folder: Path

    def ended(self) -> dict[str, Any] | None:
        rows = robustness.rows(self.folder)
        if not rows:
            return None
        seconds = sum(row["seconds"] for row in records.read(self.folder / "trials.jsonl"))
        worst = {row["eps"]: row["accuracy"] for row in rows if row["kind"] == "worst"}
        return {"kind": "final", "seconds": seconds, "worst": worst, "word": rows[-1]["verdict"]}

    def do(self, execution: Execution) -> dict[str, Any]:
        where: dict[str, Any] = {
            "device": execution.device,
            "data_root": execution.data_root,
            "download": execution.download,
            "trust": True,  # the study itself names what it runs, and the folder was checked
        }
        others = {name: from_run(run, **where) for name, run in self.surrogates.items()}
        robustness.evaluate(
            from_run(self.run, **where), self.evaluation, self.folder, execution, surrogates=others
        )
        row = self.ended()
        assert row is not None
        return row

    def told(self, row: dict[str, Any]) -> str:
        worst = ", ".join(f"{share:.1%} at eps {eps:.3g}" for eps, share in row["worst"].items())
        return f"{self.run.name}: worst case {worst}; {row['word']} ({row['seconds']:.0f} s)"


def reuse(study: Study, root: Path) -> int:
    """Copy finished runs of the same experiments from other studies in `root`; returns how many.

    A copy appears whole or not at all; evaluations of the other study stay there. Weights that
    this version cannot read are no use, and trained anew.
    """
    copied = 0
    for entry in study.entries:
        name = entry.experiment.name
        target = root / study.folder / name
        if target.exists():
            continue
        source = next((f for f in sorted(root.glob(f"*/{name}")) if _readable(f, entry)), None)
        if source is None:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{name}.part")
        shutil.rmtree(part, ignore_errors=True)
        shutil.copytree(source, part, ignore=shutil.ignore_patterns(robustness.FOLDER, "claim*"))
        part.rename(target)
        copied += 1
    return copied


def assessments(study: Study, folder: Path) -> list[tuple[Entry, Assessment]]:
    """What there is to be evaluated, of the runs that are finished so far."""
    found = []
    for entry, victim, others in victims(study, folder, study.evaluations):
        evaluation = study.evaluation_of(entry)
        digests = {name: other.digest for name, other in others.items()}
        place = robustness.place(victim.run, evaluation, victim.digest, digests)
        runs = {name: other.run for name, other in others.items()}
        found.append((entry, Assessment(victim.run, evaluation, runs, place)))
    return found


def victims(
    study: Study, folder: Path, settings: Container[str]
) -> list[tuple[Entry, Victim, dict[str, Victim]]]:
    """The finished runs of some settings, and by name those that attacks on each are transferred
    from."""
    done = [
        entry
        for entry in study.entries
        if entry.setting in settings and _whole(folder / entry.experiment.name)
    ]
    known = {
        entry.experiment.name: Victim(
            folder / entry.experiment.name, _digest(folder / entry.experiment.name, entry)
        )
        for entry in done
    }
    return [
        (
            entry,
            known[entry.experiment.name],
            {label: known[other] for label, other in _surrogates(study, entry, done).items()},
        )
        for entry in done
    ]


def listed(entry: Entry, run: Path, evaluation: Path) -> dict[str, Any]:
    """How study.json names an evaluation."""
    return {
        "folder": entry.experiment.name,
        "setting": entry.setting,
        "rule": entry.rule,
        "seed": entry.experiment.seed,
        "evaluation": str(evaluation.relative_to(run)),
    }


def described(
    study: Study, found: Sequence[tuple[Entry, Assessment]], data_notes: Sequence[str]
) -> dict[str, Any]:
    """What study.json says of the evaluations; nothing for a study without any."""
    if not study.evaluations:
        return {}
    published = [
        dataclasses.replace(row, other_scale=row.other_scale or "; ".join(data_notes))
        for row in study.robust_published
    ]
    return {
        "robustness": [listed(entry, job.run, job.folder) for entry, job in found],
        "robust_published": [dataclasses.asdict(row) for row in published],
    }


def verdicts(
    found: Sequence[tuple[Entry, Assessment]],
) -> dict[Choice, robustness_verdict.RuleVerdict]:
    """For each setting and rule, what its evaluated nets say together."""
    by_cell: dict[Choice, dict[int, list[dict[str, Any]]]] = {}
    for entry, job in found:
        if rows := robustness.rows(job.folder):
            by_cell.setdefault(entry.cell, {})[entry.experiment.seed] = rows
    return {cell: _verdict(seeds) for cell, seeds in by_cell.items()}


def _verdict(seeds: Mapping[int, list[dict[str, Any]]]) -> robustness_verdict.RuleVerdict:
    gaps: dict[float, dict[int, dict[str, Any]]] = {}
    for seed, rows in seeds.items():
        for row in rows:
            if row["kind"] == "gap":
                gaps.setdefault(row["eps"], {})[seed] = row
    audits = [row for rows in seeds.values() for row in rows if row["kind"] == "audit"]
    words = [row["verdict"] for rows in seeds.values() for row in rows if row["kind"] == "verdict"]
    return robustness_verdict.verdict(gaps, audits, words)


def _surrogates(study: Study, entry: Entry, done: Sequence[Entry]) -> dict[str, str]:
    """The run to transfer from: of the same setting and seed, unless that is the net itself."""
    if entry.rule == study.surrogate:
        return {}
    wanted = (entry.setting, study.surrogate, entry.experiment.seed)
    return {e.rule: e.experiment.name for e in done if (*e.cell, e.experiment.seed) == wanted}


def _readable(run: Path, entry: Entry) -> bool:
    if not _whole(run):
        return False
    try:
        _digest(run, entry)
    except (ValueError, OSError):
        return False
    return True


def _digest(run: Path, entry: Entry) -> str:
    """The digest of the net of a run. Raises: ValueError if it is not the run of this entry."""
    run_folder.check(run, entry.experiment)
    return digest_of_run(run, trust=True)  # what it names is what the study names


def _whole(run: Path) -> bool:
    """Whether a run is finished and has its weights."""
    return run_folder.state(run) == "finished" and (run / "checkpoint.pt").exists()
