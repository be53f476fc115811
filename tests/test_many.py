"""Many nets in one train as each of them alone."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

import apical
from apical import learners, nets
from apical.learners import LRA, TPTT, Backprop, EProp, Learner, Many, ReadOut

S, N, T, INPUTS, HIDDEN, OUTPUTS = 3, 4, 6, 3, 5, 2


def net(seed: int, name: str = "srn", **options: Any) -> nets.Recurrent:
    generator = torch.Generator().manual_seed(seed)
    cell = nets.CELLS[name](INPUTS, HIDDEN)
    return nets.Recurrent(cell, OUTPUTS, generator=generator, **options).double()


def several(name: str = "srn") -> list[nets.Recurrent]:
    return [net(seed, name) for seed in range(S)]


def batches(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(100 + number)
    x = torch.randn(S, N, T, INPUTS, generator=generator, dtype=torch.float64)
    return x, torch.randint(OUTPUTS, (S, N), generator=generator)


CASES: list[tuple[Learner, str]] = [
    *((Backprop(), name) for name in nets.CELLS),
    (Backprop(clip_norm=0.1), "srn"),
    (Backprop(through="detached"), "lstm"),
    (Backprop(truncate=2), "gru"),
    (LRA("sum", limit=0.05, alpha_weights=0.1, alpha_targets=0.1), "srn"),
    (LRA("mean", inner=2, clip="none", local="squared"), "srn"),
    (EProp(), "srn"),
    (ReadOut(), "gru"),
]


def test_many_train_as_each_alone() -> None:
    for learner, name in CASES:
        for optimizer in (torch.optim.SGD, torch.optim.Adam):
            alone = several(name)
            many = Many(alone)
            steps = optimizer(many.parameters(), lr=0.05)
            single = [optimizer(model.parameters(), lr=0.05) for model in alone]
            for number in range(3):
                x, y = batches(number)
                steps.zero_grad()
                losses = many.gradients(learner, (x, y))
                steps.step()
                for s, (model, own) in enumerate(zip(alone, single, strict=True)):
                    own.zero_grad()
                    loss, _ = learner.gradients(model, (x[s], y[s]))
                    own.step()
                    assert_close(losses[s], loss)
            x, _ = batches(9)
            outputs = many(x)
            for s, model in enumerate(alone):
                copy = many.net(s)
                for key, value in model.state_dict().items():
                    # Adam divides by the root of what may be rounding alone
                    assert_close(copy.state_dict()[key], value, rtol=1e-6, atol=1e-9)
                assert_close(outputs[s], copy(x[s]))
                assert all(p.requires_grad for p in copy.parameters())


def test_gradients_add_up_and_stay_apart() -> None:
    many, (x, y) = Many(several()), batches(0)
    many.gradients(LRA("sum"), (x, y))
    once = [p.grad.clone() for p in many.parameters()]
    many.gradients(LRA("sum"), (x, y))
    for parameter, gradient in zip(many.parameters(), once, strict=True):
        assert_close(parameter.grad, 2 * gradient)
    many.zero_grad()
    other = x.clone()
    other[1] += 1
    many.gradients(LRA("sum"), (other, y))
    for parameter, gradient in zip(many.parameters(), once, strict=True):
        assert torch.equal(parameter.grad[0], gradient[0])
        assert not torch.equal(parameter.grad[1], gradient[1])


def test_the_nets_that_were_given_are_not_touched() -> None:
    alone = several()
    before = [p.clone() for model in alone for p in model.parameters()]
    many = Many(alone)
    assert len(list(many.parameters())) == len(many.names) == 5
    with torch.no_grad():
        for stack in many.parameters():
            stack.zero_()
    after = [p for model in alone for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_what_cannot_be_batched_is_refused() -> None:
    many, batch = Many(several()), batches(0)
    for make, text in (
        (lambda: many.gradients(TPTT("sum"), batch), "TPTT: it has tensors of its own"),
        (lambda: many.gradients(EProp(feedback="random"), batch), "EProp: it has tensors"),
        (lambda: Many([]), "at least one net"),
        (
            lambda: Many([nn.Linear(3, 2) for _ in range(3)]).gradients(ReadOut(), batch),
            "needs a nets.Recurrent",
        ),
        (lambda: Many([net(0), net(0, "gru")]), "alike in all but their numbers"),
        (lambda: Many([net(0), net(0, output="every")]), "alike in all but their numbers"),
        (lambda: Many([apical.convert(net(0), "fa")]), "converted layers"),
        (lambda: Many([nn.BatchNorm1d(2)]), "nets with buffers"),
        (lambda: Many([learners.attach(net(0), TPTT("sum"))]), "nets with buffers"),
    ):
        with pytest.raises(ValueError) as caught:
            make()
        assert text in str(caught.value)
