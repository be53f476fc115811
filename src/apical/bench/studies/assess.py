"""Attacks on the trained nets of a study, each in the folder of its run."""

import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from apical.bench.evaluate import retrieval, robustness
from apical.bench.evaluate.evaluation import Evaluation, evaluate
from apical.bench.evaluate.trained_net import digest_of_run, from_run
from apical.bench.experiment.execution import Execution
from apical.bench.storage import evaluation_folder, records, run_folder
from apical.bench.studies.base import Choice, Entry, Study
from apical.bench.studies.published import published_rows
from apical.measure import robustness_verdict

HOMES = (retrieval.Evaluation.home, robustness.Evaluation.home)
"""Folders of evaluations in a run's folder."""


@dataclass(frozen=True)
class Assessment:
    """The evaluation of one trained net: a job of a sweep.

    Args: run: its folder. surrogates: folders of the runs to transfer from, by name.
        folder: of the evaluation.     label: what lines of progress call it.
    """

    run: Path
    evaluation: Evaluation
    surrogates: Mapping[str, Path]
    folder: Path
    label: str

    def ended(self) -> dict[str, Any] | None:
        evaluation_folder.check(self.folder, self.folder.name)
        rows = self.evaluation.rows(self.folder)
        if not rows:
            return None
        seconds = sum(row["seconds"] for row in records.read(self.folder / "trials.jsonl"))
        words, worst = self.evaluation.left(rows)
        return {"kind": "final", "seconds": seconds, "worst": worst, "words": words}

    def do(self, execution: Execution) -> dict[str, Any]:
        load = partial(
            from_run,
            device=execution.device,
            data_root=execution.data_root,
            download=execution.download,
            trust=True,  # the study itself names what it runs, and the folder was checked
        )
        others = {name: load(run) for name, run in self.surrogates.items()}
        evaluate(load(self.run), self.evaluation, self.folder, execution, surrogates=others)
        row = self.ended()
        assert row is not None
        return row

    def summary(self, row: dict[str, Any]) -> str:
        worst = ", ".join(f"{share:.1%} at eps {eps:.3g}" for eps, share in row["worst"].items())
        return f"{row['words']}, worst case {worst} ({row['seconds']:.0f} s)"


def reuse(study: Study, root: Path) -> int:
    """Copy finished runs of the same experiments from other studies in `root`; returns how many.

    A copy appears whole or not at all, also where several processes copy the same run; evaluations
    of the other study are not copied. Runs whose weights this version cannot read are left out.
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
        part = target.with_name(f".{name}.{secrets.token_hex(6)}.part")
        try:
            shutil.copytree(source, part, ignore=shutil.ignore_patterns(*HOMES, "claim*"))
            part.rename(target)
            copied += 1
        except OSError:
            if not target.exists():  # else another process was faster
                raise
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return copied


def assessments(study: Study, folder: Path) -> list[tuple[Entry, Assessment]]:
    """What there is to be evaluated, of the runs that are finished so far."""
    attacked = [entry for entry in study.entries if entry.setting in study.evaluations]
    done = [entry for entry in attacked if _whole(folder / entry.experiment.name)]
    runs = {(*entry.cell, entry.experiment.seed): folder / entry.experiment.name for entry in done}
    digests = {run: _digest(run, entry) for run, entry in zip(runs.values(), done, strict=True)}
    found = []
    for (setting, rule, seed), entry in zip(runs, done, strict=True):
        run, of_surrogate = runs[setting, rule, seed], runs.get((setting, study.surrogate, seed))
        others = {}  # to transfer from, unless that is the net itself
        if of_surrogate is not None and rule != study.surrogate:
            others[study.surrogate] = of_surrogate
        evaluation = study.evaluation_of(entry)
        known = {label: digests[other] for label, other in others.items()}
        place = evaluation.place(run, digests[run], known)
        found.append((entry, Assessment(run, evaluation, others, place, entry.label)))
    return found


def described(
    study: Study, found: Sequence[tuple[Entry, Assessment]], data_notes: Sequence[str]
) -> dict[str, Any]:
    """What study.json says of the evaluations; nothing for a study without any."""
    value: dict[str, Any] = {each.home: [] for each in study.evaluations.values()}
    for entry, job in found:
        place = str(job.folder.relative_to(job.run))
        value[job.evaluation.home].append(entry.described | {"evaluation": place})
    if robustness.Evaluation.home in value:
        value["robust_published"] = published_rows(study.robust_published, data_notes)
    return value


def verdicts(
    found: Sequence[tuple[Entry, Assessment]],
) -> dict[Choice, robustness_verdict.RuleVerdict]:
    """For each setting and rule, what its evaluated nets say together."""
    by_cell: dict[Choice, dict[int, list[dict[str, Any]]]] = {}
    for entry, job in found:
        if not isinstance(job.evaluation, robustness.Evaluation):
            continue
        if rows := job.evaluation.rows(job.folder):
            by_cell.setdefault(entry.cell, {})[entry.experiment.seed] = rows
    return {cell: robustness_verdict.verdict_of(nets) for cell, nets in by_cell.items()}


def _readable(run: Path, entry: Entry) -> bool:
    try:
        return _whole(run) and bool(_digest(run, entry))
    except (ValueError, OSError):
        return False


def _digest(run: Path, entry: Entry) -> str:
    """The digest of the net of a run. Raises: ValueError if it is not the run of this entry."""
    run_folder.check(run, entry.experiment)
    return digest_of_run(run, trust=True)  # what it names is what the study names


def _whole(run: Path) -> bool:
    """Whether a run is finished and has its weights."""
    return run_folder.state(run) == "finished" and (run / "checkpoint.pt").exists()
