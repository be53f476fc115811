"""From trials to the rows of a report: per query the strongest counts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from apical import retrieval
from apical.bench.evaluate.retrieval.evaluation import ATTACKS, NOISE, TARGETED, Evaluation
from apical.bench.evaluate.retrieval.searched import Searched
from apical.bench.evaluate.retrieval.trials import Queries, Trial, precision
from apical.measure import statistics

Row = dict[str, Any]
Values = Sequence[float]

BOTH = "both"
"""In the place of an attack: whichever of them is stronger, query by query."""


def report(
    net: Searched, asked: Queries, evaluation: Evaluation, trials: Sequence[Trial]
) -> list[Row]:
    """The rows, closed by one of kind ``end``. Means of average precision in [0, 1], with 95 % t
    intervals over queries.

    Kinds: ``clean``; ``attack``, each trial; ``map``, what is left by attack and source (``own``,
    ``exact``, ``transfer``; ``worst`` over everything tried at this radius and smaller ones);
    ``gap``, own minus exact on the same queries; ``targeted``, t-MAP by source.
    """
    clean = precision(net, asked.codes, asked.y)
    rows = [_clean(net, asked, evaluation, clean), *map(_attack, trials)]
    reached: Values = clean
    for eps in sorted(evaluation.eps):
        here = [trial for trial in trials if trial.eps == eps]
        sources = _sources(here)
        for attack in (*ATTACKS, BOTH):
            left = {s: _strongest(here, attack, s) for s in sources}
            if not net.feedback:
                left = {"own": left["exact"], **left}
            rows += [_mean("map", v, eps=eps, attack=attack, source=s) for s, v in left.items()]
            rows.append(_gap(eps, attack, left["own"], left["exact"]))
        harmful = [trial.precision for trial in here if trial.attack != TARGETED]
        reached = _least([reached, *harmful])
        rows.append(_mean("map", reached, eps=eps, attack=BOTH, source="worst"))
        rows += _targeted(net, here, eps)
    return [*rows, {"kind": "end"}]


def _clean(net: Searched, asked: Queries, evaluation: Evaluation, found: Values) -> Row:
    database, codes = net.database, asked.codes
    radius = min(2, codes.bits)
    return _mean("clean", found) | {
        "queries": len(found),
        "norm": evaluation.norm,
        "bits": codes.bits,
        "k": net.k,
        "database": len(database),
        "classes": len(database.labels.unique()),
        "constant_bits": len(database.codes.constant_bits()),
        "inverted_map": _average(precision(net, codes.inverted(), asked.y)),
        "target_map": _average(precision(net, codes, asked.targets)),
        "precision2": retrieval.precision_within(codes, asked.y, database, radius),
    }


def _attack(trial: Trial) -> Row:
    told = {"attack": trial.attack, "tanh": trial.tanh, "source": trial.source, "eps": trial.eps}
    seen = {"flipped": trial.flipped, "linf": trial.linf, "l2": trial.l2, "mse": trial.mse}
    return _mean("attack", trial.precision, **told) | seen


def _targeted(net: Searched, trials: Sequence[Trial], eps: float) -> list[Row]:
    aimed = [trial for trial in trials if trial.attack == TARGETED]
    found = {
        source: tuple(map(max, *(t.precision for t in aimed if _source(t) == source)))
        for source in _sources(aimed)
    }
    if not net.feedback:
        found = {"own": found["exact"], **found}
    return [_mean("targeted", values, eps=eps, source=source) for source, values in found.items()]


def _gap(eps: float, attack: str, own: Values, exact: Values) -> Row:
    apart = [a - b for a, b in zip(own, exact, strict=True)]
    return _interval("gap", apart) | {
        "eps": eps,
        "attack": attack,
        "own": _average(own),
        "exact": _average(exact),
    }


def _strongest(trials: Sequence[Trial], attack: str, source: str) -> Values:
    """Of several ways to make an attack, and of several nets to transfer from, the one that leaves
    least of a query."""
    meant = ATTACKS if attack == BOTH else (attack,)
    return _least([t.precision for t in trials if t.attack in meant and _source(t) == source])


def _least(found: Sequence[Values]) -> Values:
    return tuple(map(min, zip(*found, strict=True)))


def _sources(trials: Iterable[Trial]) -> list[str]:
    return list(dict.fromkeys(_source(t) for t in trials if t.attack != NOISE))


def _source(trial: Trial) -> str:
    return trial.source.partition(":")[0]


def _mean(kind: str, values: Values, **told: Any) -> Row:
    row = _interval(kind, values)
    bounds = {"low": max(row["low"], 0.0), "high": min(row["high"], 1.0)}
    return {"kind": kind, **told, "map": row["mean"], **bounds}


def _interval(kind: str, values: Values) -> Row:
    """A single query has no interval: its bounds are the value."""
    found = statistics.summarize(values)
    low, high = (found.mean if b is None else b for b in (found.low, found.high))
    return {"kind": kind, "mean": found.mean, "low": low, "high": high}


def _average(values: Values) -> float:
    return sum(values) / len(values)
