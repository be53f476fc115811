"""The verbs ``apical study`` and ``apical tune``, and what both print beforehand."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apical.bench.cli.parsing import (
    UsageError,
    add_estimate,
    add_executor,
    add_experiment,
    add_keep_memory,
    as_flags,
    closed,
    execution_of,
    experiment_of,
    jobs_of,
    make_parser,
    parse,
    say,
)
from apical.bench.cli.sweep import at_commas
from apical.bench.experiment.rule_settings import rule_label
from apical.bench.experiment.yaml_values import read_yaml

if TYPE_CHECKING:
    from apical.bench.experiment.execution import Execution
    from apical.bench.studies import Study

ESSENTIAL = ("dry_run", "data", "net", "rule", "rates", "tries", "epochs", "validation",
             "optimizer", "batch_size", "jobs", "runs")  # fmt: skip
"""Options that ``apical tune --help`` shows."""
WIDTH = 40
"""Characters of the longest bar of a curve."""


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


def tune(words: list[str]) -> int:
    """Choose a learning rate for each rule, and print what every rate gave."""
    from apical.bench.experiment.execution import Execution
    from apical.bench.studies import tuning

    parser = make_parser(
        "tune",
        "Choose a learning rate for each rule, all by one procedure. Every rate of --rates trains "
        "the net --tries times, each with another seed, on the training split less --validation "
        "examples; its error is the mean over the seeds on those examples. Of the rates within one "
        "standard error of the lowest error the smallest is chosen; where it is the smallest or "
        "largest of --rates, up to two further half decades are tried. The test split is not read. "
        "Prints the error of every rate, and for each rule the command that trains at its rate. "
        "The same command resumes an interrupted search.",
        essential=ESSENTIAL,
    )
    add_experiment(parser, skip=("rule", "lr", "seed", "test", "validation"))
    about = "examples held out of the training split to compare rates on (0: a fifth, "
    about += "at most 5000; of a task 1000 sequences)"
    parser.add_argument("--validation", default=0, type=int, help=about)
    parser.add_argument("--rule", default="bp", type=str,
                        help="rules, as fa,bp, or one as '{rule: fa, init: xavier}'")  # fmt: skip
    parser.add_argument("--rates", default="0.001,0.003,0.01,0.03,0.1", type=str,
                        help="learning rates, in half decades without a gap")  # fmt: skip
    parser.add_argument("--tries", default=3, type=int, help="seeds of each rate (>= 3)")
    parser.add_argument("--jobs", default=1, type=int, help="tries at once, one process each")
    parser.add_argument("--runs", default="runs", help="folder that holds all runs")
    add_estimate(parser)
    parser.add_class_arguments(Execution, None)
    add_keep_memory(parser)
    values = parse(parser, words)
    execution, jobs = execution_of(values), jobs_of(values)
    words_of = _rules(values.pop("rule"))
    rules = {label: _rule(word) for label, word in words_of.items()}
    experiment, rates = experiment_of(values), _rates(values["rates"])
    folder = Path(values["runs"]) / "tune"
    try:
        study = tuning.search(experiment, rules, rates, values["tries"], execution)
        if preview(study, folder, execution, values, jobs, table=False):
            return 0
        choices = tuning.choose(study, folder, execution, jobs, say=say)
    except ValueError as error:
        raise ValueError(as_flags(str(error))) from error
    rest = _without(words, ("rule", "rates", "tries", "jobs", "validation", "estimate"))
    for label, choice in choices.items():
        print()
        print(curve(label, choice))
        chosen = words_of[label]
        print(shlex.join(["apical", "train", *rest, "--rule", chosen, "--lr", f"{choice['lr']:g}"]))
    return 0


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


def curve(label: str, choice: Mapping[str, Any]) -> str:
    """Validation error over learning rate, as text."""
    most = max(each["error"] for each in choice["tries"]) or 1.0
    lines = [f"{label}: learning rate {choice['lr']:g}"]
    if choice["at_edge"]:
        lines[0] += ", at the edge of what was tried: give further --rates"
    for each in choice["tries"]:
        text = f"  {each['lr']:<8g} {each['error']:7.2%} +- {each['se']:.2%}  "
        text += "#" * max(1, round(WIDTH * each["error"] / most))
        if each["diverged"]:
            text += f"  {each['diverged']} of {len(each['errors'])} diverged"
        if each["lr"] == choice["lr"]:
            text += "  <- chosen"
        lines.append(text)
    seeds = len(choice["tries"][0]["errors"])
    lines.append(f"  rate     validation error, mean of {seeds} seeds +- standard error")
    lines.append("  chosen: the smallest rate within one standard error of the lowest")
    return "\n".join(lines)


def _command(values: dict[str, Any]) -> str:
    """The command that regenerates a study, without options of this machine."""
    words = ["apical", "study", values["name"]]
    for option in ("tier", "seeds", "only"):
        if values[option] is not None:
            words += [f"--{option}", str(values[option])]
    return shlex.join(words)


def _rules(text: str) -> dict[str, str]:
    """The words of a list of rules by their labels."""
    words: dict[str, str] = {}
    for word in at_commas(text):
        label = rule_label(_rule(word))
        if not word or label in words:
            raise UsageError(
                f"--rule {text!r}: give rules with commas between, as fa,bp, each once"
            )
        words[label] = word
    return words


def _rule(word: str) -> Any:
    """A rule in the form that an `Experiment` takes."""
    return read_yaml(word) if word.startswith("{") else word


def _rates(text: str) -> tuple[float, ...]:
    try:
        return tuple(sorted(float(word) for word in text.split(",")))
    except ValueError:
        raise UsageError(f"--rates {text}: expected numbers, as 0.01,0.03,0.1") from None


def _without(words: list[str], names: tuple[str, ...]) -> list[str]:
    """The options of a command, without some of them and their values."""
    kept: list[str] = []
    skip = False
    for word in words:
        if word.startswith("--"):
            skip = word[2:].partition("=")[0].replace("-", "_") in names
        if not skip:
            kept.append(word)
    return kept
