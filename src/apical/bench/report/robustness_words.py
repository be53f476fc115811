"""Robustness in words: what attacks are called, what a section concludes, what columns mean."""

from collections.abc import Mapping, Sequence

from apical.bench.report import gained, rates
from apical.bench.report.names import display_name, is_baseline
from apical.bench.report.read import Study
from apical.bench.report.results import closing
from apical.bench.report.robustness import Headline
from apical.bench.report.sections import Section, missing_sentence
from apical.bench.report.table import for_markdown, percent, points, span
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


def measured(section: Section) -> str:
    """On what, and what the attacker may do."""
    data = section.described.get("data")
    norm = NORMS.get(section.clean["norm"], f"norm {section.clean['norm']}")
    source = f" of {data}" if data else ""
    return (
        f"Measured on the same {section.clean['examples']} test images{source} for every net. "
        f"What an attack may do: {norm}, and stay between black (0) and white (1)."
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
    parts = [_masked(by_word["masked"])] if by_word["masked"] else []
    useless = by_word["vanishing"] + by_word["random"]
    if useless:
        shown = (f"{display_name(row.rule)} ({row.verdict.word})" for row in useless)
        parts.append(f"The own gradient is of no use to an attacker: {', '.join(shown)}.")
    if by_word["suspect"]:
        parts.append(
            f"Attacks by gradient are suspect, and the worst case is an upper bound only: "
            f"{names(by_word['suspect'])}."
        )
    if by_word["undecided"]:
        parts.append(f"Not decided by these nets: {names(by_word['undecided'])}.")
    if not parts:
        return "No rule is masked: attacks by the own gradient tell how robust these nets are."
    return " ".join(parts)


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
    differing = [row for row in others if row.differs]
    start = (
        f"In the worst case over everything tried, backprop keeps {percent(baseline.worst.mean)} %"
    )
    if baseline.n < 2:
        best = max(others, key=lambda row: row.worst.mean)
        return (
            f"{start}, {display_name(best.rule)} {percent(best.worst.mean)} %, the most of the "
            "other rules; one net each says nothing about the rules."
        )
    if not differing:
        return f"{start}; no rule differs significantly from it ({baseline.n} seeds, {TEST})."
    each = (
        f"{display_name(row.rule)} {points(row.against_bp.mean)} points "
        f"({span(row.against_bp, points)})"
        for row in differing
        if row.against_bp
    )
    return (
        f"{start}. Significantly different from it ({baseline.n} seeds, {TEST}): {'; '.join(each)}."
    )


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


def legend(study: Study, found: Sequence[Section]) -> list[str]:
    """What the columns mean, and what they were measured on, in documents."""
    sources = dict.fromkeys(row.source for each in found for row in each.published)
    parts = [
        f"Tier {study.tier}: share of test images that are right, in %, mean over n nets with a "
        "95 % t interval over seeds (‡ one net: over images). Own gradient: attacks along the "
        "net's own feedback, as in earlier papers; exact: the same attacks along the true "
        "gradient of the same weights; worst case: per image, over everything tried. `own minus "
        "exact` and `worst minus BP` are paired on the seeds, in points, each interval on its own. "
        "Masked: own minus exact is above 5 points with an interval above 0, Holm-corrected over "
        "radii, or a step along the "
        "own gradient does not raise the loss."
    ]
    if sources:
        parts.append(f"Published: {for_markdown('; '.join(sources))}.")
    more = [gained.legend(study, gained.gains(study)), *rates.sentences(study)]
    return [*parts, *map(for_markdown, filter(None, more)), *ending(study, found)]


def ending(study: Study, found: Sequence[Section]) -> list[str]:
    parts = missing_sentence(study.robustness)
    images = dict.fromkeys(f"{each.clean['examples']} images ({each.heading})" for each in found)
    if images:
        parts.append(f"Measured on {for_markdown(', '.join(images))}.")
    return [*parts, *map(for_markdown, study.notes), closing(study)]
