"""Recurrent nets in Python, so that rules apply to their weights and learners to their states.

Shapes: N samples, T steps, I inputs, H hidden units, O outputs. Every cell has two layers:
`input` (I to gates) with the biases, called once for all steps, and `recurrent` (H to gates),
called at every step; with `apical.convert` a transport rule (FA, sign symmetry, Kolen-Pollack)
propagates errors through `recurrent`, that is through time. States start at zero.
"""

import abc
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from apical.names import unknown

State = tuple[Tensor, ...]
"""The state of a cell, tensors (N, H); the first one is the hidden state, its output."""


class Step(NamedTuple):
    """One step of a recurrent net.

    Attributes: state: after the step.     arrived: output of the `recurrent` layer at this step,
        (N, gates * H); its gradient is the error signal propagated back through time.
    """

    state: State
    arrived: Tensor

    @property
    def hidden(self) -> Tensor:
        """The input of the readout, (N, H)."""
        return self.state[0]


class Cell(nn.Module, abc.ABC):
    """The base class of cells, which `Recurrent` unrolls over time.

    Attributes: gates: number of blocks of H rows in the weights.     input, recurrent: the layers.
    """

    gates: ClassVar[int]
    input: nn.Linear
    recurrent: nn.Linear

    @abc.abstractmethod
    def start(self, like: Tensor) -> State:
        """The state before the first step, zeros: a row for each of `like`, with its dtype."""

    @abc.abstractmethod
    def forward(self, drive: Tensor, state: State) -> Step:
        """One step.     Shapes: drive (N, gates * H), the output of `input` at this step."""


class SRN(Cell):
    """Simple recurrent net: h_t = leak h_(t-1) + W_in x_t + b + W_rec z_(t-1), z_t = tanh(h_t).

    Args: inputs, hidden: sizes, >= 1.
        activation: "tanh", or "identity" for a linear net.
        leak: factor on h from step to step, in [0, 1]; 0 is Elman's net.
    Raises: ValueError for a leak outside [0, 1], an unknown activation, a size below 1.
    Source: Elman 1990.
    """

    gates: ClassVar[int] = 1

    def __init__(
        self,
        inputs: int,
        hidden: int,
        *,
        activation: Literal["tanh", "identity"] = "tanh",
        leak: float = 0.0,
    ) -> None:
        super().__init__()
        if not 0 <= leak <= 1:
            raise ValueError(f"SRN: leak={leak} is outside [0, 1]")
        if activation not in ("tanh", "identity"):
            raise unknown("activation of SRN", activation, ("tanh", "identity"))
        self.activation, self.leak = activation, float(leak)
        self.input, self.recurrent = _layers(inputs, hidden, self.gates, bias=False)

    def extra_repr(self) -> str:
        return f"activation={self.activation}, leak={self.leak}"

    def start(self, like: Tensor) -> State:
        zero = like.new_zeros(len(like), self.recurrent.in_features)
        return (zero, zero) if self.leak else (zero,)

    def forward(self, drive: Tensor, state: State) -> Step:
        arrived = self.recurrent(state[0])
        h = drive + arrived
        if self.leak:
            h = h + self.leak * state[1]
        z = torch.tanh(h) if self.activation == "tanh" else h
        return Step((z, h) if self.leak else (z,), arrived)


class LSTM(Cell):
    """Long short-term memory, gates i, f, g, o as in `torch.nn.LSTM` (one bias).

    c_t = sigmoid(f) c_(t-1) + sigmoid(i) tanh(g), z_t = sigmoid(o) tanh(c_t).

    Args: inputs, hidden: sizes, >= 1.     Source: Hochreiter, Schmidhuber 1997; Gers et al. 2000.
    """

    gates: ClassVar[int] = 4

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input, self.recurrent = _layers(inputs, hidden, self.gates, bias=False)

    def start(self, like: Tensor) -> State:
        zero = like.new_zeros(len(like), self.recurrent.in_features)
        return zero, zero

    def forward(self, drive: Tensor, state: State) -> Step:
        arrived = self.recurrent(state[0])
        i, f, g, o = (drive + arrived).chunk(4, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return Step((torch.sigmoid(o) * torch.tanh(c), c), arrived)


class GRU(Cell):
    """Gated recurrent unit, gates r, u, n as in `torch.nn.GRU`, with a bias in both layers.

    n = tanh(in_n + r rec_n), z_t = (1 - u) n + u z_(t-1), r and u sigmoids.

    Args: inputs, hidden: sizes, >= 1.     Source: Cho et al. 2014, in the form of cuDNN.
    """

    gates: ClassVar[int] = 3

    def __init__(self, inputs: int, hidden: int) -> None:
        super().__init__()
        self.input, self.recurrent = _layers(inputs, hidden, self.gates, bias=True)

    def start(self, like: Tensor) -> State:
        return (like.new_zeros(len(like), self.recurrent.in_features),)

    def forward(self, drive: Tensor, state: State) -> Step:
        arrived = self.recurrent(state[0])
        (in_r, in_u, in_n), (rec_r, rec_u, rec_n) = drive.chunk(3, -1), arrived.chunk(3, -1)
        r, u = torch.sigmoid(in_r + rec_r), torch.sigmoid(in_u + rec_u)
        n = torch.tanh(in_n + r * rec_n)
        return Step((n + u * (state[0] - n),), arrived)


class Recurrent(nn.Module):
    """A cell unrolled over time, and a linear readout.

    Args: cell: an SRN, LSTM, GRU, or another `Cell`.
        outputs: number of outputs, >= 1.
        output: outputs of the "last" step only, (N, O), or of "every" one, (N, T, O).
        init: "orthogonal" (each gate, the inputs and the readout; zero biases), or "uniform":
            U(+-1 / sqrt(H)) for all, as torch's recurrent layers.
        generator: of the initial weights; None: PyTorch's global one.
    Raises: ValueError for an unknown output or law, a size below 1.

    >>> net = Recurrent(SRN(6, 10), 4)
    >>> net(torch.zeros(2, 20, 6)).shape, len(net.steps(torch.zeros(2, 20, 6)))
    (torch.Size([2, 4]), 20)
    """

    def __init__(
        self,
        cell: Cell,
        outputs: int,
        *,
        output: Literal["last", "every"] = "last",
        init: Literal["orthogonal", "uniform"] = "orthogonal",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if output not in ("last", "every"):
            raise unknown("output of a recurrent net", output, ("last", "every"))
        if init not in ("orthogonal", "uniform"):
            raise unknown("initial law of a recurrent net", init, ("orthogonal", "uniform"))
        if outputs < 1:
            raise ValueError(f"a recurrent net with outputs={outputs}: must be at least 1")
        self.cell, self.output = cell, output
        hidden = cell.recurrent.in_features
        self.readout = nn.utils.skip_init(nn.Linear, hidden, outputs)
        for layer in (cell.input, cell.recurrent, self.readout):
            blocks = 1 if layer is self.readout else cell.gates
            _draw(layer, init, blocks, hidden, generator)

    def extra_repr(self) -> str:
        return f"output={self.output}"

    def steps(self, x: Tensor, *, truncate: int | None = None) -> list[Step]:
        """All steps, in order, with their graph.

        Args: truncate: length (>= 1) of the blocks of steps, counted from the end, within which
            errors are propagated; 1 detaches every state from the one before. None: no limit.
        Shapes: x (N, T, I).     Raises: ValueError for another shape, or no step.
        """
        self.check(x)
        if truncate is not None and truncate < 1:
            raise ValueError(f"truncate={truncate}: errors travel through at least 1 step")
        state, steps = self.cell.start(x), []
        for left, drive in zip(range(x.shape[1], 0, -1), self.cell.input(x).unbind(1), strict=True):
            if truncate is not None and left % truncate == 0:
                state = tuple(tensor.detach() for tensor in state)
            steps.append(self.cell(drive, state))
            state = steps[-1].state
        return steps

    def check(self, x: Tensor) -> None:
        """Raises: ValueError unless x is (N, T, I) with at least one step."""
        inputs = self.cell.input.in_features
        if x.dim() != 3 or x.shape[2] != inputs or not x.shape[1]:
            raise ValueError(
                f"a recurrent net with {inputs} inputs takes (N, T, {inputs}) with T >= 1, not "
                f"{tuple(x.shape)}"
            )

    def read(self, steps: list[Step]) -> Tensor:
        """The outputs of these steps: (N, O), or (N, T, O) with output="every"."""
        if self.output == "last":
            return self.readout(steps[-1].hidden)
        return self.readout(torch.stack([step.hidden for step in steps], 1))

    def forward(
        self, x: Tensor, *, truncate: int | None = None, into: list[Step] | None = None
    ) -> Tensor:
        """The outputs.

        Args: truncate: as of `steps`.     into: a list that all steps are added to.
        """
        steps = self.steps(x, truncate=truncate)
        if into is not None:
            into += steps
        return self.read(steps)


def _layers(inputs: int, hidden: int, gates: int, *, bias: bool) -> tuple[nn.Linear, nn.Linear]:
    if inputs < 1 or hidden < 1:
        raise ValueError(f"a cell with inputs={inputs}, hidden={hidden}: must be at least 1 each")
    skip = nn.utils.skip_init  # `Recurrent` draws the weights: no random numbers twice
    return (
        skip(nn.Linear, inputs, gates * hidden),
        skip(nn.Linear, hidden, gates * hidden, bias=bias),
    )


@torch.no_grad()
def _draw(
    layer: nn.Linear, init: str, blocks: int, hidden: int, generator: torch.Generator | None
) -> None:
    if init == "uniform":
        for tensor in layer.parameters():
            tensor.uniform_(-(hidden**-0.5), hidden**-0.5, generator=generator)
        return
    for block in layer.weight.chunk(blocks):
        nn.init.orthogonal_(block, generator=generator)
    if layer.bias is not None:
        layer.bias.zero_()
