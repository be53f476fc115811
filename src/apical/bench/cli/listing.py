"""The command line: ``apical list``."""

import textwrap
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from apical.bench.cli.parsing import UsageError, make_parser, parse

KINDS = {
    "attacks": "of apical.attacks",
    "data": "--data NAME, folder:PATH or package.module:function",
    "learners": "--learner NAME or package.module:Class",
    "losses": "--hashing.loss NAME, of hash codes",
    "nets": "--net NAME, timm:NAME, torchvision:NAME or package.module:callable",
    "optimizers": "--optimizer NAME or package.module:Class",
    "recurrent": "--net NAME, with --task: recurrent nets, transformers, nets with a memory",
    "rules": "--rule NAME, also around one another, as sparse(kp), or package.module:Class",
    "studies": "apical study NAME",
    "tasks": "--task NAME, with --length: sequences",
}


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
        from apical.names import unknown

        raise UsageError(str(unknown("kind", kind, KINDS)))
    rows = _table(kind)
    print(f"{kind}  ({KINDS[kind]})")
    width = max(map(len, rows), default=0)
    for name, text in rows.items():
        print(f"  {name.ljust(width)}  {text}".rstrip())
    return 0


def _table(kind: str) -> dict[str, str]:
    """What each name of a kind is, in a line."""
    tables: dict[str, Any] = {}
    if kind == "rules":
        from apical.rules import RULES

        return {name: _summary(type(rule)) + _options(rule) for name, rule in RULES.items()}
    if kind == "optimizers":
        from apical.bench.experiment.optimizers import OPTIMIZERS

        return dict.fromkeys(OPTIMIZERS, "")
    if kind == "studies":
        from apical.bench.studies import STUDIES as tables
    elif kind == "nets":
        from apical.nets import NETS as tables
    elif kind == "recurrent":
        from apical.nets import CELLS, TRANSFORMERS, memory

        tables = {**CELLS, **TRANSFORMERS, **memory.NETS}
    elif kind == "tasks":
        from apical.data.sequences import TASKS as tables
    elif kind == "learners":
        from apical.learners import LEARNERS as tables
    elif kind == "losses":
        from apical.retrieval import LOSSES as tables
    elif kind == "data":
        from apical.data import DATA as tables
    elif kind == "attacks":
        from apical.attacks import ATTACKS as tables
    found: Mapping[str, Any] = tables
    return {name: _summary(value) for name, value in found.items()}


def _options(rule: Any) -> str:
    """The options by which a named rule differs from the others of its class."""
    from apical.rules import RULES

    peers = [peer for peer in RULES.values() if type(peer) is type(rule)]
    values = {f.name: [getattr(peer, f.name) for peer in peers] for f in fields(rule)}
    kinds = [n for n, all_ in values.items() if isinstance(all_[0], str) and len(set(all_)) > 1]
    return "".join(f" {name}={getattr(rule, name)!r}" for name in kinds)


def _summary(found: Any) -> str:
    return (found.__doc__ or "").strip().split("\n")[0]
