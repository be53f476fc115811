"""The robustness report: the truth about feedback alignment, and what each figure means."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from apical import attacks
from apical.attacks import evaluation, sanity
from apical.attacks.ball import Ball
from apical.attacks.trials import Step, Trial, run
from apical.measure import statistics
from unusual_nets import Detached, Noisy, Quantised, Rounded, Scaled, Stepped
from victims import convolutional, correct, digits, perceptron, trained

X, Y = digits()[0][1300:1360], digits()[1][1300:1360]
QUICK = attacks.Effort(steps=5, adaptive_steps=5, queries=20, redraws=2)


@cache
def quick(rule: str) -> attacks.RobustReport:
    other = {"bp": trained("bp", steps=60, seed=1)}
    return attacks.robust_report(
        trained(rule), X, Y, eps=[0.1, 0.05], effort=QUICK, surrogates=other, rules=["frsf"]
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_feedback_alignment_looks_robust_and_is_not(seed: int) -> None:
    """The headline. Measured on 200 digits at 0.1: FA own 88 %, worst 55 %; BP 58 % and 56 %."""
    x, y = digits()[0][1300:1450], digits()[1][1300:1450]
    effort = attacks.Effort(queries=100, adaptive_steps=20)
    report = {
        rule: attacks.robust_report(
            perceptron(rule, steps=500, seed=seed), x, y, eps=[0.1], effort=effort
        )
        for rule in ("bp", "fa")
    }
    backprop, feedback = report["bp"], report["fa"]
    assert backprop.verdict == "faithful" and backprop.gaps[0].mean == 0
    assert feedback.verdict == "masked" and feedback.gaps[0].low > sanity.GAP
    assert feedback.gaps[0].own > 0.8 > backprop.gaps[0].own + 0.1
    assert feedback.worst[0].accuracy < 0.7
    assert feedback.worst[0].high < feedback.gaps[0].own
    assert feedback.worst[0].accuracy < backprop.worst[0].accuracy + 0.15
    flagged = {c.name for c in (*backprop.checks, *feedback.checks) if c.passed is False}
    assert flagged <= {"twice as many steps change little"}  # two of 150 are over its limit


def test_the_worst_case_is_below_every_attack() -> None:
    report = quick("fa")
    assert [worst.eps for worst in report.worst] == [0.05, 0.1]
    for worst in report.worst:
        trials = [t for t in report.trials if t.eps == worst.eps and t.on == "all"]
        assert len(trials) == 9
        assert worst.accuracy <= min(trial.accuracy(report.clean) for trial in trials)
        assert worst.accuracy == sum(worst.robust) / len(X)
        assert (worst.low, worst.high) == statistics.wilson(sum(worst.robust), len(X))
    small, wide = (worst.robust for worst in report.worst)
    assert all(a or not b for a, b in zip(small, wide, strict=True))


def test_what_runs() -> None:
    kinds = {(t.group, t.source, t.attack) for t in quick("brsf").trials if t.eps == 0.05}
    assert kinds == {
        ("noise", "none", "Noise uniform"),
        ("own", "own", "FGSM ce"),
        ("own", "own", "PGD-5 ce"),
        ("own", "own", "PGD-5 margin"),
        ("exact", "exact", "FGSM ce"),
        ("exact", "exact", "PGD-5 ce"),
        ("exact", "exact", "PGD-5 margin"),
        ("averaged", "own-averaged:2", "PGD-5 ce"),
        ("rule", "rule:frsf", "PGD-5 ce"),
        ("transfer", "bp", "PGD-5 ce"),
        ("exact", "exact", "PGD-10 ce"),
        ("exact", "exact", "APGD-5 ce"),
        ("exact", "exact", "APGD-5 dlr"),
        ("exact", "exact", "APGD-5 dlr-targeted"),
        ("black box", "none", "Square-20"),
    }


def test_survivors_alone_are_attacked_further() -> None:
    report = quick("fa")
    standing = [all(column) for column in zip(report.clean, strict=True)]
    for trial in sorted(report.trials, key=lambda t: (t.role == "large", t.eps)):
        if trial.role == "large":
            continue
        expected = report.clean if trial.on == "all" else tuple(standing)
        assert trial.attacked == expected
        standing = [s and not b for s, b in zip(standing, trial.broken, strict=True)]


def test_a_trial_is_the_attack_itself() -> None:
    net = trained("fa")
    trial = next(t for t in quick("fa").trials if (t.attack, t.group) == ("PGD-5 ce", "own"))
    attack = attacks.PGD(trial.eps, steps=5, stop_when_broken=True)
    right = correct(net, X, Y)
    points = attack(net, X[right], Y[right], gradient="own")
    broken = torch.zeros(len(X), dtype=torch.bool)
    broken[right] = ~correct(net, points, Y[right])
    assert trial.broken == tuple(broken.tolist())


def test_without_feedback_the_own_gradient_is_the_exact_one() -> None:
    net = convolutional()
    report = attacks.robust_report(net, X[:9], Y[:9], eps=[0.05], effort=QUICK)
    own, exact = (
        [(t.attack, t.broken) for t in report.trials if t.group == group and t.on == "all"][:3]
        for group in ("own", "exact")
    )
    assert own == exact and len(own) == 3
    assert report.gaps[0].mean == 0


def test_a_report_resumes_and_counts() -> None:
    net, seen = trained("fa"), []
    options = {"eps": [0.05], "effort": QUICK}
    first = attacks.robust_report(
        net, X, Y, **options, on_trial=lambda t, i, n: seen.append((t, i, n))
    )
    assert [i for _, i, _ in seen] == list(range(1, seen[0][2] + 1))
    calls = []
    net.register_forward_hook(lambda *_: calls.append(1))
    kept = [trial for trial, _, _ in seen]
    assert attacks.robust_report(net, X, Y, **options, finished=kept) == first
    resumed = len(calls)
    calls.clear()
    assert attacks.robust_report(net, X, Y, **options, finished=kept[:2]) == first
    assert len(calls) > resumed + 50
    changed = replace(QUICK, steps=6)
    again = attacks.robust_report(net, X, Y, eps=[0.05], effort=changed, finished=kept)
    assert any(t.attack == "PGD-6 ce" for t in again.trials)


def of_unusual(kind: type[nn.Module]) -> attacks.RobustReport:
    effort = attacks.Effort(steps=10, adaptive_steps=2, queries=80)
    return attacks.robust_report(kind().eval(), X[:40], Y[:40], eps=[0.05, 0.1], effort=effort)


@pytest.mark.parametrize("kind", [Quantised])
def test_an_honest_net_that_looks_odd_is_faithful(kind: type[nn.Module]) -> None:
    """Inputs are rounded, and differentiated as if they were not: attacks by that work."""
    report = of_unusual(kind)
    assert report.verdict == "faithful"
    assert not [check for check in report.checks if check.passed is False]
    assert report.worst[1].accuracy < report.worst[0].accuracy < 1


def test_without_a_gradient_the_black_box_tells() -> None:
    """Not masked, for own and exact agree; not faithful either, and the checks flag why."""
    for kind in (Rounded, Stepped, Detached):
        report = of_unusual(kind)
        assert report.verdict == "vanishing" and "zero for 100%" in report.reasons[0]
        assert all(gap.mean == 0 for gap in report.gaps)
        flagged = {check.name for check in report.checks if check.passed is False}
        assert "a black box is not stronger than the exact gradient" in flagged
        broken = next(t for t in report.trials if t.group == "black box" and t.eps == 0.1)
        assert report.worst[1].accuracy < report.gaps[1].exact
        assert sum(broken.broken) > 0


def test_saturated_scores_are_a_finding_and_the_margin_still_finds_the_way() -> None:
    report = of_unusual(Scaled)
    assert report.verdict == "faithful" and "gradient of the ce loss" in report.reasons[-1]
    by_loss = {t.attack: t.accuracy(report.clean) for t in report.trials if t.on == "all"}
    assert by_loss["PGD-10 margin"] < by_loss["PGD-10 ce"] - 0.1
    assert report.worst[1].accuracy <= by_loss["PGD-10 margin"]


def test_a_net_with_random_scores_is_refused_and_told_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"robust_report\(..., samples=...\)"):
        of_unusual(Noisy)


def test_rows_are_records() -> None:
    rows = quick("fa").rows()
    assert json.loads(json.dumps(rows)) == rows
    assert {row["kind"] for row in rows} == {
        "clean", "attack", "worst", "gap", "check", "audit", "verdict",
    }  # fmt: skip
    partial = [r for r in rows if r["kind"] == "attack" and r["on"] == "survivors"]
    assert partial and all("accuracy" not in row for row in partial)


def out_of_bounds(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return torch.rand(x.shape)


def test_points_outside_the_ball_are_reported_and_never_counted() -> None:
    net = trained("bp")
    cheat = lambda eps: [attacks.Plugin(out_of_bounds, "cheat", eps)]  # noqa: E731
    honest = attacks.robust_report(net, X, Y, eps=[0.05], effort=QUICK)
    report = attacks.robust_report(net, X, Y, eps=[0.05], effort=QUICK, extra=cheat)
    trial = next(t for t in report.trials if t.attack == "cheat")
    assert trial.strays > 20 and not any(trial.broken)
    assert report.worst == honest.worst
    check = next(c for c in report.checks if c.name == "no attack left its ball")
    assert check.passed is False and str(trial.strays) in check.detail


PAPER = attacks.Protocol(
    (attacks.FGSM(0.0), attacks.TPGD(0.0, steps=2), attacks.Square(0.0, queries=5)),
    pixels=(2, 4),
    pixel_attack=attacks.FewPixel(steps=2, population=40),
    pixel_images=20,
)


def test_attacks_of_an_earlier_study_run_by_both_gradients_on_all_examples() -> None:
    net = trained("fa")
    plain = attacks.robust_report(net, X, Y, eps=[0.05], effort=QUICK)
    report = attacks.robust_report(net, X, Y, eps=[0.05], effort=QUICK, protocol=PAPER)
    paper = [t for t in report.trials if t.role == "published"]
    assert [(t.attack, t.source, t.group, t.eps) for t in paper] == [
        ("FGSM ce", "own", "own", 0.05),
        ("FGSM ce", "exact", "exact", 0.05),
        ("TPGD-2 clamped", "own", "own", 0.05),
        ("TPGD-2 clamped", "exact", "exact", 0.05),
        ("Square-5", "none", "black box", 0.05),
        ("FewPixel(2)", "none", "pixels", 2.0),
        ("FewPixel(4)", "none", "pixels", 4.0),
    ]
    assert all(t.on == "all" and t.attacked == report.clean for t in paper[:5])
    assert report.gaps == plain.gaps, "these are of the same attacks as ever"
    assert report.worst[0].accuracy <= plain.worst[0].accuracy
    assert any(paper[0].broken)  # so that counting it among survivors would be seen
    found, before = (
        {c.name: c for c in r.checks}["a black box is not stronger than the exact gradient"]
        for r in (report, plain)
    )
    assert "Square-20" in found.detail and found.passed == before.passed


def test_few_pixels_are_another_threat() -> None:
    net = trained("bp")
    report = attacks.robust_report(net, X, Y, eps=[0.01], effort=QUICK, protocol=PAPER)
    for trial in (t for t in report.trials if t.group == "pixels"):
        assert trial.attacked == tuple(c and i < 20 for i, c in enumerate(report.clean))
        survived = [c and not b for c, b in zip(report.clean, trial.broken, strict=True)]
        assert trial.accuracy(report.clean) == sum(survived[:20]) / 20
        assert any(trial.broken) and trial.strays == 0
    broken = trial.broken
    assert any(b and w for b, w in zip(broken, report.worst[0].robust, strict=True))
    row = next(r for r in report.rows() if r.get("group") == "pixels")
    assert (row["eps"], row["examples"], row["role"]) == (2.0, 20, "published")


def test_a_protocol_of_linf_attacks_refuses_l2() -> None:
    with pytest.raises(ValueError, match="attacks are 'linf', not norm='l2'"):
        attacks.robust_report(
            convolutional(), X, Y, eps=[0.5], norm="l2", effort=QUICK, protocol=PAPER
        )
    with pytest.raises(ValueError, match="must be at least 1"):
        replace(PAPER, pixel_images=0)


def test_an_honest_extra_attack_counts() -> None:
    net = trained("bp")
    effort = attacks.Effort(steps=1, adaptive_steps=0, queries=0)
    more = lambda eps: [attacks.PGD(eps, steps=20, loss="margin")]  # noqa: E731
    weak = attacks.robust_report(net, X, Y, eps=[0.07], effort=effort)
    strong = attacks.robust_report(net, X, Y, eps=[0.07], effort=effort, extra=more)
    assert strong.worst[0].accuracy < weak.worst[0].accuracy


def test_batches_have_seeds_of_their_own() -> None:
    net = trained("bp")
    step = Step(attacks.Noise(0.3, seed=5), attacks.NoGradient(), "noise", 0.3)
    seen = []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    ball = Ball(0.3, "linf", -1, 2)
    wide = replace(step, attack=replace(step.attack, bounds=(-1, 2)))
    run(wide, net, X[:1].repeat(4, 1, 1, 1), Y[:1].repeat(4), torch.arange(4), ball, batch_size=2)
    noisy = [points for points in seen if len(points) == 2 and points.unique().numel() > 40]
    assert len(noisy) == 2 and not torch.equal(*noisy)


def made(group: str, eps: float, broken: Sequence[bool], **options: object) -> Trial:
    known = {"role": "usual", "on": "all", "strays": 0, "attack": "A", "source": "S"}
    everywhere = tuple(True for _ in broken)
    return Trial(
        key=repr((group, eps, options)),
        group=group,
        eps=eps,
        attacked=everywhere,
        broken=tuple(broken),
        **(known | options),
    )


def share(fraction: float, n: int = 100) -> list[bool]:
    return [i < round(fraction * n) for i in range(n)]


def sound() -> list[Trial]:
    return [
        made("noise", 0.1, share(0.1)),
        made("exact", 0.1, share(0.5), role="single step"),
        made("exact", 0.1, share(0.6)),
        made("exact", 0.1, share(0.0), role="doubled", on="survivors"),
        made("black box", 0.1, share(0.01), on="survivors"),
        made("transfer", 0.1, share(0.4)),
        made("exact", 0.5, share(1.0), role="large"),
        made("exact", 0.2, share(0.9)),
        made("exact", 0.2, share(0.8), role="single step"),
    ]


CLEAN = [True] * 100


def test_sound_evaluations_pass_every_check() -> None:
    found = sanity.checks(sound(), CLEAN, [0.1, 0.2], 10)
    assert [check.passed for check in found] == [True] * 8


def test_each_check_flags_its_own_fault() -> None:
    for place, fraction, name in (
        (1, 0.7, "iterative attacks"),
        (2, 0.92, "falls as the radius grows"),
        (6, 0.8, "falls to chance"),
        (3, 0.03, "twice as many steps"),
        (4, 0.03, "black box"),
        (5, 0.65, "transferred attacks"),
        (0, 0.65, "noise is weaker"),
    ):
        trials = sound()
        trials[place] = replace(trials[place], broken=tuple(share(fraction)))
        found = sanity.checks(trials, CLEAN, [0.1, 0.2], 10)
        failed = [check.name for check in found if check.passed is False]
        assert len(failed) == 1 and name in failed[0]


def test_checks_that_had_nothing_to_go_by_say_so() -> None:
    trials = [t for t in sound() if t.group == "exact" and t.role in ("usual", "single step")]
    found = sanity.checks(trials, CLEAN, [0.1], 10)
    assert [check.passed for check in found] == [
        True, None, None, None, None, None, None, True,
    ]  # fmt: skip


def test_what_a_small_radius_breaks_is_broken_at_a_wider_one() -> None:
    trials = [
        made("black box", 0.1, [True, False, False], on="survivors"),
        made("exact", 0.2, [False, True, False]),
        made("exact", 0.5, [True, True, True], role="large"),
    ]
    clean = (True, True, True)
    assert evaluation._worst(trials, clean, 0.1).robust == (False, True, True)
    assert evaluation._worst(trials, clean, 0.2).robust == (False, False, True)


def test_the_gap_is_paired_and_needs_both_size_and_certainty() -> None:
    def gap(own: Sequence[bool], exact: Sequence[bool]) -> sanity.Gap:
        n = len(own)
        return sanity.gap([made("own", 0.1, own), made("exact", 0.1, exact)], [True] * n, 0.1)

    found = gap(share(0.1), share(0.4))
    assert (found.own, found.exact, found.mean) == (0.9, 0.6, pytest.approx(0.3))
    # Agresti and Min: half an example more of each kind, 30.5 and 0.5 of 102
    spread = math.sqrt(31 - 30**2 / 102) / 102
    assert found.high - found.low == pytest.approx(2 * 1.95996 * spread, rel=1e-4)
    assert found.p == pytest.approx(2 * 0.5**30)
    alike = gap(share(0.2), share(0.2))
    assert alike.mean == 0 and alike.p == 1 and 0 < alike.high < 0.02  # no point even so
    assert found.masked
    assert not gap(share(0.1), share(0.14)).masked  # below five points
    assert not gap(share(0, 10), share(0.2, 10)).masked  # by chance


def test_bad_input() -> None:
    net = convolutional()
    for eps, message in [
        ([], "at least one radius"),
        ([0.1, 0.1], "each once"),
        ([0.0], "clean accuracy"),
        ([8], "did you mean 8/255"),
        ("0.1", "eps='0.1'; .*a number"),
        (None, "a number"),
        (True, "a number"),
        ([[0.1]], "a number"),
    ]:
        with pytest.raises(ValueError, match=message):
            attacks.robust_report(net, X, Y, eps=eps)
    with pytest.raises(ValueError, match="no examples"):
        attacks.robust_report(net, X[:0], Y[:0], eps=[0.1])
    with pytest.raises(ValueError, match="12 classes, the attacked one 10"):
        attacks.robust_report(
            net, X, Y, eps=[0.1], effort=QUICK, surrogates={"a": convolutional(classes=12)}
        )
    for options, message in (
        ({"steps": 0}, "steps=0 must be at least 1"),
        ({"queries": -1}, "queries=-1 must be at least 0"),
        ({"steps": "many"}, "steps='many' is not a whole number"),
    ):
        with pytest.raises(ValueError, match=f"Effort: {message}"):
            attacks.Effort(**options)  # type: ignore[arg-type]


def test_arguments_of_another_kind_are_refused_by_name() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    for name, wrong, kind in (
        ("samples", 1.5, "a whole number of at least 1"),
        ("surrogates", [net], "a mapping"),
        ("extra", "pgd", "a function"),
        ("samples", True, "a whole number of at least 1"),
        ("surrogates", {"a": None}, "a mapping"),
        ("surrogates", {1: net}, "a mapping"),
        ("protocol", "biotorch", "a Protocol: attacks.protocol"),
        ("effort", {"steps": 2}, "an attacks.Effort"),
        ("rules", "fa", "a list of names"),
        ("on_trial", 3, "a function"),
        ("seed", 10**23, "a whole number from"),
        ("seed", 1e23, "a whole number from"),
        ("bounds", None, "a pair of numbers"),
        ("bounds", (1, 0), "a pair of numbers, finite and low < high"),
        ("bounds", (0, float("inf")), "a pair of numbers"),
        ("bounds", "01", "a pair of numbers"),
        ("bounds", (0.0, 0.5, 1.0), "a pair of numbers"),
    ):
        with pytest.raises(
            ValueError, match=f"(?s)robust_report: {name}=.* (is not|must be) {kind}"
        ):
            attacks.robust_report(net, X[:4], Y[:4], eps=0.1, **{name: wrong})
    net.eval()
    right = net(X).argmax(1)  # labels of which it is right
    plain = attacks.robust_report(net, X[:4], right[:4], eps=0.1, effort=QUICK)
    for options, message in (
        (
            {"extra": lambda eps: attacks.FGSM(eps)},
            r"extra\(0.1\) returned FGSM.*list of attacks",
        ),
        ({"extra": lambda eps: None}, r"extra\(0.1\) returned None; expected a list of attacks"),
        ({"finished": plain.trials}, "finished= are trials on another number of examples"),
        ({"norm": "L3"}, "norm='L3' is not one of 'linf', 'l2', 'l1', 'flips'.*For L0, "),
    ):
        with pytest.raises(ValueError, match=message):
            attacks.robust_report(net, X[:3], right[:3], **{"eps": 0.1, "effort": QUICK} | options)


def test_numbers_of_other_libraries_are_numbers() -> None:
    net = trained()
    wanted = attacks.robust_report(net, X, Y, eps=(0.05, 0.1), effort=QUICK)
    for options in (
        {"eps": torch.tensor([0.1, 0.05], dtype=torch.float64)},
        {"eps": np.array([0.1, 0.05]), "bounds": np.array([0.0, 1.0])},
        {"eps": [0.1, 0.05], "seed": np.int64(0), "batch_size": np.int64(256), "bounds": [0, 1]},
        {"eps": (eps for eps in (0.05, 0.1)), "norm": float("inf")},
        {"eps": {0.05, 0.1}, "norm": "L_inf"},
    ):
        assert attacks.robust_report(net, X, Y, effort=QUICK, **options) == wanted


def test_probabilities_are_warned_of() -> None:
    with pytest.warns(UserWarning, match="look like probabilities"):
        attacks.robust_report(
            nn.Sequential(trained(), nn.Softmax(1)).eval(), X, Y, eps=0.1, effort=QUICK
        )
