"""Sanity checks of a robustness evaluation, from the literature, and the verdict on the net.

Source: Carlini et al. 2019, "On Evaluating Adversarial Robustness"; Athalye et al. 2018.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from apical.attacks.audit import OPEN, Audit, Word
from apical.attacks.trials import Group, Trial, allowance
from apical.measure import statistics

GAP = 0.05
"""Own minus exact robust accuracy above which a net is masked, if the interval is above 0."""
ALPHA = 0.05
"""Level of the tests of a gap, over all radii together."""

ITERATED = "iterative attacks are at least as strong as a single step"
FALLS = "robust accuracy falls as the radius grows"
CHANCE = "robust accuracy falls to chance at a large radius"
DOUBLED = "twice as many steps change little"
BLACK_BOX = "a black box is not stronger than the exact gradient"
TRANSFER = "transferred attacks are not stronger than the exact gradient"
NOISE = "noise is weaker than the exact gradient"
STRAYS = "no attack left its ball"
MEANINGS = {
    ITERATED: "If not, the iterated attack does not follow a useful gradient or stops too early.",
    FALLS: "More room cannot help the net; if it seems to, the attack is what fails.",
    CHANCE: (
        "With enough room any image can become any other; a net that survives was not attacked."
    ),
    DOUBLED: "If they break more, the attack had not converged and robustness is overestimated.",
    BLACK_BOX: (
        "Queries alone should not beat the gradient; if they do, the gradient hides something."
    ),
    TRANSFER: "What was made for another net should not beat an attack made for this one.",
    NOISE: "If random changes do as much, nothing was attacked.",
    STRAYS: "Points outside the radius would not count as attacks.",
}
"""What a flag of each check means."""


@dataclass(frozen=True)
class Check:
    """Whether a sanity check holds; `passed` is None if the attacks that it needs were not run."""

    name: str
    passed: bool | None
    detail: str


@dataclass(frozen=True)
class Gap:
    """Robust accuracy by the own gradient minus that by the exact one, same attacks, same examples.

    own, exact: worst case over these attacks. low, high: 95 % interval of the paired difference,
    which has a width above 0 even if no example differs. p: of the exact McNemar test.
    Source of the interval: Agresti, Min 2005, with half an example added to each kind of pair.
    """

    eps: float
    own: float
    exact: float
    mean: float
    low: float
    high: float
    p: float

    @property
    def masked(self) -> bool:
        """Whether the gap of this radius alone is large and significant."""
        return self.mean > GAP and self.low > 0


def gap(trials: Sequence[Trial], clean: Sequence[bool], eps: float) -> Gap:
    """The masking gap at one radius."""
    own, exact = (together(_full(trials, group, eps), clean) for group in ("own", "exact"))
    n = len(clean)
    only_own = sum(a and not b for a, b in zip(own, exact, strict=True))
    only_exact = sum(b and not a for a, b in zip(own, exact, strict=True))
    low, high = statistics.paired_shares(only_own, only_exact, n)
    p = statistics.mcnemar(only_own, only_exact)
    return Gap(eps, sum(own) / n, sum(exact) / n, (only_own - only_exact) / n, low, high, p)


def together(trials: Sequence[Trial], clean: Sequence[bool]) -> tuple[bool, ...]:
    """Which examples are correct and stay so under all of these attacks."""
    survived = [trial.robust(clean) for trial in trials]
    return tuple(all(column) for column in zip(clean, *survived, strict=True))


def checks(
    trials: Sequence[Trial], clean: Sequence[bool], budgets: Sequence[float], classes: int
) -> tuple[Check, ...]:
    """All checks, each over all radii."""
    n = len(clean)
    allowed = allowance(n)

    def accuracy(group: Group, eps: float, **wanted: str) -> list[float]:
        return [
            t.accuracy(clean)
            for t in _full(trials, group, eps)
            if all(getattr(t, key) == value for key, value in wanted.items())
        ]

    exact = {e: min(accuracy("exact", e, role="usual")) for e in budgets}
    ordered = [exact[e] for e in sorted(budgets)]
    last_doubled = {t.eps: t for t in trials if t.role == "doubled"}  # the most steps of a radius
    black_box = [t for t in trials if t.group == "black box" and t.on == "survivors"]
    return (
        _compared(
            ITERATED,
            [(e, exact[e], min(accuracy("exact", e, role="single step"))) for e in budgets],
            allowed,
        ),
        Check(
            FALLS,
            None
            if len(ordered) < 2
            else all(b <= a + allowed for a, b in itertools.pairwise(ordered)),
            " > ".join(f"{a:.1%}" for a in ordered) + " by the exact gradient",
        ),
        _falls_to_chance(trials, clean, classes),
        _few_more(DOUBLED, list(last_doubled.values()), n, allowed),
        _few_more(BLACK_BOX, black_box, n, allowed),
        _transferred(trials, clean, exact, allowed),
        _compared(
            NOISE, [(e, exact[e], a) for e in budgets for a in accuracy("noise", e)], allowed
        ),
        Check(
            STRAYS,
            not any(t.strays for t in trials),
            f"{sum(t.strays for t in trials)} misclassified points lay outside; they do not count",
        ),
    )


def verdict(
    gaps: Sequence[Gap],
    checks: Sequence[Check],
    audit: Audit,
    *,
    has_feedback: bool,
    above_chance: bool,
) -> tuple[Word, tuple[str, ...]]:
    """The verdict on a net, one word for its own gradient, and the evidence for it.

    The verdicts of the audit alone (masked, vanishing, random) are those of the report, too.

    faithful: attacks by the own gradient break the same examples as those by the exact one, and
        every check that would show a useless gradient was passed.
    masked: attacks by the own gradient are weaker than those by the exact one, or a step along it
        does not increase the loss.
    suspect: a check failed although the local gradient is correct; the worst case is only an upper
        bound.
    vanishing: the gradient is zero for many examples.
    random: two gradients of the same inputs differ.
    undecided: there are too few examples or attacks for any of these.

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


def _full(trials: Sequence[Trial], group: Group, eps: float) -> list[Trial]:
    return [
        t
        for t in trials
        if (t.group, t.eps, t.on) == (group, eps, "all") and t.role in ("usual", "single step")
    ]


def _compared(name: str, rows: Sequence[tuple[float, float, float]], allowed: float) -> Check:
    """Whether the first accuracy is the lower one, at every radius."""
    if not rows:
        return Check(name, None, "not run")
    eps, stronger, weaker = max(rows, key=lambda row: row[1] - row[2])
    return Check(
        name,
        stronger <= weaker + allowed,
        f"robust accuracy {stronger:.1%} against {weaker:.1%} at eps {eps:.4g}",
    )


def _transferred(
    trials: Sequence[Trial], clean: Sequence[bool], exact: Mapping[float, float], allowed: float
) -> Check:
    """Whether attacks made on other nets break no more than those by the exact gradient, and hardly
    any example that all other attacks do not break."""
    made = [t for t in trials if t.group == "transfer" and t.eps in exact]
    found = _compared(TRANSFER, [(t.eps, exact[t.eps], t.accuracy(clean)) for t in made], allowed)
    if not made or not found.passed:
        return found
    alone: dict[float, int] = {}
    for trial in made:
        others = [t for t in trials if t.eps <= trial.eps and t.group not in ("pixels", "transfer")]
        left = together([t for t in others if t.role != "large"], clean)
        more = sum(a and b for a, b in zip(left, trial.broken, strict=True))
        alone[trial.eps] = max(alone.get(trial.eps, 0), more)
    eps, more = max(alone.items(), key=lambda item: item[1])
    detail = f"they alone broke {more} of {len(clean)} at eps {eps:.4g}; {found.detail}"
    return Check(TRANSFER, more / len(clean) <= allowed, detail)


def _few_more(name: str, trials: Sequence[Trial], n: int, allowed: float) -> Check:
    """Whether attacks on the survivors break hardly any of them."""
    if not trials:
        return Check(name, None, "not run")
    worst = max(trials, key=lambda trial: sum(trial.broken))
    more = sum(worst.broken)
    detail = (
        f"{worst.attack} broke {more} of {sum(worst.attacked)} survivors at eps {worst.eps:.4g}"
    )
    return Check(name, more / n <= allowed, detail)


def _falls_to_chance(trials: Sequence[Trial], clean: Sequence[bool], classes: int) -> Check:
    found = [t for t in trials if t.role == "large"]
    if not found:
        return Check(CHANCE, None, "not run")
    accuracy, chance = found[0].accuracy(clean), 1 / classes
    return Check(
        CHANCE,
        accuracy <= chance + GAP,
        f"{accuracy:.1%} at eps {found[0].eps:.4g}; chance is {chance:.1%}",
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
        f"{100 * gap.mean:.1f} points apart, 95 % interval {100 * gap.low:.1f} to "
        f"{100 * gap.high:.1f}"
    )
