"""Checks of the arguments of attacks."""

import contextlib
import math
import reprlib
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from apical.attacks.ball import Ball
from apical.attacks.isolation import undisturbed
from apical.attacks.scores import FEW, precision
from apical.core.converted import exact_gradients
from apical.core.layers import feedback_modules
from apical.names import is_whole

BATCH = 256  # examples that are passed together where scores are compared
PASSES = 59
"""Passes of few examples each: chance in 5 % of the passes is found with a probability of 95 %."""
ROUNDED = 1e-4  # of the largest score, by which passes may differ that sum in another order
MAGNIFIED = 1e-2  # the same where batches differ in size, whose rounding a steep function magnifies

RANDOM = (
    "two forward passes of the model on the same inputs differ, so a single gradient is unreliable;"
    " average over several passes: attacks.EOT(attack, samples=...) around an attack,"
    " robust_report(..., samples=...) for a report"
)
RECORDED = "whether gradients are recorded (requires_grad of the input, or torch.is_grad_enabled)"
DEPENDENT = "the model's scores of an example depend on the other examples: some change"
ADVICE = (
    "Attacks choose their own batches; make the model independent of them (batch statistics in eval"
    " mode, or a mean over the batch inside forward?)"
)


def check_mode(model: nn.Module, *, random_allowed: bool) -> None:
    """Raises: ValueError in training mode, or with active dropout unless that is meant."""
    if model.training:
        raise ValueError(
            "the model is in training mode: its scores depend on the batch or on chance, and its"
            " statistics would change under attack; call model.eval() first"
        )
    inside = {id(m) for feedback in feedback_modules(model) for m in feedback.modules()}
    for name, module in model.named_modules():
        if not module.training or id(module) in inside:
            continue
        if isinstance(module, _BatchNorm) or (
            isinstance(module, _DropoutNd) and not random_allowed
        ):
            raise ValueError(
                f"{name} ({type(module).__name__}) is in training mode inside a model in eval"
                " mode; call model.eval(), or wrap the attack in attacks.EOT if chance is part of"
                " the model"
            )


def checked_seed(owner: str, seed: object) -> int:
    """The seed. Raises: ValueError for one that generators do not take."""
    if not is_whole(seed) or not -(2**63) <= seed < 2**63:
        shown = reprlib.repr(seed)
        raise ValueError(f"{owner}: seed={shown} is not a whole number from -2**63 to 2**63 - 1")
    return int(seed)


def checked_bounds(owner: str, bounds: object) -> tuple[float, float]:
    """The range of the inputs. Raises: ValueError unless it is two finite numbers, low < high."""
    pair: Any = bounds.tolist() if hasattr(bounds, "tolist") else bounds
    numbers = isinstance(pair, Sequence) and all(isinstance(each, Real) for each in pair)
    if not numbers or len(pair) != 2 or not -math.inf < pair[0] < pair[1] < math.inf:
        raise ValueError(
            f"{owner}: bounds={reprlib.repr(bounds)} is not a pair of numbers, finite and"
            " low < high: the range of the inputs, for example (0.0, 1.0)"
        )
    return float(pair[0]), float(pair[1])


def check_inputs(x: Tensor, ball: Ball) -> None:
    """Raises: ValueError for inputs that are no floating point numbers within the range."""
    if not x.is_floating_point() or x.dim() < 2:
        raise ValueError(
            f"inputs of type {x.dtype} and shape {tuple(x.shape)}: expected floating point numbers"
            " of shape (N, ...)"
        )
    if not x.numel():
        return
    least, most = x.min().item(), x.max().item()
    if not x.isfinite().all():
        raise ValueError(
            f"{int((~x.isfinite()).sum())} values of the inputs are not finite, outside the stated"
            f" range [{ball.low:g}, {ball.high:g}]; leave out the examples that contain them"
        )
    room = ball.rounding(x)
    if not (least >= ball.low - room and most <= ball.high + room):
        raise ValueError(
            f"inputs between {least:.4g} and {most:.4g} are outside the stated range"
            f" [{ball.low:g}, {ball.high:g}]. Put the normalisation into the model"
            " (attacks.Normalised(model, mean, std)), or state the range: bounds=(low, high)"
        )


def check_labels(y: Tensor, examples: int, classes: int) -> None:
    """Raises: ValueError for labels that are not (N,) class numbers of this model."""
    if y.dtype not in (torch.int64, torch.int32, torch.uint8, torch.int16, torch.int8):
        raise ValueError(f"labels of type {y.dtype}: expected class numbers (torch.int64)")
    if y.dim() != 1 or len(y) != examples:
        raise ValueError(
            f"labels of shape {tuple(y.shape)}: expected ({examples},), one class number per input"
        )
    if examples and not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise ValueError(
            f"labels from {int(y.min())} to {int(y.max())}: the model has classes 0 to"
            f" {classes - 1}"
        )


def check_eps(owner: str, eps: float, *, low: float, high: float, linf: bool) -> None:
    """Raises: ValueError for a radius that is negative, or larger than the whole range."""
    if not eps >= 0 or eps == float("inf"):
        raise ValueError(f"{owner}: eps={eps:g} must be a finite number of at least 0")
    if linf and eps > high - low:
        meant = f"; did you mean {eps:g}/255?" if high - low == 1 and eps <= 255 else ""
        raise ValueError(f"{owner}: eps={eps:g} is outside [0, {high - low:g}]{meant}")


def check_scores(scores: Tensor, examples: int) -> int:
    """The number of classes. Raises: ValueError unless the scores are finite, (N, classes >= 2)."""
    if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != examples:
        shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(
            f"the model gives {shape} for {examples} inputs: expected scores (N, classes), alone or"
            " as `logits` of an object or mapping; wrap the model in a module that returns them"
        )
    if scores.shape[1] < 2:
        raise ValueError(
            "the model has a single score: expected one for each of several classes; from one logit"
            " z, a module that returns torch.cat([torch.zeros_like(z), z], 1) has two"
        )
    if not scores.is_floating_point():
        raise ValueError(f"the model's scores are {scores.dtype}: expected floating point numbers")
    if not scores.isfinite().all():
        raise ValueError(
            f"the model's scores on clean inputs are not finite for"
            f" {int((~scores.isfinite()).any(1).sum())} of {examples} examples, so that their"
            " losses are not defined; a class to be left out takes a very negative score"
        )
    return scores.shape[1]


def check_repeats(model: nn.Module, x: Tensor, *, random_allowed: bool) -> int:
    """The number of classes.

    Raises: ValueError if two forward passes differ by more than rounding, unless chance is meant to
        be part of it; or if an example's scores depend on the other examples of the batch.
    """
    with torch.no_grad():
        parts = x.split(BATCH)
        scores = [model(part) for part in parts]
        classes = [check_scores(each, len(part)) for each, part in zip(scores, parts, strict=True)]
        if random_allowed:
            return classes[0]
        room = tolerance(model, x)
        if any(differ(a, model(part), room) for a, part in zip(scores, parts, strict=True)):
            raise ValueError(RANDOM)
        # Both parts, each of the other parity than the whole if that is even.
        size, few = len(parts[0]), len(parts[0]) // 2 | 1
        halves = [part for part in (slice(0, few), slice(few, size)) if few < size]
        if any(differ(scores[0][part], model(parts[0][part]), room) for part in halves):
            raise ValueError(
                f"{DEPENDENT} when a batch of {size} is divided into {few} and {size - few}."
                f" {ADVICE}"
            )
    return classes[0]


def lasting(model: nn.Module, x: Tensor, scores: Tensor) -> bool:
    """Whether a model still has these scores of x: a count of its passes may change them."""
    with undisturbed(model), torch.no_grad():
        later = torch.cat([model(part) for part in x.split(BATCH)])
    return not differ(later, scores, max(MAGNIFIED, tolerance(model, x)))


def check_steady(model: nn.Module, x: Tensor, scores: Tensor) -> None:
    """Compare scores with those in batches of one to eight random examples, and with those of
    passes that differ in nothing a model should depend on.

    Args: scores: of x, without gradients.
    Raises: ValueError if any differ: by chance that is rare, by batch size or an example's place in
        the batch, by the recording of gradients, inference mode, or the strides of the input; or if
        they are not (N, classes) for every N.
    """
    room = max(MAGNIFIED, tolerance(model, x)) * scores.abs().amax()
    generator = torch.Generator().manual_seed(0)

    def apart(a: Tensor, b: Tensor) -> bool:
        return bool(((a - b).abs() > room).any())

    few = x[:FEW]
    # Gradients within forward fail in inference mode, and views of other strides: no error of ours.
    never, failing = contextlib.nullcontext(), contextlib.suppress(RuntimeError)
    passes: tuple[tuple[str, Any, Any, Callable[[], Tensor]], ...] = (
        (RECORDED, torch.enable_grad, never, lambda: few.clone().requires_grad_()),
        (RECORDED, torch.enable_grad, never, lambda: few.clone().requires_grad_() * 1),
        (RECORDED, torch.enable_grad, never, few.clone),
        ("torch.inference_mode", torch.inference_mode, failing, few.clone),
        ("the strides of the input", torch.no_grad, failing, lambda: few.mT.contiguous().mT),
    )
    for what, mode, passed_over, inputs in passes:
        with exact_gradients(model), passed_over, mode():
            if apart(model(inputs()).detach(), scores[:FEW]):
                raise ValueError(
                    f"the model's scores depend on {what}: attacks would follow the gradient of"
                    " another function than the one that is judged or used; remove that from"
                    " forward"
                )
    for number in range(PASSES):
        size = number % FEW + 1
        rows = torch.randperm(len(x), generator=generator)[:size].to(x.device)
        with torch.no_grad():
            check_scores(found := model(x[rows]), len(rows))  # of one example too
            if not apart(found, scores[rows]):
                continue
            again = model(x[rows])
        if apart(found, again):
            raise ValueError(RANDOM)
        raise ValueError(
            f"{DEPENDENT} in a batch of {size}, in another order, against one of"
            f" {min(BATCH, len(x))}. {ADVICE}"
        )


def tolerance(model: nn.Module, x: Tensor) -> float:
    """The relative difference of two passes that may be rounding; in half precision 8 units of the
    last place, since every layer rounds by half of one."""
    return max(ROUNDED, 8 * precision(model, x))


def differ(a: Tensor, b: Tensor, room: float) -> bool:
    """Whether two sets of scores differ by more than rounding."""
    largest = torch.maximum(a.abs().amax(), b.abs().amax())
    return bool(((a - b).abs() > room * largest).any())
