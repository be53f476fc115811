"""Evaluating in a folder, so that a killed evaluation goes on.

An evaluation lies in RUN/retrieval/KEY:
    setting.json      key, versions, digest of the net, and what it was evaluated by
    environment.json  versions and machine
    trials.jsonl      one attack by one source at one radius a line, with every query's precision
    records.jsonl     the rows of the report, written whole at the end
    examples.npz      a few queries and what is found with them, clean and attacked
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apical.bench.evaluate.retrieval import trials
from apical.bench.evaluate.retrieval.evaluation import VERSION, Evaluation, described
from apical.bench.evaluate.retrieval.pictures import pictures
from apical.bench.evaluate.retrieval.rows import report
from apical.bench.evaluate.retrieval.searched import Searched
from apical.bench.evaluate.retrieval.trials import Queries, Trial
from apical.bench.experiment.execution import Execution
from apical.bench.storage import claims, evaluation_folder, records
from apical.bench.training import loop, progress

FOLDER = "retrieval"
"""Where the evaluations of a hash net lie in the folder of its run."""


def place(
    run: Path, evaluation: Evaluation, net: str, surrogates: Mapping[str, str] | None = None
) -> Path:
    """The folder of an evaluation. Args: run: of the net. net, surrogates: digests."""
    return run / FOLDER / evaluation.key(net, surrogates or {})


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a finished evaluation, none while it is not."""
    return evaluation_folder.rows(folder, "end")


def evaluate(
    net: Searched,
    evaluation: Evaluation,
    folder: str | Path,
    execution: Execution | None = None,
    *,
    surrogates: Mapping[str, Searched] | None = None,
) -> list[dict[str, Any]]:
    """Attack a hash net in a folder, or go on where that was killed, or read what it found.

    Args: folder: as `place` names it. surrogates: nets to transfer attacks from, by name.
    Returns: the rows of the report.
    Raises: ValueError as attacks do, or if the folder holds another evaluation; claims.Held if
        another living process works on it.
    """
    folder, execution = Path(folder), execution or Execution()
    others = dict(surrogates or {})
    digests = {name: other.net.digest for name, other in others.items()}
    key = evaluation.key(net.net.digest, digests)
    evaluation_folder.check(folder, key)
    if found := rows(folder):
        claims.clear(folder)  # a kill after the last row leaves one
        return found
    with loop.settings(execution), claims.hold(folder) as claim:
        if found := rows(folder):
            return found
        _describe(folder, key, net, evaluation, list(others), execution)
        asked = trials.queries(net, evaluation, execution.device)
        done = _trials(net, evaluation, folder, others, asked, claim.check, execution.quiet)
        made = report(net, asked, evaluation, done)
        evaluation_folder.write_examples(folder, pictures(net, asked, evaluation, done))
        claim.check()
        evaluation_folder.write_rows(folder, made)
    claims.clear(folder)
    return rows(folder)


def _trials(
    net: Searched,
    evaluation: Evaluation,
    folder: Path,
    others: Mapping[str, Searched],
    asked: Queries,
    still_mine: Callable[[], None],
    quiet: bool,
) -> list[Trial]:
    path = folder / "trials.jsonl"
    finished = {trial.step: trial for trial in evaluation_folder.trials(folder, Trial.read)}
    steps = list(evaluation.steps_of(feedback=net.feedback, surrogates=list(others)))
    found = []
    with progress.steps(net.net.name, quiet=quiet) as show:
        for number, step in enumerate(steps, 1):
            if step not in finished:
                begin = time.perf_counter()
                trial = trials.run(net, step, asked, evaluation, others)
                still_mine()
                seconds = round(time.perf_counter() - begin, 3)
                records.append(path, trial.record() | {"seconds": seconds}, digest=True)
                finished[step] = trial
            found.append(finished[step])
            show(f"{step.attack} / {step.source}  eps {step.eps:.3g}", number, len(steps))
    return found


def _describe(
    folder: Path,
    key: str,
    net: Searched,
    evaluation: Evaluation,
    others: list[str],
    execution: Execution,
) -> None:
    images = net.net.images
    about = {"net": net.net.name, "data": images.name, "image_shape": list(images.shape)}
    setting = about | described(evaluation) | {"surrogates": others}
    evaluation_folder.describe(folder, key, net.net.digest, setting, execution, retrieval=VERSION)
