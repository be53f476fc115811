"""What a section on attacked retrieval concludes, in words."""

from collections.abc import Sequence

from apical.bench.report.hash_table import Line, Section
from apical.bench.report.names import display_name
from apical.bench.report.robust_stats import MASKED
from apical.bench.report.robust_words import NORMS, points, radius


def conclusion(lines: Sequence[Line]) -> str:
    """What a reader should take home, from the rules at one radius."""
    return " ".join(text for text in (_masking(lines), _worst(lines)) if text)


def measured(section: Section) -> str:
    """On what, and what the attacker may do and knows."""
    told, clean = section.described, section.evaluations[0].clean
    norm = NORMS.get(str(told.get("norm")), f"norm {told.get('norm')}")
    within = "the whole database" if clean.get("k") is None else f"the {clean['k']} nearest"
    return (
        f"mAP over {within} ({clean['database']} codes of {clean['bits']} bits, ties at their "
        f"mean) of the same {clean['queries']} queries of {told.get('data')} for every net. What "
        f"an attack may do: {norm}, in {told.get('steps')} steps; SDHA knows {told.get('known')} "
        "codes of the database."
    )


def _masking(lines: Sequence[Line]) -> str:
    masked = [line for line in lines if line.word == "masked"]
    at = f"At radius {radius(lines[0].eps)}" if lines else ""
    if masked:
        told = ", ".join(f"{display_name(line.rule)} by {points(line.gap.mean)}" for line in masked)
        return (
            f"{at} an attacker who follows a net's own gradient leaves more mAP than one who "
            f"follows the exact gradient of the same weights: {told} points."
        )
    perhaps = [display_name(line.rule) for line in lines if line.word == "undecided"]
    if perhaps:
        return (
            f"{at} own gradients leave more than {MASKED:g} points more than exact ones on average "
            f"for {', '.join(perhaps)}, but so few nets leave 0 possible."
        )
    return f"{at} no rule's own gradient leaves over {MASKED:g} points more than the exact one."


def _worst(lines: Sequence[Line]) -> str:
    judged = [line for line in lines if line.worst_minus_bp is not None]
    if not judged:
        return ""
    apart = [line for line in judged if line.told_apart]
    if not apart:
        return "In the worst case no rule is told apart from BP (paired, Holm-corrected)."
    told = ", ".join(
        f"{display_name(line.rule)} {points(line.worst_minus_bp.mean)}"
        for line in apart
        if line.worst_minus_bp is not None
    )
    return f"In the worst case, against BP (paired, Holm-corrected): {told} points."
