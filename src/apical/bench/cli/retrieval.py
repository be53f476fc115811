"""The command line: ``apical robustness`` of a hash net, and its table."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from apical.bench.evaluate.retrieval import Evaluation

Row = dict[str, Any]

SHOWN = (("HAG", "own"), ("HAG", "exact"), ("SDHA", "own"), ("SDHA", "exact"), ("both", "transfer"))


def search(
    run: str,
    evaluation: "Evaluation",
    transfer: Mapping[str, str],
    execution: Any,
    *,
    trust: bool = False,
) -> int:
    """Attack the retrieval of a hash net, print what is left, and leave the records in its folder.

    Args: transfer: folders of the hash nets to transfer attacks from, by name.
        trust: as of `load_run`.
    """
    from apical.bench.evaluate import retrieval
    from apical.bench.storage import claims

    where = {
        "device": execution.device,
        "data_root": execution.data_root,
        "download": execution.download,
        "trust": trust,
    }
    net = retrieval.from_run(run, **where)
    others = {name: retrieval.from_run(path, **where) for name, path in transfer.items()}
    digests = {name: other.net.digest for name, other in others.items()}
    path = Path(run)
    folder = retrieval.place(
        path.parent if path.is_file() else path, evaluation, net.net.digest, digests
    )
    try:
        rows = retrieval.evaluate(net, evaluation, folder, execution, surrogates=others)
    except claims.Held as held:
        raise ValueError(str(held)) from held
    print_rows(net.net.name, rows)
    print(folder)
    return 0


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """The rows of a report as a table: mAP in %, with 95 % intervals over queries."""
    import sys

    from rich.console import Console
    from rich.table import Table

    clean = rows[0]
    worst = {row["eps"]: row for row in rows if row.get("source") == "worst"}
    about = f"{title}: mAP in %, {clean['queries']} queries, {clean['bits']} bits, {clean['norm']}"
    table = Table(title=about, title_justify="left")
    for name in ("attack", *(f"eps {eps:.4g}" for eps in worst)):
        table.add_column(name, justify="left" if name == "attack" else "right", no_wrap=True)
    table.add_row("clean", *[_interval(clean)] * len(worst))
    for attack, source in SHOWN:
        found = [_find(rows, "map", eps, attack=attack, source=source) for eps in worst]
        if all(found):
            name = "made on the other nets" if source == "transfer" else f"{attack} / {source}"
            table.add_row(name, *map(_interval, found))
    table.add_row("[bold]worst case per query[/bold]", *map(_interval, worst.values()))
    table.add_section()
    for source in ("own", "exact"):
        found = [_find(rows, "targeted", eps, source=source) for eps in worst]
        table.add_row(f"targeted SDHA / {source}: t-MAP", *map(_interval, found))
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    for eps in worst:
        gap = _find(rows, "gap", eps, attack="both")
        print(
            f"own minus exact at eps {eps:.4g}: {100 * gap['mean']:+.1f} points "
            f"({100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"
        )


def _find(rows: Sequence[Row], kind: str, eps: float, **told: str) -> Row:
    for row in rows:
        same = (row["kind"], row.get("eps")) == (kind, eps)
        if same and all(row[key] == value for key, value in told.items()):
            return row
    return {}


def _interval(row: Row) -> str:
    return f"{100 * row['map']:.1f} ({100 * row['low']:.1f} to {100 * row['high']:.1f})"
