"""A simple recurrent net and its readout as plain tensors, unrolled without autograd, and what all
learners of such nets share.

Shapes: T steps, N samples, H hidden units, I inputs, O outputs; step t of the equations is row
t - 1, and row 0 of `before` is the zero state. Weights lie as in `nn.Linear`: (out, in).
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from apical.core.layers import converted_layers, is_converted
from apical.learners.base import Batch, Info, Learner, add_gradients
from apical.nets.recurrent import SRN, Recurrent


class SimpleNet(NamedTuple):
    """An SRN and its readout as tensors; names as in `Run`, weights as in `nn.Linear`.

    Attributes: bent: whether the activation is tanh; the identity otherwise.     leak: of the cell.
        every: whether every step is read out.     memory: of the learner, if it has one.
    """

    w_in: Tensor
    b_in: Tensor
    w_rec: Tensor
    w_out: Tensor
    b_out: Tensor
    bent: bool
    leak: float
    every: bool
    memory: nn.Module | None


PARAMETERS = {
    "cell.input.weight": "w_in",
    "cell.input.bias": "b_in",
    "cell.recurrent.weight": "w_rec",
    "readout.weight": "w_out",
    "readout.bias": "b_out",
}
"""Parameter of the model -> field of `SimpleNet`."""


class Run(NamedTuple):
    """A forward pass; tuples have one entry for each step.

    Attributes: x_TNI: inputs.     z_TNH: activations.     before_TNH: those one step earlier.
        slope_TNH: dz/dh.     drive, h, z, slope: what the inputs send, the input sums, the
        activations and their slopes, step by step.     scores: outputs, (N, O) or (T, N, O).
    """

    x_TNI: Tensor
    z_TNH: Tensor
    before_TNH: Tensor
    slope_TNH: Tensor
    drive: tuple[Tensor, ...]
    h: tuple[Tensor, ...]
    z: tuple[Tensor, ...]
    slope: tuple[Tensor, ...]
    scores: Tensor


def simple_net(
    model: nn.Module,
    learner: Learner,
    *,
    leak: bool = False,
    tensors: Mapping[str, Tensor] | None = None,
) -> SimpleNet:
    """The model, if it is an SRN whose layers are plain; with leak=True it may leak.

    Args: tensors: to use in the place of its parameters, by their names.
    Raises: ValueError for any other, naming what stands in the way.
    """
    if not isinstance(model, Recurrent) or not isinstance(model.cell, SRN):
        cell = getattr(model, "cell", model)
        raise learner.error(
            f"its equations are those of a simple recurrent net, nets.Recurrent(nets.SRN(...), "
            f"...), not of {type(cell).__name__}; for that, use learner Backprop"
        )
    cell, readout = model.cell, model.readout
    if any(map(is_converted, (cell.input, cell.recurrent, readout))):
        converted = [name for name, _ in converted_layers(model)]
        raise learner.error(
            f"it does not use the feedback of converted layers ({', '.join(converted)}); "
            "call apical.revert(model), or use learner Backprop"
        )
    if cell.leak and not leak:
        raise learner.error(f"it has no leak; the cell has leak={cell.leak}")
    if tensors is not None:
        w_in, b_in, w_rec, w_out, b_out = (tensors[name] for name in PARAMETERS)
    else:
        w_in, b_in, w_rec = cell.input.weight, cell.input.bias, cell.recurrent.weight
        w_out, b_out = readout.weight, readout.bias
    memory = getattr(model, "learner", None)
    every = model.output == "every"
    bent = cell.activation == "tanh"
    return SimpleNet(w_in, b_in, w_rec, w_out, b_out, bent, cell.leak, every, memory)


Gradients = dict[Tensor, Tensor]
"""Parameter -> gradient."""


@dataclass(frozen=True)
class SimpleLearner(Learner):
    """A learner whose gradients are a function of tensors, without autograd."""

    leaks: ClassVar[bool] = False
    """Whether the cell may leak."""

    @abc.abstractmethod
    def teach(self, net: SimpleNet, x: Tensor, y: Tensor) -> tuple[Tensor, Gradients, Info]:
        """Loss, gradients of the net's tensors (and its memory's), and what was seen."""

    @torch.no_grad()
    def gradients(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Info]:
        net, (x, y) = simple_net(model, self, leak=self.leaks), batch
        model.check(x)  # type: ignore[operator]
        with torch.inference_mode():  # a tenth faster than without gradients alone
            loss, gradients, info = self.teach(net, x, y)
        add_gradients(gradients)
        info.scores = info.scores.clone()  # autograd may meet what leaves here
        return loss.clone(), info

    def pure(
        self, model: nn.Module, tensors: Mapping[str, Tensor], batch: Batch
    ) -> tuple[Tensor, dict[str, Tensor]]:
        net = simple_net(model, self, leak=self.leaks, tensors=tensors)
        loss, gradients, _ = self.teach(net, *batch)
        return loss, {name: gradients[getattr(net, field)] for name, field in PARAMETERS.items()}


def unroll(net: SimpleNet, x: Tensor) -> Run:
    """The forward pass of the net; call it without autograd.     Shapes: x (N, T, I)."""
    x_TNI = x.transpose(0, 1).contiguous()
    drive = nn.functional.linear(x_TNI, net.w_in, net.b_in).unbind(0)
    back = net.w_rec.t()
    z = x.new_zeros(x.shape[0], back.shape[0])
    h_list: list[Tensor] = []
    z_list = [z]
    leak, bent = net.leak, net.bent
    for sent in drive:
        h = torch.addmm(sent, z, back)
        if leak and h_list:
            h.add_(h_list[-1], alpha=leak)
        z = torch.tanh(h) if bent else h
        h_list.append(h)
        z_list.append(z)
    states = torch.stack(z_list)
    z_TNH, slope = states[1:], slope_of(net, states[1:])
    scores = nn.functional.linear(z_TNH if net.every else z, net.w_out, net.b_out)
    return Run(
        x_TNI,
        z_TNH,
        states[:-1],
        slope,
        drive,
        tuple(h_list),
        tuple(z_list[1:]),
        slope.unbind(0),
        scores,
    )


def activate(net: SimpleNet, h: Tensor) -> Tensor:
    """The activation of the net's cell."""
    return torch.tanh(h) if net.bent else h


def slope_of(net: SimpleNet, z: Tensor) -> Tensor:
    """Its derivative, where it is z."""
    if net.bent:
        return torch.addcmul(z.new_ones(()), z, z, value=-1)
    return torch.ones_like(z)


def bend_of(net: SimpleNet, z: Tensor) -> Tensor:
    """Its second derivative, where it is z."""
    if net.bent:
        return -2 * z * slope_of(net, z)
    return torch.zeros_like(z)


def step_norms(
    signals_TNO: Tensor, inputs_TNI: Tensor, products_TNN: Tensor | None = None
) -> Tensor:
    """Frobenius norm of signal^T input at every step, (T,).

    For few samples from |D^T Z|^2 = sum (D D^T) * (Z Z^T), whose factors are N x N.
    Args: products_TNN: signals @ signals.mT, if that is known.
    """
    if _few_samples(signals_TNO, inputs_TNI):
        if products_TNN is None:
            products_TNN = signals_TNO @ signals_TNO.mT
        gram = (inputs_TNI @ inputs_TNI.mT).mul_(products_TNN)
        return gram.sum((1, 2)).clamp_(min=0).sqrt_()
    return torch.linalg.vector_norm(_transposed_product(signals_TNO, inputs_TNI), dim=(1, 2))


def _few_samples(signals_TNO: Tensor, inputs_TNI: Tensor) -> bool:
    samples, above, below = signals_TNO.shape[1], signals_TNO.shape[2], inputs_TNI.shape[2]
    return samples * (above + below) < above * below


def exact_norms(signals_TNO: Tensor, inputs_TNI: Tensor) -> Tensor:
    """The same in float64, whose squares do not underflow: zero means that nothing arrives."""
    return step_norms(signals_TNO.double(), inputs_TNI.double())


def signal_norms(signals_TNO: Tensor) -> Tensor:
    """Norm of the signal at every step, (T,); in float64 as in `exact_norms`."""
    return torch.linalg.matrix_norm(signals_TNO.double())


def summed(
    signals_TNO: Tensor,
    inputs_TNI: Tensor,
    factor: Callable[[Tensor], Tensor] | None = None,
    products_TNN: Tensor | None = None,
) -> Tensor:
    """Sum over steps and samples of signal^T input, (O, I).

    Args: factor: what the product of a step is multiplied by, given its norm; vectorised.
        products_TNN: as of `step_norms`.
    """
    if factor is not None:
        share = factor(step_norms(signals_TNO, inputs_TNI, products_TNN))[:, None, None]
        if inputs_TNI.shape[2] < signals_TNO.shape[2]:
            inputs_TNI = inputs_TNI * share
        else:
            signals_TNO = signals_TNO * share
    return _transposed_product(signals_TNO.flatten(0, 1), inputs_TNI.flatten(0, 1))


def _transposed_product(signals: Tensor, inputs: Tensor) -> Tensor:
    """signal^T input over the samples, in the order that is up to four times as fast."""
    if inputs.shape[-1] < signals.shape[-1]:
        return (inputs.mT @ signals).mT
    return signals.mT @ inputs
