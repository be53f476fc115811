"""The verdict on a net: one word for its own gradient, and the evidence for it.

The verdicts of the audit alone (masked, vanishing, random) are those of the report, too.

faithful: attacks by the own gradient break the same examples as those by the exact one, and every
    check that would show a useless gradient was passed.
masked: attacks by the own gradient are weaker than those by the exact one, or a step along it does
    not increase the loss.
suspect: a check failed although the local gradient is correct; the worst case is only an upper
    bound.
vanishing: the gradient is zero for many examples.
random: two gradients of the same inputs differ.
undecided: there are too few examples or attacks for any of these.
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
    """The verdict and the reasons.

    Args: audit: of the own gradient. has_feedback: whether own and exact gradient differ. Without
        feedback their gap is 0 by construction, which is no evidence: then a black box or a
        transfer, and longer iteration, must have found nothing more. above_chance: whether the
        clean accuracy is better than chance.
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
    """The radii at which the gap is above 5 points and significant (Holm over radii)."""
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
    """The missing evidence for the verdict faithful."""
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
