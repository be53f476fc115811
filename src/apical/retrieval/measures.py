"""How good a retrieval is. An attacked query keeps its true labels; the database is clean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from apical.retrieval.codes import Codes
from apical.retrieval.database import Database, check_labels, relevant
from apical.retrieval.expected import expected_precision
from apical.retrieval.ranking import blocks, check_k, rankings

Ties = Literal["stable", "expected"]


@dataclass(frozen=True)
class PrecisionRecall:
    """Means over queries at each Hamming radius 0 to K. Shapes: (K + 1,) float64 each.

    precision: of a query that finds nothing within the radius, 0. recall: over the queries for
    which the database holds a relevant item.
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

    The mean, over the relevant items among the k nearest, of the precision at the item's rank; a
    query with none there has 0. The divisor is the number of relevant items among the k, not in
    the database (DeepHash's convention).

    Args:
        labels: of the queries, as those of the database.
        k: 1 to N; None: all.
        ties: codes at the same distance, of which there are many: "stable" in the order of the
            database, the same on every machine; "expected" the mean over all orders of ties,
            which does not depend on how the database is sorted.

    Shapes: (Q,) float64.
    Raises: ValueError for k outside the database, or labels that do not fit.
    """
    check_k(k, len(database))
    _check_queries(queries, labels)
    if ties == "expected":
        found = list(_histograms(queries, labels, database))
        return torch.cat([expected_precision(*h, k or len(database)) for h in found])
    if ties != "stable":
        raise ValueError(f"ties={ties!r} is not one of 'stable', 'expected'")
    result = torch.zeros(len(queries), dtype=torch.float64)
    for rows, order in rankings(queries, database.codes, k=k):
        result[rows] = _of_rankings(_hits(labels[rows], database.labels, order))
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

    With the labels that a targeted attack aims at in the place of the true ones it is t-MAP, the
    higher the stronger the attack.
    """
    return average_precision(queries, labels, database, k=k, ties=ties).mean().item()


def precision_recall(queries: Codes, labels: Tensor, database: Database) -> PrecisionRecall:
    """Precision and recall of everything within a Hamming radius, for each radius 0 to K.

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
    """Mean precision of what lies within a Hamming radius of a query; finding nothing counts 0.

    Args: radius: 0 to K.
    """
    _check_queries(queries, labels)
    if not 0 <= radius <= queries.bits:
        raise ValueError(f"radius={radius} must be 0 to {queries.bits}, the number of bits")
    parts = [
        hits[:, : radius + 1].sum(1).double() / totals[:, : radius + 1].sum(1).clamp(min=1)
        for totals, hits in _histograms(queries, labels, database)
    ]
    return torch.cat(parts).mean().item()


def _histograms(
    queries: Codes, labels: Tensor, database: Database
) -> Iterator[tuple[Tensor, Tensor]]:
    """How many items, and how many relevant ones, lie at each distance: (q, K + 1) int64 each."""
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
    """Whether what stands at each rank is relevant. Shapes: order (q, k) -> (q, k) bool."""
    if labels.dim() == 1:
        return others[order] == labels.cpu()[:, None]
    return relevant(labels.cpu(), others).gather(1, order)


def _of_rankings(hits: Tensor) -> Tensor:
    ranks = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64)
    precision = hits.cumsum(1) / ranks
    return (precision * hits).sum(1) / hits.sum(1).clamp(min=1)


def _check_queries(queries: Codes, labels: Tensor) -> None:
    if not len(queries):
        raise ValueError("no queries")
    check_labels(labels, len(queries))
