"""Robustness in words: numbers as text, what attacks are called, what a section concludes."""

from collections.abc import Mapping, Sequence

from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.robust_read import PublishedRobustness
from apical.bench.report.robust_section import Section
from apical.bench.report.robust_stats import Difference, Estimate, radius
from apical.bench.report.robust_table import Headline

KINDS = {
    "own": "own gradient, the papers' protocol",
    "averaged": "own gradient, averaged over redraws",
    "exact": "exact gradient of the same weights",
    "transfer": "transferred from another net",
    "black box": "black box, no gradient at all",
    "noise": "random noise",
    "worst": "worst case of everything tried",
}

NORMS = {
    "linf": "every input value may change by at most the radius",
    "flips": "as many binary events as the radius says may be added or removed",
    "l2": "the change of all input values together, as a Euclidean length, is at most the radius",
}

CHECKS = {
    "iterative attacks are at least as strong as a single step": (
        "If not, the iterated attack does not follow a useful gradient or stops too early."
    ),
    "robust accuracy falls as the radius grows": (
        "More room cannot help the net; if it seems to, the attack is what fails."
    ),
    "robust accuracy falls to chance at a large radius": (
        "With enough room any image can become any other; a net that survives was not attacked."
    ),
    "twice as many steps change little": (
        "If they break more, the attack had not converged and robustness is overestimated."
    ),
    "a black box is not stronger than the exact gradient": (
        "Queries alone should not beat the gradient; if they do, the gradient hides something."
    ),
    "transferred attacks are not stronger than the exact gradient": (
        "What was made for another net should not beat an attack made for this one."
    ),
    "noise is weaker than the exact gradient": (
        "If random changes do as much, nothing was attacked."
    ),
    "no attack left its ball": "Points outside the radius would not count as attacks.",
}
"""What a flag of each check means."""

TEST = "paired, Holm-corrected"


def percent(value: float | None) -> str:
    """ "93.2"; "" for None."""
    return "" if value is None else f"{_no_minus_zero(value):.1f}"


def points(value: float | None) -> str:
    """With its sign, a real minus included; zero has none."""
    if value is None:
        return ""
    rounded = _no_minus_zero(value)
    return "0.0" if rounded == 0 else f"{rounded:+.1f}".replace("-", "\N{MINUS SIGN}")


def span(found: Estimate | Difference | None, *, sign: bool = False) -> str:
    """Its interval, "12.0 to 14.5"; "" without one."""
    if found is None or found.low is None:
        return ""
    text = points if sign else percent
    return f"{text(found.low)} to {text(found.high)}"


def place(row: PublishedRobustness) -> str:
    """Its radius, or how many pixels may change."""
    return f"{row.eps:g} px" if row.group == "pixels" else radius(row.eps)


def measured(section: Section) -> str:
    """On what, and what the attacker may do."""
    data = section.described.get("data")
    norm = NORMS.get(section.norm, f"norm {section.norm}")
    return (
        f"Measured on the same {section.images} test images{f' of {data}' if data else ''} for "
        f"every net. What an attack may do: {norm}, and stay between black (0) and white (1)."
    )


def behind(section: Section, kind: str) -> str:
    """Which attacks make a line, and which of the kind saw only what others had left."""
    rows = [r for net in section.evaluations for r in net.of_kind("attack") if r["group"] == kind]
    everywhere = sorted({row["attack"] for row in rows if row["on"] == "all"})
    later = sorted({row["attack"] for row in rows if row["on"] != "all"})
    also = f" ({', '.join(later)} saw what was left, and counts in the worst case)" if later else ""
    return f"{KINDS[kind].capitalize()}: {', '.join(everywhere)}{also}."


def conclusion(section: Section, rows: Sequence[Headline]) -> list[str]:
    """What a reader should take home, from the rows of the headline radius."""
    return [text for text in (_masking(rows), _worst(rows)) if text]


def why_this_radius(section: Section) -> str:
    if len(section.radii) == 1:
        return "It is the only one that was tried."
    judged = "backprop's nets keep" if any(map(is_baseline, section.rules)) else "the nets keep"
    return (
        f"Of the radii tried it is the one at which {judged} nearest to half of their accuracy in "
        "the worst case, where differences show best."
    )


def _masking(rows: Sequence[Headline]) -> str:
    by_word = {
        word: [row for row in rows if row.verdict.word == word]
        for word in ("masked", "vanishing", "random", "suspect", "undecided")
    }
    told = [_masked(by_word["masked"])] if by_word["masked"] else []
    useless = by_word["vanishing"] + by_word["random"]
    if useless:
        shown = (f"{display_name(row.rule)} ({row.verdict.word})" for row in useless)
        told.append(f"The own gradient is of no use to an attacker: {', '.join(shown)}.")
    if by_word["suspect"]:
        told.append(
            f"Attacks by gradient are suspect, and the worst case is an upper bound only: "
            f"{names(by_word['suspect'])}."
        )
    if by_word["undecided"]:
        told.append(f"Not decided by these nets: {names(by_word['undecided'])}.")
    if not told:
        return "No rule is masked: attacks by the own gradient tell how robust these nets are."
    return " ".join(told)


def _masked(rows: Sequence[Headline]) -> str:
    most = max(rows, key=lambda row: row.gap.mean)
    start = "is masked: attacked by its own gradient, as in earlier papers, it looks more robust"
    end = "than it is"
    if len(rows) > 1:
        start = "are masked: attacked by their own gradient, as in earlier papers, they look more"
        start, end = f"{start} robust", "than they are"
    if not most.gap.masked:
        return (
            f"{names(rows)} {start} {end}, at other radii than the {radius(most.eps)} shown here."
        )
    noise = f" ({percent(most.noise.mean)} % under mere noise)" if most.noise else ""
    return (
        f"{names(rows)} {start} {end}. At radius {radius(most.eps)}, {display_name(most.rule)} "
        f"keeps {percent(most.own.mean)} % under its own gradient{noise} and "
        f"{percent(most.exact.mean)} % under the exact gradient of the same weights."
    )


def _worst(rows: Sequence[Headline]) -> str:
    baseline = next((row for row in rows if is_baseline(row.rule)), None)
    others = [row for row in rows if not is_baseline(row.rule)]
    if baseline is None or not others:
        return ""
    apart = [row for row in others if row.told_apart]
    start = (
        f"In the worst case over everything tried, backprop keeps {percent(baseline.worst.mean)} %"
    )
    if baseline.n < 2:
        best = max(others, key=lambda row: row.worst.mean)
        return (
            f"{start}, {display_name(best.rule)} {percent(best.worst.mean)} %, the most of the "
            "other rules; one net each says nothing about the rules."
        )
    if not apart:
        return f"{start}; no rule is told apart from it ({baseline.n} seeds, {TEST})."
    told = (
        f"{display_name(row.rule)} {points(row.against_bp.mean)} points "
        f"({span(row.against_bp, sign=True)})"
        for row in apart
        if row.against_bp
    )
    return f"{start}. Told apart from it ({baseline.n} seeds, {TEST}): {'; '.join(told)}."


def names(rows: Sequence[Headline]) -> str:
    """ "FA", "FA and DFA", "FA, DFA and uSF"."""
    words = [display_name(row.rule) for row in rows]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def checked(results: Sequence[Mapping[str, object]]) -> tuple[str, bool]:
    """A check over the nets of a rule as text, and whether it is to be flagged."""
    run = [row for row in results if row.get("passed") is not None]
    failed = [row for row in run if not row["passed"]]
    if not run:
        return "not run", False
    if failed:
        return f"flagged in {len(failed)} of {len(run)}", True
    return "passed" if len(run) == 1 else f"passed, {len(run)} of {len(run)}", False


def _no_minus_zero(value: float) -> float:
    return round(value, 1) + 0.0
