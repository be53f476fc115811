"""The verb ``apical train``."""

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apical.bench.cli import parsing

if TYPE_CHECKING:
    from apical.bench.experiment.execution import Execution
    from apical.bench.experiment.experiment import Experiment

ESSENTIAL = ("data", "net", "net_options", "rule", "epochs", "lr", "batch_size", "optimizer",
             "validation", "seed", "device", "config", "folder")  # fmt: skip
"""Options that the short help shows."""


def train(words: list[str]) -> int:
    """Train one net and print its scores; returns 1 if its loss became non-finite, else 0."""
    try:
        values = _parsed(words)
        execution, experiment = parsing.execution_of(values), parsing.experiment_of(values)
    except ValueError as error:
        if several := [word for word in words if _is_of_sweep(word)]:
            raise parsing.UsageError(
                f"{error}. apical sweep takes {several[0]}, and trains once for every combination "
                "of values"
            ) from error
        raise
    folder = Path(values["folder"] or f"{values['runs']}/train/{experiment.name}")
    return _run(experiment, folder, execution, again=values["again"])


def _is_of_sweep(word: str) -> bool:
    """Whether it is several values between commas, or an option that only ``apical sweep`` has."""
    name, _, value = word.rpartition("=") if word.startswith("--") else ("", "", word)
    value = re.sub(r"\[.*\]|\{.*\}|\(.*\)", "", value)
    return "," in value or parsing.underscored(name or value) in ("--seeds", "--jobs", "--executor")


def _parsed(words: list[str]) -> dict[str, Any]:
    about = "Train one net. If it is killed, the same command resumes it."
    parser = parsing.make_parser("train", about, essential=ESSENTIAL)
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    (printing,) = (action for action in parser._actions if action.dest == "print_config")
    printing.help = "print all settings as a YAML file for --config, and train nothing"
    printing.metavar = ""
    parsing.add_experiment(parser)
    parsing.add_execution(parser)
    parser.add_argument("--runs", default="runs", help="folder that holds all runs")
    parser.add_argument("--folder", default=None, type=str,
                        help="folder of this run (default: RUNS/train/NAME-KEY)")  # fmt: skip
    about = "if it is finished, remove its results and train once more"
    parser.add_argument("--again", default=False, action="store_true", help=about)
    parsing.add_trust(parser)
    return parsing.parse_settings(parser, words)


def resume(words: list[str]) -> int:
    """Go on with a run of which only the folder is at hand; prints and returns as `train`."""
    from apical.bench.evaluate import trained_net

    about = (
        "Go on with a run that was killed, from its last checkpoint: the result has the same bits "
        "as that of an undisturbed run. Sweeps and studies resume by the command that started them."
    )
    essential = ("run", "device", "data_root", "checkpoint_steps", "track", "trust")
    parser = parsing.make_parser("resume", about, "RUN", essential=essential)
    parser.add_argument("run", help="folder of the run")
    parsing.add_execution(parser)
    parsing.add_trust(parser)
    values = parsing.parse(parser, words)
    folder = Path(values["run"])
    experiment = trained_net.experiment_of(folder, trust=values["trust"])
    return _run(experiment, folder, parsing.execution_of(values))


def _run(
    experiment: "Experiment", folder: Path, execution: "Execution", *, again: bool = False
) -> int:
    """Train, print the scores and what to do with the run, and return the exit status."""
    from apical.bench.storage import claims, run_folder
    from apical.bench.training import loop

    try:
        run_folder.check(folder, experiment)
        if run_folder.end(folder) is not None:
            if again:
                run_folder.renew(folder)
            else:
                day = run_folder.finished_on(folder)
                print(f"finished on {day}; nothing was run (--again to repeat)")
        row = loop.run(experiment, folder, execution)
    except claims.Held as held:
        raise ValueError(str(held)) from held
    except ValueError as error:
        raise ValueError(parsing.as_flags(str(error))) from error
    if not row:  # another process of the group reports
        return 0
    if row["kind"] == "stopped":
        where = f"epoch {row['epoch']}, step {row['step']}, at {row['where']}"
        print(
            f"stopped: {row['reason']} in {where}. The learning rate was {experiment.lr:g}: try a "
            f"smaller one (--lr {experiment.lr / 10:g}), or let apical tune choose it",
            file=sys.stderr,
        )
        print(folder)
        return 1
    for split in ("val", "test"):
        if f"{split}_acc" in row:
            scores = f"accuracy {row[f'{split}_acc']:.2%}"
            if f"{split}_map" in row:
                nearest = f"nearest item right {row[f'{split}_acc']:.2%}"
                scores = f"mAP {row[f'{split}_map']:.2%}, {nearest}"
            n = f" (n = {row[f'{split}_count']:,})" if f"{split}_count" in row else ""
            print(f"{split} {scores}{n}, loss {row[f'{split}_loss']:.4f}")
    print(f"{row['seconds']:.1f} s, {row['step_ms']:.2f} ms a step")
    print(folder)
    print(f"apical report {folder} --open    shows its curves; also: apical robustness, export")
    if execution.track == "tensorboard":
        print(f"tensorboard --logdir {folder}    shows what was tracked")
    return 0
