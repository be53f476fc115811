"""The cost benchmark of low-dimensional feedback counts what the layers compute."""

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).resolve().parent.parent / "benchmarks"))

import low_dim_cost
from subjects import Subject
from torch import nn

from apical.rules import BP, LowDimensional


def net() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3), nn.Flatten(), nn.Linear(256, 10)
    )


def test_multiply_adds_written_out() -> None:
    subject = Subject("net", "net", (8, 3, 4, 4), False, net)
    first, second, last = 32 * 3 * 9 * 16, 64 * 32 * 9 * 4, 2560
    assert low_dim_cost.multiply_adds(subject, BP()) == first + 2 * second + 2 * last
    fixed = low_dim_cost.multiply_adds(subject, LowDimensional(4, projection="fixed"))
    messages = 4 * (64 + 32 * 9) * 4 + 4 * (10 + 256)
    # P delta of the linear layer serves its message and the gradient of its Q
    factors = 4 * 32 * 3 * 9 / 8 + 4 * 64 * 32 * 9 / 8 + 4 * 256
    assert fixed == pytest.approx(first + second + last + messages + factors)
    learned = low_dim_cost.multiply_adds(subject, LowDimensional(4))
    assert learned - fixed == pytest.approx(4 * 64 * 4 + 2 * 4 * 4 * 64 / 8 + 2 * 4 * 10)
    half = low_dim_cost.multiply_adds(subject, LowDimensional(0.5, projection="fixed"))
    assert half > low_dim_cost.multiply_adds(subject, BP())  # B is formed


@pytest.mark.slow
def test_it_measures_every_rank(tmp_path: Path) -> None:
    low_dim_cost.main(["--quick", "--net", "mlp", "--out", str(tmp_path / "cost.json")])
    (table,) = json.loads((tmp_path / "cost.json").read_text())["tables"]
    assert set(table["rules"]) == set(low_dim_cost.rules())
    assert all(row["cpu_ms"] > 0 for row in table["rules"].values())
