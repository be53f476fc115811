"""The verdict on a net: one word for its own gradient, earned by evidence, and why.

A word of the audit alone (masked, vanishing, random) is the word of the report, so that one
gradient has one.

faithful: the own gradient says what the exact one says, and every check that would show a useless
    gradient was passed.
masked: attacks by the own gradient are weaker than those by the exact one, or a step along it does
    not raise the loss.
suspect: a check failed though the local gradient is right; the worst case is an upper bound only.
vanishing: the gradient is zero for many examples.
random: two answers to the same question differ.
undecided: the examples or the attacks are too few for any of these.
"""

from __future__ import annotations

from collections.abc import Sequence

from apical.attacks.audit import OPEN, Audit, Word
from apical.attacks.sanity import BLACK_BOX, DOUBLED, GAP, STRAYS, TRANSFER, Check, Gap
from apical.measure import statistics

ALPHA = 0.05
"""Level of the tests of a gap, over all radii together."""


def verdict(
    gaps: Sequence[Gap],
    checks: Sequence[Check],
    audit: Audit,
    *,
    has_feedback: bool,
    above_chance: bool,
) -> tuple[Word, tuple[str, ...]]:
    """The word and the reasons.

    Args: audit: of the own gradient. has_feedback: whether own and exact gradient are two. Without
        feedback their gap is 0 by construction, and no evidence: there, a black box or a transfer,
        and longer iteration, must have found nothing more. above_chance: of the clean accuracy.
    """
    masked = masking(gaps) if above_chance else ()
    if audit.verdict in ("random", "masked", "vanishing"):
        return audit.verdict, (*masked, *audit.reasons)
    if not above_chance:
        reason = "the clean accuracy is no better than chance, so there is nothing to attack"
        return "undecided", (reason,)
    if masked:
        return "masked", masked
    if doubts := _doubts(gaps, checks):
        bound = "the worst case is an upper bound: a better attack would find more"
        return "suspect", (*doubts, bound)
    if missing := _missing(gaps, checks, audit, has_feedback):
        return "undecided", missing
    return "faithful", _evidence(gaps, checks, audit, has_feedback)


def masking(gaps: Sequence[Gap]) -> tuple[str, ...]:
    """The radii at which the gap is above 5 points, and not by chance (Holm over radii)."""
    corrected = statistics.holm([gap.p for gap in gaps])
    return tuple(
        f"at eps {g.eps:.4g} the own gradient leaves {g.own:.1%} standing, the exact one"
        f" {g.exact:.1%} ({_points(g)})"
        for g, p in zip(gaps, corrected, strict=True)
        if g.mean > GAP and p < ALPHA
    )


def _doubts(gaps: Sequence[Gap], checks: Sequence[Check]) -> tuple[str, ...]:
    corrected = statistics.holm([gap.p for gap in gaps])
    stronger = [
        f"at eps {g.eps:.4g} the own gradient is stronger than the exact one ({_points(g)})"
        for g, p in zip(gaps, corrected, strict=True)
        if g.mean < -GAP and p < ALPHA
    ]
    failed = [c for c in checks if c.passed is False and c.name != STRAYS]
    return (*stronger, *(f"does not hold: {check.name} ({check.detail})" for check in failed))


def _missing(
    gaps: Sequence[Gap], checks: Sequence[Check], audit: Audit, has_feedback: bool
) -> tuple[str, ...]:
    """What faithful would need and is not there."""
    found = [
        f"at eps {g.eps:.4g} own minus exact robust accuracy is {_points(g)}, not inside"
        f" {100 * GAP:.0f} points: more examples decide"
        for g in gaps
        if not -GAP < g.low <= g.high < GAP
    ]
    measured = {"rising": audit.rising, "cosine": audit.cosine, "agreement": audit.agreement}
    found += [
        f"the audit could not measure {key}" for key, value in measured.items() if value is None
    ]
    if not audit.passed:
        found += audit.reasons
    passed = {check.name for check in checks if check.passed}
    if not has_feedback and not passed & {BLACK_BOX, TRANSFER}:
        found.append(
            "the model has one gradient only, and neither a black box nor a transfer was run that"
            " could contradict it"
        )
    if not has_feedback and DOUBLED not in passed:
        found.append("longer iteration was not tried")
    return tuple(found)


def _evidence(
    gaps: Sequence[Gap], checks: Sequence[Check], audit: Audit, has_feedback: bool
) -> tuple[str, ...]:
    held = sum(check.passed is True for check in checks)
    most = max(gaps, key=lambda gap: abs(gap.mean))
    first = f"own minus exact robust accuracy is at most {_points(most)}"
    if not has_feedback:
        first = (
            "the model has no feedback, its gradient is the exact one; black box or transfer, and"
            " longer iteration, found nothing more"
        )
    return (
        first,
        f"all {held} checks that were run hold",
        *(r for r in audit.reasons if r != OPEN),
    )


def _points(gap: Gap) -> str:
    return (
        f"{100 * gap.mean:.1f} points apart, interval {100 * gap.low:.1f} to {100 * gap.high:.1f}"
    )


__all__ = ["ALPHA", "Word", "masking", "verdict"]
