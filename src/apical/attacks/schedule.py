"""The attacks of a robustness report, in their order, and those of earlier studies."""

import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from torch import nn

from apical.attacks.apgd import APGD
from apical.attacks.ball import Ball, Threat
from apical.attacks.base import Attack
from apical.attacks.fab import FAB
from apical.attacks.flips import Flips, GreedyFlips, RandomFlips
from apical.attacks.pixels import FewPixel
from apical.attacks.sources import (
    Exact,
    From,
    NoGradient,
    Own,
    OwnAveraged,
    RuleGradient,
    Source,
    source,
)
from apical.attacks.square import Square
from apical.attacks.steps import FGSM, PGD, TPGD, Noise
from apical.attacks.trials import Group, Step, Trial, allowance
from apical.attacks.wrappers import Transfer
from apical.names import check_at_least, check_literals, unknown


@dataclass(frozen=True)
class Protocol:
    """The attacks of a study. The study used the net's own gradient; here each attack that follows
    a gradient also uses the exact one.

    Args: attacks: "linf" attacks; their radius is replaced. pixels: numbers of pixels that may
        change. pixel_attack: for these; its number of pixels is replaced. pixel_images: number of
        images, the first ones, that it is applied to (>= 1).
    """

    attacks: tuple[Attack, ...]
    pixels: tuple[int, ...] = ()
    pixel_attack: FewPixel = FewPixel()  # noqa: RUF009 (a frozen value)
    pixel_images: int = 500

    def __post_init__(self) -> None:
        check_literals(self, "Protocol")
        for attack in self.attacks:
            if not isinstance(attack, Attack) or attack.ball is None or attack.ball.norm != "linf":
                raise ValueError(
                    f"Protocol: attack={attack!r} must be an attack with a radius eps in 'linf'"
                )
        if self.pixel_images < 1 or any(count < 1 for count in self.pixels):
            raise ValueError(
                f"Protocol: pixel_images={self.pixel_images} and every number of"
                f" pixels={self.pixels} must be at least 1"
            )

    def steps(self, eps: float, *, has_feedback: bool, **common: Any) -> Iterator[Step]:
        """At one radius, on all examples. Args: common: seed and bounds of every attack."""
        for attack in self.attacks:
            attack = replace(attack, eps=eps, **common)  # type: ignore[call-arg]
            if attack.default_gradient == "none":
                yield Step(attack, NoGradient(), "black box", eps, role="published")
                continue
            if has_feedback:  # else its own gradient is the exact one
                yield Step(attack, Own(), "own", eps, role="published")
            yield Step(attack, Exact(), "exact", eps, role="published")

    def pixel_steps(self, **common: Any) -> Iterator[Step]:
        """Few-pixel attacks, whose radius counts pixels."""
        for count in self.pixels:
            attack = replace(self.pixel_attack, pixels=count, **common)
            first = self.pixel_images
            yield Step(attack, NoGradient(), "pixels", float(count), role="published", first=first)


BIOTORCH = Protocol(
    (
        FGSM(0.0),
        PGD(0.0, steps=40, step_size=2 / 255),
        APGD(0.0, steps=50),
        TPGD(0.0, steps=7, step_size=2 / 255, start="unclamped"),
        Square(0.0, queries=50),
    ),
    pixels=(1, 2, 3, 4, 5),
    pixel_attack=FewPixel(steps=30, population=150),
)
"""Notebooks of BioTorch (release 0.0.16), with torchattacks 3.1; Square is usually given 5000."""

PROTOCOLS: dict[str, Protocol] = {"biotorch": BIOTORCH}


def protocol(name: str) -> Protocol:
    """A protocol by name. Raises: ValueError for an unknown one."""
    if name not in PROTOCOLS:
        raise unknown("protocol", name, PROTOCOLS)
    return PROTOCOLS[name]


FIRST_QUERIES, FIRST_BOUNDARY_STEPS = 1000, 25
"""First budgets of the black box and of FAB, after all other attacks; a larger budget is spent only
if the first one breaks an example."""
FINISH = 20
"""Candidates from which the last of several flips is chosen."""
MOST_STEPS = 16
"""Largest factor on the steps of PGD, where doubling them still breaks examples."""


@dataclass(frozen=True)
class Effort:
    """The budgets of attacks. Defaults are those of the literature, except fewer Square queries.

    Args:
        steps: of PGD (>= 1); one of the checks doubles them until that breaks hardly any example.
        restarts: of PGD by the exact gradient (>= 1).
        adaptive_steps: of APGD, 0 to leave it out.
        adaptive_restarts: of APGD (>= 1).
        boundary_steps: of FAB, 0 to leave it out. More than 25 are made only if 25 break an example
            that no other attack broke.
        queries: of the black box, Square or greedy flips; 0 to leave it out. Square makes more than
            1000 only if 1000 break an example that no other attack broke.
        redraws: samples of random feedback (>= 1).
        noise: the control: "uniform" in the ball, or "sign": +eps or -eps for every value ("linf"
            only).
    Raises: ValueError for a value out of range.
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
        check_literals(self, "Effort")
        for least, names in (
            (1, ("steps", "restarts", "adaptive_restarts", "redraws")),
            (0, ("adaptive_steps", "boundary_steps", "queries")),
        ):
            check_at_least("Effort", least, **{name: getattr(self, name) for name in names})

    @classmethod
    def high(cls) -> "Effort":
        """The budgets of AutoAttack's standard version, and attacks that it does not run."""
        return cls(steps=40, restarts=5, adaptive_steps=100, boundary_steps=100, queries=5000)


@dataclass(frozen=True)
class Setting:
    """What the steps of a report depend on, in addition to the radius."""

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
        """Whether attacks stop at the first misclassified point: not with random scores, where it
        may be misclassified by chance."""
        return not self.random_scores

    @property
    def common(self) -> dict[str, Any]:
        """Options of all attacks."""
        norm = {} if self.norm == "flips" else {"norm": self.norm}
        return {"seed": self.seed, "bounds": self.bounds, **norm}

    def compared(self) -> list[tuple[Group, Source]]:
        """The gradients that are compared; without feedback the own gradient is the exact one."""
        exact: list[tuple[Group, Source]] = [("exact", Exact())]
        return [("own", Own()), *exact] if self.has_feedback else exact

    def extra_steps(self, eps: float) -> Iterator[Step]:
        further = self.extra(eps) if self.extra else ()
        if not isinstance(further, list | tuple) or not all(
            isinstance(attack, Attack) for attack in further
        ):
            raise ValueError(
                f"robust_report: extra({eps:g}) returned {reprlib.repr(further)}; expected a list"
                " of attacks (attacks.Plugin makes one of any function)"
            )
        for attack in further:
            yield Step(attack, source(attack.default_gradient), "extra", eps, "survivors")


def planned(budgets: Sequence[float], s: Setting, values: int) -> list[Step]:
    """All steps, in order.

    Args: budgets: radii or numbers of flips, increasing.     values: numbers in one input.
    """
    if s.norm == "flips":
        return [*(step for eps in budgets for step in flips(eps, s)), all_flips(values // 2, s)]
    found = [step for eps in budgets for step in steps(eps, s)]
    if s.protocol and s.images:
        found += s.protocol.pixel_steps(seed=s.seed, bounds=s.bounds)
    whole = Ball(0.0, s.norm, *s.bounds).diameter(values)
    return [*found, large(whole / 2, s)]


def steps(eps: float, s: Setting) -> Iterator[Step]:
    """First the attacks that are compared, on all examples; then those on the survivors."""
    effort, pgd = s.effort, partial(PGD, eps, stop_when_broken=s.stop, **s.common)
    cross_entropy, margin = (pgd(steps=effort.steps, loss=loss) for loss in ("ce", "margin"))
    yield Step(Noise(eps, kind=effort.noise, **s.common), NoGradient(), "noise", eps)
    for group, gradient in s.compared():
        yield Step(FGSM(eps, **s.common), gradient, group, eps, role="single step")
        yield Step(cross_entropy, gradient, group, eps)
        yield Step(margin, gradient, group, eps)
    if s.random_feedback:
        yield Step(cross_entropy, OwnAveraged(effort.redraws, s.seed), "averaged", eps)
    for rule in s.rules:
        yield Step(cross_entropy, RuleGradient(rule, s.seed), "rule", eps)
    if s.protocol:
        options = {"seed": s.seed, "bounds": s.bounds}
        yield from s.protocol.steps(eps, has_feedback=s.has_feedback, **options)

    on_survivors = partial(Step, source=Exact(), group="exact", eps=eps, on="survivors")
    yield on_survivors(pgd(steps=2 * effort.steps), role="doubled")
    if effort.restarts > 1:
        yield on_survivors(pgd(steps=effort.steps, restarts=effort.restarts, loss="margin"))
    if effort.adaptive_steps:
        losses: list[Any] = ["ce", "margin"] if s.classes < 3 else ["ce", "dlr"]
        losses += ["dlr-targeted"] if s.classes > 3 else []
        adaptive = partial(APGD, eps, effort.adaptive_steps, restarts=effort.adaptive_restarts)
        for loss in losses:
            yield on_survivors(adaptive(loss=loss, stop_when_broken=s.stop, **s.common))
    if effort.boundary_steps:
        boundary = FAB(eps, effort.boundary_steps, **s.common)
        first = replace(boundary, steps=min(boundary.steps, FIRST_BOUNDARY_STEPS))
        yield on_survivors(first, then=boundary)
    # After all that follows the exact gradient: breaking more is a sign that it is masked.
    for name, other in s.surrogates.items():
        yield Step(Transfer(cross_entropy, other), From(other, name), "transfer", eps)
    if effort.queries:
        square = Square(eps, effort.queries, **s.common)
        begin = replace(square, queries=min(square.queries, FIRST_QUERIES))
        yield Step(begin, NoGradient(), "black box", eps, "survivors", then=square)
    yield from s.extra_steps(eps)


def large(eps: float, s: Setting) -> Step:
    """An attack with a radius so large that no example should survive it."""
    attack = PGD(eps, s.effort.steps, loss="margin", stop_when_broken=s.stop, **s.common)
    return Step(attack, Exact(), "exact", eps, role="large")


def escalated(step: Step, trial: Trial) -> Step | None:
    """The step that follows because of what a step did: the whole budget of an attack whose first
    part broke an example, or the same attack with twice the steps, if doubling them has just broken
    more examples than the checks allow. None otherwise, or after `MOST_STEPS` times the steps."""
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
    rounds = min(s.effort.steps, count)
    attack = partial(Flips, count, **s.common)
    cross_entropy, margin = (
        attack(steps=rounds, loss=loss, stop_when_broken=s.stop) for loss in ("ce", "margin")
    )
    yield Step(RandomFlips(count, **s.common), NoGradient(), "noise", eps)
    for group, gradient in s.compared():
        yield Step(attack(), gradient, group, eps, role="single step")
        yield Step(cross_entropy, gradient, group, eps)
        yield Step(margin, gradient, group, eps)
    for rule in s.rules:
        yield Step(cross_entropy, RuleGradient(rule, s.seed), "rule", eps)
    for name, other in s.surrogates.items():
        yield Step(Transfer(cross_entropy, other), From(other, name), "transfer", eps)
    doubled = attack(steps=min(2 * rounds, count))
    yield Step(doubled, Exact(), "exact", eps, "survivors", "doubled")
    if s.effort.queries:
        finish = min(s.effort.queries, FINISH)
        finished = attack(steps=rounds, loss="margin", finish=finish)
        yield Step(finished, Exact(), "exact", eps, "survivors")
        greedy = GreedyFlips(count, max(s.effort.queries, count), **s.common)
        yield Step(greedy, NoGradient(), "black box", eps, "survivors")
    yield from s.extra_steps(eps)


def all_flips(count: int, s: Setting) -> Step:
    """As `large`, for events."""
    attack = Flips(count, s.effort.steps, loss="margin", **s.common)
    return Step(attack, Exact(), "exact", float(count), role="large")
