"""Verbs with few options: ``apical check``, ``export``, ``list``, ``report`` and ``verify``."""

import inspect
import re
import sys
import textwrap
from collections import Counter
from pathlib import Path
from typing import Any

from apical.bench.cli import parsing
from apical.names import from_path, unknown

KINDS = {
    "attacks": "of apical.attacks",
    "data": "--data NAME, folder:PATH or package.module:function",
    "learners": "--learner NAME or package.module:Class",
    "losses": "--hashing.loss NAME, of hash codes",
    "nets": "--net NAME, timm:NAME, torchvision:NAME or package.module:callable",
    "optimizers": "--optimizer NAME or package.module:Class",
    "recurrent": "--net NAME, with --task: recurrent nets, transformers, nets with a memory",
    "rules": "--rule NAME, sparse(NAME), quantised(NAME) or package.module:Class;\n"
    "  W: weights of a layer, B: its feedback matrix, e: error at the output of the net",
    "studies": "apical study NAME",
    "tasks": "--task NAME, with --length: sequences",
}

TABLES: dict[str, tuple[str, ...]] = {
    "attacks": ("apical.attacks:ATTACKS",),
    "data": ("apical.data:DATA",),
    "learners": ("apical.learners:LEARNERS",),
    "losses": ("apical.retrieval:LOSSES",),
    "nets": ("apical.nets:NETS",),
    "optimizers": ("apical.bench.experiment.optimizers:OPTIMIZERS",),
    "recurrent": ("apical.nets:CELLS", "apical.nets:TRANSFORMERS", "apical.nets.memory:NETS"),
    "rules": ("apical.rules:RULES",),
    "studies": ("apical.bench.studies:STUDIES",),
    "tasks": ("apical.data.sequences:TASKS",),
}

VARIANTS = {
    "aa": "Activation alignment: B learns to respond to the layer's input as W does.",
    "brsf": "Sign symmetry: the signs of W, random magnitudes resampled after every update.",
    "frsf": "Sign symmetry: the signs of W, random magnitudes that never change.",
    "ia": "Information alignment: B learns to reconstruct the layer's input from its output.",
    "sa": "Symmetric alignment: B is trained towards W by a loss of the layer.",
    "usf": "Sign symmetry: the signs of W, one magnitude for the whole layer.",
}
"""How rules of one class differ, where the docstring says what they share."""


def check(words: list[str]) -> int:
    """Test a learning rule against the contract."""
    parser = parsing.make_parser("check", "Run the tests that every rule must pass.", "RULE")
    parser.add_argument("rule", help="a name, or package.module:Name of a rule class or object")
    values = parsing.parse(parser, words)
    from apical import check_rule, rules

    print(check_rule(rules.build(values["rule"])))
    return 0


def export(words: list[str]) -> int:
    """Write the weights of a trained net under the keys of the plain net."""
    parser = parsing.make_parser(
        "export",
        "Write the weights of a finished run, under the keys of the plain net, without feedback.",
        "RUN FILE",
    )
    parser.add_argument("run", help="folder of a finished run, or its checkpoint")
    parser.add_argument("file", help="FILE.safetensors (needs safetensors) or FILE.pt")
    parsing.add_trust(parser)
    values = parsing.parse(parser, words)
    from apical.bench.evaluate.trained_net import export as write

    names = write(values["run"], values["file"], trust=values["trust"])
    print(f"{len(names)} tensors, {names[0]} to {names[-1]}: {values['file']}")
    return 0


def show(words: list[str]) -> int:
    """Print the names of one kind with a line each, or those of all kinds."""
    parser = parsing.make_parser("list", "Show the names of a kind, and what each is.", "[KIND]")
    about = f"one of {', '.join(KINDS)}; absent: the names of all"
    parser.add_argument("kind", nargs="?", default=None, type=str, help=about)
    kind = parsing.parse(parser, words)["kind"]
    if kind is None:
        for name, how in KINDS.items():
            print(f"{name}  ({how})")
            print(textwrap.fill(", ".join(_table(name)), 100, initial_indent="  ",
                                subsequent_indent="  ", break_on_hyphens=False))  # fmt: skip
        print("\napical list KIND says what each is, as: apical list rules")
        return 0
    if kind not in KINDS:
        raise parsing.UsageError(str(unknown("kind", kind, KINDS)))
    rows = _table(kind)
    print(f"{kind}  ({KINDS[kind]})")
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        lines = textwrap.wrap(text, 96 - width, break_on_hyphens=False) or [""]
        for place, line in enumerate(lines):
            print(f"  {'' if place else name:<{width}}  {line}".rstrip())
    return 0


def report(words: list[str]) -> int:
    """Write the page of a folder, and print its path."""
    parser = parsing.make_parser(
        "report",
        "Write the page, tables and figures of a study or a run from its folder.",
        "FOLDER",
    )
    parser.add_argument("folder", help="folder of a study or a run, or of several")
    about = "folder to write to (default: FOLDER/report)"
    parser.add_argument("--out", default=None, type=str, help=about)
    parser.add_argument("--open", default=False, action="store_true", help="open it in a browser")
    about = "also write every figure as a PNG file, for print"
    parser.add_argument("--png", default=False, action="store_true", help=about)
    values = parsing.parse(parser, words)
    from apical.bench.report import write

    def progress(text: str) -> None:
        if sys.stderr.isatty():
            print(f"{text} ...", file=sys.stderr, flush=True)

    page = write(values["folder"], values["out"], png=values["png"], say=progress)
    print(page)
    if values["open"]:
        import webbrowser

        webbrowser.open(page.resolve().as_uri())
    return 0


def verify(words: list[str]) -> int:
    """Train some runs of a kept study again; returns 1 if a rerun differs, or none could be
    compared, else 0."""
    parser = parsing.make_parser(
        "verify",
        "Train a sample of a study's runs again and compare them with their records: same bits, "
        "same within tolerance (the standard deviation that the test set alone gives the test "
        "error), differs, or not comparable.",
        "STUDY",
    )
    parser.add_argument("study", help="folder of the study, or its name in --results")
    parser.add_argument("--minutes", default=5.0, type=float,
                        help="budget: recorded training time of the sample")  # fmt: skip
    parser.add_argument("--results", default="results", help="folder of the kept studies")
    parser.add_argument("--data_root", default=None, type=str,
                        help="folder of data sets (else APICAL_DATA, the cache)")  # fmt: skip
    parsing.add_trust(parser)
    values = parsing.parse(parser, words)
    from apical.bench.report import verified
    from apical.bench.studies import verify as verifying

    folder = Path(values["study"])
    if not folder.is_dir():
        folder = Path(values["results"]) / values["study"]
    result = verifying.verify(
        folder,
        minutes=values["minutes"],
        data_root=values["data_root"],
        trust=values["trust"],
        say=parsing.say,
    )
    counts = Counter(run["outcome"] for run in result["runs"])
    outcomes = [f"{counts[each]} {each}" for each in verified.OUTCOMES if counts[each]]
    print(", ".join(outcomes))
    print(folder.resolve().parent / verified.FILE)
    return int(counts[verified.DIFFERS] > 0 or counts.keys() == {verified.NOT_COMPARABLE})


def _table(kind: str) -> dict[str, str]:
    """What each name of a kind is, in a line."""
    tables = [from_path(path, "table") for path in TABLES[kind]]
    objects = {name: value for table in tables for name, value in table.items()}
    if kind == "optimizers":
        return dict.fromkeys(objects, "")
    if kind == "rules":
        objects = {name: type(rule) for name, rule in objects.items()}
        return {name: VARIANTS.get(name) or _summary(rule) for name, rule in objects.items()}
    return {name: _summary(value) for name, value in objects.items()}


def _summary(documented: Any) -> str:
    """The first sentence of a docstring."""
    paragraph = (inspect.getdoc(documented) or "").partition("\n\n")[0]
    return re.split(r"(?<=\S\.)\s(?=[A-Z])", " ".join(paragraph.split()))[0]
