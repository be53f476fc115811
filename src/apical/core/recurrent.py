"""Recurrent layers, their weights used as at each step: feedback for the input's weight and for
that of the state.

The plain layers compute all steps in one operation, whose backward pass takes a single weight.
Here the input's product is formed for all steps at once, the state's step by step.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from apical.core.products import Adapter, Product, Weight, Weights
from apical.core.taps import BroadcastFeedback

State = tuple[Tensor, ...]
"""h, and c of an LSTM."""


def weights_of_steps(layer: Any) -> Weights:
    """The weights of `nn.RNN`, `nn.LSTM` and `nn.GRU`, of all layers and both directions."""
    found = {}
    for name in layer._flat_weights_names:
        kind, _, place = name.partition("_l")
        if kind.startswith("weight"):
            bias = name.replace("weight", "bias") if layer.bias and kind != "weight_hr" else None
            found[name] = Weight(bias=bias, recurrent=kind != "weight_ih")
    return found


def over_steps(
    layer: Any, product: Product, input: Tensor | PackedSequence, hx: Any = None
) -> tuple[Any, Any]:
    """The forward of `nn.RNN`, `nn.LSTM` and `nn.GRU`. Dropout draws on the
    device, as theirs does."""
    lstm = layer.mode == "LSTM"
    sizes: list[int] | None = None
    batch_sizes: Any = None
    order: Tensor | None = None
    back: Tensor | None = None
    single = False
    if isinstance(input, PackedSequence):
        for feedback in product.feedback:
            if isinstance(feedback, BroadcastFeedback):
                raise ValueError(
                    f"{feedback.layer}: a PackedSequence has no axis that counts samples, and"
                    f" {type(feedback.rule).__name__} sends each sample its own error; give the"
                    " layer the padded sequence, or a rule that transports (fa) by its name"
                )
        x, batch_sizes, order, back = input
        layer.check_input(x, batch_sizes)
        sizes = batch_sizes.tolist()
        samples = sizes[0]
    else:
        if input.dim() not in (2, 3):
            raise ValueError(
                f"{type(layer).plain_class.__name__}: its input is (time, samples, features) or"
                f" (time, features), not of {input.dim()} axes"
            )
        single = input.dim() == 2
        x = input.unsqueeze(1) if single else input
        if layer.batch_first and not single:
            x = x.transpose(0, 1)
        if x.shape[-1] != layer.input_size:
            raise RuntimeError(
                f"input.size(-1) must be equal to input_size. Expected {layer.input_size}, got"
                f" {x.shape[-1]}"
            )
        if not x.shape[0]:
            raise ValueError(
                f"{product.feedback[0].layer}: its input {tuple(input.shape)} has no time steps,"
                " and recurrent layers need one at least"
            )
        samples = x.shape[1]
    states = _first_states(layer, x, samples, hx, single, order)
    directions = 2 if layer.bidirectional else 1
    last: list[State] = []
    for depth in range(layer.num_layers):
        outputs = []
        for direction in range(directions):
            suffix = f"_l{depth}" + ("_reverse" if direction else "")
            state = tuple(part[len(last)] for part in states)
            output, state = _run(layer, product, x, sizes, state, suffix)
            outputs.append(output)
            last.append(state)
        x = outputs[0] if directions == 1 else torch.cat(outputs, -1)
        if layer.dropout and depth < layer.num_layers - 1:
            x = F.dropout(x, layer.dropout, layer.training)
    ends = [torch.stack(parts) for parts in zip(*last, strict=True)]
    if back is not None:
        ends = [end.index_select(1, back) for end in ends]
    if single:
        ends = [end.squeeze(1) for end in ends]
        x = x.squeeze(1)
    elif sizes is None and layer.batch_first:
        x = x.transpose(0, 1)
    result: Any = x if sizes is None else PackedSequence(x, batch_sizes, order, back)
    return result, tuple(ends) if lstm else ends[0]


def over_one_step(layer: Any, product: Product, input: Tensor, hx: Any = None) -> Any:
    """The forward of `nn.RNNCell`, `nn.LSTMCell` and `nn.GRUCell`."""
    if input.dim() not in (1, 2):
        raise ValueError(
            f"{type(layer).plain_class.__name__}: its input is (samples, features) or (features),"
            f" not of {input.dim()} axes"
        )
    lstm = isinstance(layer, nn.LSTMCell)
    single = input.dim() == 1
    x = input.unsqueeze(0) if single else input
    if hx is None:
        state: State = (x.new_zeros(len(x), layer.hidden_size),) * (2 if lstm else 1)
    else:
        state = tuple(hx) if lstm else (hx,)
        state = tuple(part.unsqueeze(0) if single else part for part in state)
    of_input = product(x, "weight_ih")
    of_state = product(state[0], "weight_hh")
    state = _step(layer, of_input, of_state, state)
    state = tuple(part.squeeze(0) if single else part for part in state)
    return state if lstm else state[0]


def _first_states(
    layer: Any, x: Tensor, samples: int, hx: Any, single: bool, order: Tensor | None
) -> list[Tensor]:
    """h (layers * directions, samples, size), and c of an LSTM, in the order of the samples."""
    lstm = layer.mode == "LSTM"
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = [layer.proj_size or layer.hidden_size, layer.hidden_size][: 2 if lstm else 1]
    if hx is None:
        return [x.new_zeros(count, samples, size) for size in sizes]
    given = list(hx) if lstm else [hx]
    for part, size in zip(given, sizes, strict=True):
        expected = (count, size) if single else (count, samples, size)
        if tuple(part.shape) != expected:
            raise RuntimeError(f"Expected hidden size {expected}, got {list(part.shape)}")
    if single:
        given = [part.unsqueeze(1) for part in given]
    return given if order is None else [part.index_select(1, order) for part in given]


def _run(
    layer: Any, product: Product, x: Tensor, sizes: Sequence[int] | None, state: State, suffix: str
) -> tuple[Tensor, State]:
    """One layer in one direction.

    Shapes: x (time, samples, features), or (entries, features) with `sizes`, the samples of each
        step of a packed sequence; the output alike.
    """
    reverse = suffix.endswith("_reverse")
    name = f"weight_ih{suffix}"
    if sizes is None:  # samples first, as rules count them
        steps = product(x.transpose(0, 1), name).unbind(1)
        counts = [x.shape[1]] * len(steps)
    else:
        steps = product(x, name).split(list(sizes))
        counts = list(sizes)
    first, ended = state, []
    if reverse:  # the longest sequences start first
        state = tuple(part[: counts[-1]] for part in state)
    outputs = []
    for place in range(len(steps) - 1, -1, -1) if reverse else range(len(steps)):
        running, count = len(state[0]), counts[place]
        if count < running:
            ended.append(tuple(part[count:] for part in state))
            state = tuple(part[:count] for part in state)
        elif count > running:
            joining = (part[running:count] for part in first)
            pairs = zip(state, joining, strict=True)
            state = tuple(torch.cat(pair) for pair in pairs)
        of_state = product(state[0], f"weight_hh{suffix}")
        state = _step(layer, steps[place], of_state, state)
        if layer.proj_size:
            state = (product(state[0], f"weight_hr{suffix}"), *state[1:])
        outputs.append(state[0])
    if ended:
        parts = zip(state, *reversed(ended), strict=True)
        state = tuple(torch.cat(part) for part in parts)
    if reverse:
        outputs.reverse()
    return torch.stack(outputs) if sizes is None else torch.cat(outputs), state


def _step(layer: Any, of_input: Tensor, of_state: Tensor, state: State) -> State:
    """The next state, from the two products of a step."""
    if isinstance(layer, nn.LSTM | nn.LSTMCell):
        i, f, g, o = (of_input + of_state).chunk(4, -1)
        c = torch.sigmoid(f) * state[1] + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(c), c
    if isinstance(layer, nn.GRU | nn.GRUCell):
        reset_in, keep_in, new_in = of_input.chunk(3, -1)
        reset, keep, new = of_state.chunk(3, -1)
        new = torch.tanh(new_in + torch.sigmoid(reset_in + reset) * new)
        return ((state[0] - new) * torch.sigmoid(keep_in + keep) + new,)
    total = of_input + of_state
    return (torch.tanh(total) if layer.nonlinearity == "tanh" else torch.relu(total),)


STEPS = Adapter(weights_of_steps, over_steps)
"""Of `nn.RNN`, `nn.LSTM` and `nn.GRU`."""

ONE_STEP = Adapter(
    {"weight_ih": Weight(bias="bias_ih"), "weight_hh": Weight(bias="bias_hh", recurrent=True)},
    over_one_step,
)
"""Of `nn.RNNCell`, `nn.LSTMCell` and `nn.GRUCell`."""
