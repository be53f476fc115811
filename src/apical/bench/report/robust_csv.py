"""Every number of a robustness report in full precision, for spreadsheets and scripts."""

import csv
import io
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from apical.bench.report.escape import for_spreadsheet
from apical.bench.report.robust_read import Evaluation
from apical.bench.report.robust_section import Section
from apical.bench.report.robust_table import headlines_of_rule, verdict

ATTACK = ("eps", "group", "attack", "source", "role")
"""Keys that tell one attack of an evaluation from another."""


def numbers(sections: Iterable[Section]) -> str:
    """Accuracies in %, differences in points: one row per rule, attack and radius."""
    return to_csv(
        "setting norm images rule eps group attack source role n mean low high interval_over",
        (row for section in sections for rule in section.rules for row in _numbers(section, rule)),
    )


def checks(sections: Iterable[Section]) -> str:
    """One row per net and sanity check; `passed` is empty where a check was not run."""
    keys = ("name", "passed", "detail")
    return to_csv("setting rule seed name passed detail", _of_nets(sections, "check", keys))


def audits(sections: Iterable[Section]) -> str:
    """One row per net: its audit, beside the verdict on its rule."""
    measured = "examples rising rising_low rising_high cosine agreement slope_ratio zero zero_loss"
    keys = (*measured.split(), "saturated", "largest_score", "repeat", "verdict")
    rows = (
        {**row, "rule_verdict": verdict(section, row["rule"]).word}
        for section in sections
        for row in _of_nets([section], "audit", keys)
    )
    return to_csv(" ".join(("setting rule seed", *keys, "rule_verdict")), rows)


def _numbers(section: Section, rule: str) -> list[dict[str, Any]]:
    head = {"setting": section.heading, "norm": section.norm, "images": section.images}
    made: list[dict[str, Any]] = []

    def add(found: Any, **names: Any) -> None:
        values = {"n": found.n, "mean": found.mean, "low": found.low, "high": found.high}
        made.append({**head, "rule": rule, **names, **values, "interval_over": found.over})

    add(section.estimate(rule, lambda each: each.clean["accuracy"]), eps=0.0, group="clean")
    nets = section.of(rule).values()
    for names, images in {k: v[1] for net in nets for k, v in _attacks(net).items()}.items():
        share = section.estimate(rule, partial(_accuracy, names=names), images)
        add(share, **dict(zip(ATTACK, names, strict=True)), images=images)
    for line in headlines_of_rule(section, rule):
        add(line.own, eps=line.eps, group="own, worst case", source="own")
        add(line.exact, eps=line.eps, group="exact, worst case", source="exact")
        add(line.worst, eps=line.eps, group="worst case")
        add(line.gap, eps=line.eps, group="own minus exact")
        if line.against_bp:
            add(line.against_bp, eps=line.eps, group="worst case minus BP")
    return made


def _attacks(net: Evaluation) -> dict[tuple[Any, ...], tuple[float, int]]:
    """Robust accuracy under each attack that ran on all images, and how many these were."""
    rows = [row for row in net.of_kind("attack") if row["on"] == "all"]
    return {
        tuple(row[key] for key in ATTACK): (row["accuracy"], row.get("examples", net.images))
        for row in rows
    }


def _accuracy(net: Evaluation, *, names: tuple[Any, ...]) -> float | None:
    return _attacks(net).get(names, (None,))[0]


def _of_nets(
    sections: Iterable[Section], kind: str, keys: tuple[str, ...]
) -> Iterable[dict[str, Any]]:
    for section in sections:
        for net in section.evaluations:
            for row in net.of_kind(kind):
                names = {"setting": section.heading, "rule": net.rule, "seed": net.seed}
                yield names | {key: row.get(key) for key in keys}


def to_csv(columns: str, rows: Iterable[Mapping[str, Any]]) -> str:
    """Rows under these columns, separated by spaces."""
    out = io.StringIO()
    writer = csv.DictWriter(out, columns.split(), lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow(
            {key: for_spreadsheet(v) if isinstance(v, str) else v for key, v in row.items()}
        )
    return out.getvalue()
