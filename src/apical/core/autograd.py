"""The autograd Functions of Apical, and the two kinds of operation they know.

Everything a learning rule changes about differentiation happens in this file:

* `transport`: an operation whose message to the layer below passes through the rule's feedback
  matrix instead of the weight (feedback alignment and its relatives);
* `tap` and `join`: the star graph of the broadcast rules, in which every tapped activation
  receives its teaching signal straight from the error at the model's output.

Each Function is written as three functions, from which `_function` makes the two forms that torch
knows: a plain one, and the slower one that the transforms of `torch.func` require.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from apical.rules.ops import Geometry, Local, Op

if TYPE_CHECKING:
    from apical.core.feedback import Feedback


def transport(op: Op, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Feedback) -> Tensor:
    """`op(x, weight) + bias` whose backward sends `op^T(gradient, B)` to the layer below.

    `B = feedback.rule.matrix(weight, *memory)` is formed in the backward pass, from the weight
    of the forward pass. The gradients of `weight` and `bias` are the ordinary ones. Under
    autocast the operands are cast as autocast would cast them.

    Shapes: as `F.linear` or the convolution of `op`.
    Raises: RuntimeError if the backward runs inside `exact_gradients` but the forward did not.
    """
    if torch.is_autocast_enabled(x.device.type):
        x, weight, bias = _autocast(x), _autocast(weight), bias if bias is None else _autocast(bias)
    return _transport(x, weight, bias, op, feedback, *feedback.memory())


def exact(op: Op, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`op(x, weight) + bias` with its ordinary gradient; autocast casts as it would for `op`."""
    if torch.is_autocast_enabled(x.device.type):  # which does not know torch.convolution
        x, weight, bias = _autocast(x), _autocast(weight), bias if bias is None else _autocast(bias)
    return op.forward(x, weight, bias)


def tap(
    x: Tensor,
    feedback: Feedback,
    geometry: Geometry,
    error_shape: Sequence[int],
    targets: Tensor | None = None,
) -> Tensor:
    """A token that stands for `x` at the output: the error given to it comes back to `x` as the
    rule's teaching signal.

    Shapes: x `geometry.input_shape` -> token (samples, *error_shape), without memory of its own;
        targets (samples, error size) for rules that learn from labels.
    """
    return _tap(x, feedback, geometry, tuple(error_shape), targets, *feedback.memory())


def join(output: Tensor, tokens: Sequence[Tensor]) -> Tensor:
    """The output, unchanged; its gradient (the error) also goes to every token."""
    return _join(output, *tokens)


def _autocast(tensor: Tensor) -> Tensor:
    """The tensor as autocast, which is enabled, would give it to a matrix product."""
    if not tensor.is_floating_point() or tensor.dtype == torch.float64:
        return tensor
    return tensor.to(torch.get_autocast_dtype(tensor.device.type))


def _without_autocast(device: str) -> AbstractContextManager[Any]:
    # A backward pass may run inside the autocast block, where rules still compute in full.
    enabled = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


def _once_differentiable(backward: Any) -> Any:
    """torch's `once_differentiable`, without its cost where no second derivative is asked for."""
    guarded = once_differentiable(backward)

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: Tensor | None) -> Any:
        chosen = guarded if torch.is_grad_enabled() else backward
        return chosen(ctx, *gradients)

    return wrapper


def _refuse_if_exact(feedback: Feedback) -> None:
    if feedback.exact:
        raise RuntimeError(
            f"{feedback.layer}: this graph was built outside exact_gradients and would deliver the"
            " gradient of its rule; run the forward pass inside the block too"
        )


def _transport_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, op: Op, feedback: Feedback, *memory: Tensor
) -> Tensor:
    return op.forward(x, weight, bias)


def _transport_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, bias, op, feedback, *memory = inputs
    ctx.save_for_backward(x, weight, *memory)
    ctx.op, ctx.feedback = op, feedback
    ctx.set_materialize_grads(False)


def _transport_backward(ctx: Any, grad: Tensor | None) -> Any:
    x, weight, *memory = ctx.saved_tensors
    if grad is None:
        return (None,) * (5 + len(memory))
    _refuse_if_exact(ctx.feedback)
    with _without_autocast(grad.device.type):
        return _transport_gradients(ctx, grad, x, weight, memory)


def _transport_gradients(
    ctx: Any, grad: Tensor, x: Tensor, weight: Tensor, memory: Sequence[Tensor]
) -> tuple[Tensor | None, ...]:
    feedback, op, needs = ctx.feedback, ctx.op, ctx.needs_input_grad
    rule = feedback.rule
    trains_memory = any(needs[5:]) and (needs[1] or not rule.follows_weight)
    local = Local(op, x, grad, weight, scratch={})
    message = rule.send(local, *memory) if needs[0] else None
    matrix = weight
    if needs[0] and message is None:
        matrix = rule.matrix(weight, *memory)
        if matrix.dtype != x.dtype:
            matrix = matrix.to(x.dtype)
    grad_x, grad_weight, grad_bias = op.backward(
        grad, x, matrix, (needs[0] and message is None, needs[1] or trains_memory, needs[2])
    )
    memory_gradients: Sequence[Tensor | None] = (None,) * len(memory)
    observes = needs[0] and feedback.observes()
    if trains_memory or observes:
        local = local._replace(grad_weight=grad_weight)
        if observes:
            rule.observe(local, *memory, *feedback.notes)
        if trains_memory:
            memory_gradients = rule.memory_gradients(local, *memory)
    grad_x = grad_x if message is None else message
    return grad_x, grad_weight if needs[1] else None, grad_bias, None, None, *memory_gradients


def _tap_forward(
    x: Tensor,
    feedback: Feedback,
    geometry: Geometry,
    error_shape: tuple[int, ...],
    targets: Tensor | None,
    *memory: Tensor,
) -> Tensor:
    return x.new_zeros(()).expand(geometry.samples, *error_shape)


def _tap_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, feedback, geometry, error_shape, targets, *memory = inputs
    learns = any(tensor.requires_grad for tensor in memory) or feedback.rule.needs_input
    ctx.save_for_backward(x if learns else None, targets, *memory)
    ctx.feedback, ctx.geometry, ctx.dtype = feedback, geometry, x.dtype
    ctx.set_materialize_grads(False)


def _tap_backward(ctx: Any, error: Tensor | None) -> Any:
    x, targets, *memory = ctx.saved_tensors
    nothing = (None,) * 4
    if error is None:
        return None, *nothing, *(None for _ in memory)
    _refuse_if_exact(ctx.feedback)
    error = error.reshape(len(error), error.shape[1:].numel())
    if memory:
        error = error.to(memory[0].dtype)
    rule, known = ctx.feedback.rule, () if targets is None else (targets.to(error.dtype),)
    with _without_autocast(error.device.type):
        seen = (x.to(error.dtype),) if rule.needs_input else ()
        signal = rule.signal(error, ctx.geometry, *memory, *known, *seen)
        gradients: Sequence[Tensor | None] = (None,) * len(memory)
        if ctx.feedback.observes():
            rule.observe(error, *known, *memory, *ctx.feedback.notes)
        if x is not None and any(ctx.needs_input_grad[5:]):
            taught = known if seen else ()
            gradients = rule.memory_gradients(error, x, ctx.geometry, *memory, *taught)
    return signal.to(ctx.dtype), *nothing, *gradients


def _join_forward(output: Tensor, *tokens: Tensor) -> Tensor:
    # A copy, not a view and not marked dirty: an in-place operation on the result stays legal,
    # and a softmax that saved its own output for backward still finds it untouched.
    return output.clone()


def _join_setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.tokens = len(inputs) - 1
    ctx.set_materialize_grads(False)


def _join_backward(ctx: Any, error: Tensor | None) -> Any:
    return (error,) * (1 + ctx.tokens)


def _function(
    name: str,
    forward: Callable[..., Tensor],
    setup: Callable[..., None],
    backward: Callable[..., Any],
) -> Callable[..., Tensor]:
    """What applies the autograd Function of these three, in the form that is needed.

    Transforms of `torch.func` need `forward` and `setup_context` apart, which costs 20 to 30
    microseconds a call.
    """

    def whole(ctx: Any, *inputs: Any) -> Tensor:
        output = forward(*inputs)
        setup(ctx, inputs, output)
        return output

    kind, backward = torch.autograd.Function, staticmethod(_once_differentiable(backward))
    apart = {"forward": staticmethod(forward), "setup_context": staticmethod(setup)}
    plain: Any = type(name, (kind,), {"forward": staticmethod(whole), "backward": backward})
    general: Any = type(name, (kind,), {**apart, "backward": backward, "generate_vmap_rule": True})

    def apply(*inputs: Any) -> Tensor:
        compiling = torch.compiler.is_compiling()
        transforms = not compiling and torch._C._are_functorch_transforms_active()
        return (general if transforms else plain).apply(*inputs)

    return apply


_transport = _function("Transport", _transport_forward, _transport_setup, _transport_backward)
_tap = _function("Tap", _tap_forward, _tap_setup, _tap_backward)
_join = _function("Join", _join_forward, _join_setup, _join_backward)
