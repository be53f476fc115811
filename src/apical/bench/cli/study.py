"""The verb ``apical study``; and what studies and searches of learning rates print beforehand."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apical.bench.cli.parsing import (
    add_estimate,
    add_executor,
    add_keep_memory,
    closed,
    execution_of,
    jobs_of,
    make_parser,
    parse,
    say,
)

if TYPE_CHECKING:
    from apical.bench.experiment.execution import Execution
    from apical.bench.studies import Study


def study(words: list[str]) -> int:
    """Do all runs of a study; returns 1 if one failed, else 0."""
    from apical.bench import studies
    from apical.bench.experiment.execution import Execution
    from apical.bench.studies import conduct

    parser = make_parser(
        "study",
        "Do all runs behind a table. Finished runs are skipped, interrupted ones are resumed, so "
        "the same command may be started again, also several times at once.",
        "NAME",
        essential=("name", "dry_run", "tier", "seeds", "only", "jobs", "runs", "executor", "device",
                   "data_root"),
    )  # fmt: skip
    parser.add_argument("name", help="name of the study (apical list shows them), or module:make "
                        "for one of your own: make(tier, seeds) returns it")  # fmt: skip
    parser.add_argument(
        "--tier", default=None, type=str, help="smoke, short (default) or full (published)"
    )
    parser.add_argument("--seeds", default=None, type=int,
                        help="runs of each cell (default: the study's own)")  # fmt: skip
    parser.add_argument("--only", default=None, type=str,
                        help="settings to run, a pattern as 'LeNet *'")  # fmt: skip
    parser.add_argument("--runs", default="runs", help="folder that holds all studies")
    add_estimate(parser)
    add_executor(parser)
    parser.add_class_arguments(Execution, None)
    add_keep_memory(parser)
    values = parse(parser, words)
    execution, jobs = execution_of(values), jobs_of(values)
    chosen = studies.build(values["name"], tier=values["tier"], seeds=values["seeds"])
    chosen = chosen.restricted(values["only"])
    root, folder = Path(values["runs"]), Path(values["runs"]) / chosen.folder
    print(f"{chosen.title}, tier {chosen.tier}: {len(chosen.entries)} runs in {folder}", flush=True)
    conduct.check(chosen, folder)
    if preview(chosen, folder, execution, values, jobs):
        return 0
    outcome = conduct.conduct(
        chosen,
        root,
        execution,
        command=_command(values),
        executor=values["executor"],
        options=values["executor_options"],
        jobs=jobs,
        say=say,
    )
    return closed(outcome, folder)


def preview(
    study: "Study",
    folder: Path,
    execution: "Execution",
    values: dict[str, Any],
    jobs: int,
    *,
    table: bool = True,
) -> bool:
    """Print what --dry-run and --estimate ask for.

    Args: values: of these options.     table: whether the runs of the table are trained, or only
        learning rates chosen.
    Returns: whether that is all there is to do (--dry-run).
    """
    from apical.bench.studies import attack_cost, conduct, cost

    if values["dry_run"]:
        print("\n".join(conduct.outline(study, folder, table=table)), flush=True)
    if values["estimate"]:
        tasks, extensions = conduct.left(study, folder, table=table)
        print(cost.estimate(tasks, execution, extensions).text(jobs), flush=True)
        if study.evaluations:
            most = attack_cost.most(study, folder, execution)
            print(f"attacks on the trained nets: at most {most.summary(jobs)}", flush=True)
    if values["dry_run"]:
        print("nothing was started (--dry-run)")
    return values["dry_run"]


def _command(values: dict[str, Any]) -> str:
    """The command that regenerates a study, without options of this machine."""
    words = ["apical", "study", values["name"]]
    for option in ("tier", "seeds", "only"):
        if values[option] is not None:
            words += [f"--{option}", str(values[option])]
    return shlex.join(words)
