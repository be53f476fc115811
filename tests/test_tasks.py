"""Tasks of sequences: what their generators promise, and where they refuse or warn."""

import pytest
import torch
from torch import Tensor

from apical.data import sequences as tasks
from apical.data.sequences import (
    Addition,
    RandomPermutation,
    TemporalOrder,
    TemporalOrder3,
    unicode_names,
)

COUNT = 500


def draw(task: tasks.Task, seed: int = 0) -> tuple[Tensor, Tensor]:
    return task.draw(COUNT, torch.Generator().manual_seed(seed))


def test_a_task_draws_what_it_says_from_its_own_generator() -> None:
    for name in [n for n, t in tasks.TASKS.items() if not t.from_files]:
        task = tasks.build(name, 30)
        assert task.name == name
        before = torch.get_rng_state()
        x, y = drawn = draw(task)
        assert torch.equal(torch.get_rng_state(), before)
        assert x.shape == (COUNT, 30, task.inputs) and x.dtype == torch.float32
        if task.loss == "cross_entropy":
            y = y if task.answers == "last" else y[y != tasks.NOTHING].view(COUNT, -1)[:, 0]
            assert y.shape == (COUNT,) and y.dtype == torch.int64
            assert y.min() >= 0 and y.max() < task.outputs
        else:
            assert y.shape == (COUNT, task.outputs) and y.dtype == torch.float32
        assert all(torch.equal(a, b) for a, b in zip(draw(task), drawn, strict=True))
        assert not torch.equal(draw(task, seed=1)[0], x)


def test_temporal_order() -> None:
    for length in (20, 37, 100):
        for kind, tenths in ((TemporalOrder, (1, 5)), (TemporalOrder3, (1, 3, 6))):
            x, y = draw(kind(length))
            assert torch.equal(x.sum(2), torch.ones(COUNT, length)) and x.unique().tolist() == [
                0,
                1,
            ]
            symbols = x.argmax(2)
            relevant = symbols < 2
            assert (relevant.sum(1) == len(tenths)).all()
            coded = torch.zeros(COUNT, dtype=torch.int64)
            for digit, tenth in enumerate(tenths):
                first, width = tenth * length // 10, length // 10
                here = slice(first, first + width)
                assert (relevant[:, here].sum(1) == 1).all()
                assert relevant[:, here].any(0).all()  # every place of the stretch occurs
                coded += (symbols[:, here] * relevant[:, here]).sum(1) << digit
            assert torch.equal(coded, y)
            assert y.unique().tolist() == list(range(2 ** len(tenths)))
            assert symbols[~relevant].unique().tolist() == [2, 3, 4, 5]


@pytest.mark.parametrize("length", [20, 33])
def test_random_permutation(length: int) -> None:
    x, y = draw(RandomPermutation(length))
    assert torch.equal(x.sum(2), torch.ones(COUNT, length)) and x.unique().tolist() == [0, 1]
    symbols = x.argmax(2)
    assert torch.equal(symbols[:, 0], y)
    assert y.unique().tolist() == [0, 1]
    assert symbols[:, 1:].unique().tolist() == list(range(2, 100))


@pytest.mark.parametrize("length", [20, 45])
def test_addition(length: int) -> None:
    task = Addition(length)
    x, y = draw(task)
    marks, numbers = x[:, :, 0], x[:, :, 1]
    tenth, half = length // 10, length // 10 + 4 * length // 10
    assert (marks[:, :tenth].sum(1) == 1).all() and (marks[:, tenth:half].sum(1) == 1).all()
    assert marks.sum() == 2 * COUNT
    assert marks[:, :half].any(0).all()
    assert numbers.min() >= 0 and numbers.max() < 1
    torch.testing.assert_close(y[:, 0], (marks * numbers).sum(1) / 2)
    off = torch.tensor([0.199, -0.199, 0.201, -0.201])[:, None]
    assert task.correct(y[:4] + off, y[:4]).tolist() == [True, True, False, False]


def test_classes_are_correct_where_their_score_is_highest() -> None:
    scores = torch.eye(4)
    assert TemporalOrder(20).correct(scores, torch.tensor([0, 1, 3, 2])).tolist() == [1, 1, 0, 0]


def test_batches_depend_on_seed_purpose_and_number_alone() -> None:
    task = RandomPermutation(20)
    stream = tasks.batches(task, 3, seed=5)
    drawn = [next(stream)[0] for _ in range(4)]
    assert torch.equal(next(tasks.batches(task, 3, seed=5, start=2))[0], drawn[2])
    others = [
        next(tasks.batches(task, 3, seed=6))[0],
        next(tasks.batches(task, 3, seed=5, purpose="test"))[0],
    ]
    every = [*drawn, *others]
    assert not any(torch.equal(a, b) for i, a in enumerate(every) for b in every[:i])


def test_a_sequence_too_short_for_its_task_is_refused() -> None:
    for name, length in (
        ("addition", 9),
        ("random_permutation", 1),
        ("temporal_order", 9),
        ("temporal_order_3bit", 0),
    ):
        with pytest.raises(ValueError, match=f"length={length}, but the task needs .* at least"):
            tasks.build(name, length)
    with pytest.raises(ValueError, match="unicode_names: length=35813 is above 35812"):
        tasks.build("unicode_names", 35813)


def test_short_sequences_are_no_evidence() -> None:
    for name in [n for n, t in tasks.TASKS.items() if t.evidence_from]:
        least = {"addition": 11, "random_permutation": 11}.get(name, 20)
        for length in (10, least - 1):
            with pytest.warns(UserWarning, match=f"the readout is trained solves .* least {least}"):
                tasks.build(name, length)
        tasks.build(name, least)


def test_a_random_net_sees_both_symbols_at_fixed_places_below_20_steps() -> None:
    with pytest.warns(UserWarning, match="readout"):
        task = TemporalOrder(19)
    relevant = draw(task)[0].argmax(2) < 2
    assert relevant.all(0).sum() == 2


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match="did you mean 'addition'"):
        tasks.build("adition", 20)


def test_no_batch_is_refused() -> None:
    with pytest.raises(ValueError, match="size=0"):
        next(tasks.batches(Addition(20), 0, seed=0))


def test_unicode_names_are_one_text_in_three_splits_that_share_no_name() -> None:
    text = unicode_names.text()
    names = [
        {"".join(unicode_names.ALPHABET[i] for i in line) for line in _lines(split)}
        for split in text
    ]
    assert [len(split) for split in names] == [10_310, 1_288, 1_288]
    assert not names[0] & names[1] and not names[0] & names[2] and not names[1] & names[2]
    assert "LATIN SMALL LETTER A WITH GRAVE" in set.union(*names)
    assert sum(map(len, text)) == 354_744  # of Unicode 3.2, the same in every Python
    task = tasks.build("unicode_names", 30)
    for purpose, split in zip(("validation", "test"), text[1:], strict=True):
        fixed = task.fixed(purpose)
        assert fixed is not None
        x, y = fixed.batch(0, fixed.count)
        assert torch.equal(x.argmax(2).flatten(), split[: fixed.count * 30])
        assert torch.equal(y.flatten(), split[1 : fixed.count * 30 + 1])


def _lines(split: Tensor) -> list[list[int]]:
    ends = (split == 0).nonzero().flatten().tolist()
    starts = [0, *(end + 1 for end in ends)]
    return [split[a:b].tolist() for a, b in zip(starts, ends, strict=False)]
