"""Recurrent nets: torch's own as oracles, and rules of transport that act through time."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical import nets
from apical.nets.recurrent import Cell
from apical.rules import DFA, FA, KolenPollack, SignSymmetric

N, T, INPUTS, HIDDEN, OUTPUTS = 4, 7, 3, 5, 2
CELLS = sorted(nets.CELLS)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def net(name: str, dtype: torch.dtype = torch.float64, **options: Any) -> nets.Recurrent:
    cell = nets.CELLS[name](INPUTS, HIDDEN)
    return nets.Recurrent(cell, OUTPUTS, generator=generator(), **options).to(dtype)


def batch(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    x = torch.randn(N, T, INPUTS, generator=generator(1), dtype=dtype)
    return x, torch.randint(OUTPUTS, (N,), generator=generator(2))


def gradients(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    parameters = model.named_parameters()
    return {n: p.grad.clone() for n, p in parameters if p.grad is not None and "feedback" not in n}


def test_a_cell_computes_what_torchs_does() -> None:
    for name, oracle in (("gru", nn.GRU), ("lstm", nn.LSTM), ("srn", nn.RNN)):
        model = net(name, init="uniform")
        theirs = oracle(INPUTS, HIDDEN, batch_first=True).double()
        with torch.no_grad():
            theirs.weight_ih_l0.copy_(model.cell.input.weight)
            theirs.bias_ih_l0.copy_(model.cell.input.bias)
            theirs.weight_hh_l0.copy_(model.cell.recurrent.weight)
            bias = model.cell.recurrent.bias
            theirs.bias_hh_l0.copy_(torch.zeros(()) if bias is None else bias)
        x, _ = batch()
        hidden = torch.stack([step.hidden for step in model.steps(x)], 1)
        assert_close(hidden, theirs(x)[0])
        assert_close(model(x), model.readout(theirs(x)[0][:, -1]))


def test_a_leak_keeps_a_share_of_the_sum() -> None:
    model = nets.Recurrent(nets.SRN(INPUTS, HIDDEN, leak=0.75), OUTPUTS).double()
    x, _ = batch()
    h = z = torch.zeros(N, HIDDEN, dtype=torch.float64)
    drive = x @ model.cell.input.weight.T + model.cell.input.bias
    for t in range(T):
        h = 0.75 * h + drive[:, t] + z @ model.cell.recurrent.weight.T
        z = torch.tanh(h)
    assert_close(model.steps(x)[-1].hidden, z)


def test_aligned_feedback_is_backprop_through_time_to_the_last_bit() -> None:
    for name in CELLS:
        for dtype in (torch.float32, torch.float64):
            plain, aligned = net(name, dtype), apical.convert(net(name, dtype), FA())
            for layer in (aligned.cell.recurrent, aligned.cell.input, aligned.readout):
                layer.feedback.matrix.copy_(layer.weight.detach())
            expected, seen = gradients(plain, *batch(dtype)), gradients(aligned, *batch(dtype))
            assert expected.keys() == seen.keys()
            assert all(torch.equal(expected[name], seen[name]) for name in expected)


def test_feedback_alignment_through_time_written_out() -> None:
    model, (x, y) = apical.convert(net("srn"), FA()), batch()
    hidden = [step.hidden.detach() for step in model.steps(x)]
    error = torch.softmax(model(x).detach(), 1) - F.one_hot(y, OUTPUTS)
    back, above = model.cell.recurrent.feedback.matrix, model.readout.feedback.matrix
    arriving, expected = error @ above / N, 0
    for t in reversed(range(T)):
        delta = arriving * (1 - hidden[t] ** 2)
        before = hidden[t - 1] if t else torch.zeros_like(delta)
        expected = expected + delta.T @ before
        arriving = delta @ back
    assert_close(gradients(model, x, y)["cell.recurrent.weight"], expected)


def test_direct_feedback_alignment_through_time_written_out() -> None:
    """Every state receives the error at the output directly, and of no other step."""
    x, y = batch()
    model = apical.convert(net("srn"), DFA(), example=x)
    gradient = gradients(model, x, y)["cell.recurrent.weight"]
    hidden: list[Any] = []
    scores = model(x, into=hidden).detach()
    error = (torch.softmax(scores, 1) - F.one_hot(y, OUTPUTS)) / N
    expected = torch.zeros(HIDDEN, HIDDEN, dtype=torch.float64)
    for t in range(1, T):
        layer = model.readout if t == T - 1 else model.cell.recurrent
        z, before = hidden[t].hidden.detach(), hidden[t - 1].hidden.detach()
        expected += (error @ layer.feedback.matrix * (1 - z**2)).T @ before
    assert_close(gradient, expected)


def test_rules_act_through_time_and_exact_gradients_do_not_see_them() -> None:
    for name in CELLS:
        for rule in (FA(), KolenPollack(), SignSymmetric("fresh")):
            plain, model = net(name), apical.convert(net(name), rule)
            exact, ruled = gradients(plain, *batch()), gradients(model, *batch())
            assert torch.equal(exact["readout.weight"], ruled["readout.weight"])
            for weight in ("cell.input.weight", "cell.recurrent.weight"):
                cosine = F.cosine_similarity(exact[weight].flatten(), ruled[weight].flatten(), 0)
                assert cosine < 0.99
            with apical.exact_gradients(model):
                again = gradients(model, *batch())
            assert all(torch.equal(exact[name], again[name]) for name in exact)


def test_kolen_pollack_keeps_its_law_with_a_layer_used_at_every_step() -> None:
    for name in CELLS:
        model = apical.convert(net(name), KolenPollack(decay=0))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.0, weight_decay=0.2)
        layer = model.cell.recurrent
        start = (layer.feedback.matrix - layer.weight).detach().clone()
        for _ in range(20):
            optimizer.zero_grad()
            F.cross_entropy(model(batch()[0]), batch()[1]).backward()
            optimizer.step()
        gap = (layer.feedback.matrix - layer.weight).detach()
        assert_close(gap, (1 - 0.1 * 0.2) ** 20 * start)
        assert layer.weight.grad.abs().max() > 0


def test_truncated_errors_stop_where_stretches_from_the_end_begin() -> None:
    for name in CELLS:
        for truncate in (1, 3):
            model, (x, y) = net(name), batch()
            steps = model.steps(x, truncate=truncate)
            assert_close(model.read(steps), model(x))
            for step in steps:
                step.arrived.retain_grad()
            F.cross_entropy(model.read(steps), y).backward()
            taught = [
                s.arrived.grad is not None and bool(s.arrived.grad.abs().max()) for s in steps
            ]
            assert taught == [t >= T - truncate for t in range(T)]


def test_every_step_can_be_read_out() -> None:
    model, (x, _) = net("gru", output="every"), batch()
    every = model(x)
    assert every.shape == (N, T, OUTPUTS)
    for t in range(1, T + 1):
        assert_close(every[:, :t], model(x[:, :t]))


def test_orthogonal_by_gate_with_zero_biases() -> None:
    for name in CELLS:
        model = net(name)
        gates = model.cell.gates
        for gate in model.cell.recurrent.weight.chunk(gates):
            assert_close(gate @ gate.T, torch.eye(HIDDEN, dtype=torch.float64), atol=1e-6, rtol=0)
        for gate in model.cell.input.weight.chunk(gates):
            assert_close(gate.T @ gate, torch.eye(INPUTS, dtype=torch.float64), atol=1e-6, rtol=0)
        assert not any(p.any() for n, p in model.named_parameters() if n.endswith("bias"))


def test_a_generator_fixes_all_weights_and_spares_the_global_one() -> None:
    for init in ("orthogonal", "uniform"):
        for name in CELLS:
            before = torch.get_rng_state()
            first, again = net(name, init=init), net(name, init=init)
            assert torch.equal(torch.get_rng_state(), before)
            assert all(
                torch.equal(p, q)
                for p, q in zip(first.parameters(), again.parameters(), strict=True)
            )
            if init == "uniform":
                assert all(0 < p.abs().max() <= HIDDEN**-0.5 for p in first.parameters())


def test_what_makes_no_sense_is_refused() -> None:
    for make, text in (
        (lambda: nets.SRN(3, 5, leak=1.5), "leak=1.5 is outside [0, 1]"),
        (lambda: nets.SRN(3, 5, activation="tan"), "did you mean 'tanh'"),
        (lambda: nets.GRU(0, 5), "inputs=0, hidden=5"),
        (lambda: net("srn", output="all"), "allowed: every, last"),
        (lambda: net("srn", init="orthogon"), "did you mean 'orthogonal'"),
        (lambda: nets.Recurrent(nets.SRN(3, 5), 0), "outputs=0"),
        (lambda: net("srn")(torch.zeros(4, 3)), "(N, T, 3) with T >= 1, not (4, 3)"),
        (lambda: net("srn")(torch.zeros(4, 0, 3)), "not (4, 0, 3)"),
        (lambda: net("srn")(torch.zeros(4, 7, 2)), "not (4, 7, 2)"),
        (lambda: net("srn").steps(batch()[0], truncate=0), "truncate=0"),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        assert text.lower() in str(caught.value).lower()


def test_a_cell_of_ones_own_is_unrolled() -> None:
    class Linear(Cell):
        gates = 1

        def __init__(self) -> None:
            super().__init__()
            self.input, self.recurrent = nn.Linear(INPUTS, HIDDEN), nn.Linear(HIDDEN, HIDDEN)

        def start(self, like: Tensor) -> Any:
            return (like.new_zeros(len(like), HIDDEN),)

        def forward(self, drive: Tensor, state: Any) -> Any:
            arrived = self.recurrent(state[0])
            return nets.recurrent.Step((drive + arrived,), arrived)

    model = nets.Recurrent(Linear(), OUTPUTS).double()
    assert model(batch()[0]).shape == (N, OUTPUTS)
