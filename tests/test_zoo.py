"""Verdicts against the truth, on all nets of the zoo; and the table of docs/robustness.md."""

from collections import Counter
from pathlib import Path

import pytest

from apical.attacks import RobustReport
from zoo import ZOO, Kept, judged

pytestmark = pytest.mark.slow

TRUTHS = {
    "honest": "honest",
    "misaligned": "gradient of a feedback rule",
    "wrong": "wrong or shattered gradient",
    "absent": "no gradient",
    "random": "random",
    "batch": "scores depend on the batch",
}
WORDS = ("faithful", "masked", "suspect", "vanishing", "random", "undecided", "refused")
ALLOWED = {
    "honest": {"faithful"},
    "misaligned": {"masked"},
    "wrong": {"masked", "suspect"},
    "absent": {"vanishing"},
    "random": {"random", "refused"},
    "batch": {"refused"},
}
PAGE = Path(__file__).parents[1] / "docs" / "robustness.md"


def word(kept: Kept) -> str:
    found = judged(kept)
    return found.verdict if isinstance(found, RobustReport) else found


def test_the_zoo_is_large_and_its_names_are_different() -> None:
    assert len({kept.name for kept in ZOO}) == len(ZOO) >= 60


def test_the_verdict_is_the_truth_and_the_page_shows_the_confusion_matrix() -> None:
    found = {kept: word(kept) for kept in ZOO}
    assert not {kept.name: w for kept, w in found.items() if w not in ALLOWED[kept.truth]}
    counted = Counter((kept.truth, each) for kept, each in found.items())
    lines = [f"| truth | nets | {' | '.join(WORDS)} |", f"|---|{'---:|' * (len(WORDS) + 1)}"]
    for truth, text in TRUTHS.items():
        row = [str(counted[truth, each] or "") for each in WORDS]
        total = sum(kept.truth == truth for kept in ZOO)
        lines.append(f"| {text} | {total} | {' | '.join(row)} |")
    assert "\n".join(lines) in PAGE.read_text()
