"""Tasks that ask at several steps: what is asked can be answered, and by nothing but the inputs."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from apical.bench.training import evaluate
from apical.data import sequences
from apical.data.sequences import NOTHING, Dictionary, DoubleCopy, PrioritySort

COUNT = 400


def draw(task: sequences.Task) -> tuple[Tensor, Tensor]:
    return task.draw(COUNT, torch.Generator().manual_seed(0))


def test_dictionary_asks_every_key_once_for_the_value_it_was_shown_with() -> None:
    task = Dictionary(12, key_bits=3, values=5)
    x, y = draw(task)
    keys, values, asked = x[:, :, :3], x[:, :, 3:8], x[:, :, 8]
    assert keys.unique().tolist() == [-1, 1]
    assert (asked[:, :6] == 0).all() and (asked[:, 6:] == 1).all()
    assert (values[:, :6].sum(2) == 1).all() and (values[:, 6:] == 0).all()
    assert (y[:, :6] == NOTHING).all()
    same = (keys[:, 6:, None] == keys[:, None, :6]).all(3)  # query by shown key
    assert (same.sum(1) == 1).all() and (same.sum(2) == 1).all()
    shown = values[:, :6].argmax(2)[:, None].expand(-1, 6, -1)
    assert torch.equal(shown[same].view(COUNT, 6), y[:, 6:])
    assert y[:, 6:].unique().tolist() == list(range(5))
    assert not (same.float().argmax(2) == torch.arange(6)).all(1).any(0)  # in an order of its own
    assert keys[:, :6].flatten(0, 1).unique(dim=0).shape[0] == 8


def test_double_copy_asks_for_all_that_was_shown_twice() -> None:
    x, y = draw(DoubleCopy(12, symbols=5))
    shown = x[:, :4, :5].argmax(2)
    assert (x[:, :4].sum(2) == 1).all()
    assert torch.equal(x[:, 4:], F.one_hot(torch.tensor(5), 6).float().expand(COUNT, 8, 6))
    assert (y[:, :4] == NOTHING).all()
    assert torch.equal(y[:, 4:8], shown) and torch.equal(y[:, 8:], shown)


def test_priority_sort_asks_by_falling_priority() -> None:
    x, y = draw(PrioritySort(10, symbols=5))
    shown, priorities = x[:, :5, :5].argmax(2), x[:, :5, 5]
    assert (priorities >= -1).all() and (priorities < 1).all() and priorities.std() > 0.5
    assert (y[:, :5] == NOTHING).all() and (x[:, 5:, :6] == 0).all() and (x[:, 5:, 6] == 1).all()
    for row in range(COUNT):
        expected = sorted(range(5), key=lambda i: -float(priorities[row, i]))
        assert y[row, 5:].tolist() == shown[row, expected].tolist()


def test_the_share_of_questions_answered() -> None:
    y = torch.tensor([[NOTHING, 1, 0], [2, NOTHING, NOTHING]])
    scores = F.one_hot(torch.tensor([[0, 1, 1], [2, 0, 0]]), 3).float()
    assert Dictionary(4).correct(scores, y).tolist() == [0.5, 1.0]


def test_the_loss_of_a_sequence_is_the_mean_over_its_questions() -> None:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    y = torch.tensor([[NOTHING, 1, 0], [2, NOTHING, NOTHING]])
    log = scores.log_softmax(2)
    expected = -(log[0, 1, 1] + log[0, 2, 0]) / 2 - log[1, 0, 2]
    loss = evaluate.LOSSES["cross_entropy"]
    torch.testing.assert_close(loss(scores, y, reduction="sum"), expected)
    torch.testing.assert_close(loss(scores, y), expected / 2)


def test_bad_values_are_told() -> None:
    for name, length, options, told in (
        ("dictionary", 5, {}, "length=5, but every pair is shown and asked for: a multiple of 2"),
        ("dictionary", 10, {"key_bits": 2}, "5 pairs, but key_bits=2 make only 4 different keys"),
        ("dictionary", 10, {"key_bits": 40}, "key_bits=40 must be at most 24"),
        ("dictionary", 4, {"values": 1}, "values=1 must be a whole number of at least 2"),
        ("dictionary", 1, {}, "length=1, but the task needs sequences of at least 2"),
        ("double_copy", 8, {}, "length=8, but what is shown is asked for twice: .* 3, as 6"),
        ("double_copy", 2, {}, "length=2, but .* a multiple of 3, as 3"),
        ("priority_sort", 8, {"symbols": 2.5}, "symbols=2.5 must be a whole number"),
        ("priority_sort", 8, {"symbol": 2}, "unknown option of task .*did you mean 'symbols'"),
    ):
        with pytest.raises(ValueError, match=told):
            sequences.build(name, length, **options)
