"""The command line: ``apical VERB``."""

import importlib
import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path

from apical.bench.cli.parsing import UsageError
from apical.names import unknown

USAGE = """usage: apical VERB [options]

Train networks with biologically motivated learning rules, and compare them.

  apical list rules                 show the rules; also nets, data, studies, ...
  apical train --rule fa            train one net; every setting is a flag
  apical resume RUN_FOLDER          go on with a run that was killed, as the same command does
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

INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

VERBS = {
    "check": "apical.bench.cli.verbs:check",
    "export": "apical.bench.cli.verbs:export",
    "list": "apical.bench.cli.listing:show",
    "report": "apical.bench.cli.verbs:report",
    "resume": "apical.bench.cli.train:resume",
    "robustness": "apical.bench.cli.robustness:robustness",
    "study": "apical.bench.cli.study:study",
    "sweep": "apical.bench.cli.sweep:sweep",
    "train": "apical.bench.cli.train:train",
    "tune": "apical.bench.cli.study:tune",
    "verify": "apical.bench.cli.verbs:verify",
}
"""What does each verb: a function of the words after it that returns the exit status."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns its exit status (0: all went well)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if argv is None:  # a command, not a call from Python: no file and line of the library
        warnings.formatwarning = lambda message, *place, **line: f"warning: {message}\n"
    if words[:1] == ["help"] and len(words) == 2:  # as git has it
        words = [words[1], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(USAGE)
        return 0 if words else 2
    if words[0] == "--version":
        from apical import __version__

        print(f"apical {__version__}")
        return 0
    try:
        if words[0] not in VERBS:
            raise UsageError(str(unknown("verb", words[0], VERBS)))
        module, _, function = VERBS[words[0]].partition(":")
        return getattr(importlib.import_module(module), function)(words[1:])
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
        from apical.bench.storage.records import WHY

        why = WHY.get(error.errno, error.strerror)
        return f"{Path(os.fsdecode(error.filename))}: {why}"
    return str(error) or type(error).__name__


def _defect(error: Exception) -> str:
    """One line about an unforeseen error; its traceback goes to a file."""
    first = " ".join((str(error).splitlines() or [""])[0].split())
    text = f"unexpected {type(error).__name__}{': ' if first else ''}{first:.200}"
    try:
        handle, path = tempfile.mkstemp(prefix="apical-traceback-", suffix=".txt")
        with open(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write("".join(traceback.format_exception(error)))
    except OSError:
        return f"{text} (its traceback could not be written)"
    return f"{text}. Its traceback is in {path}; please report it with your command"
