"""Verbs with few options: ``apical check``, ``export``, ``report`` and ``verify``."""

import sys
from collections import Counter
from pathlib import Path

from apical.bench.cli.parsing import add_trust, make_parser, parse, say


def check(words: list[str]) -> int:
    """Test a learning rule against the contract."""
    parser = make_parser("check", "Run the tests that every rule must pass.", "RULE")
    parser.add_argument("rule", help="a name, or package.module:Name of a rule class or object")
    values = parse(parser, words)
    from apical import check_rule, rules

    print(check_rule(rules.build(values["rule"])))
    return 0


def export(words: list[str]) -> int:
    """Write the weights of a trained net under the keys of the plain net."""
    parser = make_parser(
        "export",
        "Write the weights of a finished run, under the keys of the plain net, without feedback.",
        "RUN FILE",
    )
    parser.add_argument("run", help="folder of a finished run, or its checkpoint")
    parser.add_argument("file", help="FILE.safetensors (needs safetensors) or FILE.pt")
    add_trust(parser)
    values = parse(parser, words)
    from apical.bench.evaluate.trained_net import export as write

    names = write(values["run"], values["file"], trust=values["trust"])
    print(f"{len(names)} tensors, {names[0]} to {names[-1]}: {values['file']}")
    return 0


def report(words: list[str]) -> int:
    """Write the page of a folder, and print its path."""
    parser = make_parser(
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
    values = parse(parser, words)
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
    """Train some runs of a kept study again; returns 1 if a rerun differs, else 0."""
    parser = make_parser(
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
    add_trust(parser)
    values = parse(parser, words)
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
        say=say,
    )
    counts = Counter(run["outcome"] for run in result["runs"])
    outcomes = [f"{counts[each]} {each}" for each in verified.OUTCOMES if counts[each]]
    print(", ".join(outcomes) or "no run fits the budget: give more --minutes")
    print(folder.resolve().parent / verified.FILE)
    return 1 if counts[verified.DIFFERS] else 0
