"""The verdict: each word by its evidence, and whole reports on models that used to mislead it."""

import copy
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apical import attacks
from apical.attacks import Audit, evaluation, sanity, schedule
from apical.attacks.sanity import BLACK_BOX, DOUBLED, STRAYS, TRANSFER, Check, Gap, verdict
from apical.attacks.schedule import MOST_STEPS
from apical.attacks.sources import Exact, NoGradient
from apical.attacks.trials import Step, Trial
from victims import digits
from victims import trained as training

X, Y = digits()[0][1300:1350], digits()[1][1300:1350]
trained = cache(training)
QUICK = attacks.Effort(steps=5, adaptive_steps=0, queries=20)

SOUND = Audit(
    "undecided", ("it is right",), "own", "dlr", 100, 1.0, 0.96, 1.0, 1.0, 1.0, 1.0, 0.0, "dlr",
    0.0, 10.0, 1.0, False, True,
)  # fmt: skip
PASSED = (Check(DOUBLED, True, "0"), Check(BLACK_BOX, True, "0"), Check(TRANSFER, None, "not run"))


def gap(mean: float = 0.0, half: float = 0.02, p: float = 1.0, eps: float = 0.1) -> Gap:
    return Gap(eps, 0.5 + mean, 0.5, mean, mean - half, mean + half, p)


def word(
    gaps: object = (gap(),),
    checks: object = PASSED,
    audit: Audit = SOUND,
    has_feedback: bool = True,
    above_chance: bool = True,
) -> str:
    found, reasons = verdict(
        gaps, checks, audit, has_feedback=has_feedback, above_chance=above_chance
    )
    assert reasons and all(isinstance(reason, str) for reason in reasons)
    return found


def test_faithful_is_earned() -> None:
    assert word() == word(has_feedback=False) == "faithful"


def test_a_gap_masks_where_it_is_not_by_chance() -> None:
    assert word([gap(0.2, p=0.001)]) == "masked"
    assert word([gap(0.2, 0.3, p=0.2)]) == "undecided"
    # alone p = 0.03 is below 5 %; with two radii it has to be below 2.5 %
    assert word([gap(0.1, p=0.03)]) == "masked"
    assert word([gap(0.1, p=0.03), gap(eps=0.2)]) == "undecided"
    assert word([gap(0.04, 0.005, p=1e-6)]) == "faithful"  # certain, but small


def test_an_interval_that_is_wide_decides_nothing() -> None:
    assert word([gap(0.047, 0.7)]) == "undecided"
    assert word([gap(0.0, 0.049)]) == "faithful"
    assert word([gap(0.0, 0.051)]) == "undecided"


def test_an_own_gradient_cannot_be_the_stronger_one() -> None:
    assert word([gap(-0.5, p=1e-9)]) == "suspect"
    assert word([gap(-0.5, 0.6, p=0.3)]) == "undecided"


def test_checks_are_part_of_it() -> None:
    failed = (*PASSED, Check("noise is weaker", False, "it is not"))
    assert word(checks=failed) == "suspect"
    assert word([gap(0.2, p=0.001)], failed) == "masked"
    # A foreign attack that leaves its ball says nothing of the net.
    assert word(checks=(*PASSED, Check(STRAYS, False, "3"))) == "faithful"


def test_without_feedback_something_must_have_contradicted() -> None:
    only = (Check(DOUBLED, True, "0"), Check(BLACK_BOX, None, "not run"))
    assert word(checks=only, has_feedback=False) == "undecided"
    assert word(checks=only, has_feedback=True) == "faithful"
    assert word(checks=(*only, Check(TRANSFER, True, "0")), has_feedback=False) == "faithful"
    assert word(checks=PASSED[1:], has_feedback=False) == "undecided"


def test_a_word_of_the_audit_is_that_of_the_report() -> None:
    for of_audit in ("random", "masked", "vanishing"):
        found = replace(SOUND, verdict=of_audit, passed=False)
        assert word(audit=found) == of_audit
        failed = (*PASSED, Check("noise is weaker", False, "it is not"))
        for gaps in ([gap(0.2, p=0.001)], [gap(-0.5, p=1e-9)], [gap(0.0, 0.9)]):
            assert word(gaps, failed, audit=found, above_chance=False) == of_audit
            assert word(gaps, audit=found) == of_audit


def test_without_one_it_has_to_be_passed() -> None:
    assert word(audit=replace(SOUND, passed=False)) == "undecided"


def test_what_was_not_measured_counts_for_nothing() -> None:
    for key in ("rising", "cosine", "agreement"):
        assert word(audit=replace(SOUND, **{key: None})) == "undecided"


def test_nothing_is_judged_at_chance() -> None:
    assert word(above_chance=False) == "undecided"


def test_report_and_audit_have_one_word() -> None:
    for rule in ("bp", "fa"):
        report = attacks.robust_report(trained(rule), X, Y, eps=0.1, effort=QUICK)
        rows = {row["kind"]: row for row in report.rows()}
        assert report.audit.verdict == report.verdict == rows["audit"]["verdict"]
        assert rows["verdict"]["verdict"] == report.verdict


def test_steps_are_doubled_until_that_changes_little() -> None:
    attack = attacks.PGD(0.1, steps=40)
    step = Step(attack, Exact(), "exact", 0.1, "survivors", "doubled")

    def trial(broken: int) -> Trial:
        mask = tuple(i < broken for i in range(100))
        return Trial("", "", "", "exact", 0.1, "survivors", "doubled", (True,) * 100, mask, 0)

    assert schedule.escalated(step, trial(1)) is None
    seen = []
    following: Step | None = step
    while (following := schedule.escalated(following, trial(2))) is not None:
        seen.append(following.attack.steps)
    assert seen == [80, 160, 320] and seen[-1] == MOST_STEPS * 20
    assert schedule.escalated(replace(step, role="usual"), trial(50)) is None


@pytest.mark.parametrize("finds", [True, False])
def test_the_whole_budget_is_spent_where_its_first_part_breaks_something(
    finds: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By Square and FAB, after all that follows the exact gradient."""

    tried: dict[str, list[attacks.Attack]] = {"Square": [], "FAB": []}
    real, blind = evaluation.run, attacks.Noise(0.1)

    def run(step: Step, *args: Any, **options: Any) -> Trial:
        found = real(replace(step, attack=blind, source=NoGradient()), *args, **options)
        if step.attack.name not in tried:
            return replace(found, broken=(False,) * len(X))
        tried[step.attack.name].append(step.attack)
        hit = finds and len(tried[step.attack.name]) == 1
        victim = found.attacked.index(True)
        return replace(found, broken=tuple(hit and i == victim for i in range(len(X))))

    monkeypatch.setattr(evaluation, "run", run)
    effort = attacks.Effort(boundary_steps=60, queries=3000)
    attacks.robust_report(trained("bp"), X, Y, eps=0.1, effort=effort)
    assert [a.steps for a in tried["FAB"]] == [25, 60][: 1 + finds]
    assert [a.queries for a in tried["Square"]] == [1000, 3000][: 1 + finds]


def test_a_report_doubles_steps_that_do_not_suffice() -> None:
    """A single step of L2 is far from enough."""
    effort = attacks.Effort(steps=1, adaptive_steps=0, queries=0)
    report = attacks.robust_report(trained(), X, Y, eps=0.5, norm="l2", effort=effort)
    doubled = [t.attack for t in report.trials if t.role == "doubled"]
    assert doubled[:2] == ["PGD-2 ce", "PGD-4 ce"]
    check = next(c for c in report.checks if c.name == DOUBLED)
    assert doubled[-1] in check.detail


def test_half_precision_agrees_with_single() -> None:
    for dtype in (torch.float16, torch.bfloat16):
        for norm, eps in (("Linf", 0.1), ("L2", 0.5), ("L1", 1.5)):
            single, half = (
                attacks.robust_report(
                    copy.deepcopy(trained()).to(d), X.to(d), Y, eps=eps, norm=norm, effort=QUICK
                )
                for d in (torch.float32, dtype)
            )
            assert 0.1 < single.worst[0].accuracy < 0.7
            # Digits are multiples of 1/16, which both types hold: only close images may differ.
            assert abs(half.worst[0].accuracy - single.worst[0].accuracy) <= 2 / 50
            assert not any(trial.strays for trial in half.trials)
            points = attacks.PGD(0.1, steps=2)(copy.deepcopy(trained()).to(dtype), X.to(dtype), Y)
            assert points.dtype == dtype


def test_reports_in_l1() -> None:
    """The verdicts are those of the other norms, and all checks are made."""
    effort = attacks.Effort(steps=10, adaptive_steps=20, boundary_steps=5, queries=100)
    for rule, word in (("bp", "faithful"), ("fa", "masked")):
        report = attacks.robust_report(trained(rule), X, Y, eps=(1, 2), norm=1, effort=effort)
        assert report.verdict == word and report.norm == "l1"
        assert all(check.passed for check in report.checks if check.name != TRANSFER)
        assert {t.eps for t in report.trials} == {1.0, 2.0, 32.0}  # the last: half the diameter
        assert {"APGD-20 ce", "FAB-5", "Square-100"} <= {t.attack for t in report.trials}
        assert report.worst[1].accuracy < report.worst[0].accuracy < sum(report.clean) / 50


def test_the_message_to_l0_names_what_works() -> None:
    pixels = attacks.Protocol((), pixels=(1, 3))
    report = attacks.robust_report(trained(), X, Y, eps=0.1, effort=QUICK, protocol=pixels)
    assert {t.eps for t in report.trials if t.group == "pixels"} == {1, 3}


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = trained()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x + 0.1 * torch.randn_like(x))


def test_what_the_message_to_a_random_model_advises_works() -> None:
    model = Noisy().eval()
    with pytest.raises(ValueError, match=r"robust_report\(..., samples=...\)"):
        attacks.robust_report(model, X, Y, eps=0.1, effort=QUICK)
    report = attacks.robust_report(model, X, Y, eps=0.1, effort=QUICK, samples=8)
    assert report.verdict != "random" and report.worst[0].accuracy < 0.7
    assert report == attacks.robust_report(model, X, Y, eps=0.1, effort=QUICK, samples=8)
    with pytest.raises(ValueError, match="samples=0"):
        attacks.robust_report(model, X, Y, eps=0.1, samples=0)


def test_labels_at_chance_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="no better than chance"):
        report = attacks.robust_report(trained(), X, (Y + 1) % 10, eps=0.1, effort=QUICK)
    assert report.verdict == "undecided"


def test_vectors_have_a_black_box() -> None:
    net = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), trained()).eval()
    for norm, eps in (("linf", 0.1), ("l2", 0.8), ("l1", 3.0)):
        x = X.flatten(1)
        points = attacks.Square(eps, 200, norm)(net, x, Y)
        assert not attacks.ball.Ball(eps, norm).strays(points, x).any()
        left = (net(points).argmax(1) == Y).float().mean()
        noise = (net(attacks.Noise(eps, norm)(net, x, Y)).argmax(1) == Y).float().mean()
        assert left < noise - 0.15
    report = attacks.robust_report(net, X.flatten(1), Y, eps=0.1, effort=QUICK)
    assert any(trial.group == "black box" for trial in report.trials)


def test_bad_options_of_a_report() -> None:
    for options, message in [
        ({"norm": "l0"}, r"'l1', 'flips'.*protocol=attacks.Protocol\(\(\), pixels="),
        ({"batch_size": 0}, "batch_size=0 must be a whole number"),
    ]:
        with pytest.raises(ValueError, match=message):
            attacks.robust_report(trained(), X, Y, eps=0.1, **options)


def test_what_transfers_alone_break_is_seen() -> None:
    """As many images by both, but others: the exact gradient misses what a transfer finds."""

    def trial(group: str, broken: range, **options: object) -> Trial:
        mask = tuple(i in broken for i in range(100))
        known = {"on": "all", "role": "usual"} | options
        return Trial(
            "", "A", "S", group, 0.1, attacked=(True,) * 100, broken=mask, strays=0, **known
        )

    def passed(*trials: Trial) -> bool | None:
        found = sanity.checks(trials, [True] * 100, [0.1], 10)
        return next(check.passed for check in found if check.name == TRANSFER)

    exact = [trial("exact", range(60)), trial("exact", range(50), role="single step")]
    assert passed(*exact) is None
    assert passed(*exact, trial("transfer", range(40)))
    assert not passed(*exact, trial("transfer", range(20, 70)))
    later = trial("exact", range(60, 70), on="survivors")
    assert passed(*exact, later, trial("transfer", range(20, 70)))
