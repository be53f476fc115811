"""The command line: ``apical list``."""

import inspect
import re
import textwrap
from typing import Any

from apical.bench.cli.parsing import UsageError, make_parser, parse
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


def show(words: list[str]) -> int:
    """Print the names of one kind with a line each, or those of all kinds."""
    parser = make_parser("list", "Show the names of a kind, and what each is.", "[KIND]")
    about = f"one of {', '.join(KINDS)}; absent: the names of all"
    parser.add_argument("kind", nargs="?", default=None, type=str, help=about)
    kind = parse(parser, words)["kind"]
    if kind is None:
        for name, how in KINDS.items():
            print(f"{name}  ({how})")
            print(textwrap.fill(", ".join(_table(name)), 100, initial_indent="  ",
                                subsequent_indent="  ", break_on_hyphens=False))  # fmt: skip
        print("\napical list KIND says what each is, as: apical list rules")
        return 0
    if kind not in KINDS:
        raise UsageError(str(unknown("kind", kind, KINDS)))
    rows = _table(kind)
    print(f"{kind}  ({KINDS[kind]})")
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        lines = textwrap.wrap(text, 96 - width, break_on_hyphens=False) or [""]
        for place, line in enumerate(lines):
            print(f"  {'' if place else name:<{width}}  {line}".rstrip())
    return 0


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
