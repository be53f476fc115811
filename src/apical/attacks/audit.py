"""Gradient audit: does a step along the gradient that attacks follow increase the loss?

Attacks by a gradient that is not zero but points in another direction fail, and the net appears
robust. Checks for zero gradients or random scores do not detect that; differences of the loss do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from apical.attacks import checks
from apical.attacks.ball import Ball, unit
from apical.attacks.isolation import restart, undisturbed
from apical.attacks.losses import FEWEST_CLASSES, Loss, against, check_classes
from apical.attacks.scores import Expectation, adapted, detached
from apical.attacks.sources import Exact, NoGradientWarning, Oracle, Source
from apical.attacks.sources import source as named_source
from apical.measure import statistics
from apical.names import checked_count, unknown
from apical.nets.spiking import has_spikes

Word = Literal["faithful", "masked", "random", "suspect", "undecided", "vanishing"]
"""Verdicts on a gradient; the audit alone gives neither faithful nor suspect: they need attacks."""

PASSED = "steps along the gradient raise the loss, and it agrees with the exact one"
OPEN = "whether it is faithful attacks decide: attacks.robust_report"

STEPS = (1e-4, 1e-3, 1e-2, 3e-2, 1e-1)
"""Lengths of the steps tried, as root mean square over the inputs' values, in ranges."""
Value = Callable[[float, Tensor], tuple[Tensor, Tensor]]
"""From a distance and a direction to the loss, and the point there."""

FLAT = 0.5
"""Share of smallest steps that change nothing, from which a loss counts as piecewise constant."""
NOISE = 1e-5
"""Relative change of a loss below which it may be rounding in float32."""


@dataclass(frozen=True)
class Limits:
    """Thresholds of the verdict.

    rising: smallest share of examples whose loss a step along the gradient increases (chance: 1/2).
    cosine: median cosine to the exact gradient below which it is masked; alike: from which attacks
    by it are equally strong. In between attacks decide. agreement: smallest mean cosine to finite
    differences; it is lower because differences of a quantised net are coarse. zero: largest share
    of examples without a gradient. repeat: smallest cosine between two gradients of the same
    inputs; averaged: the same for a mean over random passes.
    """

    rising: float = 0.75
    cosine: float = 0.9
    alike: float = 0.99
    agreement: float = 0.5
    zero: float = 0.1
    repeat: float = 0.99
    averaged: float = 0.7


@dataclass(frozen=True)
class Audit:
    """The result of an audit. Shares are in [0, 1]; None where nothing could be measured.

    Attributes:
        verdict: "masked": steps along it do not increase the loss, or it disagrees with the exact
            one, or is zero where that is not; "vanishing": zero for many examples; "random": it
            differs between two passes. A report has the same verdict for such a gradient.
            "undecided": all others, which attacks decide. In a report: the verdict of the report.
        reasons: sentences, also those that alone would not have decided.
        rising: share of examples (of those with a gradient) whose loss is increased by the smallest
            step that changes it; rising_low, rising_high: its Wilson interval. The loss of a
            spiking or quantised net is piecewise constant, and its gradient ignores single steps of
            it: there, the smallest such step of at least the length with the largest agreement.
        cosine: median cosine to the exact gradient. agreement: mean cosine to the gradient by
            finite differences, estimated from random directions, at the step length where it is
            largest: an exact gradient of a quantised net agrees at some length, others at none.
        slope_ratio: median ratio of the slope along the gradient, at that length, to its norm: 1
            for an exact gradient.
        zero: share of zero gradients, the largest over the losses; zero_loss: of which loss.
        saturated: share of examples whose cross entropy is exactly 0; largest_score: median over
            examples of the largest absolute score.
        repeat: mean cosine between two gradients of the same inputs.
        misleading: whether steps along the gradient do not increase the loss often enough; a
            gradient may be "masked" without that, if it disagrees with the exact one.
        passed: whether no measurement contradicts the gradient.
    """

    verdict: Word
    reasons: tuple[str, ...]
    source: str
    loss: str
    examples: int
    rising: float | None
    rising_low: float | None
    rising_high: float | None
    slope_ratio: float | None
    cosine: float | None
    agreement: float | None
    zero: float
    zero_loss: str
    saturated: float
    largest_score: float
    repeat: float | None
    misleading: bool
    passed: bool

    def row(self) -> dict[str, object]:
        """As a record: a flat dictionary for JSON."""
        known = {key: value for key, value in asdict(self).items() if value is not None}
        return {"kind": "audit", **known, "reasons": list(self.reasons)}


def audit(
    model: nn.Module,
    x: Tensor | Mapping[str, Tensor],
    y: Tensor,
    *,
    gradient: str | Source = "own",
    loss: Literal["dlr", "margin"] | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    directions: int = 16,
    seed: int = 0,
    limits: Limits | None = None,
) -> Audit:
    """Examine the gradient of any PyTorch classifier in eval mode; the model is left as it was.

    Args:
        gradient: the source to examine; "own" is that of `loss.backward()`.
        loss: of which the gradient is examined; None: "dlr", with two classes "margin". Cross
            entropy would saturate with large scores; its zero gradients are counted separately.
        directions: random directions for the comparison with finite differences, ten forward
            passes each, at least 1. seed: of these.

    Shapes: x (N, ...) within `bounds`, y (N,); 50 examples give a share to within 14 points.
    Raises: ValueError as attacks do, except that random scores are allowed.
    """
    seed = checks.checked_seed("audit", seed)
    bounds = checks.checked_bounds("audit", bounds)
    directions = checked_count("audit", directions=directions)
    if not isinstance(limits, Limits | None):
        raise ValueError(f"audit: limits={limits!r} must be an attacks.audit.Limits")
    if loss not in (None, "dlr", "margin"):
        raise unknown("loss of an audit", loss, ("dlr", "margin"))
    chosen, limits = named_source(gradient), limits or Limits()
    model, x = adapted(model, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NoGradientWarning)  # it is what we look for
        with chosen.open(model) as oracle, undisturbed(model, *oracle.others, seed=seed):
            x, y = x.clone(), detached("labels", y).clone()
            checks.check_mode(model, random_allowed=True)
            checks.check_inputs(x, Ball(0.0, "linf", *bounds))
            if not len(x):
                raise ValueError("audit: no examples were given")
            x = x.clamp(*bounds)  # by rounding they may be outside
            classes = checks.check_repeats(model, x, random_allowed=True)
            checks.check_labels(y, len(x), classes)
            y = y.to(x.device, torch.int64)
            name = loss or ("dlr" if classes >= FEWEST_CLASSES["dlr"] else "margin")
            check_classes("audit", name, classes)
            restart(oracle.model, seed)
            answer = oracle.ask(x, y, against(y, name))
            sloping = partial(measure_slopes, bounds=bounds, directions=directions, seed=seed)
            measured = _measured(oracle, answer.gradient, x, y, name, sloping)
            restart(model, seed)  # a random model must use the same random numbers
            with Exact().open(model) as other:
                exact = other.ask(x, y, against(y, name)).gradient
    if isinstance(model, Expectation):
        limits = replace(limits, repeat=limits.averaged)
    both = pointing(answer.gradient) & pointing(exact)
    alike = cosines(answer.gradient, exact)[both]
    measured |= {"source": str(chosen), "loss": name}
    measured["cosine"] = alike.median().item() if both.any() else None
    measured["exact_vanished"] = _zero(exact[_varies(answer.scores, y, name)])
    verdict, passed, reasons = _verdict(measured, limits)
    del measured["steady"], measured["vanished"], measured["exact_vanished"]
    measured["misleading"] = isinstance(r := measured["rising"], float) and r < limits.rising
    return Audit(verdict, reasons, passed=passed, **measured)  # type: ignore[arg-type]


def _measured(
    oracle: Oracle,
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    name: str,
    sloping: Callable[..., Slopes],
) -> dict[str, object]:
    entropy = oracle.ask(x, y, against(y, "ce"))
    vanished = _zero(gradient[_varies(entropy.scores, y, name)])
    shares = {name: vanished, "ce": _zero(entropy.gradient)}
    worst = max(shares, key=lambda key: shares[key])
    again = oracle.ask(x, y, against(y, name))
    sized = pointing(gradient) & pointing(again.gradient)
    scores = oracle.scores(x)
    found = sloping(oracle.model, gradient, x, y, name)
    count = len(found.rising)
    rising = found.rising.double().mean().item() if count else None
    low, high = statistics.wilson(found.rising.sum().item(), count) if count else (None, None)
    return {
        "examples": len(x),
        "rising": rising,
        "rising_low": low,
        "rising_high": high,
        "slope_ratio": found.ratio.nanmedian().item() if count else None,
        "agreement": found.agreement,
        "zero": shares[worst],
        "zero_loss": worst,
        "saturated": (entropy.losses == 0).double().mean().item(),
        "largest_score": entropy.scores.abs().amax(1).median().item(),
        "repeat": cosines(gradient, again.gradient)[sized].mean().item() if sized.any() else None,
        "steady": isinstance(oracle.model, Expectation)
        or not checks.differ(scores, oracle.scores(x), checks.tolerance(oracle.model, x)),
        "vanished": vanished,
    }


def _verdict(found: dict[str, object], limits: Limits) -> tuple[Word, bool, tuple[str, ...]]:
    """The verdict, whether the gradient passed, and the reasons."""

    def below(key: str, limit: float) -> bool:
        value = found[key]
        return isinstance(value, float) and value < limit

    reasons: dict[str, list[str]] = {"random": [], "masked": [], "vanishing": [], "undecided": []}
    if not found["steady"]:
        reasons["random"].append("two forward passes on the same inputs differ")
    if below("repeat", limits.repeat):
        reasons["random"].append(
            f"two gradients of the same inputs differ (cosine {found['repeat']:.2f}); means over"
            " more passes differ less (samples=)"
        )
    if below("rising", limits.rising):
        some = f"{found['rising']:.0%} of the examples only"
        reasons["masked"].append(f"a small step along the gradient raises the loss for {some}")
    if below("cosine", limits.cosine):
        reasons["masked"].append(
            f"its cosine to the exact gradient of the same weights is {found['cosine']:.2f}:"
            " attacks by it are weaker than they could be"
        )
    if below("agreement", limits.agreement):
        # Of a coarsely quantised net it is always low: if the loss rises, attacks decide.
        reasons["masked" if reasons["masked"] else "undecided"].append(
            f"its cosine to finite differences of the loss is {found['agreement']:.2f}"
        )
    vanished, exact, zero = found["vanished"], found["exact_vanished"], found["zero"]
    assert isinstance(vanished, float) and isinstance(exact, float) and isinstance(zero, float)
    if vanished > limits.zero:
        hidden = vanished - exact > limits.zero
        reasons["masked" if hidden else "vanishing"].append(
            f"the gradient of the {found['loss']} loss is exactly zero for {vanished:.0%} of the"
            " examples" + hidden * f", the exact gradient of the same weights for {exact:.0%}"
        )
    elif not reasons["masked"] and below("cosine", limits.alike):
        reasons["undecided"].append(
            f"it points up the loss, but its cosine to the exact gradient is {found['cosine']:.2f}:"
            " attacks decide whether that matters"
        )
    unmeasured = [key for key in ("rising", "cosine", "agreement") if found[key] is None]
    if unmeasured and vanished <= limits.zero:
        reasons["undecided"].append(f"nothing was measured of {', '.join(unmeasured)}")
    finding: tuple[str, ...] = ()
    if zero > limits.zero and found["zero_loss"] == "ce":
        finding = (
            f"the cross entropy saturates: the gradient of the ce loss is exactly zero for"
            f" {zero:.0%} of the examples (median largest score {found['largest_score']:.3g});"
            " attack with dlr or margin",
        )
    every = tuple(reason for group in reasons.values() for reason in group)
    order: tuple[Word, ...] = ("random", "masked", "vanishing", "undecided")
    verdict: Word = next((word for word in order if reasons[word]), "undecided")
    return verdict, not every, (*(every or (PASSED, OPEN)), *finding)


def _varies(scores: Tensor, y: Tensor, loss: str) -> Tensor:
    """Where a loss depends on the input: DLR is constantly 1 where the label has the third largest
    score, because numerator and denominator are then equal."""
    larger = (scores > scores.gather(1, y[:, None])).sum(1)
    return larger != 2 if loss == "dlr" else torch.ones_like(y, dtype=torch.bool)


def _zero(gradient: Tensor) -> float:
    if not len(gradient):
        return 0.0
    return 1 - pointing(gradient).double().mean().item()


class Slopes(NamedTuple):
    """A gradient compared with differences of the loss; see `audit.Audit` for each.

    Shapes: rising, bool, and ratio: (examples with a gradient,).
    """

    rising: Tensor
    ratio: Tensor
    agreement: float | None


def measure_slopes(
    model: nn.Module,
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    name: str,
    bounds: tuple[float, float],
    directions: int,
    seed: int,
) -> Slopes:
    """Compare a gradient with differences of the loss `name`, along it and along random directions.

    Shapes: gradient and x (N, ...), x within `bounds`, y (N,).
    """
    rows = pointing(gradient).nonzero().squeeze(1)
    if not len(rows):
        return Slopes(torch.zeros(0, dtype=torch.bool), torch.zeros(0), None)
    gradient, x, y = gradient[rows], x[rows], y[rows]
    value = _along(model, x, _relative(model, x, y, name), bounds)
    ahead = unit(gradient, "l2")
    size = (bounds[1] - bounds[0]) * x[0].numel() ** 0.5
    generator = torch.Generator().manual_seed(seed)
    draws = [torch.randn(x.shape, dtype=x.dtype, generator=generator) for _ in range(directions)]
    random = [unit(draw.to(x.device), "l2") for draw in draws]
    # The gradient divided by its norm, so that its product with a change does not overflow.
    length = gradient.double().flatten(1).norm(dim=1)
    best, ratio, at, flat = -1.0, torch.zeros(len(x)), STEPS[0], False
    for share in STEPS:
        pairs = [_rise(value, x, ahead, share * size, direction) for direction in random]
        measured, claimed = (torch.stack(each, 1).double() for each in zip(*pairs, strict=True))
        if share == STEPS[0]:
            flat = (measured == 0).double().mean().item() > FLAT
        if (mean := cosines(measured, claimed).mean().item()) > best:
            rise, along = _rise(value, x, ahead, share * size, ahead)
            best, ratio, at = mean, rise.double() / (along.double() * length), share
    least = at if flat or has_spikes(model) else STEPS[0]
    leaving = ((x <= bounds[0]) & (gradient < 0)) | ((x >= bounds[1]) & (gradient > 0))
    ahead = unit(gradient.masked_fill(leaving, 0), "l2")  # else clamping would shorten the step
    return Slopes(_first_change(value, ahead, size, least) > 0, ratio, best)


def pointing(gradient: Tensor) -> Tensor:
    """Which examples have a gradient other than zero. Shapes: (N, ...) -> (N,)."""
    return gradient.flatten(1).abs().amax(1) > 0


def cosines(a: Tensor, b: Tensor) -> Tensor:
    """The cosine of each example; 0 where a vector is zero. Shapes: (N, ...) twice -> (N,)."""
    return (unit(a.double(), "l2") * unit(b.double(), "l2")).flatten(1).sum(1)


def _relative(model: nn.Module, x: Tensor, y: Tensor, name: str) -> Loss:
    """The loss, a margin in units of the range of an example's clean scores: then, as DLR, it does
    not depend on the scale of the scores."""
    loss = against(y, name)
    if name == "dlr":
        return loss
    with torch.no_grad():
        scores = model(x)
    spread = scores.amax(1) - scores.amin(1)
    spread = spread.where(spread > 0, 1)
    return lambda scores: loss(scores) / spread


def _rise(
    value: Value, x: Tensor, gradient: Tensor, step: float, direction: Tensor
) -> tuple[Tensor, Tensor]:
    """The rise of the loss from a step back to a step ahead, and that which the gradient gives."""
    (ahead, there), (behind, here) = value(step, direction), value(-step, direction)
    return ahead - behind, (gradient * (there - here)).flatten(1).sum(1)


def _along(
    model: nn.Module, x: Tensor, loss: Loss, bounds: tuple[float, float]
) -> Callable[[float, Tensor], tuple[Tensor, Tensor]]:
    """The loss at a distance along a direction, and the point there, clamped to the range: outside,
    a model need not be defined. Shapes: direction as x -> (N,), as x."""

    def value(distance: float, direction: Tensor) -> tuple[Tensor, Tensor]:
        restart(model, 0)  # a random model must use the same random numbers at both points
        point = (x + distance * direction).clamp(*bounds)
        with torch.no_grad():
            return loss(model(point)), point

    return value


def _first_change(value: Value, direction: Tensor, size: float, least: float) -> Tensor:
    """How much the loss changes at the smallest step, from `least` on, at which it does; 0 where
    it never does."""
    base, _ = value(0.0, direction)
    floor, change = NOISE * base.abs().clamp_min(1), torch.zeros_like(base)
    for share in STEPS[STEPS.index(least) :]:
        moved = value(share * size, direction)[0] - base
        change = torch.where((change == 0) & (moved.abs() > floor), moved, change)
    return change
