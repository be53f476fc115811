"""Verifying a study: some of its runs are trained again and compared with their records.

What is compared is every number that both records have, but for times and memory. A rerun has the
`same bits` if all numbers of training (rows of kind ``epoch``, ``test``, ``final``) are equal and
no row is missing; it is `same within tolerance` if its test error differs by at most one standard
deviation that the test set alone gives it (`statistics.binomial_variance`, the least spread that
tables assume); else it `differs`. It is `not comparable` where this version has another key for
the settings, or cannot train them here, or has other data, and the record says why. Attacks on
trained nets are not repeated.
"""

import itertools
import math
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from apical.bench.experiment.execution import Execution
from apical.bench.experiment.experiment import Experiment, from_dict
from apical.bench.report import verified
from apical.bench.report.read import Run, read_study
from apical.bench.report.verified import CLOSE, DIFFERS, NOT_COMPARABLE, SAME
from apical.bench.storage import claims, packing, records
from apical.bench.storage.environment import environment
from apical.bench.sweep.sweep import Say
from apical.bench.training import loop, starts
from apical.measure import statistics

TRAINING = ("epoch", "test", "final")
"""Kinds of rows whose numbers decide whether the bits are the same."""

OF_THE_MACHINE = {"seconds", "cpu_seconds", "step_ms", "step_cpu_ms", "memory_mb"}
"""What depends on the machine and its load."""

Row = Mapping[str, Any]


def verify(
    folder: Path, *, minutes: float, data_root: str | None, say: Say, trust: bool = False
) -> dict[str, Any]:
    """Train a sample of a study's finished runs again, and compare.

    Args: folder: of the study, packed or loose.     minutes: budget (> 0) of recorded training
        time: the sample is the same on every machine, see `sample`.     say: told of every rerun.
        trust: as of `load_run`; without it, a study that names code of its own is an error.
    Returns: the record, also kept in ``verified.json`` beside the folder: ``runs``, see
        `rerun`, ``left_out``, minutes of the cheapest run by rule where no run fits the budget,
        and the ``environment`` of the reruns.
    Raises: ValueError if there is no study, no finished run, or no run fits the budget.
    """
    if not minutes > 0:
        raise ValueError(f"minutes={minutes}: the budget must be above 0")
    study, source = read_study(folder), packing.open_folder(folder)
    finished = [run for run in study.runs if run.status == "finished"]
    if not finished:
        raise ValueError(f"{folder}: no run of the study has finished")
    chosen, left_out = sample(finished, source, 60 * minutes, trust)
    if not chosen:
        least = min(left_out.values())
        raise ValueError(
            f"{folder}: no run fits into {minutes:g} minutes, the cheapest takes {least:g}: give "
            "more with --minutes; earlier reruns are kept"
        )
    say(
        f"{study.title}: {len(chosen)} of {len(finished)} runs again, "
        f"{sum(run.final['seconds'] for run in chosen) / 60:.1f} minutes as recorded"
    )
    made = []
    with tempfile.TemporaryDirectory(prefix="apical-verify-") as work:
        for run in chosen:
            made.append(rerun(run, source, Path(work), data_root, trust))
            say(_sentence(made[-1]))
    for rule, least in left_out.items():
        say(f"{rule}: left out, its cheapest run takes {least:.1f} minutes")
    value = {
        "study": folder.resolve().name,
        "minutes": minutes,
        "finished": len(finished),
        "evaluations": len(study.robustness) + len(study.retrieval),
        "environment": environment(),
        "runs": made,
        "left_out": left_out,
    }
    results = folder.resolve().parent
    found = verified.read(results) | {value["study"]: value}
    records.write_json(results / verified.FILE, dict(sorted(found.items())), indent=0)
    return value


def sample(
    runs: Sequence[Run], source: packing.Folder, seconds: float, trust: bool = False
) -> tuple[list[Run], dict[str, float]]:
    """Which runs are trained again: the cheapest of each rule, cheaper rules first, then the second
    cheapest of each, and so on, as long as their recorded seconds and those of the nets that they
    start from fit the budget.

    Returns: the runs, and the minutes of the cheapest run of each rule that has none among them.
    """
    cheapest = sorted(runs, key=lambda run: (run.final["seconds"], run.folder))
    rules = records.grouped(cheapest, lambda run: run.rule)
    chosen: list[Run] = []
    starts: set[str] = set()
    spent = 0.0
    for run in filter(None, itertools.chain(*itertools.zip_longest(*rules.values()))):
        start = _start(run, source, trust)
        new = sum(cost for name, cost in start.items() if name not in starts)
        if spent + run.final["seconds"] + new <= seconds:
            chosen.append(run)
            starts |= start.keys()
            spent += run.final["seconds"] + new
    there = {run.rule for run in chosen}
    left_out = {
        rule: round(
            sum((found[0].final["seconds"], *_start(found[0], source, trust).values())) / 60, 1
        )
        for rule, found in rules.items()
        if rule not in there
    }
    return chosen, left_out


def _start(run: Run, source: packing.Folder, trust: bool) -> dict[str, float]:
    """The net that a run starts from, if another run trained it, and its recorded seconds."""
    start = (run.experiment.get("start") or {}).get("source")
    if not isinstance(start, dict):
        return {}
    name = from_dict(start, trust=trust).name
    rows = source.rows(f"{starts.FOLDER}/{name}/records.jsonl")
    return {name: rows[-1]["seconds"] if rows and "seconds" in rows[-1] else 0.0}


def rerun(
    run: Run, source: packing.Folder, work: Path, data_root: str | None, trust: bool = False
) -> dict[str, Any]:
    """Train a run again, with its recorded device and number of threads, and compare.

    Returns: ``outcome``, see `report.verified`; ``why`` where it is not comparable; else the test
        errors in % that are ``recorded`` and come from the ``rerun``, the ``tolerance`` in points,
        ``first_difference``, the first number of training that differs, ``other_differences``,
        measures beside training that differ, ``not_compared``, what one record alone has, and
        ``environment``: name -> [recorded, of the rerun] where they differ.
    """
    named: dict[str, Any] = {
        name: getattr(run, name) for name in ("folder", "setting", "rule", "seed")
    }
    key = source.read_json(f"{run.folder}/experiment.json").get("key")
    experiment: Experiment = from_dict(
        run.experiment, trust=trust, where=f"{run.folder}/experiment.json"
    )
    if experiment.key != key:
        why = "this version computes something else from these settings: their key has changed"
        return named | {"outcome": NOT_COMPARABLE, "why": why}
    execution = Execution(
        device=run.environment.get("device", "cpu"),
        threads=run.environment.get("run_threads", 1),
        data_root=data_root,
        quiet=True,
    )
    place = work / run.folder
    try:
        end = loop.run(experiment, place, execution)
    except (ValueError, OSError, claims.Held) as error:
        return named | {"outcome": NOT_COMPARABLE, "why": str(error)}
    if end["kind"] != "final":
        why = f"diverged in epoch {end['epoch']}"
        return named | {"outcome": DIFFERS, "why": why, **_environment(run, place)}
    again = records.read(place / "records.jsonl")
    data = run.final.get("data_sha256")
    if data is not None and data != again[-1]["data_sha256"]:
        why = "the images or labels here are not those that the run was trained and tested on"
        return named | {"outcome": NOT_COMPARABLE, "why": why}
    return named | compared(run.rows, again) | _environment(run, place)


def _environment(run: Run, place: Path) -> dict[str, Any]:
    here = records.read_json(place / "environment.json")
    names = sorted((run.environment.keys() | here.keys()) - {"resumed_with"})
    pairs = {name: [run.environment.get(name), here.get(name)] for name in names}
    return {"environment": {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}}


def compared(recorded: Sequence[Row], again: Sequence[Row]) -> dict[str, Any]:
    """Two records of a finished run against each other, as `rerun` describes it."""
    there, here = _by_kind(recorded), _by_kind(again)
    differing: dict[str, str] = {}
    not_compared: list[str] = []
    for kind in {**there, **here}:
        rows, others = there.get(kind, []), here.get(kind, [])
        if len(rows) != len(others):
            not_compared.append(f"{kind} ({len(rows)} rows recorded, {len(others)} now)")
            if kind in TRAINING:
                differing[f"{kind}.rows"] = f"{len(rows)} recorded, {len(others)} now"
            continue
        for row, other in zip(rows, others, strict=True):
            not_compared += [f"{kind}.{key}" for key in row.keys() ^ other.keys()]
            for key in [key for key in row if key in other and key not in OF_THE_MACHINE]:
                if row[key] != other[key] and not (_is_nan(row[key]) and _is_nan(other[key])):
                    differing.setdefault(f"{kind}.{key}", f"epoch {row.get('epoch', '?')}")
    last, now = there["final"][-1], here["final"][-1]
    error, other_error = (100 * (1 - row["test_acc"]) for row in (last, now))
    images = last.get("test_count", now["test_count"])
    tolerance = 100 * math.sqrt(statistics.binomial_variance(error / 100, images))
    training = [name for name in differing if name.partition(".")[0] in TRAINING]
    if not training:
        outcome = SAME
    else:
        outcome = CLOSE if abs(error - other_error) <= tolerance else DIFFERS
    return {
        "outcome": outcome,
        "recorded": error,
        "rerun": other_error,
        "tolerance": tolerance,
        "first_difference": f"{training[0]}, {differing[training[0]]}" if training else "",
        "other_differences": sorted(set(differing) - set(training)),
        "not_compared": sorted(set(not_compared)),
    }


def _by_kind(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that hold numbers; texts, as those of warnings, are not compared."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        numbers = {k: v for k, v in row.items() if k == "epoch" or not isinstance(v, str)}
        found.setdefault(str(row["kind"]), []).append(numbers)
    return found


def _is_nan(value: Any) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _sentence(found: Row) -> str:
    where = f"{found['setting']}, {found['rule']}, seed {found['seed']}: {found['outcome']}"
    if "why" in found:
        return f"{where}: {found['why']}"
    if found["outcome"] == SAME:
        return where
    differing = ", ".join(
        f"{name} {a} -> {b}" for name, (a, b) in found["environment"].items() if name != "cores"
    )
    return (
        f"{where}: test error {found['recorded']:.2f} recorded, {found['rerun']:.2f} again "
        f"(tolerance {found['tolerance']:.2f} points; first: {found['first_difference']}); "
        f"environment: {differing or 'the same'}"
    )
