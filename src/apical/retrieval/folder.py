"""Evaluating in a folder, so that a killed evaluation goes on.

An evaluation lies in RUN/retrieval/KEY:
    setting.json      key, versions, digest of the net, and what it was evaluated by
    environment.json  versions and machine
    trials.jsonl      one attack by one source at one radius a line, with every query's precision
    records.jsonl     the rows of the report, written whole at the end
    examples.npz      a few queries and what is found with them, clean and attacked
"""

from __future__ import annotations

import io
import json
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from apical import claims, progress, records, training
from apical.environment import environment
from apical.experiment import versions
from apical.retrieval import trials
from apical.retrieval.evaluation import VERSION, Evaluation, described
from apical.retrieval.pictures import pictures
from apical.retrieval.rows import report
from apical.retrieval.searched import Searched
from apical.retrieval.trials import Queries, Trial

FOLDER = "retrieval"
"""Where the evaluations of a hash net lie in the folder of its run."""


def place(
    run: Path, evaluation: Evaluation, net: str, surrogates: Mapping[str, str] | None = None
) -> Path:
    """The folder of an evaluation. Args: run: of the net. net, surrogates: digests."""
    return run / FOLDER / evaluation.key(net, surrogates or {})


def rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a finished evaluation, none while it is not."""
    found = records.read(folder / "records.jsonl")
    return found if found and found[-1]["kind"] == "end" else []


def evaluate(
    net: Searched,
    evaluation: Evaluation,
    folder: str | Path,
    execution: training.Execution | None = None,
    *,
    surrogates: Mapping[str, Searched] | None = None,
) -> list[dict[str, Any]]:
    """Attack a hash net in a folder, or go on where that was killed, or read what it found.

    Args: folder: as `place` names it. surrogates: nets to transfer attacks from, by name.
    Returns: the rows of the report.
    Raises: ValueError as attacks do, or if the folder holds another evaluation; claims.Held if
        another living process works on it.
    """
    folder, execution = Path(folder), execution or training.Execution()
    others = dict(surrogates or {})
    digests = {name: other.net.digest for name, other in others.items()}
    key = evaluation.key(net.net.digest, digests)
    _check(folder, key)
    if found := rows(folder):
        return found
    with training.settings(execution), claims.hold(folder) as claim:
        if found := rows(folder):
            return found
        _describe(folder, key, net, evaluation, list(others), execution)
        asked = trials.queries(net, evaluation, execution.device)
        done = _trials(net, evaluation, folder, others, asked, claim.check, execution.quiet)
        made = report(net, asked, evaluation, done)
        _write_arrays(folder / "examples.npz", pictures(net, asked, evaluation, done))
        claim.check()
        text = "".join(json.dumps(row, allow_nan=False) + "\n" for row in made)
        records.write_bytes(folder / "records.jsonl", text.encode())
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
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a torn last line is what going on mends
        finished = {trial.step: trial for trial in map(Trial.read, records.read(path))}
    steps = list(evaluation.steps_of(feedback=net.feedback, surrogates=list(others)))
    found = []
    with progress.steps(net.net.name, quiet=quiet) as show:
        for number, step in enumerate(steps, 1):
            if step not in finished:
                begin = time.perf_counter()
                trial = trials.run(net, step, asked, evaluation, others)
                still_mine()
                seconds = round(time.perf_counter() - begin, 3)
                records.append(path, trial.record() | {"seconds": seconds})
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
    execution: training.Execution,
) -> None:
    images = net.net.images
    about = {"net": net.net.name, "data": images.name, "image_shape": list(images.shape)}
    setting = about | described(evaluation) | {"surrogates": others}
    told = {"key": key, "versions": {**versions(), "retrieval": VERSION}}
    records.write_json(
        folder / "setting.json", told | {"checkpoint": net.net.digest, "setting": setting}
    )
    records.write_json(
        folder / "environment.json",
        environment() | {"device": execution.device, "run_threads": execution.threads},
    )


def _check(folder: Path, key: str) -> None:
    path = folder / "setting.json"
    if path.exists() and (there := records.read_json(path).get("key")) != key:
        raise ValueError(
            f"{folder} holds the evaluation {there}, not {key}; it was left untouched: choose "
            "another folder"
        )


def _write_arrays(path: Path, values: Mapping[str, Any]) -> None:
    import numpy as np

    buffer, arrays = io.BytesIO(), {name: np.asarray(value) for name, value in values.items()}
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]  # its stub takes a flag there
    records.write_bytes(path, buffer.getvalue())
