"""What the measurements of a model say is going wrong in which layer, and what to do about it.

A pure function of rows as a run records them (`diagnostics.measure` gives the same rows), so that
a loop, a runner and a reader of old records judge alike.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Thresholds:
    """From where on a measurement is worth a warning; what learns should stay far from all.

    Args:
        patience: measurements in a row (>= 1), all after the first epoch, that must agree where
            a layer may recover: alignment takes an epoch to begin. What no layer recovers from
            (no signal, saturated, runs away) is reported at once.
        angle_deg: of the layer's update to backprop's, in (0, 90]. At 87 degrees a step gains a
            twentieth of what a step of its length along the gradient would.
        ratio: of the layer's signal to backprop's, or of backprop's to it (> 1). A hundredfold is
            beyond what a learning rate tuned for backprop forgives.
        signal: norm of a layer's signal over that of the error at the output, in (0, 1). Sigmoids
            weaken it by some 4 per layer: this is ten layers of them.
        kept: norm of the feedback over that of the weight, or over its own at the start, in
            (0, 1). A signal passes that many times weaker.
        moved: change of a weight since the start over its norm then, in (0, 1). A single step
            moves a layer that learns by more.
        grown: the same, from where on the weight runs away (> 1). Training from very small weights
            may multiply them by hundreds.
        saturated: share of an activation's entries where its slope is below a twentieth of its
            largest, or of rectified units that are zero on the whole batch, in (0, 1].
        diverged: the loss of a step over that of the first (> 1); also any that is not finite.
            Batches differ by less, and a loss that has come so far does not return.
    Raises: ValueError naming every value out of range.
    """

    patience: int = 3
    angle_deg: float = 87.0
    ratio: float = 100.0
    signal: float = 1e-6
    kept: float = 0.01
    moved: float = 1e-4
    grown: float = 1000.0
    saturated: float = 0.9
    diverged: float = 100.0

    def __post_init__(self) -> None:
        allowed = {
            "patience": (self.patience >= 1, "at least 1"),
            "angle_deg": (0 < self.angle_deg <= 90, "in (0, 90]"),
            "ratio": (self.ratio > 1, "above 1"),
            "signal": (0 < self.signal < 1, "in (0, 1)"),
            "kept": (0 < self.kept < 1, "in (0, 1)"),
            "moved": (0 < self.moved < 1, "in (0, 1)"),
            "grown": (self.grown > 1, "above 1"),
            "saturated": (0 < self.saturated <= 1, "in (0, 1]"),
            "diverged": (self.diverged > 1, "above 1"),
        }
        problems = [
            f"{name}={getattr(self, name)}: must be {where}"
            for name, (fits, where) in allowed.items()
            if not fits
        ]
        if problems:
            raise ValueError(f"thresholds: {'; '.join(problems)}")


@dataclass(frozen=True)
class Finding:
    """Something wrong with one layer.

    Attributes:
        layer: full name; kind: one of `KINDS`; value, threshold: what was measured last, and from
        where on it is worth a warning; epoch: of that measurement; message: what and what to do.
    """

    layer: str
    kind: str
    value: float
    threshold: float
    epoch: float
    message: str

    def __str__(self) -> str:
        return f"{self.layer or '(the model)'}: {self.message}"

    def row(self) -> dict[str, Any]:
        """The finding as a record of a run."""
        return {
            "kind": "warning",
            "epoch": self.epoch,
            "layer": self.layer,
            "finding": self.kind,
            "value": self.value,
            "threshold": self.threshold,
            "message": self.message,
        }


@dataclass(frozen=True)
class _Kind:
    """One way to go wrong: which quantity, beyond which threshold, in words, with advice."""

    name: str
    key: str
    threshold: str
    above: bool
    says: str
    advice: str
    sudden: bool = False  # a single measurement proves it
    if_heard: bool = False  # of no importance where no layer below receives its feedback

    def limit(self, thresholds: Thresholds) -> float:
        value: float = getattr(thresholds, self.threshold)
        return 1 / value if self.threshold == "ratio" and not self.above else value

    def beyond(self, value: float, limit: float) -> bool:
        return value >= limit if self.above else value <= limit


_KINDS = (
    _Kind(
        "unaligned",
        "gradient_angle_deg",
        "angle_deg",
        True,
        "its update stays at {value:.1f} degrees to backprop's (90 is chance, threshold"
        " {limit:g}): it learns next to nothing of use",
        "give this layer and those above it feedback that follows the weights (kp, wm, usf), or"
        " a norm layer between them, or a smaller learning rate",
    ),
    _Kind(
        "strong signal",
        "delta_norm_ratio",
        "ratio",
        True,
        "its signal is {value:.3g} times as strong as backprop's (threshold {limit:g})",
        "use scale='norm' where the rule has it, or a smaller learning rate for this layer, or"
        " another rule",
    ),
    _Kind(
        "weak signal",
        "delta_norm_ratio",
        "ratio",
        False,
        "its signal is {value:.2g} times as strong as backprop's (threshold {limit:g})",
        "use scale='norm' where the rule has it, or stronger feedback (init, scale), or an"
        " optimizer that adapts the step to the gradient (adam)",
    ),
    _Kind(
        "no signal",
        "signal",
        "signal",
        False,
        "the norm of its signal is {value:.2g} of the error's at the output (threshold"
        " {limit:g}): activations above it are saturated or silent, the feedback vanishes, or a"
        " norm layer divides by what a weight has grown to",
        "look at the activations and the feedback of the layers above; a smaller learning rate"
        " from the start, norm layers, or a rule that broadcasts the error (dfa)",
        sudden=True,
    ),
    _Kind(
        "saturated",
        "saturated",
        "saturated",
        True,
        "{percent:.0f} % of it is saturated or silent (threshold {limit_percent:.0f} %), so that"
        " no error passes",
        "start again with a smaller learning rate or smaller initial weights, scale the inputs, or"
        " put a norm layer before it",
        sudden=True,
    ),
    _Kind(
        "lost feedback",
        "norm_ratio",
        "kept",
        False,
        "the norm of its feedback is {value:.2g} of its weight's (threshold {limit:g})",
        "use a smaller decay of the feedback, stronger initial feedback, or scale='norm' where"
        " the rule has it; if the weight has grown instead, a smaller learning rate",
        if_heard=True,
    ),
    _Kind(
        "lost feedback",
        "feedback_kept",
        "kept",
        False,
        "the norm of its feedback is {value:.2g} of what it was at the start (threshold {limit:g})",
        "use a smaller decay of the feedback, and let no weight decay of the optimizer act on"
        " apical.feedback_parameters(model)",
        if_heard=True,
    ),
    _Kind(
        "does not move",
        "weight_change",
        "moved",
        False,
        "its weight moved by {value:.1g} of its norm since the start (threshold {limit:g})",
        "see that the optimizer knows the weight and a signal reaches it; use a larger learning"
        " rate for this layer, or freeze it on purpose (requires_grad_(False))",
    ),
    _Kind(
        "runs away",
        "weight_change",
        "grown",
        True,
        "its weight moved by {value:.3g} times its norm since the start (threshold {limit:g})",
        "use a smaller learning rate, clip_norm, or a rule whose signal shrinks with the error",
        sudden=True,
    ),
)

DIVERGED = "diverged"
REMEDY = (
    "start again with a smaller learning rate (a tenth), as the best rate of a rule is not that of "
    "backpropagation; clip the norm of the gradients; or an optimizer that adapts the step to the "
    "gradient (adam)"
)
KINDS = (*dict.fromkeys(kind.name for kind in _KINDS), DIVERGED)
"""The names of all findings."""


def divergence(loss: float, first: float, step: int, thresholds: Thresholds) -> Finding | None:
    """Whether training has diverged, going by its loss. Args: first: the loss of the first step."""
    limit = thresholds.diverged * abs(first)
    if math.isfinite(loss) and loss <= limit:
        return None
    message = (
        f"training diverged: the loss of step {step} is {loss:.3g}, that of the first was "
        f"{first:.3g} (threshold {limit:.3g}). Try: {REMEDY}"
    )
    return Finding("", DIVERGED, loss, limit, step, message)


def findings(rows: Iterable[Row], thresholds: Thresholds | None = None) -> list[Finding]:
    """What is wrong with the layers, going by their latest measurements.

    Args: rows: records of a run, in order; those of kinds `layer` and `activation` count, from
        the end of the first epoch on, but not those of a `step` within an epoch: they follow one
        another too closely. Of kind `probe` a loss that is not finite counts at any time.
    Returns: at most one finding of a kind for each layer, in the order of the layers.
    """
    thresholds = thresholds or Thresholds()
    layers: dict[str, list[Row]] = {}
    found: dict[tuple[str, str], Finding] = {}
    for row in rows:
        loss = row.get("loss", 0.0) if row.get("kind") == "probe" else 0.0
        if not math.isfinite(loss):  # no other measurement of such a net says anything
            message = f"the loss of the measured batch is {loss}. Try: {REMEDY}"
            lost = Finding("", DIVERGED, loss, math.inf, row["epoch"], message)
            found.setdefault(("", DIVERGED), lost)
        of_layer = row.get("kind") in ("layer", "activation")
        if of_layer and row["epoch"] >= 1 and "step" not in row:
            layers.setdefault(row["layer"], []).append(row)
    for layer, measured in layers.items():
        for kind in _KINDS:
            patience = 1 if kind.sudden else thresholds.patience
            latest = measured[-patience:]
            finding = _judge(kind, layer, latest, thresholds)
            if finding is not None and len(latest) == patience:
                found.setdefault((layer, kind.name), finding)
    return list(found.values())


def _judge(kind: _Kind, layer: str, rows: Sequence[Row], thresholds: Thresholds) -> Finding | None:
    limit = kind.limit(thresholds)
    for row in rows:
        if kind.key not in row or not kind.beyond(row[kind.key], limit):
            return None
        if kind.if_heard and not row.get("heard", True):
            return None
    value = float(rows[-1][kind.key])
    numbers = {"value": value, "limit": limit, "percent": 100 * value, "limit_percent": 100 * limit}
    message = f"{kind.says.format(**numbers)}. Try: {kind.advice}"
    return Finding(layer, kind.name, value, limit, rows[-1]["epoch"], message)
