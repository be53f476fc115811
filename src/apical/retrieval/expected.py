"""Average precision in the mean over all orders of items that tie."""

from __future__ import annotations

import torch
from torch import Tensor


def expected_precision(totals: Tensor, hits: Tensor, k: int) -> Tensor:
    """Expected average precision among the k nearest.

    A group of n items at one distance, r of them relevant, stands behind b items with R relevant
    ones. Its place i holds a relevant item with probability r / n, and then the expected precision
    there is (R + 1 + (i - 1)(r - 1) / (n - 1)) / (b + i). Where k cuts a group, the number of
    relevant items above the cut is hypergeometric, and so is the divisor.

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
