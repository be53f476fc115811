"""Robustness in words: what attacks are called, what a section concludes, what columns mean."""

from collections.abc import Sequence

from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.sections import Line, Section
from apical.bench.report.table import percent, points, span
from apical.measure.robustness_verdict import radius

KINDS = {
    "own": "own gradient, the papers' protocol",
    "averaged": "own gradient, averaged over redraws",
    "exact": "exact gradient of the same weights",
    "transfer": "transferred from another net",
    "black box": "black box, no gradient at all",
    "noise": "random noise",
    "worst": "worst case of everything tried",
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


def behind(section: Section, kind: str) -> str:
    """Which attacks make a line, and which of the kind saw only what others had left."""
    rows = [r for rule in section.rules for r in section.of_kind(rule, "attack")]
    rows = [row for row in rows if row["group"] == kind]
    everywhere = sorted({row["attack"] for row in rows if row["on"] == "all"})
    later = sorted({row["attack"] for row in rows if row["on"] != "all"})
    also = f" ({', '.join(later)} saw what was left, and counts in the worst case)" if later else ""
    return f"{KINDS[kind].capitalize()}: {', '.join(everywhere)}{also}."


def conclusion(rows: Sequence[Line]) -> list[str]:
    """What a reader should take home, from the rows of the headline radius."""
    return [text for text in (_masking(rows), _worst(rows)) if text]


def _masking(rows: Sequence[Line]) -> str:
    by_word: dict[str, list[Line]] = {}
    for row in rows:
        by_word.setdefault(row.word, []).append(row)
    parts = []
    if masked := by_word.get("masked"):
        parts.append(_masked(masked))
    if useless := [*by_word.get("vanishing", ()), *by_word.get("random", ())]:
        shown = ", ".join(f"{display_name(row.rule)} ({row.word})" for row in useless)
        parts.append(f"The own gradient is of no use to an attacker: {shown}.")
    if suspect := by_word.get("suspect"):
        parts.append(
            "Attacks by gradient are suspect, and the worst case is an upper bound only: "
            f"{_names(suspect)}."
        )
    if undecided := by_word.get("undecided"):
        parts.append(f"Not decided by these nets: {_names(undecided)}.")
    if not parts:
        return "No rule is masked: attacks by the own gradient tell how robust these nets are."
    return " ".join(parts)


def _masked(rows: Sequence[Line]) -> str:
    most = max(rows, key=lambda row: row["gap"].mean)
    start = "is masked: attacked by its own gradient, as in earlier papers, it looks more robust"
    end = "than it is"
    if len(rows) > 1:
        start = "are masked: attacked by their own gradient, as in earlier papers, they look more"
        start, end = f"{start} robust", "than they are"
    if not most["gap"].masked:
        return (
            f"{_names(rows)} {start} {end}, at other radii than the {radius(most.eps)} shown here."
        )
    noise = most["noise"]
    mere = f" ({percent(noise.mean)} % under mere noise)" if noise else ""
    return (
        f"{_names(rows)} {start} {end}. At radius {radius(most.eps)}, {display_name(most.rule)} "
        f"keeps {percent(most['own'].mean)} % under its own gradient{mere} and "
        f"{percent(most['exact'].mean)} % under the exact gradient of the same weights."
    )


def _worst(rows: Sequence[Line]) -> str:
    baseline = next((row for row in rows if is_baseline(row.rule)), None)
    others = [row for row in rows if not is_baseline(row.rule)]
    if baseline is None or not others:
        return ""
    left = percent(baseline["worst"].mean)
    start = f"In the worst case over everything tried, backprop keeps {left} %"
    if baseline.n < 2:
        best = max(others, key=lambda row: row["worst"].mean)
        return (
            f"{start}, {display_name(best.rule)} {percent(best['worst'].mean)} %, the most of the "
            "other rules; one net each says nothing about the rules."
        )
    tested = f"({baseline.n} seeds, paired, Holm-corrected)"
    each = "; ".join(
        f"{display_name(row.rule)} {points(found.mean)} points ({span(found, points)})"
        for row in others
        if row.differs and (found := row["against_bp"])
    )
    if not each:
        return f"{start}; no rule differs significantly from it {tested}."
    return f"{start}. Significantly different from it {tested}: {each}."


def _names(rows: Sequence[Line]) -> str:
    """ "FA", "FA and DFA", "FA, DFA and uSF"."""
    words = [display_name(row.rule) for row in rows]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
