"""What ``apical robustness`` prints: the robust accuracies of a net, and its gradient audits."""

import sys
from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """The rows of a report as a table, with verdict and flagged checks.

    Accuracies are in % of all images, those misclassified from the start included.
    """
    clean = _one(rows, "clean")
    budgets = [row["eps"] for row in _of(rows, "worst")]
    table = _table(
        f"{title}: robust accuracy in %, {clean['examples']} images, {clean['norm']}",
        ["attack", *(f"eps {eps:.4g}" for eps in budgets)],
    )
    worst = {row["eps"]: row for row in _of(rows, "worst")}
    table.add_row("[bold]worst case per example[/bold]", *(_interval(worst[e]) for e in budgets))
    gaps = {row["eps"]: row for row in _of(rows, "gap")}
    table.add_row("  the same attacks, own gradient", *(_share(gaps[e]["own"]) for e in budgets))
    table.add_row(
        "  the same attacks, exact gradient", *(_share(gaps[e]["exact"]) for e in budgets)
    )
    table.add_section()
    for name, by_eps in _attacks(rows).items():
        table.add_row(name, *(_share(by_eps.get(eps)) for eps in budgets))
    table.add_section()
    table.add_row("clean", *[_share(clean["accuracy"])] * len(budgets))
    _show(table)
    further = [r["attack"] for r in _of(rows, "attack") if r["on"] == "survivors"]
    print(f"worst case: all of these, and on what was left: {', '.join(dict.fromkeys(further))}")
    if pixels := [row for row in _of(rows, "attack") if row["group"] == "pixels"]:
        told = ", ".join(f"{row['eps']:.0f} px {_share(row['accuracy'])}" for row in pixels)
        print(f"few pixels ({pixels[0]['examples']} images): {told}")
    _print_verdict(rows)


def _print_verdict(rows: Sequence[Row]) -> None:
    verdict = _one(rows, "verdict")
    print(f"verdict: {verdict['verdict'].upper()}")
    for reason in verdict["reasons"]:
        print(f"  {reason}")
    checks = _of(rows, "check")
    flagged = [row for row in checks if row.get("passed") is False]
    ran = [row for row in checks if row.get("passed") is not None]
    print(f"sanity checks: {len(ran) - len(flagged)} of {len(ran)} passed")
    for row in flagged:
        print(f"  FLAGGED: {row['name']}: {row['detail']}")


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
            _number(row.get("cosine")),
            _number(row.get("agreement")),
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


def _one(rows: Sequence[Row], kind: str) -> Row:
    (row,) = _of(rows, kind)
    return row


def _share(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _interval(row: Row) -> str:
    bounds = f"({_share(row['low'])} to {_share(row['high'])})"
    return f"[bold]{_share(row['accuracy'])}[/bold] {bounds}"


def _table(title: str, columns: Sequence[str]) -> Any:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for place, name in enumerate(columns):
        table.add_column(name, justify="right" if place else "left", no_wrap=True)
    return table


def _show(table: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 120).print(table)
