"""Measurements of a converted model: functions from a model to numbers per layer."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from apical.measure import signals
from apical.measure.linear_probe import linear_probe as linear_probe
from apical.rules import TransportRule

FLOOR = 1e-12
"""Norms below this times the square root of the number of entries count as zero: an angle to
them would be an angle to rounding errors, and is left out."""

NOISE = 100
"""A gradient below so many eps of the largest among the layers may be rounding noise."""

GROWN = 50.0
"""Growth of activations through a layer or a block from which on angles are not shown."""

RANK_ROWS = 2048
"""Most rows from which an effective rank is computed; more are thinned out evenly."""

PIECE = 64
"""Products that are added up in float32 before the sums go on in float64."""

Rows = dict[str, dict[str, float]]
"""layer -> measured quantity -> value."""


def alignment(model: nn.Module) -> Rows:
    """Angle and norm ratio of the feedback matrix B to the weight W, for each transport layer.

    B is the matrix the rule really uses (for sign symmetry: with the sign of the current W).
    Rules that broadcast the error, or send nothing, have no such matrix; their layers are not in
    the result.

    Returns: layer -> {"angle_deg": 0 to 180, 90 is unrelated; "norm_ratio": |B| / |W|}. An entry
        is left out where a norm is below `FLOOR` or not finite.
    Source: Lillicrap et al. 2016, figure 2; norm ratio: BioTorch (2021).
    """
    pairs = {}
    with torch.no_grad():
        for layer, slot in signals.slots(model):
            rule = slot.feedback.rule
            if isinstance(rule, TransportRule) and not rule.sends_nothing:
                pairs[layer] = (rule.matrix(slot.weight, *slot.feedback.memory()), slot.weight)
        return _compared(pairs)


def gradient_alignment(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any
) -> Rows:
    """Angle and norm ratio of each converted layer's weight gradient to the exact gradient.

    Two forward and backward passes on the same batch with the same dropout masks. Parameters'
    `.grad`, buffers and global random numbers are left as they were.

    Args:
        loss_fn: `loss_fn(model(x), y)` is a number; of a model that returns several things, as
            `lambda output, y: F.cross_entropy(output.logits, y)`.
        x: one batch of inputs, at most as large as memory allows: a tensor, a tuple of arguments,
            or a dictionary of keyword arguments; y: its targets.

    Returns: layer -> {"angle_deg": 0 to 180, 0 is backprop; "norm_ratio": |rule's| / |exact|;
        "reference_norm": |exact|; "growth": root mean square of the output over that of the input,
        the largest of the layer and of the modules that contain it, but for the model itself}. The
        first two are left out where a norm is below `FLOOR`; whether the angle means anything:
        `no_angle_reason`. Frozen layers, and those that receive nothing, are not in the result.
    """
    sent = signals.send(model, loss_fn, x, y)
    rows = _gradient_rows(sent)
    for layer, growth in _growths(sent).items():
        if layer in rows:
            rows[layer]["growth"] = growth
    return rows


def delta_alignment(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any
) -> Rows:
    """Angle and norm ratio of the signal that teaches each layer to backprop's, by example.

    The signal (delta) is the gradient of the loss at the output of the layer's linear operation,
    before the activation, from which its weight learns, whether the rule transports or
    broadcasts the error. It is compared with what backprop would deliver at the same place through
    the whole net above. The output layer's is the error itself: 0 degrees under every rule.

    One angle for each entry of axis 0, over all its other axes; the result is their mean, in
    which examples with a vanishing signal do not count. Costs and leaves behind what
    `gradient_alignment` does.

    Args: as of `gradient_alignment`.
    Returns: layer -> {"angle_deg": 0 to 180, 90 is unrelated; "norm_ratio": |rule's| / |exact|
        over the whole batch}, without entries where a norm is below `FLOOR`. The projections of
        attention are rows of their own. A layer called several times has one angle for each
        example and call.
    Source: Launay et al. 2020, whose code averages over examples in the same way. The logs of
        Akrout et al. 2019 hold the angle for one example, to backprop through the one layer
        above; in a net with one hidden layer that is the same.
    """
    return _delta_rows(signals.send(model, loss_fn, x, y).deltas)


def no_angle_reason(
    row: Mapping[str, Any], largest: float, *, dtype: torch.dtype = torch.float32
) -> str:
    """Why the angle of a gradient says nothing, to be shown in its place; "" where it does.

    A reference below `NOISE` eps of the largest among the layers may be rounding noise: residual
    sums and norm layers subtract numbers as large as the largest gradient, and each leaves an error
    of about eps of it. At `NOISE` eps the reference is thus to 1 % noise, which turns it by 0.6
    degrees. Activations that grow more than `GROWN`-fold through a layer or a block make
    gradients explode or units saturate, whatever the rule.

    Args: row: of one layer, from `gradient_alignment` or a record of kind `layer`; what it does
            not say (records of older runs) is no reason.
        largest: the largest reference norm among the layers of the same measurement.
        dtype: that the net computes in.

    >>> no_angle_reason({"angle_deg": 88.0, "reference_norm": 1e-9, "growth": 1.0}, 0.5)
    'gradient 1e-09 is rounding noise beside 0.5'
    """
    norm = row.get("gradient_reference_norm", row.get("reference_norm"))
    growth = row.get("growth", 0.0)
    if norm is not None and norm <= NOISE * torch.finfo(dtype).eps * largest:
        return f"gradient {norm:.2g} is rounding noise beside {largest:.2g}"
    if norm is not None and not math.isfinite(norm):
        return f"gradient {norm} is not finite"
    if growth > GROWN:
        return f"activations grew {growth:.3g}-fold"
    return ""


@torch.no_grad()
def effective_rank(rows: Tensor) -> float:
    """How many directions vectors spread over: the participation ratio of their covariance.

    (sum s)^2 / sum s^2 of the eigenvalues s of the covariance: k for variance spread evenly over
    k directions, 1 for a line. Chosen over the exponential of the spectrum's entropy because both
    sums are traces, tr(G)^2 / |G|^2 of the smaller of the two Gram matrices: no eigenvalue is ever
    computed. At most one less than the number of rows, and an underestimate where rows are not
    many times more than directions; more than `RANK_ROWS` rows are thinned out evenly.

    Shapes: rows (observations, units).
    Returns: at least 1 and at most the number of units; 0 where nothing varies.
    Source: Litwin-Kumar et al. 2017; Gao et al. 2017. The alternative: Roy and Vetterli 2007.
    >>> effective_rank(torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]]))
    2.0
    """
    return _rank(rows).item()


def measured(
    model: nn.Module, loss_fn: Callable[[Any, Any], Tensor], x: Any, y: Any
) -> tuple[Rows, dict[str, float]]:
    """Everything above from one pair of passes, as records of a run name it.

    Returns: layer -> {angle_deg, norm_ratio: of feedback to weights; gradient_angle_deg,
        gradient_norm_ratio, gradient_reference_norm, growth: see `gradient_alignment`;
        delta_angle_deg, delta_norm_ratio; delta_rank: effective rank of the
        layer's signal by output units; signal: its norm over that of the error at the model's
        output; heard: whether a layer below receives its feedback}. And of the whole model {loss;
        error_rank: effective rank of the error}.
    """
    sent = signals.send(model, loss_fn, x, y)
    rows: Rows = {}
    whole = {"loss": sent.loss.item()}
    found = {
        "": alignment(model),
        "gradient_": _gradient_rows(sent),
        "delta_": _delta_rows(sent.deltas),
    }
    for prefix, of_layers in found.items():
        for layer, values in of_layers.items():
            named = {f"{prefix}{key}": value for key, value in values.items()}
            rows.setdefault(layer, {}).update(named)
    for layer in sent.deltas:
        rows.setdefault(layer, {})["heard"] = layer in sent.heard
    for layer, growth in _growths(sent).items():
        if layer in rows:
            rows[layer]["growth"] = growth
    if sent.error is not None:
        whole["error_rank"] = _add_signal(rows, model, sent, sent.error)
    return rows, whole


@torch.no_grad()
def _add_signal(rows: Rows, model: nn.Module, sent: signals.Signals, error: Tensor) -> float:
    """Effective ranks and the signals' norms over the error's; returns the rank of the error."""
    known = dict(signals.slots(model))
    names = list(sent.deltas)
    ranks, norms = [_rank(error.flatten(1))], [_norm(error)]
    for name in names:
        calls = [delta for delta, _ in sent.deltas[name]]
        units = [signals.units_last(delta, known[name]) for delta in calls]
        ranks.append(_rank(torch.cat(units) if len(units) > 1 else units[0]))
        norms.append(torch.stack([_norm(delta) for delta in calls]).norm())
    numbers = listed([torch.stack(pair) for pair in zip(ranks, norms, strict=True)])
    error_rank, whole = numbers[0]
    for name, (rank, norm) in zip(names, numbers[1:], strict=True):
        rows.setdefault(name, {})["delta_rank"] = rank
        if whole > FLOOR * math.sqrt(error.numel()):
            rows[name]["signal"] = norm / whole
    return float(error_rank)


def _rank(rows: Tensor) -> Tensor:
    """The participation ratio as a tensor of no axes, in float64."""
    rows = rows[:: max(1, -(-len(rows) // RANK_ROWS))]
    if rows.dtype not in (torch.float32, torch.float64):
        rows = rows.float()
    rows = rows - rows.mean(0)
    size = torch.linalg.vector_norm(rows)
    rows = rows / size.clamp_min(torch.finfo(rows.dtype).tiny)  # fourth powers must not underflow
    gram = rows.T @ rows if rows.shape[1] <= rows.shape[0] else rows @ rows.T
    gram = gram.double()
    return gram.trace().square() / gram.square().sum().clamp_min(torch.finfo(gram.dtype).tiny)


@torch.no_grad()
def _delta_rows(deltas: Mapping[str, Sequence[signals.Pair]]) -> Rows:
    numbers = {
        name: torch.stack([_by_example(*pair) for pair in pairs]).sum(0)
        for name, pairs in deltas.items()
    }
    rows: Rows = {}
    for name, (angles, examples, ours, exact) in zip(
        numbers, listed(list(numbers.values())), strict=True
    ):
        row = rows.setdefault(name, {})
        entries = sum(delta.numel() for delta, _ in deltas[name])
        if examples:
            row["angle_deg"] = math.degrees(angles / examples)
        if math.isfinite(ours + exact) and math.sqrt(exact) > FLOOR * math.sqrt(entries):
            row["norm_ratio"] = math.sqrt(ours / exact)
    return rows


def _by_example(ours: Tensor, exact: Tensor) -> Tensor:
    """Sum of the examples' angles in radians; their number; both squared norms."""
    a, b = ours.flatten(1), exact.flatten(1)
    dot, aa, bb = _inner(a, b), _inner(a, a), _inner(b, b)
    least = FLOOR**2 * a.shape[1]
    there = (aa > least) & (bb > least) & (aa + bb).isfinite()
    cosine = dot / (aa * bb).sqrt().clamp_min(torch.finfo(dot.dtype).tiny)
    angles = torch.where(there, cosine.clamp(-1, 1).acos(), 0.0)
    return torch.stack([angles.sum(), there.sum().double(), aa.sum(), bb.sum()])


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Inner products of rows in float64. Rows of float32 are added up in pieces so short that
    their rounding does not show, at a third of the cost of converting them.

    Shapes: (N, D), (N, D) -> (N,).
    """
    if a.dtype not in (torch.float32, torch.float64):  # in which small squares do not exist
        a, b = a.float(), b.float()
    products = a * b
    pieces = products.shape[1] // PIECE
    whole = products[:, : pieces * PIECE].unflatten(1, (pieces, PIECE))
    rest = products[:, pieces * PIECE :]
    return whole.sum(2).double().sum(1) + rest.double().sum(1)


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.float64)


def listed(tensors: Sequence[Tensor]) -> list[Any]:
    """All numbers at once: one wait for a GPU, not one for each layer."""
    if not tensors:
        return []
    return torch.stack([tensor.to(tensors[0].device) for tensor in tensors]).tolist()


def _gradient_rows(sent: signals.Signals) -> Rows:
    """Angle and norm ratio of every layer's gradient, and the norm of its reference."""
    rows = _compared(sent.gradients)
    norms = listed([_norm(exact) for _, exact in sent.gradients.values()])
    for row, norm in zip(rows.values(), norms, strict=True):
        row["reference_norm"] = norm
    return rows


def _growths(sent: signals.Signals) -> dict[str, float]:
    """The largest growth of each layer, or weight of attention, and the modules around it."""
    of_module = dict(zip(sent.growth, listed(list(sent.growth.values())), strict=True))
    found = {}
    for name in {**sent.gradients, **sent.deltas}:
        parts = name.split(".")
        around = (".".join(parts[:depth]) for depth in range(1, len(parts) + 1))
        found[name] = max((of_module[n] for n in around if n in of_module), default=math.nan)
    return {name: growth for name, growth in found.items() if math.isfinite(growth)}


def _compared(pairs: Mapping[str, signals.Pair]) -> Rows:
    numbers = []
    for first, second in pairs.values():
        a, b = first.detach().reshape(1, -1), second.detach().reshape(1, -1)
        numbers.append(torch.cat([_inner(a, b), _inner(a, a).sqrt(), _inner(b, b).sqrt()]))
    found: Rows = {}
    for (name, pair), (dot, norm, reference) in zip(pairs.items(), listed(numbers), strict=True):
        floor, row = FLOOR * math.sqrt(pair[0].numel()), found.setdefault(name, {})
        if not math.isfinite(dot + norm + reference):
            continue
        if norm > floor and reference > floor:
            cosine = max(-1.0, min(1.0, dot / (norm * reference)))
            row["angle_deg"] = math.degrees(math.acos(cosine))
        if reference > floor:
            row["norm_ratio"] = norm / reference
    return found
