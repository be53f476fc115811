"""Packed codes, rankings and measures of retrieval against loops that need no packing."""

import itertools
import math
import sys
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor

from apical import retrieval
from apical.retrieval import ConstantBitWarning, Database, ranking

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import hamming_rank


def random_signs(count: int, bits: int, seed: int) -> Tensor:
    return torch.randn(count, bits, generator=torch.Generator().manual_seed(seed)).sign()


def random_labels(count: int, classes: int, seed: int, *, several: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if several:
        return (torch.rand(count, classes, generator=generator) < 0.3).long()
    return torch.randint(classes, (count,), generator=generator)


def alike(label: Tensor, other: Tensor) -> bool:
    if label.dim() == 0:
        return bool(label == other)
    return any(a and b for a, b in zip(label.tolist(), other.tolist(), strict=True))


def by_loops(signs: Tensor, others: Tensor) -> list[list[int]]:
    """Distances, bit by bit."""
    return [
        [sum(a != b for a, b in zip(q, o, strict=True)) for o in others.tolist()]
        for q in signs.tolist()
    ]


def brute_force_precision(hits: list[bool]) -> float:
    found, total = 0, 0.0
    for place, hit in enumerate(hits, start=1):
        if hit:
            found += 1
            total += found / place
    return total / found if found else 0.0


def brute_force_order(row: list[int]) -> list[int]:
    return [i for _, i in sorted((d, i) for i, d in enumerate(row))]


class Case:
    """Queries and a database with many ties."""

    def __init__(self, bits: int, queries: int = 13, size: int = 60, several: bool = False):
        self.q, self.d = random_signs(queries, bits, 1), random_signs(size, bits, 2)
        self.y = random_labels(queries, 4, 3, several=several)
        self.z = random_labels(size, 4, 4, several=several)
        self.queries = retrieval.pack(self.q)
        self.database = Database(retrieval.pack(self.d), self.z)
        self.loops = by_loops(self.q, self.d)


def test_distances_and_rankings_are_those_of_loops():
    for bits in (1, 5, 8, 16, 17, 33, 64, 70, 260, 300):
        case = Case(bits)
        assert torch.equal(case.queries.signs(), case.q.to(torch.int8))
        assert case.queries.packed.shape == (13, math.ceil(bits / 8))
        assert ranking.distances(case.queries, case.database.codes).tolist() == case.loops
        for k in (None, 60, 1, 17):
            order = retrieval.rank(case.queries, case.database.codes, k=k)
            assert order.dtype == torch.int64
            assert order.tolist() == [brute_force_order(row)[:k] for row in case.loops]


def test_rankings_come_in_blocks_that_fit_together(monkeypatch):
    case = Case(6)
    whole = retrieval.rank(case.queries, case.database.codes, k=20)
    precisions = retrieval.average_precision(case.queries, case.y, case.database)
    monkeypatch.setattr(ranking, "_BLOCK", 240)  # 4 queries at a time, the last alone
    parts = list(ranking.rankings(case.queries, case.database.codes, k=20))
    assert [rows.stop - rows.start for rows, _ in parts] == [4, 4, 4, 1]
    assert torch.equal(torch.cat([order for _, order in parts]), whole)
    again = retrieval.average_precision(case.queries, case.y, case.database)
    assert torch.equal(again, precisions)


def test_average_precision_is_that_of_a_loop_over_ties():
    for several in (False, True):
        for bits in (3, 16):
            for k in (None, 1, 7, 60):
                case = Case(bits, several=several)
                expected = []
                for label, row in zip(case.y, case.loops, strict=True):
                    order = brute_force_order(row)[:k]
                    expected.append(brute_force_precision([alike(label, case.z[i]) for i in order]))
                assert len(set(itertools.chain(*case.loops))) < 20, "else there are no ties"
                found = retrieval.average_precision(case.queries, case.y, case.database, k=k)
                torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64))
                mean = retrieval.mean_average_precision(case.queries, case.y, case.database, k=k)
                assert mean == pytest.approx(sum(expected) / 13)


def test_expected_precision_is_the_mean_over_all_orders_of_ties():
    for k in (1, 2, 3, 4, 5, 6, 7):
        d, z = torch.tensor([0, 1, 1, 1, 1, 2, 2]), torch.tensor([0, 1, 0, 1, 1, 0, 1])
        signs = torch.ones(7, 2)
        signs[d > 0, 0], signs[d > 1, 1] = -1, -1
        orders = [
            order
            for order in itertools.permutations(range(7))
            if [int(d[i]) for i in order] == sorted(d.tolist())
        ]
        assert len(orders) == 24 * 2
        for label in (0, 1, 2):
            expected = sum(
                brute_force_precision([int(z[i]) == label for i in order[:k]]) for order in orders
            ) / len(orders)
            query, database = retrieval.pack(torch.ones(1, 2)), Database(retrieval.pack(signs), z)
            labels = torch.tensor([label])
            found = retrieval.average_precision(query, labels, database, k=k, ties="expected")
            assert found.item() == pytest.approx(expected, abs=1e-12)


def test_expected_precision_does_not_depend_on_the_order_of_the_database():
    case, order = Case(4), torch.randperm(60, generator=torch.Generator().manual_seed(5))
    mixed = Database(retrieval.pack(case.d[order]), case.z[order])
    for k in (None, 25):
        values = {
            ties: [
                retrieval.mean_average_precision(case.queries, case.y, base, k=k, ties=ties)
                for base in (case.database, mixed)
            ]
            for ties in ("expected", "stable")
        }
        assert values["expected"][0] == pytest.approx(values["expected"][1], abs=1e-12)
        assert values["stable"][0] != pytest.approx(values["stable"][1], abs=1e-3)


def test_the_divisor_is_what_is_relevant_among_the_k():
    # ranks 1..4 hold: right, wrong, right, wrong; a fifth, right, is outside k
    signs = torch.tensor([[1.0, 1, 1], [1, 1, -1], [1, -1, -1], [-1, -1, -1], [-1, -1, -1]])
    database = Database(retrieval.pack(signs), torch.tensor([0, 1, 0, 1, 0]))
    query, label = retrieval.pack(torch.ones(1, 3)), torch.tensor([0])
    found = retrieval.average_precision(query, label, database, k=4)
    assert found.item() == pytest.approx((1 + 2 / 3) / 2)
    assert retrieval.average_precision(query, torch.tensor([2]), database).item() == 0


def test_with_target_labels_it_is_t_map_and_turned_bits_are_the_bound():
    centres = random_signs(12, 16, 0)
    z = random_labels(120, 12, 1)
    database = Database(retrieval.pack(centres[z]), z)
    y, target = torch.tensor([0, 1, 2]), torch.tensor([3, 3, 3])
    clean, hit = retrieval.pack(centres[y]), retrieval.pack(centres[target])
    assert retrieval.mean_average_precision(clean, y, database) == 1
    assert retrieval.mean_average_precision(hit, target, database) == 1
    assert retrieval.mean_average_precision(hit, y, database) < 0.6
    worst = retrieval.mean_average_precision(clean.inverted(), y, database)
    assert worst < retrieval.mean_average_precision(hit, y, database)
    assert ranking.pairwise_distances(clean, clean.inverted()).tolist() == [16] * 3


@pytest.mark.parametrize("several", [False, True])
def test_precision_and_recall_over_radii_are_those_of_loops(several):
    case = Case(6, several=several)
    precision, recall = [], []
    for radius in range(7):
        shares, parts = [], []
        for label, row in zip(case.y, case.loops, strict=True):
            right = [alike(label, other) for other in case.z]
            found = [r for r, d in zip(right, row, strict=True) if d <= radius]
            shares.append(sum(found) / len(found) if found else 0.0)
            if any(right):
                parts.append(sum(found) / sum(right))
        precision.append(sum(shares) / len(shares))
        recall.append(sum(parts) / len(parts))
    curve = retrieval.precision_recall(case.queries, case.y, case.database)
    torch.testing.assert_close(curve.precision, torch.tensor(precision, dtype=torch.float64))
    torch.testing.assert_close(curve.recall, torch.tensor(recall, dtype=torch.float64))
    within = retrieval.precision_within(case.queries, case.y, case.database)
    assert within == pytest.approx(precision[2])


def test_encoding_is_packing_what_the_model_gives():
    torch.manual_seed(0)
    model, x = torch.nn.Linear(3, 9).eval(), torch.randn(25, 3)
    codes = retrieval.encode(model, x, batch=10)
    assert torch.equal(codes.packed, retrieval.pack(model(x)).packed)
    assert torch.equal(codes[3:5].packed, codes.packed[3:5])
    with pytest.raises(ValueError, match="training mode"):
        retrieval.encode(model.train(), x)
    for batch in (0, 2.5):
        with pytest.raises(ValueError, match=f"encode: batch={batch} must be a whole number of at"):
            retrieval.encode(model.eval(), x, batch=batch)
    with pytest.raises(ValueError, match="Memory: bits=0 must be a whole number of at least 1"):
        retrieval.Memory(torch.tensor([0, 1]), 0)


def test_a_bit_that_never_changes_is_said():
    signs = random_signs(40, 6, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Database(retrieval.pack(signs), torch.zeros(40, dtype=torch.int64))
    signs[:, 4] = 1
    with pytest.warns(ConstantBitWarning, match=r"1 of 6 bits.*\(4\)"):
        Database(retrieval.pack(signs), torch.zeros(40, dtype=torch.int64))


def test_bad_input_is_named():
    case = Case(8)
    broken = torch.ones(5, 8)
    broken[3, 2] = float("nan")
    with pytest.raises(ValueError, match="1 of 5 codes hold NaN, first row 3"):
        retrieval.pack(broken)
    for k in (0, 61, 2.5):
        with pytest.raises(ValueError, match=f"k={k}: the database holds 60 codes"):
            retrieval.average_precision(case.queries, case.y, case.database, k=k)
        with pytest.raises(ValueError, match=f"k={k}"):
            retrieval.rank(case.queries, case.database.codes, k=k)
    with pytest.raises(ValueError, match="ties='random'"):
        retrieval.average_precision(case.queries, case.y, case.database, ties="random")
    with pytest.raises(ValueError, match="queries of 9 bits against a database of 8"):
        retrieval.rank(retrieval.pack(random_signs(3, 9, 0)), case.database.codes)
    with pytest.raises(ValueError, match=r"labels of type torch.int64 and shape \(12,\) for 13"):
        retrieval.average_precision(case.queries, case.y[1:], case.database)
    several = random_labels(13, 4, 0, several=True)
    with pytest.raises(ValueError, match="cannot be compared"):
        retrieval.average_precision(case.queries, several, case.database)
    for radius in (9, 1.5):
        with pytest.raises(ValueError, match=f"radius={radius} must be 0 to 8"):
            retrieval.precision_within(case.queries, case.y, case.database, radius)
    with pytest.raises(ValueError, match="use retrieval.pack"):
        retrieval.Codes(torch.ones(3, 8), 8)
    with pytest.raises(ValueError, match="no query shares a label"):
        retrieval.precision_recall(case.queries, case.y + 9, case.database)


def test_the_benchmark_runs_and_checks_that_both_rank_alike(capsys):
    hamming_rank.main(["--quick"])
    assert "times faster" in capsys.readouterr().out
    codes = retrieval.pack(random_signs(20, 8, 0))
    with pytest.raises(AssertionError):
        hamming_rank.check(random_signs(5, 8, 1), codes[:5], random_signs(20, 8, 0), codes)
