"""The command line: ``apical list | train | sweep | study | robustness | report | check``."""

import sys
from collections.abc import Callable, Sequence
from typing import Any

from apical.bench.cli.parsing import (
    UsageError,
    add_executor,
    add_experiment,
    add_keep_memory,
    execution_of,
    experiment_of,
    jobs_of,
    make_parser,
    parse,
)

USAGE = """usage: apical VERB [options]

Train networks with biologically motivated learning rules, and compare them.

  apical list                       show the names of studies, rules, nets and data sets
  apical train --rule fa            train one net; every setting is a flag
  apical sweep --lr 0.1,0.01        train once for every combination of values
  apical study smoke                do all runs behind a table; the same command resumes it
  apical robustness RUN_FOLDER      attack a trained net: worst case, verdict, sanity checks
  apical report runs/smoke --open   write the table and its figures as a page
  apical check my_module:MyRule     test a rule of your own against the contract

apical VERB --help explains the options of a verb."""

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status (0: all went well)."""
    words = list(sys.argv[1:] if argv is None else argv)
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
        print(f"apical {words[0]}: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        print(
            "\ninterrupted. Nothing is lost: the same command resumes at the last checkpoint",
            file=sys.stderr,
        )
        return INTERRUPTED


def _verb(name: str) -> Callable[[list[str]], int]:
    if name not in VERBS:
        from apical.names import unknown

        raise UsageError(str(unknown("verb", name, VERBS)))
    return VERBS[name]


def _list(words: list[str]) -> int:
    parser = make_parser(
        "list", "Show the names of studies, rules, learners, nets, data sets, tasks and attacks."
    )
    parse(parser, words)
    from apical import attacks, data, learners, nets, retrieval, rules
    from apical.bench import studies
    from apical.bench.experiment import optimizers
    from apical.data import sequences
    from apical.nets import memory

    _show("studies (apical study NAME)", {n: _summary(f) for n, f in studies.STUDIES.items()})
    _show("rules (--rule), also around one another, as sparse(kp), or package.module:Class",
          {n: _summary(type(r)) + _kind(r) for n, r in rules.RULES.items()})  # fmt: skip
    _show("nets (--net), or timm:NAME, torchvision:NAME, package.module:callable",
          {n: _summary(f) for n, f in nets.NETS.items()})  # fmt: skip
    _show("recurrent nets (--net, with --task)", {n: _summary(f) for n, f in nets.CELLS.items()})
    _show("nets with a memory (--net, with --task)",
          {n: _summary(f) for n, f in memory.NETS.items()})  # fmt: skip
    _show("tasks of sequences (--task, with --length)",
          {n: _summary(f) for n, f in sequences.TASKS.items()})  # fmt: skip
    _show("learners (--learner), or package.module:Class",
          {n: _summary(f) for n, f in learners.LEARNERS.items()})  # fmt: skip
    _show("losses of hash codes (--hashing.loss)",
          {n: _summary(f) for n, f in retrieval.LOSSES.items()})  # fmt: skip
    _show("data sets (--data)", {n: _summary(f) for n, f in data.DATA.items()})
    _show("optimizers (--optimizer), or package.module:Class",
          dict.fromkeys(optimizers.OPTIMIZERS, ""))  # fmt: skip
    _show("attacks (apical.attacks)", {n: _summary(f) for n, f in attacks.ATTACKS.items()})
    return 0


def _train(words: list[str]) -> int:
    from apical.bench.storage import claims
    from apical.bench.training import loop

    parser = make_parser("train", "Train one net. If it is killed, the same command resumes it.")
    parser.add_argument("--config", action="config", help="YAML file with any of the options")
    add_experiment(parser)
    parser.add_argument("--runs", default="runs", help="folder that holds all runs")
    parser.add_argument("--folder", default=None, type=str,
                        help="folder of this run (default: RUNS/train/NAME-KEY)")  # fmt: skip
    values = parse(parser, words)
    execution = execution_of(values)
    experiment = experiment_of(values)
    folder = values["folder"] or f"{values['runs']}/train/{experiment.name}"
    try:
        row = loop.run(experiment, folder, execution)
    except claims.Held as held:
        raise ValueError(str(held)) from held
    if not row:  # another process of the group reports
        return 0
    if row["kind"] == "stopped":
        where = f"epoch {row['epoch']}, step {row['step']}, at {row['where']}"
        print(f"stopped: {row['reason']} in {where}; a smaller --lr may help", file=sys.stderr)
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
    )
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
    parser.add_argument("--estimate", default=True, type=bool,
                        help="time a few steps first and print how long all will take")  # fmt: skip
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
    if values["estimate"]:
        sequences, extensions = conduct.left(study, folder)
        print(cost.estimate(sequences, execution, extensions).text(jobs), flush=True)
        if study.evaluations or study.retrievals:
            most = attack_cost.most(study, folder, execution)
            print(f"attacks on the trained nets: at most {most.told(jobs)}", flush=True)
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
    values = parse(parser, words)
    from apical.bench.report import write

    page = write(values["folder"])
    print(page)
    if values["open"]:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0


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


VERBS: dict[str, Callable[[list[str]], int]] = {
    "check": _check,
    "list": _list,
    "report": _report,
    "robustness": _robustness,
    "study": _study,
    "sweep": _sweep,
    "train": _train,
}


def _command(name: str, values: dict[str, Any]) -> str:
    """The command that regenerates a study, without options of this machine."""
    words = ["apical", "study", name]
    for option in ("tier", "seeds", "only"):
        if values[option] is not None:
            value = str(values[option])
            words += [f"--{option}", f"'{value}'" if " " in value else value]
    return " ".join(words)


def _show(title: str, rows: dict[str, str]) -> None:
    print(title)
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        print(f"  {name.ljust(width)}  {text}".rstrip())


def _kind(rule: Any) -> str:
    """The options by which a named rule differs from the others of its class."""
    from dataclasses import fields

    from apical.rules import RULES

    peers = [peer for peer in RULES.values() if type(peer) is type(rule)]
    values = {f.name: [getattr(peer, f.name) for peer in peers] for f in fields(rule)}
    kinds = [n for n, all_ in values.items() if isinstance(all_[0], str) and len(set(all_)) > 1]
    return "".join(f" {name}={getattr(rule, name)!r}" for name in kinds)


def _summary(found: Any) -> str:
    return (found.__doc__ or "").strip().split("\n")[0]
