"""The tables of recorded step times, in Markdown, between markers of the documents.

    python benchmarks/speed_page.py docs/results.md docs/speed.md

`<!-- step-times -->` becomes the summary, one column a net; `<!-- step-times:all -->` every table
with its control, targets and BioTorch. Both end at `<!-- end -->`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from expected import KP, target
from step_time import rows

RECORDED = Path(__file__).resolve().parent.parent / "results" / "step_time.json"
COMMAND = "python benchmarks/step_time.py --out results/step_time.json"
MARKER = re.compile(r"<!-- step-times(?P<all>:all)? -->\n.*?<!-- end -->", flags=re.S)
SHOWN = ("fa", "usf", "frsf", "brsf", "brsf pool", KP, "dfa full", "dfa kernel")
"""The rules that have targets, in the order of the summary."""


def main(files: Iterable[str]) -> None:
    recorded = json.loads(RECORDED.read_text())
    for file in files:
        path = Path(file)
        path.write_text(refreshed(path.read_text(), recorded))


def refreshed(text: str, recorded: Mapping[str, Any]) -> str:
    """The text with its marked tables replaced."""

    def block(match: re.Match[str]) -> str:
        opening = match[0].partition("\n")[0]
        made = every_table(recorded) if match["all"] else summary(recorded)
        return f"{opening}\n{made}<!-- end -->"

    return MARKER.sub(block, text)


def summary(recorded: Mapping[str, Any]) -> str:
    """Ratios on one thread, without compilation: a line for each rule, a column for each net."""
    tables = [t for t in _valid(recorded) if t["threads"] == 1 and not t["compiled"]]
    head = ["step over backprop", *(table["title"].split(",")[0] for table in tables)]
    lines = [_line(head), "|---|" + "---:|" * len(tables)]
    for rule in SHOWN:
        lines.append(_line([rule, *(_ratio(table, rule) for table in tables)]))
    worst = max(table["control_off"] for table in tables)
    note = (
        f"One thread, {tables[0]['rounds']} rounds of interleaved steps in one process; each table"
        " has a second copy of backprop as its control, off by at most"
        f" {100 * worst:.1f} %. In brackets the target where it is missed. KP trains its feedback"
        " matrices too; here without the optimizer's own work on them."
    )
    return "\n".join(lines) + f"\n\n{note} Regenerate: `{COMMAND}`.\n"


def every_table(recorded: Mapping[str, Any]) -> str:
    """All tables, also of several threads and compiled, with times and memory."""
    parts = []
    for table in recorded["tables"]:
        threads = "1 thread" if table["threads"] == 1 else f"{table['threads']} threads"
        mode = ", compiled on both sides" if table["compiled"] else ""
        state = "**Rejected.** " if table["rejected"] else ""
        parts.append(
            f"## {table['title']}, {threads}{mode}\n\n{state}{table['clock']} time,"
            f" {table['rounds']} rounds, control off by {100 * table['control_off']:.1f} %.\n"
        )
        head, *lines = rows(table)
        parts.append(
            "\n".join([_line(head), "|---|" + "---:|" * (len(head) - 1), *map(_line, lines)]) + "\n"
        )
    machine = recorded["environment"]
    note = (
        f"Torch {machine['torch']}, {machine['cpu']}, {machine['cores']} cores. Regenerate:"
        f" `{COMMAND}`, with `--threads 2` or `--compile` for the others."
    )
    return "\n".join([*parts, note + "\n"])


def _valid(recorded: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [table for table in recorded["tables"] if not table["rejected"]]


def _ratio(table: Mapping[str, Any], rule: str) -> str:
    row = table["rules"].get(rule)
    if row is None:
        return ""
    ratio = row[f"{table['clock']}_ratio"]
    limit = target(table["net"], rule, compiled=table["compiled"])
    missed = limit is not None and ratio > limit
    return f"{ratio:.2f}" + (f" ({limit:.2f})" if missed else "")


def _line(texts: Iterable[str]) -> str:
    return "| " + " | ".join(text.replace("|", "\\|") for text in texts) + " |"


if __name__ == "__main__":
    main(sys.argv[1:])
