"""Entries in the form of RobustBench, and the page of flags."""

import re
from pathlib import Path

import pytest

from apical.attacks import sanity
from apical.bench.cli.parsing import UsageError
from apical.bench.cli.robustness import claimed
from apical.bench.evaluate import robustbench
from fake_robust import evaluation_rows

FLAGS = Path(__file__).parents[1] / "docs" / "robustness_flags.md"
SETTING = {"data": "digits", "eps": [0.05, 0.1, 0.2], "norm": "linf", "net": "mlp"}


def test_claimed_and_measured_values() -> None:
    rows = evaluation_rows("dfa", 0)
    worst = next(r for r in rows if r["kind"] == "worst" and r["eps"] == 0.1)
    worst |= {"accuracy": 0.43, "low": 0.36, "high": 0.5}
    gap = next(r for r in rows if r["kind"] == "gap" and r["eps"] == 0.1)
    _, entry, _ = robustbench.entries("net", SETTING, rows)
    assert entry["reported"] == f"{100 * gap['own']:.2f}" and entry["external"] == "43.00"
    assert entry["external_interval"] == ["36.00", "50.00"] and entry["eps"] == "0.1"
    assert entry["unreliable"] is True and entry["verdict"] == "masked"
    assert entry["autoattack_acc"] is None and entry["threat"] == "Linf"
    assert entry["settings"] == {"eps": [0.05, 0.1, 0.2], "norm": "linf"}
    (flag,) = entry["flags"]
    assert flag["page"].endswith("#twice-as-many-steps-change-little")
    # a claim within the interval of what was measured stands
    for claim, unreliable in ((49.9, False), (50.1, True)):
        _, entry, _ = robustbench.entries("net", SETTING, rows, {0.1: claim})
        assert (entry["reported"], entry["unreliable"]) == (f"{claim:.2f}", unreliable)
        assert entry["reported_by"] == "claim"
    for wrong, told in (({0.3: 1.0}, "radius 0.3 was not evaluated"), ({0.1: 101.0}, "accuracy")):
        with pytest.raises(ValueError, match=told):
            robustbench.entries("net", SETTING, rows, wrong)


def test_every_flag_has_a_section() -> None:
    heads = re.findall(r"^## (.*)$", FLAGS.read_text(), flags=re.M)
    names = {head[:1].lower() + head[1:] for head in heads}
    source = Path(sanity.__file__).read_text()
    checks = {sanity.DOUBLED, sanity.BLACK_BOX, sanity.TRANSFER, sanity.STRAYS}
    checks |= set(
        re.findall(r'"([a-z][a-z ]+ (?:single step|grows|radius|exact gradient))"', source)
    )
    assert names == checks and len(names) == 8


def test_claims_on_the_command_line() -> None:
    assert claimed("8/255:56.3, 0.1:40") == {8 / 255: 56.3, 0.1: 40.0}
    assert claimed("") == {}
    for text in ("8/255", "0.1:much", "0.1:1.2.3", "0.1:101"):
        with pytest.raises(UsageError, match="expected a radius and an accuracy in %"):
            claimed(text)
    with pytest.raises(UsageError, match="--claimed : expected a number or a fraction"):
        claimed(":56.3")
