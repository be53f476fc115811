"""A net whose controller writes to and reads from a memory at every step."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apical.names import unknown
from apical.nets.memory.memory import (
    ACTIVATIONS,
    Gradient,
    Local,
    Memory,
    Write,
    begin,
    norm,
    recall,
)
from apical.nets.offers import Problem
from apical.nets.recurrent import LSTM, State

COLLAPSED = 0.01
"""Mean squared error of recall below which the memory reproduces what is written; keys and values
have unit variance or, by tanh, less."""
LEARNED = 0.9
"""Share of correct answers from which a task counts as learned."""


class Heads(NamedTuple):
    """The output of the controller to the memory; without a write only `read_keys`.

    Shapes: write_keys, values, read_keys (N, H, D); rate (N,), beta.
    """

    read_keys: Tensor
    write_keys: Tensor | None = None
    values: Tensor | None = None
    rate: Tensor | None = None


class Moment(NamedTuple):
    """The result of one step.

    Shapes: features (N, hidden + D), the input of the readout; memory: after the write; rate (N,),
    None without a write; error: of the recall of what was just written, a number, None without a
    write or where it is not computed.
    """

    features: Tensor
    memory: Memory
    rate: Tensor | None
    error: Tensor | None


class MemoryNet(nn.Module):
    """Metalearned neural memory: an LSTM that updates the weights of a small net, its memory.

    At every step the controller receives the input and what was read last, and emits H keys to
    write, their values, a rate beta and H keys to read. The memory, a feed-forward net without
    biases, is written by a learning rule, in the forward pass, and then read. Every sequence starts
    from the same random weights of the memory, and every sample of a batch has its own.

    Args: inputs, outputs: numbers at each step, >= 1.     hidden: units of the controller.
        width: D, of keys, values and every layer of the memory.     heads: H.
        layers: of the memory, all D to D, the last linear.     activation: of the others.
        write: "p", a learned local update; "g", a gradient step; "random", as "p" with fixed
            random targets; "none", the control: the memory is never changed.
        keys: normalisation of keys and values: "layer", a layer norm without parameters, or
            "tanh", with which a write has initially about a hundredth of the effect.
        reconstruction: weight (>= 0) of an additional loss: the squared error of recalling what was
            just written, a mean over everything. It has a trivial optimum, a constant key and
            value; from 0.1 on it delays or prevents learning.
        output: read out at the "last" step, (N, O), or at "every" one, (N, T, O).
    Raises: ValueError for an unknown name or a value out of range, or a reconstruction with
        write="none".
    Source: Munkhdalai, Sordoni, Wang, Trischler 2019, arXiv 1907.09720.

    >>> MemoryNet(3, 4, hidden=8, width=6)(torch.zeros(2, 5, 3)).shape
    torch.Size([2, 5, 4])
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        hidden: int = 64,
        width: int = 48,
        heads: int = 1,
        layers: int = 3,
        activation: Literal["tanh", "sigmoid"] = "tanh",
        write: Literal["g", "none", "p", "random"] = "p",
        keys: Literal["layer", "tanh"] = "layer",
        reconstruction: float = 0.0,
        output: Literal["last", "every"] = "every",
    ) -> None:
        super().__init__()
        sizes = {"inputs": inputs, "outputs": outputs, "hidden": hidden}
        sizes |= {"width": width, "heads": heads, "layers": layers}
        wrong = [f"{name}={n!r}" for name, n in sizes.items() if type(n) is not int or n < 1]
        if wrong:
            raise ValueError(f"net 'mnm': {', '.join(wrong)} must be whole numbers of at least 1")
        for option, value, allowed in (
            ("activation", activation, tuple(ACTIVATIONS)),
            ("write", write, tuple(WRITES)),
            ("keys", keys, ("layer", "tanh")),
            ("output", output, ("last", "every")),
        ):
            if value not in allowed:
                raise unknown(f"{option} of net 'mnm'", value, allowed)
        if not reconstruction >= 0 or (reconstruction and write == "none"):
            raise ValueError(
                f"net 'mnm': reconstruction={reconstruction} with write={write!r}: must be 0 or "
                "more, and 0 where nothing is written"
            )
        self.width, self.heads, self.layers = width, heads, layers
        self.activation, self.keys, self.output = activation, keys, output
        self.reconstruction = float(reconstruction)
        self.cell = LSTM(inputs + width, hidden)
        for tensor in self.cell.parameters():  # the law of torch's recurrent layers
            nn.init.uniform_(tensor, -(hidden**-0.5), hidden**-0.5)
        make = WRITES[write]
        self.write = None if make is None else make(width, layers, activation)
        vectors = heads if self.write is None else 3 * heads
        self.emit = nn.Linear(hidden, vectors * width)
        if self.write is not None:
            self.before_rate, self.rate = nn.Linear(hidden, width), nn.Linear(width, 1)
        start = torch.empty(layers, width, width).uniform_(-(width**-0.5), width**-0.5)
        self.register_buffer("start", start)
        self.readout = nn.Linear(hidden + width, outputs)

    start: Tensor
    """Weights of the memory at the start of every sequence, (layers, D, D); never trained."""

    def extra_repr(self) -> str:
        return (
            f"width={self.width}, heads={self.heads}, activation={self.activation}, "
            f"keys={self.keys}, reconstruction={self.reconstruction}, output={self.output}"
        )

    @property
    def has_own_loss(self) -> bool:
        """Whether training has to call it with `own_loss=True`."""
        return self.reconstruction > 0

    def forward(self, x: Tensor, *, own_loss: bool = False) -> Tensor | tuple[Tensor, Tensor]:
        """Scores; with `own_loss`, also the weighted additional loss.     Shapes: x (N, T, I)."""
        features, errors = [], []
        for moment in self.steps(x, errors=own_loss):
            features.append(moment.features)
            errors.append(moment.error)
        scores = self.read(features)
        if not own_loss:
            return scores
        if self.write is None:
            return scores, scores.new_zeros(())
        return scores, self.reconstruction * _means(errors).mean()

    def steps(self, x: Tensor, *, errors: bool = False) -> Iterator[Moment]:
        """Every step, in order, with its graph; earlier memories are freed unless the caller keeps
        them.

        Args: errors: whether the error of recall is computed.
        """
        self.check(x)
        memory = begin(self.start.unbind(), len(x))
        state, read = self.cell.start(x), x.new_zeros(len(x), self.width)
        for here in x.unbind(1):
            state, asked = self._think(here, read, state)
            if self.write is not None:
                memory = self.write(memory, asked.write_keys, asked.values, asked.rate)
            read, error = self._recalled(memory, asked, errors)
            yield Moment(torch.cat([state[0], read], 1), memory, asked.rate, error)

    def check(self, x: Tensor) -> None:
        """Raises: ValueError unless x is (N, T, I) with at least one step."""
        inputs = self.cell.input.in_features - self.width
        if x.dim() != 3 or x.shape[2] != inputs or not x.shape[1]:
            raise ValueError(
                f"net 'mnm' with {inputs} inputs takes (N, T, {inputs}) with T >= 1, not "
                f"{tuple(x.shape)}"
            )

    def read(self, features: list[Tensor]) -> Tensor:
        """The outputs of these steps: (N, O), or (N, T, O) with output="every"."""
        return self.readout(features[-1] if self.output == "last" else torch.stack(features, 1))

    @torch.no_grad()
    def trace(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Scores, and of every step, (T,): `memory_norm`, a mean over samples, and with a write
        `beta`, a mean, and `meta_loss`, the squared error of recalling what was written."""
        features: list[Tensor] = []
        seen: dict[str, list[Tensor | None]] = {"memory_norm": []}
        seen |= {} if self.write is None else {"beta": [], "meta_loss": []}
        for moment in self.steps(x, errors=self.write is not None):
            features.append(moment.features)
            now = {"memory_norm": norm(moment.memory), "beta": moment.rate}
            now["meta_loss"] = moment.error
            for name, numbers in seen.items():
                numbers.append(now[name])
        return self.read(features), {name: _means(numbers) for name, numbers in seen.items()}

    def problems(self, trace: dict[str, Tensor], solved: float) -> list[Problem]:
        """What a trace and the share of correct answers (`solved`) say is wrong."""
        if "meta_loss" not in trace or solved >= LEARNED:
            return []
        error = float(trace["meta_loss"].mean())
        if error >= COLLAPSED:
            return []
        message = (
            f"what is written is recalled with an error of {error:.2g} (threshold {COLLAPSED:g}), "
            f"but {100 * solved:.0f} % of the answers are right: keys and values may have become "
            "constants, which reconstruct themselves"
        )
        advice = f"Try: a smaller reconstruction (here {self.reconstruction:g}; 0 to 0.01)"
        return [Problem("collapsed", error, COLLAPSED, f"{message}. {advice}")]

    def _think(self, x: Tensor, read: Tensor, state: State) -> tuple[State, Heads]:
        """One step of the controller."""
        state = self.cell(self.cell.input(torch.cat([x, read], 1)), state).state
        hidden = state[0]
        vectors = self.emit(hidden).view(len(x), -1, self.width)
        if self.keys == "layer":
            vectors = F.layer_norm(vectors, (self.width,))
        else:
            vectors = torch.tanh(vectors)
        if self.write is None:
            return state, Heads(vectors)
        rate = torch.sigmoid(self.rate(torch.tanh(self.before_rate(hidden)))).squeeze(1)
        write_keys, values, read_keys = vectors.split(self.heads, 1)
        return state, Heads(read_keys, write_keys, values, rate)

    def _recalled(self, memory: Memory, asked: Heads, errors: bool) -> tuple[Tensor, Tensor | None]:
        """What is read, a mean over heads, (N, D), and the error of recalling what was written."""
        if not errors or asked.write_keys is None or asked.values is None:
            return recall(memory, asked.read_keys, self.activation).mean(1), None
        keys = torch.cat([asked.read_keys, asked.write_keys], 1)
        read, written = recall(memory, keys, self.activation).chunk(2, 1)
        return read.mean(1), F.mse_loss(written, asked.values)


WRITES: dict[str, Callable[[int, int, str], Write] | None] = {
    "g": Gradient,
    "none": None,
    "p": Local,
    "random": partial(Local, learned=False),
}


def _means(found: list[Tensor | None]) -> Tensor:
    """The mean of each step's numbers, (T,)."""
    return torch.stack([step.mean() for step in found if step is not None])
