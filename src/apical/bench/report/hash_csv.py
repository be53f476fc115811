"""Every number of attacked retrieval in full precision, for spreadsheets and scripts."""

from collections.abc import Iterable, Mapping
from typing import Any

from apical.bench.report.hash_table import MEASURES, Section, lines, measures
from apical.bench.report.robust_csv import to_csv


def numbers(sections: Iterable[Section]) -> str:
    """mAP in %, differences in points: one row per rule, radius and column."""
    return to_csv(
        "setting rule eps value n mean low high interval_over",
        (row for section in sections for eps in section.radii for row in _numbers(section, eps)),
    )


def attacks(sections: Iterable[Section]) -> str:
    """One row per rule and attack, means over nets: mAP in [0, 1], share of turned bits, and how
    large the change is, in units of pixels in [0, 1]."""
    return to_csv(
        " ".join(("setting rule eps attack tanh source n map", *MEASURES)),
        (
            {"setting": section.heading, **row}
            for section in sections
            for rule in section.rules
            for eps in section.radii
            for row in measures(section, rule, eps)
        ),
    )


def _numbers(section: Section, eps: float) -> Iterable[Mapping[str, Any]]:
    for line in lines(section, eps):
        found: dict[str, Any] = {"clean": line.clean, **line.values, "own minus exact": line.gap}
        found |= {
            "clean minus BP": line.clean_minus_bp,
            "worst minus BP": line.worst_minus_bp,
        }
        for name, each in found.items():
            if each is not None:
                told = {"setting": section.heading, "rule": line.rule, "eps": eps, "value": name}
                numbers = {"n": each.n, "mean": each.mean, "low": each.low, "high": each.high}
                yield {**told, **numbers, "interval_over": each.over}
