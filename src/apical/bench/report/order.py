"""The order of rules by test error, beside the published order."""

import itertools
import math
from collections.abc import Iterable, Sequence

from apical.bench.report.names import display_name
from apical.bench.report.table import Cell, number

FEWEST = 3
"""Rules of a setting with published values, below which an order says nothing."""


def told(rows: Iterable[Cell]) -> list[str]:
    """A sentence for each setting: rules from the best on, in both orders, and Kendall's tau-b.

    Orders of means: which neighbours are told apart is for the ties of the table to say.
    """
    compared = [row for row in rows if row.summary and row.published]
    settings = dict.fromkeys(row.setting for row in compared)
    found = {name: [row for row in compared if row.setting == name] for name in settings}
    return [
        _sentence(name if len(found) > 1 else "", of_setting)
        for name, of_setting in found.items()
        if len(of_setting) >= FEWEST
    ]


def _sentence(setting: str, rows: Sequence[Cell]) -> str:
    from scipy.stats import kendalltau

    ours = {row.rule: row.summary.mean for row in rows if row.summary}
    published = {row.rule: row.published.error for row in rows if row.published}
    tau = float(kendalltau(list(ours.values()), list(published.values())).statistic)
    agreement = "" if math.isnan(tau) else f" (Kendall's tau {tau:.2f})"
    where = f"{setting}, best" if setting else "Best"
    return f"{where} first: {_order(ours)}; published: {_order(published)}{agreement}."


def _order(errors: dict[str, float]) -> str:
    """Names by their errors, "=" between those that are printed alike."""
    ranked = sorted(errors, key=lambda rule: errors[rule])
    text = display_name(ranked[0])
    for before, rule in itertools.pairwise(ranked):
        same = number(errors[before]) == number(errors[rule])
        text += f" = {display_name(rule)}" if same else f", {display_name(rule)}"
    return text
