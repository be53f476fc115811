"""Gradient audit: does a step along the gradient that attacks follow increase the loss?

Attacks by a gradient that is not zero but points in another direction fail, and the net appears
robust. Checks for zero gradients or random scores do not detect that; differences of the loss do.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from apical.attacks import checks
from apical.attacks.ball import Ball
from apical.attacks.isolation import restart, undisturbed
from apical.attacks.losses import FEWEST_CLASSES, against, check_classes
from apical.attacks.scores import Expectation, adapted, detached
from apical.attacks.slopes import Slopes, cosines, measure_slopes, pointing
from apical.attacks.sources import Exact, NoGradientWarning, Oracle, Source
from apical.attacks.sources import source as named_source
from apical.measure import statistics
from apical.names import checked_count, unknown

Word = Literal["faithful", "masked", "random", "suspect", "undecided", "vanishing"]
"""Verdicts on a gradient; the audit alone gives neither faithful nor suspect: they need attacks."""

PASSED = "steps along the gradient raise the loss, and it agrees with the exact one"
ALPHA = 0.05
"""Level of the test of the share of examples whose gradient disagrees."""
OPEN = "whether it is faithful attacks decide: attacks.robust_report"


@dataclass(frozen=True)
class Limits:
    """Thresholds of the verdict.

    rising: smallest share of examples whose loss a step along the gradient increases (chance: 1/2).
    cosine: median cosine to the exact gradient below which it is masked; alike: from which attacks
    by it are equally strong. In between attacks decide. agreement: smallest mean cosine to finite
    differences; coarse: the same where the loss has no derivative and longer steps agree better, as
    of quantised and spiking nets, or the gradient is a mean over random passes. apart: largest
    share of examples below `agreement`, if the loss has a derivative: more must be significant
    (binomial, 5 %). zero: largest share of examples without a gradient. repeat: smallest cosine
    between two gradients of the same inputs; averaged: the same for a mean over random passes.
    """

    rising: float = 0.75
    cosine: float = 0.9
    alike: float = 0.99
    agreement: float = 0.9
    coarse: float = 0.5
    apart: float = 0.03
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
        derived: at how many examples the loss has a derivative, if nearly everywhere. apart: share
            of these whose gradient disagrees with differences (cosine below 0.9, or zero).
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
    derived: int = 0
    apart: float | None = None

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
            if isinstance(model, Expectation):
                limits = replace(limits, repeat=limits.averaged, agreement=limits.coarse, apart=1)
            restart(oracle.model, seed)
            answer = oracle.ask(x, y, against(y, name))
            sloping = partial(measure_slopes, bounds=bounds, directions=directions, seed=seed)
            measured = _measured(oracle, answer.gradient, x, y, name, sloping, limits)
            restart(model, seed)  # a random model must use the same random numbers
            with Exact().open(model) as other:
                exact = other.ask(x, y, against(y, name)).gradient
    both = pointing(answer.gradient) & pointing(exact)
    alike = cosines(answer.gradient, exact)[both]
    measured |= {"source": str(chosen), "loss": name}
    measured["cosine"] = alike.median().item() if both.any() else None
    measured["exact_vanished"] = _zero(exact[_varies(answer.scores, y, name)])
    verdict, passed, reasons = _verdict(measured, limits)
    del measured["steady"], measured["vanished"], measured["exact_vanished"], measured["coarse"]
    measured["misleading"] = isinstance(r := measured["rising"], float) and r < limits.rising
    return Audit(verdict, reasons, passed=passed, **measured)  # type: ignore[arg-type]


def _measured(
    oracle: Oracle,
    gradient: Tensor,
    x: Tensor,
    y: Tensor,
    name: str,
    sloping: Callable[..., Slopes],
    limits: Limits,
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
        "coarse": found.coarse,
        "derived": len(found.derived),
        "apart": (found.derived < limits.agreement).double().mean().item()
        if len(found.derived)
        else None,
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
    if below("agreement", limits.coarse if found["coarse"] else limits.agreement):
        # Its loss rises all the same, and of a coarsely quantised net it is always low.
        reasons["masked" if reasons["masked"] else "undecided"].append(
            f"its cosine to finite differences of the loss is {found['agreement']:.2f}, so another"
            " gradient may find more: compare gradient='finite-difference' on a few examples"
        )
    elif isinstance(share := found["apart"], float):
        of = found["derived"]
        assert isinstance(of, int)
        count = round(share * of)
        if statistics.above(count, of, limits.apart) < ALPHA:
            reasons["undecided"].append(
                f"of {of} examples at which the loss has a derivative, the gradient of {count}"
                f" ({share:.0%}) disagrees with differences of the loss (cosine below"
                f" {limits.agreement:g}), significantly more than {limits.apart:.0%}: it is that of"
                " another function there"
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
