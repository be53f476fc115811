"""One attack on all queries, and what it leaves of their retrieval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from apical import attacks, retrieval
from apical.bench.evaluate.retrieval.evaluation import NOISE, TANHS, TARGETED, Evaluation, Step
from apical.bench.evaluate.retrieval.searched import Searched

DIGITS = 5
"""Decimals of an average precision in a record."""


@dataclass(frozen=True)
class Trial:
    """What came of one step.

    Attributes: precision: average precision of each query, in [0, 1]; with the target labels in
        the place of the true ones where the attack is targeted. flipped: share of the bits that
        turned, mean over queries. linf, l2, mse: perceptibility.
    """

    attack: str
    tanh: str
    source: str
    eps: float
    precision: tuple[float, ...]
    flipped: float
    linf: float
    l2: float
    mse: float

    @property
    def step(self) -> Step:
        return Step(self.attack, self.tanh, self.source, self.eps)

    def record(self) -> dict[str, Any]:
        return asdict(self) | {"precision": list(self.precision)}

    @classmethod
    def read(cls, row: Mapping[str, Any]) -> Trial:
        """A trial from its record."""
        values = {name: row[name] for name in cls.__dataclass_fields__}
        return cls(**values | {"precision": tuple(row["precision"])})


@dataclass(frozen=True, eq=False)
class Queries:
    """What is searched for. Attributes: targets: labels that a targeted attack aims at."""

    x: Tensor
    y: Tensor
    targets: Tensor
    codes: retrieval.Codes


def queries(net: Searched, evaluation: Evaluation, device: str) -> Queries:
    """The queries of an evaluation. The target of each is a random class of the database but its
    own."""
    x, y = net.net.examples(evaluation.queries, device)
    classes = net.database.labels.unique()
    if len(classes) < 2:
        raise ValueError(
            "the database holds one class only: a ranking cannot distinguish anything in it"
        )
    generator = torch.Generator().manual_seed(evaluation.seed)
    shift = torch.randint(1, len(classes), (len(y),), generator=generator)
    own = torch.searchsorted(classes, y.cpu()).clamp(max=len(classes) - 1)
    targets = classes[(own + shift) % len(classes)].to(y)
    return Queries(x, y, targets, retrieval.encode(net.net.model, x))


def run(
    net: Searched,
    step: Step,
    asked: Queries,
    evaluation: Evaluation,
    others: Mapping[str, Searched],
) -> Trial:
    """Attack all queries, and search with what came of them."""
    x = points(net, step, asked, evaluation, others)
    codes = retrieval.encode(net.net.model, x)
    labels = asked.targets if step.attack == TARGETED else asked.y
    seen = retrieval.perceptibility(asked.x, x)
    turned = retrieval.pairwise_distances(codes, asked.codes).double().mean().item()
    return Trial(
        *step,
        precision=precision(net, codes, labels),
        flipped=turned / codes.bits,
        linf=seen.linf,
        l2=seen.l2,
        mse=seen.mse,
    )


def precision(net: Searched, codes: retrieval.Codes, labels: Tensor) -> tuple[float, ...]:
    """Average precision of each query, ties at their mean."""
    found = retrieval.average_precision(codes, labels, net.database, k=net.k, ties="expected")
    return tuple(round(value, DIGITS) for value in found.tolist())


def points(
    net: Searched,
    step: Step,
    asked: Queries,
    evaluation: Evaluation,
    others: Mapping[str, Searched],
) -> Tensor:
    """The attacked queries."""
    common: dict[str, Any] = {"eps": step.eps, "norm": evaluation.norm}
    if step.attack == NOISE:
        noise = attacks.Noise(**common, seed=evaluation.seed)
        return noise(net.net.model, asked.x, torch.zeros_like(asked.y))  # it asks for no labels
    common |= {"steps": evaluation.steps, "sharpness": TANHS[step.tanh]}
    kind, _, name = step.source.partition(":")
    attacked = others[name] if kind == "transfer" else net
    attack: retrieval.RetrievalAttack
    if step.attack == "HAG":
        attack = retrieval.HAG(**common)
    else:
        known = attacked.known(evaluation.known)
        attack = retrieval.SDHA(**common, database=known, targeted=step.attack == TARGETED)
    labels = asked.targets if step.attack == TARGETED else asked.y
    gradient = "exact" if kind == "transfer" else kind
    # bits of two nets mean different things: a transferred attack is made on the other net alone
    return attack(attacked.net.model, asked.x, labels, gradient=gradient)
