"""The rows of an evaluation as RobustBench has its entries: claimed and re-measured values."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from apical.bench.evaluate.robustness import Evaluation
from apical.measure.robustness_verdict import radius

Row = Mapping[str, Any]

THREATS = {"linf": "Linf", "l2": "L2", "l1": "L1", "flips": "flips"}
PAGE = "docs/robustness_flags.md"
"""What each flag means, a section for each."""


def entries(
    name: str,
    setting: Mapping[str, Any],
    rows: Sequence[Row],
    claimed: Mapping[float, float] | None = None,
) -> list[dict[str, Any]]:
    """One entry for each radius, in the form of RobustBench's `model_info/DATA/THREAT/NAME.json`.

    Accuracies are texts in %, as there. `reported` is what was claimed; without a claim it is what
    attacks by the net's own gradient leave, the protocol of earlier studies of such rules.
    `external` is what was re-measured: the worst case per example over everything tried.
    `autoattack_acc` is null: AutoAttack was not run. `unreliable`: the claim is not what
    was re-measured, it lies above the interval of the worst case.

    Args: setting: as ``setting.json`` of the evaluation has it. claimed: robust accuracy in % by
        radius.
    Raises: ValueError for a claim at a radius that was not evaluated, or outside 0 to 100.
    """
    one = {row["kind"]: row for row in rows}
    worst = {row["eps"]: row for row in rows if row["kind"] == "worst"}
    own = {row["eps"]: row["own"] for row in rows if row["kind"] == "gap"}
    claims = dict(claimed or {})
    if stray := [eps for eps in claims if eps not in worst]:
        radii = ", ".join(map(radius, worst))
        raise ValueError(f"claimed: radius {radius(stray[0])} was not evaluated, only {radii}")
    if wrong := [value for value in claims.values() if not 0 <= value <= 100]:
        raise ValueError(f"claimed: {wrong[0]} is no accuracy in %")
    made = []
    for eps, row in worst.items():
        reported = claims.get(eps, 100 * own[eps])
        made.append(
            {
                "name": name,
                "dataset": setting.get("data"),
                "threat": THREATS[one["clean"]["norm"]],
                "eps": radius(eps),
                "clean_acc": _percent(100 * one["clean"]["accuracy"]),
                "reported": _percent(reported),
                "reported_by": "claim" if eps in claims else "attacks by the own gradient",
                "autoattack_acc": None,
                "external": _percent(100 * row["accuracy"]),
                "external_interval": [_percent(100 * row[key]) for key in ("low", "high")],
                "external_by": "apical robustness: worst case over everything tried",
                "unreliable": reported > 100 * row["high"],
                "examples": one["clean"]["examples"],
                "verdict": one["verdict"]["verdict"],
                "footnote": "; ".join(one["verdict"]["reasons"]),
                "flags": [
                    {"name": r["name"], "detail": r["detail"], "page": page(r["name"])}
                    for r in rows
                    if r["kind"] == "check" and r.get("passed") is False
                ],
                "settings": {
                    k: setting[k] for k in Evaluation.__dataclass_fields__ if k in setting
                },
            }
        )
    return made


def page(flag: str) -> str:
    """Where a flag is explained.

    >>> page("no attack left its ball")
    'docs/robustness_flags.md#no-attack-left-its-ball'
    """
    return f"{PAGE}#{re.sub(r'[^a-z0-9]+', '-', flag.lower()).strip('-')}"


def _percent(value: float) -> str:
    return f"{value:.2f}"
