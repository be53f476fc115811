"""The autograd Functions of Apical: all that a learning rule changes about differentiation.

* `Transport`: an operation whose gradient reaches the layer below through the feedback matrix B
  instead of the weight W (feedback alignment and its relatives).
* `Tap` and `Join`: the gradient of the model's output reaches the inputs of all layers directly
  (the broadcast rules). A tap turns the input of a layer into a token; the join adds all tokens to
  the output. In the backward pass each token receives the gradient of the output, the error, and
  its tap returns what the rule makes of the error.
* `Bridge`: in the one forward pass that shows which axis counts samples, in the place of `detach`.
"""

import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType
from torch._functorch.pyfunctorch import retrieve_all_functorch_interpreters
from torch.autograd import Function, forward_ad

from apical.core.feedback import Feedback
from apical.core.sample_axis import Probe
from apical.rules.base import BroadcastRule, TransportRule
from apical.rules.ops import Geometry, Local, Op

OWN = "apical"
"""Key in the metadata of the node of what `exact` computed."""


def transport(op: Op, x: Tensor, weight: Tensor, bias: Tensor | None, feedback: Feedback) -> Tensor:
    """`op(x, weight) + bias` whose backward sends `op^T(gradient, B)` to the layer below.

    `B = feedback.rule.matrix(weight, *memory)` is formed in the backward pass, from the weight
    of the forward pass. The gradients of `weight` and `bias` are the ordinary ones. Under
    autocast the operands are cast as autocast would cast them.

    Shapes: as `F.linear` or the convolution of `op`.
    Raises: RuntimeError if the backward runs inside `exact_gradients` but the forward did not.
    """
    x, weight, bias = _autocast(x, weight, bias)
    return _apply(Transport, x, weight, bias, op, feedback, *feedback.memory())


def exact(op: Op, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`op(x, weight) + bias` with its ordinary gradient; autocast casts as it would for `op`. The
    node is marked as what a converted layer computed (`apical.core.graph`)."""
    output = op.forward(*_autocast(x, weight, bias))
    if output.requires_grad and not torch.compiler.is_compiling():
        output.grad_fn.metadata[OWN] = True  # type: ignore[index, union-attr]
    return output


def tap(
    x: Tensor,
    feedback: Feedback,
    geometry: Geometry,
    error_shape: Sequence[int],
    targets: Tensor | None = None,
) -> Tensor:
    """A token to be joined to the output; through it `x` receives the signal of the rule.

    Shapes: x `geometry.input_shape` -> token (samples, *error_shape), without memory of its own;
        targets (samples, error size) for rules that learn from labels.
    """
    return _apply(Tap, x, feedback, geometry, tuple(error_shape), targets, *feedback.memory())


def join(output: Tensor, feedback: Feedback, tokens: Sequence[Tensor]) -> Tensor:
    """The output, unchanged; its gradient (the error) also goes to every token.

    `feedback` is that of one of the taps, which errors name.
    """
    return _apply(Join, output, feedback, *tokens)


def refuse_forward_mode(feedback: Feedback) -> None:
    """Raise RuntimeError while forward-mode differentiation runs, and where transforms of
    `torch.func` are nested to differentiate twice: a rule defines one backward pass, no more."""
    if torch.compiler.is_compiling():
        return
    nested = False
    if torch._C._are_functorch_transforms_active():
        levels = retrieve_all_functorch_interpreters()
        nested = sum(level.key() == TransformType.Grad for level in levels) > 1
    if nested or forward_ad._current_level >= 0:
        raise _differentiated_twice(feedback)


def bridge(x: Tensor, probe: Probe) -> Tensor:
    """`x.detach()`, but gradients pass to `x` while `probe.passes`."""
    return _apply(Bridge, x, probe)


def _first_order(backward: Any) -> Any:
    """Refuse a backward pass that is recorded for a second one (`create_graph=True`).

    What a rule sends is not the derivative of anything, so a second derivative would be wrong or,
    where the recorded part does not depend on the input, silently zero. torch's own
    `once_differentiable` lets that zero pass, and names no layer. Transforms of `torch.func` record
    every backward pass; nested ones are refused in the forward pass.
    """

    @functools.wraps(backward)
    def wrapper(ctx: Any, *gradients: Tensor | None) -> Any:
        if not torch.is_grad_enabled():
            return backward(ctx, *gradients)
        if not torch._C._are_functorch_transforms_active():
            raise _differentiated_twice(ctx.feedback)
        with torch.no_grad():
            return backward(ctx, *gradients)

    return wrapper


def _differentiated_twice(feedback: Feedback) -> RuntimeError:
    return RuntimeError(
        f"{feedback.layer}: a backward pass that is itself differentiated (create_graph=True: a"
        " gradient penalty, a Hessian, a physics-informed loss) and forward-mode differentiation"
        f" are not defined for {type(feedback.rule).__name__}, whose signal is not the derivative"
        " of the output. Run that part, its forward pass included, inside `with"
        " apical.exact_gradients(model):`; if nothing is differentiated twice, as with what"
        " torch.func.vjp returns, call that inside torch.no_grad()"
    )


def _observes(feedback: Feedback, gradient: Tensor) -> bool:
    """Whether the rule observes this pass. Raises: RuntimeError where it cannot: transforms keep
    no tensor that is changed in place."""
    if torch.compiler.is_compiling() or not feedback.observes():
        return feedback.observes()
    batched = torch._C._functorch.is_legacy_batchedtensor(gradient)
    if not batched and not torch._C._are_functorch_transforms_active():
        return True
    raise RuntimeError(
        f"{feedback.layer}: in training {type(feedback.rule).__name__} collects what it learns from"
        " in every backward pass, which transforms of torch.func and batched gradients cannot do;"
        " use loss.backward(), or model.eval(), in which it collects nothing"
    )


class Transport(Function):
    """The operation of a layer, with B in the place of W in the gradient of its input."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, weight: Tensor, bias: Tensor | None, op: Op, feedback: Feedback, *memory: Tensor
    ) -> Tensor:
        return op.forward(x, weight, bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, _, ctx.op, ctx.feedback, *memory = inputs
        ctx.save_for_backward(x, weight, *memory)
        ctx.set_materialize_grads(False)

    @staticmethod
    @_first_order
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
        x, weight, *memory = ctx.saved_tensors
        if grad is None:
            return (None,) * (5 + len(memory))
        feedback, op = ctx.feedback, ctx.op
        needs_x, needs_weight, needs_bias, _, _, *needs_memory = ctx.needs_input_grad
        _refuse_if_exact(feedback)
        rule: TransportRule = feedback.rule
        trains_memory = any(needs_memory) and (needs_weight or not rule.follows_weight)
        with _without_autocast(grad):
            local = Local(op, x, grad, weight, scratch={})
            message = rule.send(local, *memory) if needs_x else None
            forms_matrix = needs_x and message is None
            matrix = rule.matrix(weight, *memory).to(x.dtype) if forms_matrix else weight
            if matrix.shape != weight.shape:
                raise ValueError(
                    f"{feedback.layer}: {type(rule).__name__}.matrix returned the shape"
                    f" {tuple(matrix.shape)}; B has the shape of the weight, {tuple(weight.shape)}"
                )
            needs = (forms_matrix, needs_weight or trains_memory, needs_bias)
            grad_x, grad_weight, grad_bias = op.backward(grad, x, matrix, needs)
            local = local._replace(grad_weight=grad_weight)
            if needs_x and _observes(feedback, grad):
                rule.observe(local, *memory, *feedback.notes)
            memory_gradients: Sequence[Tensor | None] = (None,) * len(memory)
            if trains_memory:
                memory_gradients = rule.memory_gradients(local, *memory)
        return (
            grad_x if message is None else message,
            grad_weight if needs_weight else None,
            grad_bias,
            None,
            None,
            *memory_gradients,
        )


class Tap(Function):
    """From the input of a layer to a token; in backward, from the error to the rule's signal."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor,
        feedback: Feedback,
        geometry: Geometry,
        error_shape: tuple[int, ...],
        targets: Tensor | None,
        *memory: Tensor,
    ) -> Tensor:
        return x.new_zeros(()).expand(geometry.samples, *error_shape)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, ctx.feedback, ctx.geometry, _, targets, *memory = inputs
        keeps_x = any(tensor.requires_grad for tensor in memory) or ctx.feedback.rule.needs_input
        ctx.save_for_backward(x if keeps_x else None, targets, *memory)
        ctx.dtype = x.dtype
        ctx.set_materialize_grads(False)

    @staticmethod
    @_first_order
    def backward(ctx: Any, error: Tensor | None) -> tuple[Tensor | None, ...]:
        x, targets, *memory = ctx.saved_tensors
        if error is None:
            return (None,) * (5 + len(memory))
        feedback, geometry = ctx.feedback, ctx.geometry
        _refuse_if_exact(feedback)
        rule: BroadcastRule = feedback.rule
        error = error.reshape(len(error), error.shape[1:].numel())
        if memory:
            error = error.to(memory[0].dtype)
        labels = () if targets is None else (targets.to(error.dtype),)
        with _without_autocast(error):
            inputs = (x.to(error.dtype),) if rule.needs_input else ()
            signal = rule.signal(error, geometry, *memory, *labels, *inputs)
            if _observes(feedback, error):
                rule.observe(error, *labels, *memory, *feedback.notes)
            memory_gradients: Sequence[Tensor | None] = (None,) * len(memory)
            if x is not None and any(ctx.needs_input_grad[5:]):
                targets_of_memory = labels if rule.needs_input else ()
                memory_gradients = rule.memory_gradients(
                    error, x, geometry, *memory, *targets_of_memory
                )
        return signal.to(ctx.dtype), None, None, None, None, *memory_gradients


class Join(Function):
    """The model's output; its gradient goes to the output and to every token alike."""

    generate_vmap_rule = True

    @staticmethod
    def forward(output: Tensor, feedback: Feedback, *tokens: Tensor) -> Tensor:
        # A copy, not a view and not marked dirty: an in-place operation on the result stays legal,
        # and a softmax that saved its own output for backward still finds it untouched.
        return output.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.count = len(inputs) - 2
        ctx.feedback = inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    @_first_order
    def backward(ctx: Any, error: Tensor | None) -> tuple[Tensor | None, ...]:
        return (error, None, *(error,) * ctx.count)


class Bridge(Function):
    """A detached input that lets gradients pass while dependences are measured."""

    @staticmethod
    def forward(x: Tensor, probe: Probe) -> Tensor:
        return x.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.probe = inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        return grad if ctx.probe.passes else None, None


def _apply(function: type[Function], *inputs: Any) -> Tensor:
    """`function.apply`, which inspects the signature of a `forward` without context at every call.

    That takes as long as a small layer (80 microseconds, measured on one slow core); the method of
    its base class does not. Transforms of `torch.func` and the compiler need the former.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return function.apply(*inputs)
    return super(Function, function).apply(*inputs)  # type: ignore[misc]


def _autocast(
    x: Tensor, weight: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The operands as autocast, where it is enabled, would give them to a matrix product."""
    device = x.device.type
    if not _autocasts(device):  # it has no entry for torch.convolution
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)

    def cast(tensor: Tensor) -> Tensor:
        if not tensor.is_floating_point() or tensor.dtype == torch.float64:
            return tensor
        return tensor.to(dtype)

    return cast(x), cast(weight), bias if bias is None else cast(bias)


def _without_autocast(tensor: Tensor) -> Any:
    """A backward pass may run inside an autocast block; rules compute without autocast."""
    device = tensor.device.type
    return torch.autocast(device, enabled=False) if _autocasts(device) else nullcontext()


def _autocasts(device: str) -> bool:
    return device != "meta" and torch.is_autocast_enabled(device)


def _refuse_if_exact(feedback: Feedback) -> None:
    if feedback.exact:
        raise RuntimeError(
            f"{feedback.layer}: this graph was built outside exact_gradients and would deliver the"
            " gradient of its rule; run the forward pass inside the block too"
        )
