"""Spiking nets under attack: own gradient, its twin by backprop, a substitute, and both together.

Read from the trials of each evaluation, image by image: the hybrid attack breaks what one of its
two parts breaks.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from apical.bench.report import robust_section, robust_stats, robust_table
from apical.bench.report import robust_words as words
from apical.bench.report.escape import for_markdown
from apical.bench.report.names import display_name
from apical.bench.report.read import Study
from apical.bench.report.robust_read import Evaluation
from apical.bench.report.robust_section import Section
from apical.bench.report.robust_stats import Difference, Estimate

PARTS: Mapping[str, tuple[str, ...]] = {
    "noise": ("noise",),
    "own": ("own",),
    "twin": ("exact",),
    "substitute": ("transfer",),
    "hybrid": ("exact", "transfer"),
}
"""Which groups of attacks each column stands for."""

HEAD = (
    "rule", "radius", "n", "clean", "noise", "own gradient", "twin", "substitute",
    "**hybrid**", "own minus hybrid", "worst of all",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """A rule at one radius. Accuracies in %, the difference in points.

    Attributes: values: by column, None where that was not run. gap: own minus hybrid on the same
        nets. holds: of how many nets the hybrid leaves no more than the own gradient.
    """

    rule: str
    eps: float
    clean: Estimate
    values: Mapping[str, Estimate | None]
    gap: Difference | None
    holds: int
    worst: Estimate | None


def concerns(study: Study) -> bool:
    """Whether spiking nets were attacked."""
    return any("-spiking_" in str(each.described.get("net", "")) for each in study.robustness)


def sections(study: Study) -> list[Section]:
    """The evaluations by setting; none for studies of other nets."""
    return robust_section.sections(study.robustness) if concerns(study) else []


def lines(section: Section, eps: float) -> list[Line]:
    """The rules of a setting at one radius."""
    return [_line(section, rule, eps) for rule in section.rules]


def _line(section: Section, rule: str, eps: float) -> Line:
    nets = section.of(rule)
    shares = {name: section.shares(rule, _share(groups, eps)) for name, groups in PARTS.items()}
    own, hybrid = shares["own"], shares["hybrid"]
    clean = section.estimate(rule, lambda net: net.clean["accuracy"])
    assert clean is not None
    return Line(
        rule,
        eps,
        clean,
        {name: robust_stats.estimate(each, section.images) for name, each in shares.items()},
        robust_stats.difference(own, hybrid),
        sum(hybrid[seed] <= own[seed] for seed in nets if seed in own and seed in hybrid),
        section.estimate(rule, lambda net: net.at("worst", eps).get("accuracy")),
    )


def _share(groups: Iterable[str], eps: float) -> Callable[[Evaluation], float | None]:
    """The share of images that survive all attacks of these groups; a group may not be run."""

    def share(net: Evaluation) -> float | None:
        rows = [
            row
            for row in net.trials
            if row["group"] in groups and row["on"] == "all" and row["eps"] == eps
            and row["role"] in ("usual", "single step")
        ]  # fmt: skip
        if not rows and tuple(groups) == ("own",):  # of a plain net it is the exact one
            return _share(("exact",), eps)(net)
        if not rows:
            return None
        standing = mask(rows[0]["attacked"], rows[0]["examples"])
        for row in rows:
            standing &= ~mask(row["broken"], row["examples"])
        return standing.bit_count() / rows[0]["examples"]

    return share


def mask(digits: str, examples: int) -> int:
    """One bit an example, from the hexadecimal digits of a trial, the first example first.

    >>> bin(mask("b0", 5))
    '0b10110'
    """
    return int(digits, 16) >> (4 * len(digits) - examples) if digits else 0


def to_markdown(study: Study) -> str:
    """One line per setting and rule, at the radius where backprop's nets keep about half."""
    found = sections(study)
    head = ["setting", *HEAD]
    left = ("setting", "rule")
    rulers = "|".join("---" if name in left else "---:" for name in head)
    table = [f"| {' | '.join(head)} |", f"|{rulers}|"]
    for section in found:
        for row in lines(section, robust_table.headline_radius(section)):
            cells = [for_markdown(section.heading), for_markdown(display_name(row.rule))]
            table.append("| " + " | ".join([*cells, *cells_of(row)]) + " |")
    told = " ".join([legend(study, found), f"Regenerate: `{study.command.replace('`', '')}`."])
    return "\n".join(table) + "\n\n" + told + "\n"


def cells_of(row: Line) -> list[str]:
    """The cells behind the rule, as Markdown."""
    values = [words.percent(each.mean) if each else "" for each in row.values.values()]
    *others, hybrid = values
    return [
        words.radius(row.eps),
        str(row.clean.n),
        words.percent(row.clean.mean),
        *others,
        f"**{hybrid}**",
        apart(row.gap),
        words.percent(row.worst.mean) if row.worst else "",
    ]


def apart(gap: Difference | None) -> str:
    """A difference in points with its interval."""
    if gap is None:
        return ""
    interval = f" [{words.span(gap, sign=True)}]" if gap.low is not None else ""
    return words.points(gap.mean) + interval


def legend(study: Study, found: Iterable[Section]) -> str:
    """What the columns mean, and what was seen of the claim."""
    images = ", ".join(f"{each.images} images ({each.heading})" for each in found)
    missing = sum(each.status != "finished" for each in study.robustness)
    parts = [
        f"{missing} of {len(study.robustness)} evaluations are missing." if missing else "",
        f"Tier {study.tier}: share of test images that are right, in %, mean over n nets. Own "
        "gradient: what the net learns by. Twin: the same attacks along the exact gradient of the "
        "same weights, by backpropagation through time. Substitute: made on the net that "
        "backpropagation trained from the same start. Hybrid: per image, the worst of twin and "
        "substitute; worst of all: of everything tried. `own minus hybrid` in points, paired on "
        "the seeds, with its 95 % t interval.",
        seen(study),
        f"Measured on {for_markdown(images)}.",
        *map(for_markdown, study.notes),
    ]
    return " ".join(filter(None, parts))


def seen(study: Study) -> str:
    """Whether the hybrid attack was at least as strong as the own gradient, over all radii."""
    found: dict[str, list[int]] = {}
    for section in sections(study):
        for eps in section.radii:
            for row in lines(section, eps):
                if row.rule != "bp" and row.gap is not None:
                    counts = found.setdefault(row.rule, [0, 0])
                    counts[0] += row.holds
                    counts[1] += row.gap.n
    told = ", ".join(f"{display_name(rule)} {a} of {b}" for rule, (a, b) in found.items())
    return f"Hybrid at least as strong as own, over all nets and radii: {told}." if told else ""


def weakest(study: Study) -> list[dict[str, Any]]:
    """Nets and radii at which the own gradient was stronger than the hybrid attack."""
    found = []
    for section in sections(study):
        for eps in section.radii:
            for net in section.evaluations:
                own, hybrid = (_share(PARTS[name], eps)(net) for name in ("own", "hybrid"))
                if own is not None and hybrid is not None and own < hybrid:
                    about = {"setting": section.heading, "rule": net.rule, "seed": net.seed}
                    found.append(about | {"eps": eps, "own": own, "hybrid": hybrid})
    return found
