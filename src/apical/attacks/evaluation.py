"""The robustness of a net: worst case per example, sanity checks, masking gap, verdict."""

import reprlib
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from numbers import Real
from typing import Any, cast, get_args

import torch
from torch import Tensor, nn

from apical.attacks import checks as input_checks
from apical.attacks import sanity, schedule, twins
from apical.attacks.audit import Audit, Word, audit
from apical.attacks.ball import Ball, FewFlips, FewPixels, Threat, check_norm, standard_norm
from apical.attacks.base import Attack
from apical.attacks.flips import check_binary
from apical.attacks.isolation import undisturbed
from apical.attacks.losses import broken
from apical.attacks.sanity import Check, Gap, verdict
from apical.attacks.schedule import Effort, Protocol, Setting
from apical.attacks.scores import Expectation, adapted, detached
from apical.attacks.trials import Step, Trial, run
from apical.core.layers import feedback_modules
from apical.measure import statistics
from apical.names import checked_count

AUDITED = 128
"""Most examples on which the gradient is audited."""


@dataclass(frozen=True)
class Worst:
    """The worst case at one radius: examples that are correct and that no attack has broken.

    Attributes: robust: one entry per example. accuracy: their share; low, high: its Wilson
        interval, for other test examples, not for another training run.
    """

    eps: float
    robust: tuple[bool, ...]
    accuracy: float
    low: float
    high: float


@dataclass(frozen=True)
class RobustReport:
    """The results of `robust_report`. Accuracies are shares of all examples, including those that
    are misclassified without an attack.

    Attributes: verdict: one word for the own gradient, as defined in `attacks.sanity.verdict`; the
        audit has the same one. reasons: the evidence.
    """

    norm: Threat
    classes: int
    clean: tuple[bool, ...]
    trials: tuple[Trial, ...]
    worst: tuple[Worst, ...]
    gaps: tuple[Gap, ...]
    checks: tuple[Check, ...]
    audit: Audit
    verdict: Word
    reasons: tuple[str, ...]

    def breaking_radii(self) -> tuple[float, ...]:
        """Of each example the smallest radius tried at which an attack broke it: 0 where it is
        misclassified without one, infinite where none did."""
        found = []
        for place, right in enumerate(self.clean):
            tried = [worst.eps for worst in self.worst if not worst.robust[place]]
            found.append(0.0 if not right else min(tried, default=float("inf")))
        return tuple(found)

    def rows(self) -> list[dict[str, object]]:
        """As records: flat dictionaries for JSON, without the lists of examples of `trials`."""
        n = len(self.clean)
        clean: dict[str, object] = {"kind": "clean", "accuracy": sum(self.clean) / n, "examples": n}
        found = [clean | {"norm": self.norm, "classes": self.classes}]
        for trial in self.trials:
            row: dict[str, object] = {"kind": "attack", "attack": trial.attack}
            row |= {"source": trial.source, "group": trial.group, "eps": trial.eps, "on": trial.on}
            row |= {"attacked": sum(trial.attacked), "broken": sum(trial.broken)}
            row |= {"strays": trial.strays, "role": trial.role}
            if trial.on == "all":
                row["accuracy"] = trial.accuracy(self.clean)
                row["examples"] = min(trial.first or n, n)
            found.append(row)
        for worst in self.worst:
            row = {"kind": "worst", **asdict(worst)}
            del row["robust"]
            found.append(row)
        found += [{"kind": "gap", **asdict(gap), "masked": gap.masked} for gap in self.gaps]
        found += [
            {k: v for k, v in {"kind": "check", **asdict(check)}.items() if v is not None}
            for check in self.checks
        ]
        found.append(self.audit.row())
        found.append({"kind": "verdict", "verdict": self.verdict, "reasons": list(self.reasons)})
        return found


def robust_report(
    model: nn.Module,
    x: Tensor | Mapping[str, Tensor],
    y: Tensor,
    *,
    eps: float | Sequence[float],
    norm: Threat = "linf",
    effort: Effort | None = None,
    rules: Sequence[str] = (),
    surrogates: Mapping[str, nn.Module] | None = None,
    extra: Callable[[float], Sequence[Attack]] | None = None,
    protocol: Protocol | None = None,
    bounds: tuple[float, float] = (0.0, 1.0),
    samples: int = 1,
    batch_size: int = 256,
    seed: int = 0,
    finished: Iterable[Trial] = (),
    on_trial: Callable[[Trial, int, int], None] | None = None,
) -> RobustReport:
    """Attack a classifier in eval mode by all gradient sources, and judge the results.

    Attacks that are compared run on all correct examples; those that may break further ones only on
    examples that no attack has broken yet, at this radius or a smaller one.

    Args:
        model: returns scores (N, classes), or an object or mapping with them as `logits`.
        x: inputs, or a mapping with only them, as `{"pixel_values": x}`.
        eps: radius or radii above 0, in the unit of the inputs (normalisation must be part of the
            model).
        norm: "linf", "l2", "l1" (also spelt "Linf", "L2", "L1"); or "flips" for binary events,
            where eps is the number of events that may be flipped.
        rules: names of further rules whose backward pass is tried with these weights.
        surrogates: name -> other model with the same classes, for transfer; a net trained by
            backprop from the same initial weights is the strongest.
        extra: from a radius to further attacks, run on the survivors.
        protocol: attacks of an earlier study ("linf" only), run in addition.
        samples: for models with random scores, forward passes of which the mean scores are
            attacked and judged; at least 1.
        batch_size: examples attacked together, at least 1.
        finished: trials of an interrupted report on the same model and data; they are not repeated.
        on_trial: called after each trial with it, its number, and how many there are.

    Shapes: x (N, ...) within `bounds`, y (N,).
    Raises: ValueError as attacks do; models with random scores are refused without `samples`.
    Warns: if the clean accuracy is no better than chance.
    """
    batch_size = checked_count("robust_report", batch_size=batch_size)
    samples = checked_count("robust_report", samples=samples)
    _check_kinds(effort, rules, surrogates, extra, protocol, on_trial)
    seed = input_checks.checked_seed("robust_report", seed)
    bounds = input_checks.checked_bounds("robust_report", bounds)
    norm = _checked_norm(norm, protocol)
    budgets = _budgets(eps, norm, bounds)
    model, x = adapted(model, x)
    y = detached("labels", y)
    surrogates = {name: adapted(other, x)[0] for name, other in (surrogates or {}).items()}
    model = Expectation(model, samples) if samples > 1 else model
    if norm == "flips":
        check_binary("robust_report", x, bounds)
    clean, classes, scores = _clean(model, x, y, bounds, random_allowed=samples > 1)
    setting = Setting(
        norm,
        bounds,
        seed,
        effort or Effort(),
        classes,
        x.dim() == 4 and min(x.shape[2:]) >= 5,
        any(True for _ in feedback_modules(model)),
        twins.random_feedback(model),
        tuple(rules),
        surrogates,
        extra,
        protocol,
        samples > 1,
    )
    planned = schedule.planned(budgets, setting, x[0].numel())
    attacked = partial(run, batch_size=batch_size, classes=classes)
    known, trials, standing = _by_key(finished, len(x)), [], clean.clone()
    for number, step in enumerate(planned, 1):  # the list grows where a step is followed by another
        rows = (clean if step.on == "all" else standing).nonzero().squeeze(1)
        ball = _allowed(step, norm, bounds)
        trial = known.get(step.key) or attacked(step, model, x, y, rows.to(x.device), ball)
        trials.append(trial)
        if _counts(trial):
            standing &= ~torch.tensor(trial.broken)
        if longer := schedule.escalated(step, trial):
            planned.insert(number, longer)
        if on_trial:
            on_trial(trial, number, len(planned))
    if not setting.has_feedback:  # its own gradient is the exact one: the same trials, both names
        trials += [
            replace(trial, group="own", source="own", key=trial.key.replace("exact", "own"))
            for trial in trials
            if trial.group == "exact" and trial.on == "all" and _counts(trial)
        ]
    found = _audited(model, x, y, bounds, seed, scores)
    return _concluded(tuple(clean.tolist()), trials, budgets, found, setting)


def _audited(
    model: nn.Module, x: Tensor, y: Tensor, bounds: tuple[float, float], seed: int, scores: Tensor
) -> Audit:
    """The audit; random if a model that should not be no longer has these scores of x."""
    found = audit(model, x[:AUDITED], y[:AUDITED], bounds=bounds, seed=seed)
    if isinstance(model, Expectation) or input_checks.lasting(model, x, scores):
        return found
    reason = "the scores of the clean inputs after the attacks differ from those before"
    return replace(found, verdict="random", passed=False, reasons=(reason, *found.reasons))


def _by_key(finished: Iterable[Trial], examples: int) -> dict[Any, Trial]:
    known = {trial.key: trial for trial in finished}
    if any(len(trial.attacked) != examples for trial in known.values()):
        raise ValueError("robust_report: finished= are trials on another number of examples")
    return known


def _check_kinds(
    effort: object,
    rules: object,
    surrogates: Any,
    extra: object,
    protocol: object,
    on_trial: object,
) -> None:
    """Raises: ValueError naming the first argument that is of another kind than it must be."""
    names_models = isinstance(surrogates, Mapping | None) and all(
        isinstance(name, str) and isinstance(model, nn.Module)
        for name, model in (surrogates or {}).items()
    )
    by_name = ": attacks.protocol('biotorch') is one"
    for name, value, right, kind in (
        ("effort", effort, isinstance(effort, Effort | None), "an attacks.Effort"),
        ("rules", rules, isinstance(rules, tuple | list), "a list of names of rules"),
        ("surrogates", surrogates, names_models, "a mapping from names to models"),
        ("extra", extra, extra is None or callable(extra), "a function of a radius"),
        ("protocol", protocol, isinstance(protocol, Protocol | None), "a Protocol" + by_name),
        ("on_trial", on_trial, on_trial is None or callable(on_trial), "a function"),
    ):
        if not right:
            raise ValueError(f"robust_report: {name}={reprlib.repr(value)} is not {kind}")


def _checked_norm(norm: object, protocol: Protocol | None) -> Threat:
    found = cast(Threat, standard_norm(norm))
    check_norm("robust_report", found, get_args(Threat))
    if protocol and found != "linf":
        raise ValueError(f"robust_report: the protocol's attacks are 'linf', not norm={norm!r}")
    return found


def _allowed(step: Step, norm: Threat, bounds: tuple[float, float]) -> Ball | FewFlips | FewPixels:
    """The set that the points of a step must be in."""
    if step.group == "pixels":
        return FewPixels(int(step.eps), *bounds)
    return FewFlips(round(step.eps), *bounds) if norm == "flips" else Ball(step.eps, norm, *bounds)


def _clean(
    model: nn.Module, x: Tensor, y: Tensor, bounds: tuple[float, float], *, random_allowed: bool
) -> tuple[Tensor, int, Tensor]:
    """Which examples are correct, on the CPU, the number of classes, and the scores; after all
    checks."""
    with undisturbed(model), torch.no_grad():
        input_checks.check_mode(model, random_allowed=random_allowed)
        input_checks.check_inputs(x, Ball(0.0, "linf", *bounds))
        if not len(x):
            raise ValueError("robust_report: no examples were given")
        classes = input_checks.check_repeats(model, x, random_allowed=random_allowed)
        input_checks.check_labels(y, len(x), classes)
        scores = torch.cat([model(part) for part in x.split(input_checks.BATCH)])
        if not random_allowed:
            input_checks.check_steady(model, x, scores)
        clean = ~broken(scores, y.to(scores.device, torch.int64)).cpu()
        normalised = (scores >= 0).all() and ((scores.sum(1) - 1).abs() < 1e-3).all()
    if clean.sum() <= len(clean) / classes:
        warnings.warn(
            f"robust_report: the model is right on {int(clean.sum())} of {len(clean)} clean"
            f" examples, no better than chance with {classes} classes: are labels, their order or"
            " the normalisation those it was trained with?",
            stacklevel=3,
        )
    if normalised and not ((scores == 0) | (scores == 1)).all():
        warnings.warn(
            "robust_report: the scores look like probabilities, whose gradient vanishes by"
            " rounding where they are close to 0 or 1; give the scores before the softmax",
            stacklevel=3,
        )
    return clean, classes, scores


def _budgets(eps: object, norm: Threat, bounds: tuple[float, float]) -> list[float]:
    given: Any = eps.tolist() if hasattr(eps, "tolist") else eps
    several = isinstance(given, Iterable) and not isinstance(given, str | Mapping)
    radii = list(given) if several else [given]
    numbers = all(isinstance(each, Real) and not isinstance(each, bool) for each in radii)
    if not radii or not numbers or len(set(radii)) < len(radii):
        shown = tuple(radii) if several else given
        raise ValueError(
            f"robust_report: eps={reprlib.repr(shown)}; give at least one radius, a number"
            " (8 / 255, not a text), each once; every radius is that of all examples"
        )
    for radius in radii:
        if norm == "flips" and radius != round(radius):
            raise ValueError(f"robust_report: eps={radius} is no whole number of flips")
        input_checks.check_eps(
            "robust_report", radius, low=bounds[0], high=bounds[1], linf=norm == "linf"
        )
        if radius == 0:
            raise ValueError("robust_report: eps=0 is the clean accuracy, which is always reported")
    return sorted(float(radius) for radius in radii)


def _counts(trial: Trial) -> bool:
    """Whether the examples that it broke count as broken at its radius."""
    return trial.role != "large" and trial.group != "pixels"


def _concluded(
    clean: tuple[bool, ...],
    trials: Sequence[Trial],
    budgets: Sequence[float],
    found: Audit,
    s: Setting,
) -> RobustReport:
    gaps = tuple(sanity.gap(trials, clean, radius) for radius in budgets)
    held = sanity.checks(trials, clean, budgets, s.classes)
    above_chance = sum(clean) > len(clean) / s.classes
    word, reasons = verdict(
        gaps, held, found, has_feedback=s.has_feedback, above_chance=above_chance
    )
    worst = tuple(_worst(trials, clean, radius) for radius in budgets)
    found = replace(found, verdict=word)  # one gradient has one verdict
    return RobustReport(
        s.norm, s.classes, clean, tuple(trials), worst, gaps, held, found, word, reasons
    )


def _worst(trials: Sequence[Trial], clean: tuple[bool, ...], eps: float) -> Worst:
    # a point within a smaller radius is within this one, too
    inside = [t for t in trials if t.eps <= eps and _counts(t)]
    robust = sanity.together(inside, clean)
    low, high = statistics.wilson(sum(robust), len(robust))
    return Worst(eps, robust, sum(robust) / len(robust), low, high)


__all__ = ["Check", "Effort", "Gap", "RobustReport", "Step", "Trial", "Worst", "robust_report"]
