"""A few hundred random cases of each kind; `record.py` does thousands."""

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

import cases

COUNTS = {"options": 25, "yaml": 25, "json": 120, "data": 200, "checkpoint": 130}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: Any) -> dict[str, st.SearchStrategy[Any]]:
    place = tmp_path_factory.mktemp("fuzz")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("APICAL_CACHE", str(place / "cache"))
        return cases.strategies(place, cases.prepare(place))


@pytest.mark.parametrize("kind", cases.KINDS)
def test_no_traceback_no_hang_no_coercion(
    kind: str, prepared: dict[str, st.SearchStrategy[Any]]
) -> None:
    seen = set()

    @settings(
        max_examples=COUNTS[kind],
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(prepared[kind])
    def each(call: Any) -> None:
        log: list[str] = []
        outcome = cases.judged(call, log)
        seen.add(outcome)
        assert outcome not in cases.DEFECTS, log[-1]

    with cases.limited_memory():
        each()
    assert "refused" in seen


@pytest.mark.parametrize(
    ("call", "outcome"),
    [
        (lambda: None, "accepted"),
        (lambda: "1.5 became 1", "coercion"),
        (lambda: int("x"), "refused"),
        (lambda: {}["x"], "traceback"),
    ],
)
def test_the_judge_tells_defects_from_refusals(call: Any, outcome: str) -> None:
    assert cases.judged(call, []) == outcome


@pytest.mark.parametrize(
    ("given", "found", "equal"),
    [
        (1, 1.0, True), (True, 1, False), (1.5, 1, False), ("1", 1, False),
        ({"a": [1]}, {"a": (1,), "b": 0}, True), ({1: "x", "1": "y"}, {"1": "y"}, False),
    ],
)  # fmt: skip
def test_what_counts_as_coercion(given: Any, found: Any, equal: bool) -> None:
    assert cases.same(given, found) is equal
