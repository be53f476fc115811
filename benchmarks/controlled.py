"""Whether a table of ratios is valid, and the options and headline that all such tables share.

Every benchmark of times measures a second copy of its base as a control. Its ratio must be 1; the
difference is the error of the whole table, and beyond ALLOWED_ERROR the table is rejected: it is
still shown and recorded, with a mark, so that no document uses it.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ALLOWED_ERROR = 0.03
"""Largest error of the control."""


def verdict(control: Mapping[str, float], clock: str = "cpu") -> dict[str, Any]:
    """The error of a table by its control, whether it is rejected, and the machine's load."""
    off = abs(control[f"{clock}_ratio"] - 1)
    return {
        "control_off": round(off, 4),
        "rejected": off > ALLOWED_ERROR,
        "load_average": round(os.getloadavg()[0], 2),
    }


def headline(title: str, table: Mapping[str, Any]) -> str:
    """The line above a printed table."""
    state = "REJECTED: " if table["rejected"] else ""
    return (
        f"{title}, {table['rounds']} rounds: {state}control off by"
        f" {100 * table['control_off']:.1f} % (allowed {100 * ALLOWED_ERROR:.0f}),"
        f" load {table['load_average']}"
    )


def parser(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """The command line of a benchmark of times, with the options that all of them have."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rounds", type=at_least_one, default=rounds, help=f"default: {rounds}")
    made.add_argument("--out", type=Path, help="JSON file to write")
    return made


def at_least_one(text: str) -> int:
    """The type of an option that counts something."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be a whole number of at least 1")
    return int(text)
