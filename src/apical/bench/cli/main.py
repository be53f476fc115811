"""The command line: ``apical VERB``; a verb with more than a few options has a file of its own."""

import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from apical.bench.cli.parsing import (
    UsageError,
    add_estimate,
    add_executor,
    add_experiment,
    add_keep_memory,
    add_trust,
    as_flags,
    execution_of,
    experiment_of,
    jobs_of,
    make_parser,
    parse,
    parse_settings,
)

USAGE = """usage: apical VERB [options]

Train networks with biologically motivated learning rules, and compare them.

  apical list rules                 show the rules; also nets, data, studies, ...
  apical train --rule fa            train one net; every setting is a flag
  apical tune --rule fa,bp          choose a learning rate for each rule
  apical sweep --lr 0.1,0.01        train once for every combination of values
  apical study smoke                do all runs behind a table; the same command resumes it
  apical verify results/smoke       train some of its runs again: the same bits?
  apical robustness RUN_FOLDER      attack a trained net: worst case, verdict, sanity checks
  apical report runs/smoke --open   write the table and its figures as a page
  apical export RUN_FOLDER net.pt   write the weights of a trained net for plain PyTorch
  apical check my_module:MyRule     test a rule of your own against the contract

apical VERB --help explains the options of a verb."""

DEFECT = 70
"""Exit status after an unforeseen error (EX_SOFTWARE of sysexits.h)."""

ESSENTIAL = ("data", "net", "net_options", "rule", "epochs", "lr", "batch_size", "optimizer",
             "validation", "seed", "device", "config", "folder")  # fmt: skip
"""Options of ``apical train`` that its short help shows."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status (0: all went well)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # a command, not a call from Python: no file and line of the library
        warnings.formatwarning = lambda message, *place, **line: f"warning: {message}\n"
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        from apical import __version__

        print(f"apical {__version__}")
        return 0
    try:
        return _verb(words[0])(words[1:])
    except BrokenPipeError:  # the reader of the output, as ``head``, has closed it
        sys.stderr.close()
        return 0
    except (ValueError, OSError) as error:
        print(f"apical {words[0]}: {_in_words(error)}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print(
            "\ninterrupted. Nothing is lost: the same command resumes at the last checkpoint",
            file=sys.stderr,
        )
        return INTERRUPTED
    except Exception as error:  # a defect of ours, or of a package that we call
        print(f"apical {words[0]}: {_defect(error)}", file=sys.stderr)
        return DEFECT


def _in_words(error: Exception) -> str:
    """An error as one reads it; Python's own errors of files by file and reason."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        from pathlib import Path

        from apical.bench.storage.records import WHY

        why = WHY.get(error.errno, error.strerror)
        return f"{Path(os.fsdecode(error.filename))}: {why}"
    return str(error) or type(error).__name__


def _defect(error: Exception) -> str:
    """One line about an unforeseen error; its traceback goes to a file."""
    import tempfile
    import traceback

    first = " ".join((str(error).splitlines() or [""])[0].split())
    text = f"unexpected {type(error).__name__}{': ' if first else ''}{first:.200}"
    try:
        handle, path = tempfile.mkstemp(prefix="apical-traceback-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{text} (its traceback could not be written)"
    return f"{text}. Its traceback is in {path}; please report it with your command"


def _verb(name: str) -> Callable[[list[str]], int]:
    if name not in VERBS:
        from apical.names import unknown

        raise UsageError(str(unknown("verb", name, VERBS)))
    return VERBS[name]


def _list(words: list[str]) -> int:
    from apical.bench.cli.listing import show

    return show(words)


def _export(words: list[str]) -> int:
    from apical.bench.cli.export import export

    return export(words)


def _tune(words: list[str]) -> int:
    from apical.bench.cli.tune import tune

    return tune(words)


def _train(words: list[str]) -> int:
    from pathlib import Path

    from apical.bench.experiment.execution import Execution
    from apical.bench.storage import claims, run_folder
    from apical.bench.training import loop

    about = "Train one net. If it is killed, the same command resumes it."
    parser = make_parser("train", about, essential=ESSENTIAL)
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    (printing,) = (action for action in parser._actions if action.dest == "print_config")
    printing.help = "print all settings as a YAML file for --config, and train nothing"
    printing.metavar = ""
    add_experiment(parser)
    parser.add_class_arguments(Execution, None)
    parser.add_argument("--runs", default="runs", help="folder that holds all runs")
    parser.add_argument("--folder", default=None, type=str,
                        help="folder of this run (default: RUNS/train/NAME-KEY)")  # fmt: skip
    about = "if it is finished, remove its results and train once more"
    parser.add_argument("--again", default=False, action="store_true", help=about)
    add_keep_memory(parser)
    add_trust(parser)
    values = parse_settings(parser, words)
    execution = execution_of(values)
    experiment = experiment_of(values)
    folder = Path(values["folder"] or f"{values['runs']}/train/{experiment.name}")
    try:
        run_folder.check(folder, experiment)
        if run_folder.end(folder) is not None:
            if values["again"]:
                run_folder.renew(folder)
            else:
                day = run_folder.finished_on(folder)
                print(f"finished on {day}; nothing was run (--again to repeat)")
        row = loop.run(experiment, folder, execution)
    except claims.Held as held:
        raise ValueError(str(held)) from held
    except ValueError as error:
        raise ValueError(as_flags(str(error))) from error
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
            found = f"accuracy {row[f'{split}_acc']:.2%}"
            if f"{split}_map" in row:
                found = (
                    f"mAP {row[f'{split}_map']:.2%}, nearest item right {row[f'{split}_acc']:.2%}"
                )
            print(f"{split} {found}, loss {row[f'{split}_loss']:.4f}")
    print(f"{row['seconds']:.1f} s, {row['step_ms']:.2f} ms a step")
    print(folder)
    return 0


def _study(words: list[str]) -> int:
    from pathlib import Path

    from apical.bench import studies
    from apical.bench.experiment.execution import Execution
    from apical.bench.studies import attack_cost, conduct, cost

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
    execution = execution_of(values)
    study = studies.build(values["name"], tier=values["tier"], seeds=values["seeds"])
    study = study.restricted(values["only"])
    jobs = jobs_of(values)
    root, folder = Path(values["runs"]), Path(values["runs"]) / study.folder
    print(f"{study.title}, tier {study.tier}: {len(study.entries)} runs in {folder}", flush=True)
    if values["dry_run"]:
        conduct.check(study, folder)
        print("\n".join(conduct.outline(study, folder)), flush=True)
    if values["estimate"]:
        sequences, extensions = conduct.left(study, folder)
        print(cost.estimate(sequences, execution, extensions).text(jobs), flush=True)
        if study.evaluations:
            most = attack_cost.most(study, folder, execution)
            print(f"attacks on the trained nets: at most {most.told(jobs)}", flush=True)
    if values["dry_run"]:
        print("nothing was started (--dry-run)")
        return 0
    outcome = conduct.conduct(
        study,
        root,
        execution,
        command=_command(values["name"], values),
        executor=values["executor"],
        options=values["executor_options"],
        jobs=jobs,
        say=lambda text: print(text, flush=True),
    )
    print(f"{len(outcome.finished)} runs finished, {len(outcome.failed)} failed")
    print(f"apical report {folder} --open    shows the table")
    return 1 if outcome.failed else 0


def _report(words: list[str]) -> int:
    parser = make_parser(
        "report",
        "Write the page, tables and figures of a study or a run from its folder.",
        "FOLDER",
    )
    parser.add_argument("folder", help="folder of a study or a run, or of several")
    parser.add_argument("--open", default=False, action="store_true", help="open it in a browser")
    about = "also write every figure as a PNG file, for print"
    parser.add_argument("--png", default=False, action="store_true", help=about)
    values = parse(parser, words)
    from apical.bench.report import write

    page = write(values["folder"], png=values["png"], say=_progress)
    print(page)
    if values["open"]:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0


def _progress(text: str) -> None:
    """What is being done, on standard error, where somebody looks."""
    if sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr, flush=True)


def _check(words: list[str]) -> int:
    parser = make_parser("check", "Test a learning rule: everything a rule must satisfy.", "RULE")
    parser.add_argument("rule", help="a name, or package.module:Name of a rule class or object")
    values = parse(parser, words)
    from apical import check_rule, rules

    print(check_rule(rules.build(values["rule"])))
    return 0


def _sweep(words: list[str]) -> int:
    from apical.bench.cli.sweep import sweep

    return sweep(words)


def _robustness(words: list[str]) -> int:
    from apical.bench.cli.robustness import robustness

    return robustness(words)


def _verify(words: list[str]) -> int:
    from apical.bench.cli.verify import verify

    return verify(words)


VERBS: dict[str, Callable[[list[str]], int]] = {
    "check": _check,
    "export": _export,
    "list": _list,
    "report": _report,
    "robustness": _robustness,
    "study": _study,
    "sweep": _sweep,
    "train": _train,
    "tune": _tune,
    "verify": _verify,
}


def _command(name: str, values: dict[str, Any]) -> str:
    """The command that regenerates a study, without options of this machine."""
    words = ["apical", "study", name]
    for option in ("tier", "seeds", "only"):
        if values[option] is not None:
            value = str(values[option])
            words += [f"--{option}", f"'{value}'" if " " in value else value]
    return " ".join(words)
