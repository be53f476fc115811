"""What is known of a tapped layer once the error is: samples, targets, the cost of feedback."""

import math
from collections.abc import Iterable

import torch.nn.functional as F
from torch import Tensor

from apical.core import memory, outputs
from apical.core.taps import BroadcastFeedback, Tap
from apical.rules.base import BroadcastRule


def is_empty(tap: Tap, error: Tensor) -> bool:
    """Whether the tap holds none of the rows that only the number of samples would group."""
    rule = tap.feedback.rule
    if len(error) or len(tap.x) or rule.by_position:
        return False
    return rule.samples(tap.x.shape, tuple(error.shape[1:])) is None


def counted(tap: Tap, error: Tensor) -> tuple[Tap, int]:
    """The tap as its rule is given it, and the number of its samples, or of its positions.

    Shapes: error (samples, ...); (samples, *positions, features) for positions as samples, and
        (samples, features, *space) for pixels.
    Raises: ValueError if the layer's input counts others than the output.
    """
    rule = tap.feedback.rule
    if rule.by_position:
        expected = tuple((error.movedim(1, -1) if rule.by_pixel else error).shape[:-1])
        rows = tap.by_rows(expected)
        given = rows.positions or ()
        alike = rule.by_pixel and given[0] == expected[0] and len(given) == len(expected)
        if given != expected and not alike:
            raise positions_differ(tap.feedback, rows.positions or (), expected)
        return rows, len(rows.x)
    axis = getattr(rule, "sample_axis", 0)
    if isinstance(axis, int) and axis >= tap.x.dim():
        raise ValueError(
            f"{tap.feedback.layer}: its input {tuple(tap.x.shape)} has no axis {axis} that counts"
            f" samples ({type(rule).__name__}(sample_axis={axis})); give the axis that does, or the"
            " layer another rule by its name"
        )
    count = rule.samples(tap.x.shape, tuple(error.shape[1:]))
    if count is None and error.shape[0] and tap.x.shape[0] % error.shape[0] == 0:
        count = error.shape[0]
    if count != error.shape[0]:
        raise samples_differ(tap.feedback.layer, count or tap.x.shape[0], error.shape[0])
    return tap, count


def error_size(tap: Tap, error: Tensor) -> int:
    """Outputs of one sample, or of one position."""
    return math.prod(of_sample(tap.feedback.rule, tuple(error.shape[1:])))


def of_sample(rule: BroadcastRule, error_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of the error that a rule is given of each of its samples."""
    if rule.by_pixel:
        return error_shape[:1]
    return error_shape[-1:] if rule.by_position else error_shape


def at_output(feedback: BroadcastFeedback, token: Tensor, error: Tensor) -> Tensor:
    """The token in the shape of the error. That of a layer of another resolution is brought to the
    pixels of the output; backwards, each of its pixels receives the sum of the errors over it.

    Raises: ValueError if the layer counts other samples or positions than the output.
    """
    rule = feedback.rule
    if rule.by_pixel and token.dim() == error.dim() and token.shape[:2] == error.shape[:2]:
        if token.shape[2:] == error.shape[2:]:
            return token
        return F.interpolate(token, error.shape[2:], mode="area")
    if rule.by_position and token.shape != error.shape:
        axis = 1 if rule.by_pixel else -1
        given, expected = (tuple(t.movedim(axis, -1).shape[:-1]) for t in (token, error))
        raise positions_differ(feedback, given, expected)
    if token.shape[0] != error.shape[0]:
        raise samples_differ(feedback.layer, token.shape[0], error.shape[0])
    return token


def sizes(taps: Iterable[tuple[Tap, int]], error: Tensor) -> dict[str, int]:
    """Bytes of the feedback of each layer, nothing of which is allocated."""
    return {
        tap.feedback.layer: memory.broadcast_bytes(
            tap.feedback.rule, tap.geometry(samples), error_size(tap, error), tap.weight
        )
        for tap, samples in taps
    }


def targets(
    tap: Tap,
    labels: Tensor | None,
    *,
    axis: int,
    several: bool,
    samples: int,
    error_shape: tuple[int, ...],
) -> Tensor:
    """Labels for a rule that learns from them, (samples, error size).

    Args: axis: of the output, that counts samples.     several: whether several outputs carry the
            error.     error_shape: of one sample.
    Raises: ValueError if there are none, or of another shape than the output.
    """
    layer = tap.feedback.layer
    if labels is None:
        raise ValueError(
            f"{layer}: {type(tap.feedback.rule).__name__} learns from labels; run the forward and"
            " backward pass inside `with apical.labels(model, targets):`"
        )
    if several and not labels.is_floating_point():
        raise ValueError(
            f"{layer}: with several outputs, labels are numbers (samples, {error_shape[0]}), one"
            f" for each entry of the outputs in their order, not {tuple(labels.shape)} of"
            f" {labels.dtype}"
        )
    if tap.positions is not None:
        expected = (*tap.positions, error_shape[-1])
        return outputs.targets_by_position(labels, axis, expected, layer)
    if axis and not several:
        if not labels.is_floating_point() or labels.dim() <= axis:
            raise ValueError(
                f"{layer}: with output_axis={axis}, labels are numbers in the shape of the model's"
                f" output (classes as one-hot vectors), not {tuple(labels.shape)} of {labels.dtype}"
            )
        labels = labels.movedim(axis, 0)
    return outputs.targets(labels, samples, error_shape)


def positions_differ(
    feedback: BroadcastFeedback, given: tuple[int, ...], expected: tuple[int, ...]
) -> ValueError:
    """The input of a layer has other positions than the output. Args: samples first, both."""
    layer, rule = feedback.layer, type(feedback.rule).__name__
    swapped = given[1:2] + given[:1] + given[2:]
    if given == (math.prod(expected),):
        remedy = f"give it {rule}(positions='samples', sample_axis='folded')"
    elif len(given) > 1 and swapped == expected:
        axis = 0 if getattr(feedback.rule, "sample_axis", 0) else 1
        remedy = f"give it {rule}(positions='samples', sample_axis={axis})"
    else:
        remedy = f"give the layer a rule without positions, {{{layer!r}: 'fa', '*': ...}}"
        if not feedback.rule.by_pixel:
            remedy += ", as for an encoder and for pooled or strided layers"
    kind = "pixels" if feedback.rule.by_pixel else "samples"
    return ValueError(
        f"{layer}: its input has the positions {given}, samples first, and the model's output"
        f" {expected}, features {'second' if feedback.rule.by_pixel else 'last'}. With"
        f" positions={kind!r} they must agree; here {remedy}"
    )


def samples_differ(layer: str, given: int, expected: int) -> ValueError:
    """The input of a layer counts another number of samples than the output."""
    return ValueError(
        f"{layer}: its input counts {given} samples, the model's output {expected}. If another"
        " axis counts samples, or axis 0 holds several rows of each sample, give that to the rule:"
        " DFA(sample_axis=...), for spiking nets sample_axis='steps'. If it holds no samples (a"
        " table of positions), give the layer rule BP by its name"
    )
