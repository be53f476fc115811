"""Applying the operation of a converted layer with the backward pass of its rule."""

from collections.abc import Iterable

import torch
from torch import Tensor

from apical.core import autograd
from apical.core.feedback import Feedback
from apical.core.taps import BroadcastFeedback
from apical.rules.ops import Op


def apply(feedback: Feedback, op: Op, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`op(x, weight) + bias` with the backward pass of the rule.

    Where nothing is differentiated, and inside `exact_gradients`, it is the plain operation.
    Shapes: as `F.linear` or the convolution of `op`.
    Raises: RuntimeError in forward-mode differentiation.
    """
    exact = bool(feedback.exact)
    if not exact:
        autograd.refuse_forward_mode(feedback)
    acts = False
    if torch.is_grad_enabled():
        feedback.history.called = True
        acts = not exact and feedback.takes_part(x, weight)
    if isinstance(feedback, BroadcastFeedback) and not exact:
        cut = feedback.broadcast.cut(feedback, op, x, weight)
        output = autograd.exact(op, op.prepare(cut), weight, bias)
    elif acts:
        if feedback.rule.sends_nothing:
            x = x.detach()
        output = autograd.transport(op, op.prepare(x), weight, bias, feedback)
    else:
        output = autograd.exact(op, op.prepare(x), weight, bias)
    for listener in feedback.listeners:
        listener(x, output)
    return output


def serves_plain(parts: Iterable[Feedback]) -> bool:
    """Whether the plain layer's own forward computes all that is wanted of these parts: nothing is
    differentiated or all of it exactly, no feedback waits for shapes, and nothing is measured.

    Raises: RuntimeError in forward-mode differentiation.
    """
    differentiated = torch.is_grad_enabled()
    for feedback in parts:
        if differentiated:
            feedback.history.called = True
        if feedback.listeners:
            return False
        if not feedback.exact:
            autograd.refuse_forward_mode(feedback)
            if differentiated or feedback.pending:
                return False
    return True
