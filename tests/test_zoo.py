"""Verdicts against the truth, on all nets of the zoo; and the table of docs/robustness.md."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from apical.attacks import RobustReport
from zoo import ZOO, Kept, judged

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # half a minute alone

TRUTHS = {
    "honest": "honest",
    "misaligned": "gradient of a feedback rule",
    "wrong": "wrong or shattered gradient",
    "partial": "gradient of a part of the net, or wrong for some images",
    "absent": "no gradient",
    "random": "random",
    "batch": "scores depend on the batch",
    "switch": "scores depend on how a pass is made",
}
WORDS = ("faithful", "masked", "suspect", "vanishing", "random", "undecided", "refused")
ALLOWED = {
    "honest": ("faithful",),
    "misaligned": ("masked",),
    "wrong": ("masked", "suspect"),
    "partial": ("undecided",),
    "absent": ("vanishing",),
    "random": ("random", "refused"),
    "batch": ("refused",),
    "switch": ("refused",),
}
PAGE = Path(__file__).parents[1] / "docs" / "robustness.md"


def word(kept: Kept) -> str:
    found = judged(kept)
    return found.verdict if isinstance(found, RobustReport) else found


def test_the_zoo_is_large_and_its_names_are_different() -> None:
    assert len({kept.name for kept in ZOO}) == len(ZOO) >= 60
    assert {kept.truth for kept in ZOO} == TRUTHS.keys()
    assert f"| truth | nets | {' | '.join(WORDS)} |\n" in PAGE.read_text()


def parts() -> Iterator[tuple[str, list[Kept]]]:
    """Nets of one truth: few at once where one verdict alone is right, else all, to count them."""
    for truth, allowed in ALLOWED.items():
        nets = [kept for kept in ZOO if kept.truth == truth]
        size = 4 if len(allowed) == 1 else len(nets)
        yield from ((truth, nets[start : start + size]) for start in range(0, len(nets), size))


@pytest.mark.parametrize(("truth", "nets"), list(parts()))
def test_the_verdict_is_the_truth_and_stands_in_the_confusion_matrix(
    truth: str, nets: list[Kept]
) -> None:
    found = {kept.name: word(kept) for kept in nets}
    assert not {name: w for name, w in found.items() if w not in ALLOWED[truth]}
    total = sum(kept.truth == truth for kept in ZOO)
    counted = Counter(found.values()) if len(nets) == total else {ALLOWED[truth][0]: total}
    row = [str(counted.get(each, "")) for each in WORDS]
    assert f"| {TRUTHS[truth]} | {total} | {' | '.join(row)} |\n" in PAGE.read_text()
