"""Measures of retrieval. An attacked query keeps its true labels; the database is clean."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from apical.retrieval.codes import Codes
from apical.retrieval.database import Database, check_labels, relevant
from apical.retrieval.ranking import blocks, check_k, rankings

Ties = Literal["stable", "expected"]


@dataclass(frozen=True)
class PrecisionRecall:
    """Means over queries at each Hamming radius 0 to K. Shapes: (K + 1,) float64 each.

    precision: 0 for a query without any item within the radius. recall: over the queries for which
    the database has a relevant item.
    """

    precision: Tensor
    recall: Tensor


def average_precision(
    queries: Codes,
    labels: Tensor,
    database: Database,
    *,
    k: int | None = None,
    ties: Ties = "stable",
) -> Tensor:
    """Average precision of each query among its k nearest.

    The mean, over the relevant items among the k nearest, of the precision at the item's rank; 0
    for a query without any. The divisor is the number of relevant items among the k, not in the
    database (DeepHash's convention).

    Args:
        labels: of the queries, in the form of those of the database.
        k: 1 to N; None: all.
        ties: items at the same distance, of which there are many: "stable": in the order of the
            database, the same on every machine; "expected": the mean over all orders of ties, which
            does not depend on the order of the database.

    Shapes: (Q,) float64.
    Raises: ValueError for k outside the database, or labels that do not fit.
    """
    check_k(k, len(database))
    _check_queries(queries, labels)
    if ties == "expected":
        found = list(_histograms(queries, labels, database))
        return torch.cat([_expected_precision(*h, k or len(database)) for h in found])
    if ties != "stable":
        raise ValueError(f"ties={ties!r} is not one of 'stable', 'expected'")
    result = torch.zeros(len(queries), dtype=torch.float64)
    for rows, order in rankings(queries, database.codes, k=k):
        hits = _hits(labels[rows], database.labels, order)
        precision = hits.cumsum(1) / torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
        result[rows] = (precision * hits).sum(1) / hits.sum(1).clamp(min=1)
    return result


def mean_average_precision(
    queries: Codes,
    labels: Tensor,
    database: Database,
    *,
    k: int | None = None,
    ties: Ties = "stable",
) -> float:
    """mAP@k: the mean of `average_precision` over queries, in [0, 1].

    With the target labels of a targeted attack in place of the true ones it is t-MAP, which is the
    higher the stronger the attack.
    """
    return average_precision(queries, labels, database, k=k, ties=ties).mean().item()


def precision_recall(queries: Codes, labels: Tensor, database: Database) -> PrecisionRecall:
    """Precision and recall of all items within a Hamming radius, for each radius 0 to K.

    Raises: ValueError if no query has a relevant item in the database.
    """
    _check_queries(queries, labels)
    totals, hits = map(torch.cat, zip(*_histograms(queries, labels, database), strict=True))
    found, right = totals.cumsum(1).double(), hits.cumsum(1).double()
    sought = right[:, -1] > 0
    if not sought.any():
        raise ValueError("no query shares a label with any item of the database")
    recall = right[sought] / right[sought, -1:]
    return PrecisionRecall((right / found.clamp(min=1)).mean(0), recall.mean(0))


def precision_within(queries: Codes, labels: Tensor, database: Database, radius: int = 2) -> float:
    """Mean precision of the items within a Hamming radius of a query; 0 for a query without any.

    Args: radius: 0 to K.
    """
    _check_queries(queries, labels)
    if not (isinstance(radius, int) and 0 <= radius <= queries.bits):
        raise ValueError(f"radius={radius} must be 0 to {queries.bits}, the number of bits")
    parts = [
        hits[:, : radius + 1].sum(1).double() / totals[:, : radius + 1].sum(1).clamp(min=1)
        for totals, hits in _histograms(queries, labels, database)
    ]
    return torch.cat(parts).mean().item()


def _histograms(
    queries: Codes, labels: Tensor, database: Database
) -> Iterator[tuple[Tensor, Tensor]]:
    """The numbers of items and of relevant items at each distance: (q, K + 1) int64 each."""
    radii = queries.bits + 1
    for rows, block in blocks(queries, database.codes):
        right = relevant(labels[rows].cpu(), database.labels).numpy()
        counts = [
            (np.bincount(d, minlength=radii), np.bincount(d[r], minlength=radii))
            for d, r in zip(block, right, strict=True)
        ]
        totals, hits = zip(*counts, strict=True)
        yield torch.from_numpy(np.stack(totals)), torch.from_numpy(np.stack(hits))


def _hits(labels: Tensor, others: Tensor, order: Tensor) -> Tensor:
    """Whether the item at each rank is relevant. Shapes: order (q, k) -> (q, k) bool."""
    if labels.dim() == 1:
        return others[order] == labels.cpu()[:, None]
    return relevant(labels.cpu(), others).gather(1, order)


def _check_queries(queries: Codes, labels: Tensor) -> None:
    if not len(queries):
        raise ValueError("no queries")
    check_labels(labels, len(queries))


def _expected_precision(totals: Tensor, hits: Tensor, k: int) -> Tensor:
    """Expected average precision among the k nearest, over all orders of items at one distance.

    A group of n items at one distance, r of them relevant, comes after b items with R relevant
    ones. Its position i has a relevant item with probability r / n, and then the expected precision
    there is (R + 1 + (i - 1)(r - 1) / (n - 1)) / (b + i). If k divides a group, the number of
    relevant items before the division is hypergeometric, and the divisor depends on it.

    Args: totals, hits: items and relevant items at each distance. k: 1 to the sum of totals.
    Shapes: totals, hits (Q, distances) int64 -> (Q,) float64.
    Source: McSherry, Najork 2008, who divide by all relevant items; here by those among the k.
    """
    harmonic = torch.zeros(int(totals.sum(1).max()) + 1, dtype=torch.float64)
    harmonic[1:] = (1 / torch.arange(1, len(harmonic), dtype=torch.float64)).cumsum(0)
    before, found = totals.cumsum(1) - totals, hits.cumsum(1) - hits
    whole = before + totals <= k
    sums = _group_sum(totals, hits, before, found, harmonic)
    sums = (sums * whole).sum(1)
    right = (hits * whole).sum(1)
    result = sums / right.clamp(min=1)
    for query in (~whole & (before < k)).any(1).nonzero().flatten().tolist():
        group = int(whole[query].sum())  # whole groups come first: the next is the cut one
        n, r, b = (int(t[query, group]) for t in (totals, hits, before))
        above = k - b
        m = torch.arange(max(0, above - (n - r)), min(r, above) + 1)
        ends = torch.full_like(m, above), m, torch.full_like(m, b), right[query].expand(len(m))
        each = (sums[query] + _group_sum(*ends, harmonic)) / (right[query] + m).clamp(min=1)
        result[query] = (_hypergeometric(m, n, r, above) * each).sum()
    return result


def _group_sum(n: Tensor, r: Tensor, before: Tensor, found: Tensor, harmonic: Tensor) -> Tensor:
    """Expected sum of precisions at the relevant items of groups; 0 for empty groups."""
    reciprocals = harmonic[before + n] - harmonic[before]  # sum of 1 / (before + i)
    rising = n - (before + 1) * reciprocals  # sum of (i - 1) / (before + i)
    share = (r - 1).double() / (n - 1).clamp(min=1)
    return r.double() / n.clamp(min=1) * ((found + 1) * reciprocals + share * rising)


def _hypergeometric(m: Tensor, n: int, r: int, drawn: int) -> Tensor:
    """Probability of m relevant ones among `drawn` of n items, r of which are relevant."""

    def log_choose(a: Tensor, b: Tensor) -> Tensor:
        return torch.lgamma(a + 1) - torch.lgamma(b + 1) - torch.lgamma(a - b + 1)

    m, of, right, taken = (torch.as_tensor(v, dtype=torch.float64) for v in (m, n, r, drawn))
    ways = log_choose(right, m) + log_choose(of - right, taken - m)
    return (ways - log_choose(of, taken)).exp()
