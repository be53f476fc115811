"""How a hash net is attacked, as a value."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from apical.attacks.ball import Norm
from apical.attacks.checks import check_eps
from apical.bench.experiment.experiment import KEY_DIGITS
from apical.bench.experiment.settings import differing
from apical.names import check_literals
from apical.retrieval.attacks.attack import SHARPNESS

VERSION = 2
"""Raised when a change of the attacks alters what an evaluation finds."""

TANHS: dict[str, tuple[float, ...]] = {"rising": SHARPNESS, "plain": (1.0,)}
"""How steep the tanh is that gradients are taken through, in the course of an attack: as published,
or always 1. Either may be the stronger one, so both are tried."""

ATTACKS = ("HAG", "SDHA")
"""Attacks that are to make retrieval worse. Targeted SDHA has another aim and stands apart."""
TARGETED = "SDHA targeted"
NOISE = "noise"


class Step(NamedTuple):
    """One attack by one source at one radius; `source` is "none" for noise."""

    attack: str
    tanh: str
    source: str
    eps: float


@dataclass(frozen=True)
class Evaluation:
    """What influences the outcome of an evaluation, beside the nets themselves.

    Args:
        eps: radii above 0, in units of pixels in [0, 1].
        norm: "linf" (largest change of one value) or "l2" (length of the change).
        queries: images of the test split, the same for every net; all, where it has fewer (>= 1).
        known: codes of the database that the attacker of SDHA knows, some of every class, the
            same for every net; all, where it has fewer (>= 1).
        steps: of each attack (>= 1).
        seed: of the noise and of the target labels.
    Raises: ValueError for a value out of range.
    """

    eps: tuple[float, ...] = (4 / 255, 8 / 255)
    norm: Norm = "linf"
    queries: int = 500
    known: int = 1000
    steps: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "eps", tuple(self.eps))
        check_literals(self, "retrieval")
        for eps in self.eps:
            check_eps("retrieval", eps, low=0.0, high=1.0, linf=self.norm == "linf")
        if not self.eps or len(set(self.eps)) < len(self.eps) or min(self.eps) == 0:
            raise ValueError(
                f"retrieval: eps={self.eps}; give at least one radius above 0, each once"
            )
        lowest = {"queries": 1, "known": 1, "steps": 1, "seed": 0}
        problems = [
            f"{name}={getattr(self, name)} must be at least {low}"
            for name, low in lowest.items()
            if getattr(self, name) < low
        ]
        if problems:
            raise ValueError("retrieval: " + "; ".join(problems))

    def key(self, net: str, surrogates: Mapping[str, str]) -> str:
        """Short hash of what influences the outcome. Args: digests of the nets, by name."""
        value = differing(self) | {"net": net, "surrogates": dict(surrogates), "version": VERSION}
        text = json.dumps(value, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:KEY_DIGITS]

    def steps_of(self, *, feedback: bool, surrogates: Sequence[str]) -> Iterator[Step]:
        """Everything that is tried.

        Args: feedback: whether the net has a gradient of its own, other than the exact one.
            surrogates: names of the nets that attacks are transferred from.
        """
        sources = ["own"] * feedback + ["exact", *(f"transfer:{name}" for name in surrogates)]
        for eps in sorted(self.eps):
            yield Step(NOISE, "", "none", eps)
            for attack in (*ATTACKS, TARGETED):
                for source in sources:
                    for tanh in TANHS:
                        yield Step(attack, tanh, source, eps)


def described(evaluation: Evaluation) -> dict[str, object]:
    """The fields as JSON gives them back."""
    return dict(json.loads(json.dumps(dataclasses.asdict(evaluation))))
