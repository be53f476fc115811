"""What ``apical robustness`` prints: robust accuracies or retrieval of a net, gradient audits."""

import sys
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """The rows of a report as a table, with verdict and flagged checks.

    Accuracies are in % of all images, those misclassified from the start included.
    """
    from apical.bench.evaluate.robustbench import page

    (clean,) = _of(rows, "clean")
    worst = {row["eps"]: row for row in _of(rows, "worst")}
    gaps = {row["eps"]: row for row in _of(rows, "gap")}
    table = _table(
        f"{title}: robust accuracy in %, {clean['examples']} images, {clean['norm']}",
        ["attack", *(f"eps {eps:.4g}" for eps in worst)],
    )
    shown = (f"[bold]{_share(row['accuracy'])}[/bold] {_bounds(row)}" for row in worst.values())
    table.add_row("[bold]worst case per example[/bold] (95 % interval)", *shown)
    for name in ("own", "exact"):
        shares = (_share(gaps[eps][name]) for eps in worst)
        table.add_row(f"  the same attacks, {name} gradient", *shares)
    table.add_section()
    for name, by_eps in _attacks(rows).items():
        table.add_row(name, *(_share(by_eps.get(eps)) for eps in worst))
    table.add_section()
    table.add_row("clean", *[_share(clean["accuracy"])] * len(worst))
    _show(table)
    further = [r["attack"] for r in _of(rows, "attack") if r["on"] == "survivors"]
    print(f"worst case: all of these, and on what was left: {', '.join(dict.fromkeys(further))}")
    if pixels := [row for row in _of(rows, "attack") if row["group"] == "pixels"]:
        shares = (f"{row['eps']:.0f} px {_share(row['accuracy'])}" for row in pixels)
        print(f"few pixels ({pixels[0]['examples']} images): {', '.join(shares)}")
    (verdict,) = _of(rows, "verdict")
    print(f"verdict: {verdict['verdict'].upper()}")
    for reason in verdict["reasons"]:
        print(f"  {reason}")
    ran = [row for row in _of(rows, "check") if row.get("passed") is not None]
    flagged = [row for row in ran if not row["passed"]]
    print(f"sanity checks: {len(ran) - len(flagged)} of {len(ran)} passed")
    for row in flagged:
        print(f"  FLAGGED: {row['name']}: {row['detail']} ({page(row['name'])})")


def print_retrieval(title: str, rows: Sequence[Row]) -> None:
    """The rows of a hash net: mAP in %, with 95 % intervals over queries."""
    clean = rows[0]
    worst = {row["eps"]: row for row in rows if row.get("source") == "worst"}
    about = f"{title}: mAP in %, {clean['queries']} queries, 95 % intervals, {clean['bits']} bits, "
    about += clean["norm"]
    table = _table(about, ["attack", *(f"eps {eps:.4g}" for eps in worst)])

    def add(name: str, found: Sequence[Row]) -> None:
        if found:
            table.add_row(name, *(f"{_share(row['map'])} {_bounds(row)}" for row in found))

    add("clean", [clean] * len(worst))
    left = [row for row in _of(rows, "map") if row["source"] != "worst"]
    for attack, source in dict.fromkeys((row["attack"], row["source"]) for row in left):
        name = f"{attack} / {source}"
        if source == "transfer":
            if attack != "any":
                continue
            name = "made on the other nets"
        add(name, [row for row in left if (row["attack"], row["source"]) == (attack, source)])
    add("[bold]worst case per query[/bold]", list(worst.values()))
    table.add_section()
    for source in ("own", "exact"):
        aimed = [row for row in _of(rows, "targeted") if row["source"] == source]
        add(f"targeted / {source}: t-MAP", aimed)
    _show(table)
    for gap in (row for row in _of(rows, "gap") if row["attack"] == "any"):
        print(
            f"own minus exact at eps {gap['eps']:.4g}: {100 * gap['mean']:+.1f} points "
            f"(95 % interval {100 * gap['low']:+.1f} to {100 * gap['high']:+.1f})"
        )


def print_audits(rows: Sequence[Row]) -> None:
    table = _table(
        f"gradient audit, {rows[0]['examples']} images, {rows[0]['loss']} loss",
        ["source", "verdict", "raises the loss", "cosine to exact", "to differences", "zero"],
    )
    for row in rows:
        table.add_row(
            row["source"],
            row["verdict"],
            _share(row.get("rising")) + " %",
            *(f"{row[name]:.2f}" if name in row else "" for name in ("cosine", "agreement")),
            _share(row["zero"]) + " %",
        )
    _show(table)
    for row in rows:
        print(f"{row['source']}: " + "; ".join(row["reasons"]))


def _attacks(rows: Sequence[Row]) -> dict[str, dict[float, float]]:
    """Accuracies of what attacked all examples, by name and radius."""
    found: dict[str, dict[float, float]] = {}
    for row in _of(rows, "attack"):
        if row["on"] == "all" and row["role"] != "large" and row["group"] != "pixels":
            paper = " (protocol)" if row["role"] == "published" else ""
            name = f"{row['attack']} / {row['source']}{paper}"
            found.setdefault(name, {})[row["eps"]] = row["accuracy"]
    return found


def _of(rows: Sequence[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _bounds(row: Row) -> str:
    return f"({_share(row['low'])} to {_share(row['high'])})"


def _table(title: str, columns: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    return table


def _show(table: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120).print(table)
