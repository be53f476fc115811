"""The verb ``apical verify``: some runs of a kept study trained again, and compared."""

from apical.bench.cli.parsing import add_trust, make_parser, parse


def verify(words: list[str]) -> int:
    """Returns: 1 if a rerun differs, else 0."""
    from collections import Counter
    from pathlib import Path

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
    found = verifying.verify(
        folder,
        minutes=values["minutes"],
        data_root=values["data_root"],
        trust=values["trust"],
        say=lambda text: print(text, flush=True),
    )
    counts = Counter(run["outcome"] for run in found["runs"])
    outcomes = [f"{counts[each]} {each}" for each in verified.OUTCOMES if counts[each]]
    print(", ".join(outcomes) or "no run fits the budget: give more --minutes")
    print(folder.resolve().parent / verified.FOLDER / f"{found['study']}.json")
    return 1 if counts[verified.DIFFERS] else 0
