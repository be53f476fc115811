"""Which attacks a robustness report runs, in which order."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from apical.attacks.apgd import APGD
from apical.attacks.ball import Threat
from apical.attacks.base import Attack
from apical.attacks.fab import FAB
from apical.attacks.flips import Flips, GreedyFlips, RandomFlips
from apical.attacks.names import source
from apical.attacks.noise import Noise
from apical.attacks.protocols import Protocol
from apical.attacks.sanity import allowance
from apical.attacks.sources import Exact, From, NoGradient, Own, OwnAveraged, RuleGradient, Source
from apical.attacks.square import Square
from apical.attacks.steps import FGSM, PGD
from apical.attacks.trials import Group, Step, Trial
from apical.attacks.wrappers import Transfer
from apical.names import check_literals

FIRST_QUERIES, FIRST_BOUNDARY_STEPS = 1000, 25
"""What the black box and FAB begin with, after everything else: where nothing falls to that, the
rest of a larger budget is not spent."""
FINISH = 20
"""Candidates from which the last of several flips is chosen."""
MOST_STEPS = 16
"""How many times the steps of PGD are tried where doubling them still breaks examples."""


@dataclass(frozen=True)
class Effort:
    """How much is spent. The defaults are those of the literature, but for fewer Square queries.

    Args:
        steps: of PGD, doubled for one of the checks until that breaks next to none (>= 1).
        restarts: of PGD by the exact gradient (>= 1).
        adaptive_steps: of APGD, 0 to leave it out.
        adaptive_restarts: of APGD (>= 1).
        boundary_steps: of FAB, which steps to the decision boundary; 0 to leave it out. Those
            beyond 25 are made where 25 break an example that nothing else broke.
        queries: of the black box, Square or greedy flips; 0 to leave it out. Those of Square beyond
            1000 are made where 1000 break an example that nothing else broke.
        redraws: of random feedback (>= 1).
        noise: the control: "uniform" in the ball, or "sign", +-eps for every value ("linf" only).
    """

    steps: int = 20
    restarts: int = 1
    adaptive_steps: int = 50
    adaptive_restarts: int = 1
    boundary_steps: int = 0
    queries: int = 1000
    redraws: int = 10
    noise: Literal["sign", "uniform"] = "uniform"

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "adaptive_restarts", "redraws"):
            if getattr(self, name) < 1:
                raise ValueError(f"Effort: {name}={getattr(self, name)} must be at least 1")
        if min(self.adaptive_steps, self.boundary_steps, self.queries) < 0:
            raise ValueError("Effort: adaptive_steps, boundary_steps and queries are at least 0")
        check_literals(self, "Effort")

    @classmethod
    def high(cls) -> Effort:
        """The budgets of AutoAttack's standard version, and attacks that it does not run; FAB and
        Square go on to their whole budgets where their first part breaks an example."""
        return cls(steps=40, restarts=5, adaptive_steps=100, boundary_steps=100, queries=5000)


@dataclass(frozen=True)
class Setting:
    """What the steps depend on in addition to the radius."""

    norm: Threat
    bounds: tuple[float, float]
    seed: int
    effort: Effort
    classes: int
    images: bool
    has_feedback: bool
    random_feedback: bool
    rules: Sequence[str]
    surrogates: Mapping[str, nn.Module]
    extra: Callable[[float], Sequence[Attack]] | None
    protocol: Protocol | None
    random_scores: bool = False

    @property
    def stop(self) -> bool:
        """Whether attacks end at the first misclassified point. Where scores are random it may owe
        that to chance."""
        return not self.random_scores


def planned(budgets: Sequence[float], s: Setting, values: int) -> list[Step]:
    """Everything, in order. Args: budgets: radii or numbers of flips, rising. values: numbers in
    one input."""
    if s.norm == "flips":
        return [*(step for eps in budgets for step in flips(eps, s)), all_flips(values // 2, s)]
    found = [step for eps in budgets for step in steps(eps, s)]
    if s.protocol and s.images:
        found += s.protocol.pixel_steps(seed=s.seed, bounds=s.bounds)
    widest = (s.bounds[1] - s.bounds[0]) / 2 * (1 if s.norm == "linf" else math.sqrt(values))
    return [*found, large(widest, s)]


def steps(eps: float, s: Setting) -> Iterator[Step]:
    """First what is compared, on all examples; then what may break what is left."""
    common: dict[str, Any] = {"norm": s.norm, "seed": s.seed, "bounds": s.bounds}
    fgsm = FGSM(eps, **common)
    pgd = [
        PGD(eps, s.effort.steps, loss=loss, stop_when_broken=s.stop, **common)
        for loss in ("ce", "margin")
    ]
    yield Step(Noise(eps, kind=s.effort.noise, **common), NoGradient(), "noise", eps)
    compared: list[tuple[Group, Source]] = [("exact", Exact())]
    if s.has_feedback:  # else its own gradient is the exact one
        compared.insert(0, ("own", Own()))
    for group, gradient in compared:
        yield Step(fgsm, gradient, group, eps, role="single step")
        yield from (Step(attack, gradient, group, eps) for attack in pgd)
    if s.random_feedback:
        yield Step(pgd[0], OwnAveraged(s.effort.redraws, s.seed), "averaged", eps)
    for rule in s.rules:
        yield Step(pgd[0], RuleGradient(rule, s.seed), "rule", eps)
    if s.protocol:
        options = {"seed": s.seed, "bounds": s.bounds}
        yield from s.protocol.steps(eps, has_feedback=s.has_feedback, **options)
    yield from _on_survivors(eps, s, common)


def _on_survivors(eps: float, s: Setting, common: dict[str, Any]) -> Iterator[Step]:
    doubled = PGD(eps, 2 * s.effort.steps, stop_when_broken=s.stop, **common)
    yield Step(doubled, Exact(), "exact", eps, "survivors", "doubled")
    if s.effort.restarts > 1:
        again = PGD(
            eps,
            s.effort.steps,
            restarts=s.effort.restarts,
            loss="margin",
            stop_when_broken=s.stop,
            **common,
        )
        yield Step(again, Exact(), "exact", eps, "survivors")
    if s.effort.adaptive_steps:
        losses: list[Any] = ["ce", "margin"] if s.classes < 3 else ["ce", "dlr"]
        losses += ["dlr-targeted"] if s.classes > 3 else []
        for loss in losses:
            adaptive = APGD(
                eps,
                s.effort.adaptive_steps,
                loss=loss,
                restarts=s.effort.adaptive_restarts,
                stop_when_broken=s.stop,
                **common,
            )
            yield Step(adaptive, Exact(), "exact", eps, "survivors")
    if s.effort.boundary_steps:
        boundary = FAB(eps, s.effort.boundary_steps, **common)
        first = replace(boundary, steps=min(boundary.steps, FIRST_BOUNDARY_STEPS))
        yield Step(first, Exact(), "exact", eps, "survivors", then=boundary)
    # After all that follows the exact gradient: breaking more is a sign that it is masked.
    for name, other in s.surrogates.items():
        transferred = PGD(eps, s.effort.steps, stop_when_broken=s.stop, **common)
        yield Step(Transfer(transferred, other), From(other, name), "transfer", eps)
    if s.effort.queries:
        square = Square(eps, s.effort.queries, **common)
        begin = replace(square, queries=min(square.queries, FIRST_QUERIES))
        yield Step(begin, NoGradient(), "black box", eps, "survivors", then=square)
    for attack in s.extra(eps) if s.extra else ():
        yield Step(attack, source(attack.default_gradient), "extra", eps, "survivors")


def large(eps: float, s: Setting) -> Step:
    """An attack with so much room that nothing should survive it."""
    common: dict[str, Any] = {"norm": s.norm, "seed": s.seed, "bounds": s.bounds}
    attack = PGD(eps, s.effort.steps, loss="margin", stop_when_broken=s.stop, **common)
    return Step(attack, Exact(), "exact", eps, role="large")


def escalated(step: Step, trial: Trial) -> Step | None:
    """What follows a step in view of what it did: the whole budget of an attack whose first part
    broke an example, or the same attack with twice the steps, if it has just shown that steps are
    lacking. None where they suffice, or where `MOST_STEPS` times as many were tried."""
    attack = step.attack
    if step.then not in (None, attack):
        return replace(step, attack=step.then) if any(trial.broken) else None
    if step.role != "doubled" or not isinstance(attack, PGD | Flips):
        return None
    first = attack.steps // 2**step.doublings
    more = sum(trial.broken) / len(trial.broken) > allowance(len(trial.broken))
    longest = attack.count if isinstance(attack, Flips) else MOST_STEPS * first
    if not more or 2 * attack.steps > longest:
        return None
    longer = replace(attack, steps=2 * attack.steps)
    return replace(step, attack=longer, doublings=step.doublings + 1)


def flips(eps: float, s: Setting) -> Iterator[Step]:
    """The same for binary events, of which `eps` may be flipped."""
    count = round(eps)
    common: dict[str, Any] = {"seed": s.seed, "bounds": s.bounds}
    once = Flips(count, **common)
    rounds = min(s.effort.steps, count)
    again = [
        Flips(count, rounds, loss=loss, stop_when_broken=s.stop, **common)
        for loss in ("ce", "margin")
    ]
    yield Step(RandomFlips(count, **common), NoGradient(), "noise", eps)
    compared: list[tuple[Group, Source]] = [("exact", Exact())]
    if s.has_feedback:
        compared.insert(0, ("own", Own()))
    for group, gradient in compared:
        yield Step(once, gradient, group, eps, role="single step")
        yield from (Step(attack, gradient, group, eps) for attack in again)
    for rule in s.rules:
        yield Step(again[0], RuleGradient(rule, s.seed), "rule", eps)
    for name, other in s.surrogates.items():
        yield Step(Transfer(again[0], other), From(other, name), "transfer", eps)
    doubled = Flips(count, min(2 * rounds, count), **common)
    yield Step(doubled, Exact(), "exact", eps, "survivors", "doubled")
    if s.effort.queries:
        finish = min(s.effort.queries, FINISH)
        finished = Flips(count, rounds, loss="margin", finish=finish, **common)
        yield Step(finished, Exact(), "exact", eps, "survivors")
        greedy = GreedyFlips(count, max(s.effort.queries, count), **common)
        yield Step(greedy, NoGradient(), "black box", eps, "survivors")
    for attack in s.extra(eps) if s.extra else ():
        yield Step(attack, source(attack.default_gradient), "extra", eps, "survivors")


def all_flips(count: int, s: Setting) -> Step:
    """As `large`, for events."""
    attack = Flips(count, s.effort.steps, loss="margin", seed=s.seed, bounds=s.bounds)
    return Step(attack, Exact(), "exact", float(count), role="large")
