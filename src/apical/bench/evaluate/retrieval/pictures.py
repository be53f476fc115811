"""A few queries, what attacks make of them, and what is found with either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from apical import retrieval
from apical.bench.evaluate.retrieval.evaluation import ATTACKS, Evaluation, Step
from apical.bench.evaluate.retrieval.searched import Searched
from apical.bench.evaluate.retrieval.trials import Queries, Trial, points, precision

SHOWN, NEAREST = 4, 8
"""Queries, the first of each class in their order, and items found by each."""


def pictures(
    net: Searched, asked: Queries, evaluation: Evaluation, trials: Sequence[Trial]
) -> dict[str, Any]:
    """Arrays: x (q, C, H, W), labels (q,), names (s,) as "attack / source", eps, adv
    (s, q, C, H, W), and of the clean queries and each attack: precision (1 + s, q), found
    (1 + s, q, n, C, H, W) in uint8, found_labels (1 + s, q, n).

    Shown is, by each gradient, the attack that leaves least over all queries at the largest radius.
    """
    chosen = _chosen(asked.y)
    few = Queries(asked.x[chosen], asked.y[chosen], asked.targets[chosen], asked.codes[chosen])
    steps = _strongest(evaluation, trials)
    adv = [points(net, step, few, evaluation, {}) for step in steps.values()]
    codes = [few.codes, *(retrieval.encode(net.net.model, x) for x in adv)]
    nearest = min(NEAREST, len(net.database))
    orders = [retrieval.rank(each, net.database.codes, k=nearest) for each in codes]
    return {
        "x": few.x.cpu().numpy(),
        "labels": few.y.cpu().numpy(),
        "names": [f"{step.attack} / {source}" for source, step in steps.items()],
        "eps": max(evaluation.eps),
        "adv": torch.stack(adv).cpu().numpy(),
        "precision": [precision(net, each, few.y) for each in codes],
        "found": torch.stack([_images(net, order) for order in orders]).cpu().numpy(),
        "found_labels": torch.stack([net.database.labels[o] for o in orders]).numpy(),
    }


def _chosen(labels: Tensor) -> Tensor:
    first: dict[int, int] = {}
    for place, label in enumerate(labels.tolist()):
        first.setdefault(label, place)
    return torch.tensor(sorted(first.values())[:SHOWN])


def _strongest(evaluation: Evaluation, trials: Sequence[Trial]) -> Mapping[str, Step]:
    """By gradient the step that leaves least; a net without feedback has the exact one alone."""
    found = {}
    for source in ("own", "exact"):
        tried = [
            t
            for t in trials
            if (t.source, t.eps) == (source, max(evaluation.eps)) and t.attack in ATTACKS
        ]
        if tried:
            found[source] = min(tried, key=lambda t: sum(t.precision)).step
    return found


def _images(net: Searched, order: Tensor) -> Tensor:
    """Shapes: order (q, n) places in the database -> (q, n, C, H, W) uint8."""
    flat = order.flatten()
    parts = [images for images, _ in net.images.split.batches([flat.to(net.images.device)])]
    return torch.cat(parts).unflatten(0, order.shape)
